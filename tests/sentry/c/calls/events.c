/* Calls for waiting, signals and time by their numbers, where the C library makes others. */
#include "../check.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <time.h>

#define CALL(name, ...) syscall(SYS_##name, ##__VA_ARGS__)

static void nothing(int number) { (void)number; }

static long milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void pipes_and_select(void)
{
    int ends[2];
    fd_set reading, writing;
    char byte;
    CHECK(CALL(pipe, ends) == 0);
    FAILS(CALL(pipe, (int *)8), EFAULT);
    FD_ZERO(&reading);
    FD_ZERO(&writing);
    FD_SET(ends[0], &reading);
    FD_SET(ends[1], &writing);
    struct timeval none = {0, 0}, some = {0, 30000}, wrong = {-1, 0};
    CHECK(CALL(select, ends[1] + 1, &reading, &writing, NULL, &none) == 1);
    CHECK(!FD_ISSET(ends[0], &reading) && FD_ISSET(ends[1], &writing));
    FD_SET(ends[0], &reading);
    long begin = milliseconds();
    CHECK(CALL(select, ends[0] + 1, &reading, NULL, NULL, &some) == 0 && milliseconds() - begin >= 29);
    CHECK(some.tv_sec == 0 && some.tv_usec == 0); /* what is left */
    CHECK(write(ends[1], "x", 1) == 1);
    FD_SET(ends[0], &reading);
    CHECK(CALL(select, ends[0] + 1, &reading, NULL, NULL, NULL) == 1 && FD_ISSET(ends[0], &reading));
    FAILS(CALL(select, -1, NULL, NULL, NULL, &none), EINVAL);
    FAILS(CALL(select, 1, NULL, NULL, NULL, &wrong), EINVAL);
    CHECK(read(ends[0], &byte, 1) == 1);
    close(ends[0]);
    FAILS(CALL(select, ends[0] + 1, &reading, NULL, NULL, &none), EBADF);
    close(ends[1]);
}

static void sleeping(void)
{
    struct timespec some = {0, 20000000}, left = {0, 0}, wrong = {0, 1000000000}, longer = {5, 0};
    long begin = milliseconds();
    CHECK(CALL(nanosleep, &some, NULL) == 0 && milliseconds() - begin >= 20);
    FAILS(CALL(nanosleep, &wrong, NULL), EINVAL);
    FAILS(CALL(nanosleep, (void *)8, NULL), EFAULT);
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGALRM, &action, NULL);
    ualarm(20000, 0);
    FAILS(CALL(nanosleep, &longer, &left), EINTR);
    CHECK(left.tv_sec == 4 || (left.tv_sec == 5 && left.tv_nsec == 0));
    ualarm(20000, 0);
    FAILS(CALL(pause), EINTR);
    FAILS(CALL(restart_syscall), EINTR); /* nothing is there that could go on */
    CHECK(CALL(alarm, 50) == 0 && CALL(alarm, 0) == 50);
}

static void semaphores(void)
{
    int set = CALL(semget, IPC_PRIVATE, 2, 0600);
    NEED(set >= 0);
    struct sembuf up[2] = {{0, 2, 0}, {1, 1, 0}}, down = {0, -1, IPC_NOWAIT}, bad = {5, 1, 0}, zero = {1, 0, IPC_NOWAIT};
    CHECK(CALL(semop, set, up, 2) == 0 && semctl(set, 0, GETVAL) == 2 && semctl(set, 1, GETVAL) == 1);
    CHECK(CALL(semop, set, &down, 1) == 0 && CALL(semop, set, &down, 1) == 0);
    FAILS(CALL(semop, set, &down, 1), EAGAIN);
    FAILS(CALL(semop, set, &zero, 1), EAGAIN);
    FAILS(CALL(semop, set, &bad, 1), EFBIG);
    FAILS(CALL(semop, set, up, 0), EINVAL);
    FAILS(CALL(semop, set, up, 100000), E2BIG);
    FAILS(CALL(semop, set, (void *)8, 1), EFAULT);
    CHECK(semctl(set, 0, IPC_RMID) == 0);
    FAILS(CALL(semop, set, up, 2), EINVAL);
}

static void signals(void)
{
    sigset_t set;
    struct signalfd_siginfo told;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = CALL(signalfd, -1, &set, 8);
    NEED(fd >= 0);
    CHECK(kill(getpid(), SIGUSR1) == 0 && read(fd, &told, sizeof told) == sizeof told);
    CHECK(told.ssi_signo == SIGUSR1 && told.ssi_pid == (unsigned)getpid() && told.ssi_code == SI_USER);
    siginfo_t info = {.si_code = SI_QUEUE};
    info.si_value.sival_int = 77;
    CHECK(CALL(rt_tgsigqueueinfo, getpid(), gettid(), SIGUSR1, &info) == 0);
    CHECK(read(fd, &told, sizeof told) == sizeof told && told.ssi_code == SI_QUEUE && told.ssi_int == 77);
    FAILS(CALL(rt_tgsigqueueinfo, getpid(), gettid(), 65, &info), EINVAL);
    FAILS(CALL(rt_tgsigqueueinfo, 0, gettid(), SIGUSR1, &info), EINVAL);
    FAILS(CALL(rt_tgsigqueueinfo, getpid(), gettid(), SIGUSR1, (void *)8), EFAULT);
    info.si_code = SI_USER; /* a lie, which one may tell oneself only */
    FAILS(CALL(rt_tgsigqueueinfo, getpid(), 4000000, SIGUSR1, &info), EPERM);
    info.si_code = SI_QUEUE;
    FAILS(CALL(rt_tgsigqueueinfo, 4000000, 4000000, SIGUSR1, &info), ESRCH);
    FAILS(CALL(signalfd, -1, &set, 4), EINVAL);
    FAILS(CALL(signalfd, 999, &set, 8), EBADF);
    FAILS(CALL(signalfd, 0, &set, 8), EINVAL);
    sigset_t other;
    sigfillset(&other);
    sigdelset(&other, SIGUSR2);
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR2, &action, NULL);
    sigset_t held;
    sigemptyset(&held);
    sigaddset(&held, SIGUSR2);
    sigprocmask(SIG_BLOCK, &held, NULL);
    raise(SIGUSR2);
    FAILS(CALL(rt_sigsuspend, &other, 8), EINTR);
    FAILS(CALL(rt_sigsuspend, &other, 4), EINVAL);
    close(fd);
}

static void watching(void)
{
    char text[512];
    int fd = CALL(inotify_init);
    NEED(fd >= 0);
    CHECK(fcntl(fd, F_GETFL) == O_RDONLY && fcntl(fd, F_GETFD) == 0);
    int watch = CALL(inotify_add_watch, fd, ".", 0x100);
    CHECK(watch >= 1 && close(open("watched", O_CREAT | O_WRONLY, 0600)) == 0 && read(fd, text, sizeof text) > 0);
    CHECK(CALL(inotify_rm_watch, fd, watch) == 0);
    FAILS(CALL(inotify_rm_watch, fd, watch), EINVAL);
    int set = CALL(epoll_create, 1);
    CHECK(set >= 0);
    FAILS(CALL(epoll_create, 0), EINVAL);
    close(set);
    close(fd);
    unlink("watched");
}

static void no_room(void)
{
    /* Every call that gives a descriptor says so when there is none left. */
    struct rlimit few = {3, 3};
    int ends[2];
    unsigned long mask = 1;
    close(3);
    NEED(setrlimit(RLIMIT_NOFILE, &few) == 0);
    FAILS(CALL(open, ".", O_RDONLY), EMFILE);
    FAILS(CALL(creat, "x", 0600), EMFILE);
    FAILS(CALL(dup, 0), EMFILE);
    FAILS(CALL(dup2, 0, 3), EBADF);
    FAILS(CALL(fcntl, 0, F_DUPFD, 0), EMFILE);
    FAILS(CALL(fcntl, 0, F_DUPFD, 3), EINVAL);
    FAILS(CALL(pipe, ends), EMFILE);
    FAILS(CALL(pipe2, ends, O_CLOEXEC), EMFILE);
    FAILS(CALL(socket, AF_UNIX, 1, 0), EMFILE);
    FAILS(CALL(socketpair, AF_UNIX, 1, 0, ends), EMFILE);
    FAILS(CALL(epoll_create, 1), EMFILE);
    FAILS(CALL(epoll_create1, 0), EMFILE);
    FAILS(CALL(eventfd, 0), EMFILE);
    FAILS(CALL(eventfd2, 0, 0), EMFILE);
    FAILS(CALL(inotify_init), EMFILE);
    FAILS(CALL(inotify_init1, 0), EMFILE);
    FAILS(CALL(timerfd_create, CLOCK_MONOTONIC, 0), EMFILE);
    FAILS(CALL(signalfd, -1, &mask, 8), EMFILE);
    FAILS(CALL(signalfd4, -1, &mask, 8, 0), EMFILE);
    FAILS(CALL(memfd_create, "x", 0), EMFILE);
    FAILS(CALL(pidfd_open, getpid(), 0), EMFILE);
    FAILS(CALL(mq_open, "events-none", O_RDWR | O_CREAT, 0600, NULL), EMFILE);
    FAILS(CALL(openat, AT_FDCWD, ".", O_RDONLY), EMFILE);
}

int main(void)
{
    struct timex state = {.modes = 0};
    pipes_and_select();
    sleeping();
    semaphores();
    signals();
    watching();
    CHECK(CALL(adjtimex, &state) >= 0 && state.tick > 0 && state.time.tv_sec > 1000000000);
    FAILS(CALL(adjtimex, (void *)8), EFAULT);
    CHECK(CALL(clock_adjtime, CLOCK_REALTIME, &state) >= 0);
    pid_t pid = fork();
    if (pid == 0) {
        no_room();
        exit(check_failures != 0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    DONE();
}
