/* Waiting for signals: sigtimedwait(2), sigsuspend(2), and masks for the time of one call. */
#include "check.h"
#include <poll.h>
#include <signal.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static volatile sig_atomic_t count;
static volatile int inside;

static void handler(int signo) {
    sigset_t mask;
    (void)signo;
    count++;
    sigprocmask(SIG_SETMASK, NULL, &mask);
    inside = sigismember(&mask, SIGUSR2);
}

static void later(int signo, long us) {
    if (fork() == 0) {
        usleep((useconds_t)us);
        kill(getppid(), signo);
        _exit(0);
    }
}

int main(void) {
    sigset_t usr, empty, old, now, with_other;
    siginfo_t info;
    struct sigaction sa = {.sa_handler = handler};
    struct timespec none = {0, 0}, some = {0, 50000000}, bad = {0, 2000000000};
    sigemptyset(&empty);
    sigemptyset(&usr);
    sigaddset(&usr, SIGUSR1);
    sigemptyset(&with_other);
    sigaddset(&with_other, SIGUSR2);
    sigaction(SIGUSR1, &sa, NULL);
    sigprocmask(SIG_BLOCK, &usr, &old);

    /* Taken without the handler. */
    kill(getpid(), SIGUSR1);
    CHECK(sigwaitinfo(&usr, &info) == SIGUSR1 && info.si_code == SI_USER && info.si_pid == getpid());
    CHECK(count == 0);
    FAILS(sigtimedwait(&usr, &info, &none), EAGAIN);
    FAILS(sigtimedwait(&usr, &info, &some), EAGAIN);
    FAILS(sigtimedwait(&usr, &info, &bad), EINVAL);
    later(SIGUSR1, 50000);
    CHECK(sigtimedwait(&usr, &info, &(struct timespec){5, 0}) == SIGUSR1 && info.si_code == SI_USER);
    CHECK(count == 0 && wait(NULL) > 0);

    /* A child that ends, though SIGCHLD is ignored by default: it is blocked. */
    sigset_t chld;
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &chld, NULL);
    while (sigtimedwait(&chld, NULL, &none) > 0)
        ;
    pid_t child = fork();
    if (child == 0)
        _exit(3);
    CHECK(sigwaitinfo(&chld, &info) == SIGCHLD && info.si_pid == child && info.si_code == CLD_EXITED &&
          info.si_status == 3);
    CHECK(waitpid(child, NULL, 0) == child);
    sigprocmask(SIG_UNBLOCK, &chld, NULL);

    /* Another signal with a handler ends the wait. */
    sigaction(SIGUSR2, &sa, NULL);
    later(SIGUSR2, 50000);
    FAILS(sigwaitinfo(&usr, &info), EINTR);
    CHECK(count == 1 && wait(NULL) > 0);
    count = 0;

    /* sigsuspend: the handler runs with the new mask, and the old one is back afterwards. */
    kill(getpid(), SIGUSR1);
    FAILS(sigsuspend(&with_other), EINTR);
    CHECK(count == 1 && inside == 1);
    sigprocmask(SIG_SETMASK, NULL, &now);
    CHECK(sigismember(&now, SIGUSR1) && !sigismember(&now, SIGUSR2));
    later(SIGUSR1, 50000);
    FAILS(sigsuspend(&empty), EINTR);
    CHECK(count == 2 && inside == 0 && wait(NULL) > 0);

    /* ppoll and pselect likewise; a result that comes without a signal leaves the signal blocked. */
    int fds[2];
    CHECK(pipe(fds) == 0);
    struct pollfd p = {fds[0], POLLIN, 0};
    kill(getpid(), SIGUSR1);
    FAILS(ppoll(&p, 1, NULL, &empty), EINTR);
    CHECK(count == 3);
    later(SIGUSR1, 50000);
    FAILS(ppoll(&p, 1, &(struct timespec){5, 0}, &empty), EINTR);
    CHECK(count == 4 && wait(NULL) > 0);
    kill(getpid(), SIGUSR1);
    FAILS(pselect(0, NULL, NULL, NULL, NULL, &empty), EINTR);
    CHECK(count == 5);
    CHECK(ppoll(&p, 1, &some, &empty) == 0);
    CHECK(write(fds[1], "x", 1) == 1);
    CHECK(ppoll(&p, 1, NULL, &empty) == 1);
    sigprocmask(SIG_SETMASK, NULL, &now);
    CHECK(sigismember(&now, SIGUSR1));
    FAILS(syscall(SYS_rt_sigsuspend, &empty, 4), EINVAL);
    FAILS(syscall(SYS_rt_sigsuspend, 1, 8), EFAULT);
    FAILS(syscall(SYS_rt_sigtimedwait, &empty, NULL, NULL, 4), EINVAL);
    FAILS(syscall(SYS_rt_sigtimedwait, 1, NULL, NULL, 8), EFAULT);
    sigprocmask(SIG_SETMASK, &old, NULL);
    CHECK(count == 5);
    DONE();
}
