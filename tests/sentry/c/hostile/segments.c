/* A program points its segments into the kernel's half by itself, which no tracer can: signals still come, and calls. */
#include <immintrin.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "check.h"

static volatile int alarms;

static void alarmed(int number) {
    (void)number;
    alarms++;
}

__attribute__((target("fsgsbase"))) static void points(void) {
    _writegsbase_u64(0xffff800000001000UL);
}

int main(void) {
    /* HWCAP2_FSGSBASE: else the instruction is none. */
    if (!(getauxval(AT_HWCAP2) & 2))
        return 0;
    pid_t child = fork();
    NEED(child >= 0);
    if (child == 0) {
        struct itimerval soon = {{0, 20000}, {0, 20000}};
        signal(SIGALRM, alarmed);
        CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
        points();
        while (alarms < 3)
            points();
        for (int i = 0; i < 10; i++) {
            points();
            CHECK(getppid() > 0);
            CHECK(sbrk(4096) != (void *)-1);
        }
        _exit(check_failures != 0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    return check_failures != 0;
}
