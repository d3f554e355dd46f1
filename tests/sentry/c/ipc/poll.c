/* poll(2), ppoll(2), select(2), pselect(2). */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static volatile int got;
static void *volatile nowhere = (void *)8;
static void caught(int signo) { (void)signo; got++; }

static long long now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static int fds[2], other[2];

static void *later(void *arg) {
    usleep(50000);
    return (void *)(long)write(*(int *)arg, "x", 1);
}

static void polls(void) {
    char c;
    struct pollfd p[4] = {{fds[0], POLLIN, 77}, {-5, POLLIN, 77}, {fds[1], POLLOUT | POLLIN, 77}, {900, POLLIN, 77}};
    CHECK(poll(p, 3, 0) == 1);
    CHECK(p[0].revents == 0 && p[1].revents == 0 && p[2].revents == POLLOUT);
    CHECK(poll(p, 4, -1) == 2 && p[3].revents == POLLNVAL);
    long long began = now();
    CHECK(poll(p, 1, 40) == 0);
    CHECK(now() - began >= 40000000);
    CHECK(poll(0, 0, 10) == 0);
    pthread_t t;
    pthread_create(&t, 0, later, &fds[1]);
    CHECK(poll(p, 2, -1) == 1 && p[0].revents == POLLIN);
    pthread_join(t, 0);
    p[0].events = POLLIN | POLLRDNORM | POLLPRI;
    CHECK(poll(p, 1, 0) == 1 && p[0].revents == (POLLIN | POLLRDNORM));
    p[0].events = 0;
    CHECK(poll(p, 1, 0) == 0);
    CHECK(read(fds[0], &c, 1) == 1);
    FAILS(poll(nowhere, 1, 0), EFAULT);
    FAILS(syscall(SYS_poll, p, 1UL << 31, 0), EINVAL);
    int file = open("poll-file", O_CREAT | O_RDWR, 0600);
    p[0] = (struct pollfd){file, POLLIN | POLLOUT, 0};
    CHECK(poll(p, 1, -1) == 1 && p[0].revents == (POLLIN | POLLOUT));
    close(file);
    unlink("poll-file");
}

static void signals(void) {
    struct sigaction action = {.sa_handler = caught, .sa_flags = SA_RESTART};
    struct pollfd p = {fds[0], POLLIN, 0};
    sigaction(SIGALRM, &action, 0);
    got = 0;
    ualarm(30000, 0);
    FAILS(poll(&p, 1, 5000), EINTR);
    CHECK(got == 1);
    ualarm(30000, 0);
    struct timeval tv = {5, 0};
    FAILS(select(0, 0, 0, 0, &tv), EINTR);
    CHECK(got == 2);
    /* A signal that is blocked, but not while ppoll waits. */
    sigset_t set, old, none;
    sigemptyset(&none);
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    sigprocmask(SIG_BLOCK, &set, &old);
    raise(SIGALRM);
    CHECK(got == 2);
    CHECK(poll(&p, 1, 0) == 0 && got == 2);
    struct timespec ts = {5, 0};
    FAILS(ppoll(&p, 1, &ts, &none), EINTR);
    CHECK(got == 3);
    raise(SIGALRM);
    FAILS(pselect(0, 0, 0, 0, &ts, &none), EINTR);
    CHECK(got == 4);
    ualarm(30000, 0);
    FAILS(ppoll(&p, 1, 0, &none), EINTR);
    CHECK(got == 5);
    sigset_t after;
    sigprocmask(SIG_BLOCK, 0, &after);
    CHECK(sigismember(&after, SIGALRM) == 1);
    /* Something ready comes first; the signal stays pending. */
    raise(SIGALRM);
    p.fd = fds[1], p.events = POLLOUT;
    CHECK(ppoll(&p, 1, 0, &none) == 1 && got == 5);
    sigprocmask(SIG_SETMASK, &old, 0);
    CHECK(got == 6);
    FAILS(syscall(SYS_ppoll, &p, 1, 0, &none, 4L), EINVAL);
    ts.tv_nsec = 1000000000;
    FAILS(ppoll(&p, 1, &ts, 0), EINVAL);
    /* A stopped and continued process goes on waiting, for the rest of the time. */
    pid_t pid = fork();
    if (pid == 0) {
        struct pollfd q = {fds[0], POLLIN, 0};
        long long began = now();
        int n = poll(&q, 1, 300);
        long long took = now() - began;
        _exit(n != 0 || took < 300000000LL || took > 3000000000LL);
    }
    usleep(50000);
    kill(pid, SIGSTOP);
    usleep(50000);
    kill(pid, SIGCONT);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static void selects(void) {
    fd_set r, w, e;
    char c;
    FD_ZERO(&r);
    FD_ZERO(&w);
    FD_ZERO(&e);
    FD_SET(fds[0], &r);
    FD_SET(other[0], &r);
    FD_SET(fds[1], &w);
    FD_SET(fds[0], &e);
    int most = other[1] + 1;
    CHECK(select(most, &r, &w, &e, 0) == 1);
    CHECK(!FD_ISSET(fds[0], &r) && !FD_ISSET(other[0], &r) && FD_ISSET(fds[1], &w) && !FD_ISSET(fds[0], &e));
    FD_SET(fds[0], &r);
    FD_SET(other[0], &r);
    pthread_t t;
    pthread_create(&t, 0, later, &other[1]);
    struct timeval tv = {5, 0};
    CHECK(select(most, &r, 0, 0, &tv) == 1 && FD_ISSET(other[0], &r) && !FD_ISSET(fds[0], &r));
    CHECK(tv.tv_sec == 4 && tv.tv_usec > 0);
    pthread_join(t, 0);
    CHECK(read(other[0], &c, 1) == 1);
    FD_SET(fds[0], &r);
    tv = (struct timeval){0, 30000};
    long long began = now();
    CHECK(select(most, &r, 0, 0, &tv) == 0 && !FD_ISSET(fds[0], &r) && !FD_ISSET(other[0], &r));
    CHECK(now() - began >= 30000000 && tv.tv_sec == 0 && tv.tv_usec == 0);
    tv = (struct timeval){0, 0};
    CHECK(select(0, 0, 0, 0, &tv) == 0);
    FAILS(select(-1, 0, 0, 0, &tv), EINVAL);
    tv.tv_sec = -1;
    FAILS(select(0, 0, 0, 0, &tv), EINVAL);
    FD_ZERO(&r);
    FD_SET(other[1] + 1, &r);
    tv = (struct timeval){0, 0};
    FAILS(select(other[1] + 2, &r, 0, 0, &tv), EBADF);
    FAILS(select(10, nowhere, 0, 0, &tv), EFAULT);
    /* A closed other end is readable, and no error. */
    int gone[2];
    NEED(pipe(gone) == 0);
    close(gone[1]);
    FD_ZERO(&r);
    FD_SET(gone[0], &r);
    e = r;
    CHECK(select(gone[0] + 1, &r, 0, &e, &tv) == 1 && FD_ISSET(gone[0], &r));
    close(gone[0]);
    struct timespec ts = {0, 20000000};
    began = now();
    CHECK(pselect(0, 0, 0, 0, &ts, 0) == 0 && now() - began >= 20000000);
}

int main(void) {
    NEED(pipe(fds) == 0 && pipe(other) == 0);
    polls();
    signals();
    selects();
    DONE();
}
