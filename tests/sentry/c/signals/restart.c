/* Calls that a handler interrupts: made again or not, signal(7). */
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

static volatile sig_atomic_t count;
static int fds[2], feed;

static void handler(int signo) {
    (void)signo;
    count++;
    if (count == feed) /* let the reader go on */
        CHECK(write(fds[1], "x", 1) == 1);
}

static void set(int flags) {
    struct sigaction sa = {.sa_handler = handler, .sa_flags = flags};
    sigaction(SIGALRM, &sa, NULL);
    count = 0;
}

static void ticks(long first_us, long interval_us) {
    struct itimerval it = {{0, interval_us}, {0, first_us}};
    CHECK(setitimer(ITIMER_REAL, &it, NULL) == 0);
}

static double now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec / 1e9;
}

int main(void) {
    char c;
    struct timespec left, tenth = {0, 200000000}, long_time = {5, 0};
    CHECK(pipe(fds) == 0);

    set(0);
    ticks(50000, 0);
    FAILS(read(fds[0], &c, 1), EINTR);
    CHECK(count == 1);

    set(SA_RESTART);
    ticks(30000, 30000);
    feed = 3;
    CHECK(read(fds[0], &c, 1) == 1 && c == 'x');
    feed = 0;
    CHECK(count == 3);
    ticks(0, 0);

    /* Never made again: sleeping tells what is left. */
    set(SA_RESTART);
    ticks(50000, 0);
    FAILS(nanosleep(&long_time, &left), EINTR);
    CHECK(left.tv_sec == 4 && left.tv_nsec > 500000000);
    ticks(50000, 0);
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, &long_time, &left) == EINTR);
    CHECK(left.tv_sec == 4 && left.tv_nsec > 500000000);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 5;
    ticks(50000, 0);
    CHECK(clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &until, NULL) == EINTR);
    ticks(50000, 0);
    FAILS(pause(), EINTR);
    ticks(50000, 0);
    struct pollfd p = {fds[0], POLLIN, 0};
    FAILS(poll(&p, 1, 5000), EINTR);
    ticks(50000, 0);
    FAILS(select(0, NULL, NULL, NULL, &(struct timeval){5, 0}), EINTR);
    count = 0;

    /* A signal that nobody handles goes by unnoticed. */
    signal(SIGURG, SIG_DFL);
    int child = fork();
    if (child == 0) {
        usleep(50000);
        kill(getppid(), SIGURG);
        kill(getppid(), SIGWINCH);
        _exit(0);
    }
    double start = now();
    CHECK(nanosleep(&tenth, NULL) == 0);
    CHECK(now() - start >= 0.199);
    int status;
    CHECK(waitpid(child, &status, 0) == child);

    /* Waiting for children. */
    child = fork();
    if (child == 0) {
        usleep(300000);
        _exit(7);
    }
    set(0);
    ticks(50000, 0);
    FAILS(waitpid(child, &status, 0), EINTR);
    set(SA_RESTART);
    ticks(50000, 0);
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
    CHECK(count == 1);

    /* A write that was partly done returns what it did. */
    set(0);
    CHECK(fcntl(fds[1], F_SETPIPE_SZ, 4096) == 4096);
    static char much[3 * 65536];
    ticks(50000, 0);
    long done = write(fds[1], much, sizeof much);
    CHECK(done > 0 && done < (long)sizeof much);
    ticks(50000, 0);
    FAILS(write(fds[1], much, 4096), EINTR);

    FAILS(nanosleep((void *)1, NULL), EFAULT);
    FAILS(nanosleep(&(struct timespec){0, 1000000000}, NULL), EINVAL);
    FAILS(nanosleep(&(struct timespec){-1, 0}, NULL), EINVAL);
    DONE();
}
