/* RLIMIT_CPU, which children have too: SIGXCPU at the soft limit, SIGKILL at the hard one; getrlimit(2). */
#include "check.h"
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

static volatile sig_atomic_t told;
static void on_limit(int signo) {
    (void)signo;
    told++;
}

static int burn(int caught) {
    int status, child = fork();
    if (child == 0) {
        signal(SIGXCPU, caught ? on_limit : SIG_DFL);
        while (!caught || !told)
            for (volatile int i = 0; i < 100000; i++)
                ;
        while (caught < 2) {
            struct rusage used;
            getrusage(RUSAGE_SELF, &used);
            long ms = (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000;
            ms += (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1000;
            _exit(ms >= 300 ? 7 : 8); /* hosts count the limit by ticks, which differs from what they tell */
        }
        for (;;)
            ;
    }
    CHECK(waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

int main(void) {
    struct rlimit limit = {1, 2}, off = {RLIM_INFINITY, RLIM_INFINITY};
    int child = fork(), status;
    if (child == 0) {
        CHECK(setrlimit(RLIMIT_CPU, &limit) == 0);
        CHECK(burn(0) == -SIGXCPU);
        CHECK(burn(1) == 7);
        CHECK(burn(2) == -SIGKILL);
        _exit(check_failures);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(getrlimit(RLIMIT_CPU, &off) == 0 && off.rlim_cur == RLIM_INFINITY);
    DONE();
}
