/* epoll(7): level, edge, oneshot, nesting, closing. */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>

static void *volatile nowhere = (void *)8;
static struct epoll_event out[8];

static int add(int ep, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {events, {.u64 = data}};
    return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event);
}

static int mod(int ep, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {events, {.u64 = data}};
    return epoll_ctl(ep, EPOLL_CTL_MOD, fd, &event);
}

static void *later(void *arg) {
    usleep(50000);
    return (void *)(long)write(*(int *)arg, "x", 1);
}

static void errors(void) {
    int p[2];
    NEED(pipe(p) == 0);
    int ep = epoll_create1(EPOLL_CLOEXEC);
    NEED(ep >= 0);
    CHECK(fcntl(ep, F_GETFD) == FD_CLOEXEC);
    FAILS(epoll_create1(1), EINVAL);
    FAILS(epoll_create(0), EINVAL);
    int plain = epoll_create(1);
    CHECK(plain >= 0 && close(plain) == 0);
    FAILS(add(ep, 900, EPOLLIN, 0), EBADF);
    FAILS(add(900, p[0], EPOLLIN, 0), EBADF);
    FAILS(add(p[0], p[1], EPOLLIN, 0), EINVAL);
    FAILS(add(ep, ep, EPOLLIN, 0), EINVAL);
    CHECK(add(ep, p[0], EPOLLIN, 0) == 0);
    FAILS(add(ep, p[0], EPOLLIN, 0), EEXIST);
    FAILS(mod(ep, p[1], EPOLLIN, 0), ENOENT);
    FAILS(epoll_ctl(ep, EPOLL_CTL_DEL, p[1], 0), ENOENT);
    FAILS(epoll_ctl(ep, 9, p[0], out), EINVAL);
    FAILS(epoll_ctl(ep, EPOLL_CTL_MOD, p[0], nowhere), EFAULT);
    FAILS(epoll_wait(ep, out, 0, 0), EINVAL);
    FAILS(syscall(SYS_epoll_wait, ep, out, -1, 0), EINVAL);
    FAILS(epoll_wait(p[0], out, 1, 0), EINVAL);
    FAILS(epoll_wait(900, out, 1, 0), EBADF);
    int file = open("epoll-file", O_CREAT | O_RDWR, 0600);
    FAILS(add(ep, file, EPOLLIN, 0), EPERM);
    close(file);
    unlink("epoll-file");
    int directory = open("/", O_RDONLY);
    FAILS(add(ep, directory, EPOLLIN, 0), EPERM);
    close(directory);
    CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, p[0], 0) == 0);
    FAILS(epoll_ctl(ep, EPOLL_CTL_DEL, p[0], 0), ENOENT);
    FAILS(add(ep, p[0], EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 0), EINVAL);
    CHECK(add(ep, p[0], EPOLLIN | EPOLLEXCLUSIVE, 0) == 0);
    FAILS(mod(ep, p[0], EPOLLIN, 0), EINVAL);
    CHECK(write(p[1], "x", 1) == 1 && epoll_wait(ep, out, 8, 0) == 1);
    CHECK(lseek(ep, 3, SEEK_SET) == 0);
    FAILS(read(ep, out, 8), EINVAL);
    close(p[0]), close(p[1]), close(ep);
}

static void level(void) {
    int p[2];
    char c;
    NEED(pipe(p) == 0);
    int ep = epoll_create1(0);
    CHECK(add(ep, p[0], EPOLLIN, 0x1122334455667788) == 0);
    CHECK(epoll_wait(ep, out, 8, 0) == 0);
    pthread_t t;
    pthread_create(&t, 0, later, &p[1]);
    CHECK(epoll_wait(ep, out, 8, -1) == 1 && out[0].events == EPOLLIN && out[0].data.u64 == 0x1122334455667788);
    pthread_join(t, 0);
    CHECK(epoll_wait(ep, out, 8, 0) == 1 && epoll_wait(ep, out, 8, 0) == 1);
    CHECK(read(p[0], &c, 1) == 1 && epoll_wait(ep, out, 8, 0) == 0);
    CHECK(mod(ep, p[0], EPOLLIN | EPOLLOUT, 5) == 0);
    CHECK(epoll_wait(ep, out, 8, 20) == 0);
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    CHECK(epoll_wait(ep, out, 8, 30) == 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    CHECK((after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec >= 30000000);
    close(p[1]);
    CHECK(epoll_wait(ep, out, 8, -1) == 1 && out[0].events == EPOLLHUP && out[0].data.u64 == 5);
    CHECK(mod(ep, p[0], 0, 6) == 0);
    CHECK(epoll_wait(ep, out, 8, 0) == 1 && out[0].events == EPOLLHUP);
    /* A file that is closed everywhere is out of the set. */
    close(p[0]);
    CHECK(epoll_wait(ep, out, 8, 0) == 0);
    close(ep);
}

static void edge(void) {
    int p[2];
    char buf[10];
    NEED(pipe(p) == 0);
    int ep = epoll_create1(0);
    CHECK(add(ep, p[0], EPOLLIN | EPOLLET, 1) == 0);
    CHECK(write(p[1], "ab", 2) == 2);
    CHECK(epoll_wait(ep, out, 8, 0) == 1 && out[0].events == EPOLLIN);
    CHECK(epoll_wait(ep, out, 8, 0) == 0);
    CHECK(read(p[0], buf, 1) == 1 && epoll_wait(ep, out, 8, 0) == 0);
    CHECK(write(p[1], "c", 1) == 1 && epoll_wait(ep, out, 8, 0) == 1);
    CHECK(epoll_wait(ep, out, 8, 0) == 0);
    /* MOD looks anew. */
    CHECK(mod(ep, p[0], EPOLLIN | EPOLLET, 2) == 0);
    CHECK(epoll_wait(ep, out, 8, 0) == 1 && out[0].data.u64 == 2 && epoll_wait(ep, out, 8, 0) == 0);
    close(p[1]);
    CHECK(epoll_wait(ep, out, 8, 0) == 1 && out[0].events == (EPOLLIN | EPOLLHUP));
    CHECK(epoll_wait(ep, out, 8, 0) == 0);
    close(p[0]);
    int e = eventfd(0, EFD_NONBLOCK);
    uint64_t one = 1;
    CHECK(add(ep, e, EPOLLIN | EPOLLOUT | EPOLLET, 3) == 0);
    CHECK(epoll_wait(ep, out, 8, 0) == 1 && out[0].events == EPOLLOUT);
    CHECK(write(e, &one, 8) == 8 && epoll_wait(ep, out, 8, 0) == 1 && out[0].events == (EPOLLIN | EPOLLOUT));
    CHECK(write(e, &one, 8) == 8 && epoll_wait(ep, out, 8, 0) == 1);
    CHECK(epoll_wait(ep, out, 8, 0) == 0);
    close(e), close(ep);
}

static void oneshot(void) {
    int e = eventfd(1, EFD_NONBLOCK), ep = epoll_create1(0);
    CHECK(add(ep, e, EPOLLIN | EPOLLONESHOT, 1) == 0);
    CHECK(epoll_wait(ep, out, 8, 0) == 1 && epoll_wait(ep, out, 8, 0) == 0);
    FAILS(add(ep, e, EPOLLIN, 1), EEXIST);
    CHECK(mod(ep, e, EPOLLIN | EPOLLONESHOT, 2) == 0);
    CHECK(epoll_wait(ep, out, 8, 0) == 1 && out[0].data.u64 == 2 && epoll_wait(ep, out, 8, 0) == 0);
    close(e), close(ep);
}

static void many(void) {
    /* More ready than fit: each has its turn. */
    int ep = epoll_create1(0), fds[6], seen[6] = {0};
    for (int i = 0; i < 6; i++) {
        fds[i] = eventfd(1, 0);
        CHECK(add(ep, fds[i], EPOLLIN, i) == 0);
    }
    for (int round = 0; round < 3; round++) {
        CHECK(epoll_wait(ep, out, 2, 0) == 2);
        seen[out[0].data.u64]++;
        seen[out[1].data.u64]++;
    }
    for (int i = 0; i < 6; i++)
        CHECK(seen[i] == 1);
    CHECK(epoll_wait(ep, out, 8, 0) == 6);
    for (int i = 0; i < 6; i++)
        close(fds[i]);
    CHECK(epoll_wait(ep, out, 8, 0) == 0);
    close(ep);
}

static void duplicates(void) {
    /* The entry belongs to the open file: it outlives the number while a copy is open. */
    int p[2], ep = epoll_create1(0);
    NEED(pipe(p) == 0);
    int copy = dup(p[0]);
    CHECK(add(ep, p[0], EPOLLIN, 7) == 0 && add(ep, copy, EPOLLIN, 8) == 0);
    CHECK(write(p[1], "x", 1) == 1 && epoll_wait(ep, out, 8, 0) == 2);
    close(p[0]);
    CHECK(epoll_wait(ep, out, 8, 0) == 2);
    FAILS(epoll_ctl(ep, EPOLL_CTL_DEL, p[0], 0), EBADF);
    int other = eventfd(0, 0);
    CHECK(other == p[0]);
    CHECK(add(ep, other, EPOLLIN, 9) == 0);
    CHECK(epoll_wait(ep, out, 8, 0) == 2);
    close(copy);
    CHECK(epoll_wait(ep, out, 8, 0) == 0);
    close(other), close(p[1]), close(ep);
}

static void nested(void) {
    int inner = epoll_create1(0), outer = epoll_create1(0), e = eventfd(0, 0);
    uint64_t value = 1;
    CHECK(add(inner, e, EPOLLIN, 1) == 0 && add(outer, inner, EPOLLIN, 2) == 0);
    FAILS(add(inner, outer, EPOLLIN, 3), ELOOP);
    struct pollfd p = {outer, POLLIN, 0};
    CHECK(poll(&p, 1, 0) == 0 && epoll_wait(outer, out, 8, 0) == 0);
    CHECK(write(e, &value, 8) == 8);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLIN);
    CHECK(epoll_wait(outer, out, 8, 0) == 1 && out[0].data.u64 == 2 && out[0].events == EPOLLIN);
    CHECK(epoll_wait(inner, out, 8, 0) == 1 && out[0].data.u64 == 1);
    CHECK(read(e, &value, 8) == 8 && poll(&p, 1, 0) == 0);
    pthread_t t;
    int pipes[2];
    NEED(pipe(pipes) == 0);
    CHECK(add(inner, pipes[0], EPOLLIN, 4) == 0);
    pthread_create(&t, 0, later, &pipes[1]);
    CHECK(epoll_wait(outer, out, 8, 5000) == 1 && out[0].data.u64 == 2);
    pthread_join(t, 0);
    /* Not too deep. */
    int chain[8];
    int count = 0;
    chain[0] = epoll_create1(0);
    for (int i = 1; i < 8; i++) {
        chain[i] = epoll_create1(0);
        if (add(chain[i], chain[i - 1], EPOLLIN, 0) == 0)
            count++;
        else
            CHECK(errno == ELOOP || errno == EINVAL);
    }
    CHECK(count == 5 || count == 6); /* kernels differ by one */
    for (int i = 0; i < 8; i++)
        close(chain[i]);
    close(inner), close(outer), close(e), close(pipes[0]), close(pipes[1]);
}

static volatile int got;
static void caught(int signo) { (void)signo; got++; }

static void waits(void) {
    int ep = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec it = {{0, 0}, {0, 30000000}};
    CHECK(timerfd_settime(timer, 0, &it, 0) == 0 && add(ep, timer, EPOLLIN, 1) == 0);
    CHECK(epoll_wait(ep, out, 8, 5000) == 1);
    CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, timer, 0) == 0);
    struct sigaction action = {.sa_handler = caught, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, 0);
    ualarm(30000, 0);
    FAILS(epoll_wait(ep, out, 8, 5000), EINTR);
    CHECK(got == 1);
    sigset_t set, none;
    sigemptyset(&none);
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    sigprocmask(SIG_BLOCK, &set, 0);
    raise(SIGALRM);
    CHECK(epoll_wait(ep, out, 8, 10) == 0 && got == 1);
    FAILS(epoll_pwait(ep, out, 8, 5000, &none), EINTR);
    CHECK(got == 2);
    CHECK(epoll_pwait(ep, out, 8, 10, &none) == 0);
#ifdef SYS_epoll_pwait2
    struct timespec ts = {0, 20000000};
    CHECK(syscall(SYS_epoll_pwait2, ep, out, 8, &ts, 0, 8L) == 0);
    ts.tv_nsec = -1;
    FAILS(syscall(SYS_epoll_pwait2, ep, out, 8, &ts, 0, 8L), EINVAL);
#endif
    FAILS(syscall(SYS_epoll_pwait, ep, out, 8, 0, &none, 4L), EINVAL);
    close(timer), close(ep);
}

static void sockets(void) {
    int s[2], ep = epoll_create1(0);
    char c;
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    CHECK(add(ep, s[0], EPOLLIN | EPOLLRDHUP, 1) == 0);
    CHECK(write(s[1], "x", 1) == 1);
    CHECK(epoll_wait(ep, out, 8, 0) == 1 && out[0].events == EPOLLIN);
    CHECK(read(s[0], &c, 1) == 1);
    CHECK(shutdown(s[1], SHUT_WR) == 0);
    CHECK(epoll_wait(ep, out, 8, 0) == 1 && out[0].events == (EPOLLIN | EPOLLRDHUP));
    close(s[1]);
    CHECK(epoll_wait(ep, out, 8, 0) == 1 && out[0].events == (EPOLLIN | EPOLLRDHUP | EPOLLHUP));
    close(s[0]), close(ep);
}

int main(void) {
    errors();
    level();
    edge();
    oneshot();
    many();
    duplicates();
    nested();
    waits();
    sockets();
    DONE();
}
