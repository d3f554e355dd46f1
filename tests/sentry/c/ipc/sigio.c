/* O_ASYNC, F_SETOWN and F_SETSIG of fcntl(2). */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

static volatile int plain, rich, code, fd_told;
static volatile long band;

static void on_plain(int signo) { (void)signo; plain++; }
static void on_rich(int signo, siginfo_t *info, void *context) {
    (void)context, (void)signo;
    rich++;
    code = info->si_code, band = info->si_band, fd_told = info->si_fd;
}

int main(void) {
    setpgid(0, 0); /* the group gets signals: it is to be this process only */
    struct sigaction action = {.sa_handler = on_plain};
    char c;
    int fds[2], on = 1, off = 0;
    sigaction(SIGIO, &action, 0);
    action.sa_sigaction = on_rich;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGRTMIN + 1, &action, 0);
    NEED(pipe(fds) == 0);
    CHECK(fcntl(fds[0], F_GETOWN) == 0);
    CHECK(fcntl(fds[0], F_SETFL, O_ASYNC) == 0 && fcntl(fds[0], F_GETFL) == (O_RDONLY | O_ASYNC));
    CHECK(write(fds[1], "x", 1) == 1 && plain == 0);
    CHECK(fcntl(fds[0], F_SETOWN, getpid()) == 0 && fcntl(fds[0], F_GETOWN) == getpid());
    CHECK(write(fds[1], "x", 1) == 1 && plain == 1);
    CHECK(fcntl(fds[0], F_SETSIG, SIGRTMIN + 1) == 0 && fcntl(fds[0], F_GETSIG) == SIGRTMIN + 1);
    CHECK(write(fds[1], "x", 1) == 1 && plain == 1 && rich == 1);
    CHECK(code == POLL_IN && band == (POLLIN | POLLRDNORM) && fd_told == fds[0]);
    CHECK(fcntl(fds[0], F_SETFL, 0) == 0);
    CHECK(write(fds[1], "x", 1) == 1 && rich == 1);
    CHECK(ioctl(fds[0], FIOASYNC, &on) == 0 && write(fds[1], "x", 1) == 1 && rich == 2);
    CHECK(ioctl(fds[0], FIOASYNC, &off) == 0 && write(fds[1], "x", 1) == 1 && rich == 2);
    FAILS(fcntl(fds[0], F_SETSIG, 65), EINVAL);
    FAILS(fcntl(fds[0], F_SETOWN, 999999), ESRCH);

    /* A socket, and a process group. */
    int s[2];
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    CHECK(fcntl(s[0], F_SETOWN, -getpgrp()) == 0 && fcntl(s[0], F_GETOWN) == -getpgrp());
    CHECK(fcntl(s[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
    plain = 0;
    CHECK(write(s[1], "x", 1) == 1);
    CHECK(plain == 1 && read(s[0], &c, 1) == 1);
    struct f_owner_ex owner = {F_OWNER_PID, getpid()}, told;
    CHECK(fcntl(s[0], F_SETOWN_EX, &owner) == 0 && fcntl(s[0], F_GETOWN_EX, &told) == 0);
    CHECK(told.type == F_OWNER_PID && told.pid == getpid());

    /* What cannot tell stays without. */
    int file = open("sigio-file", O_CREAT | O_RDWR, 0600);
    CHECK(fcntl(file, F_SETFL, O_ASYNC) == 0 && !(fcntl(file, F_GETFL) & O_ASYNC));
    FAILS(ioctl(file, FIOASYNC, &on), ENOTTY);
    unlink("sigio-file");
    DONE();
}
