/* Signals that come without an end do not keep a thread from forking. */
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "check.h"

static pthread_t first;
static volatile int over;

static void nothing(int number) {
    (void)number;
}

static void *storm(void *unused) {
    while (!over)
        pthread_kill(first, SIGUSR1);
    return unused;
}

int main(void) {
    struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    pthread_t other;
    first = pthread_self();
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    CHECK(pthread_create(&other, NULL, storm, NULL) == 0);
    for (int i = 0; i < 200; i++) {
        for (volatile int j = 0; j < 20000; j++)
            ;
        pid_t child = syscall(SYS_fork);
        if (child == 0)
            _exit(0);
        NEED(child > 0);
        while (waitpid(child, NULL, 0) < 0)
            CHECK(errno == EINTR);
    }
    over = 1;
    CHECK(pthread_join(other, NULL) == 0);
    return check_failures != 0;
}
