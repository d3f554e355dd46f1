/* pidfd_open(2), pidfd_send_signal(2), pidfd_getfd(2), waitid(2) of one; kcmp(2). */
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define P_PIDFD 3

static pid_t sleeper(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        for (;;)
            pause();
    }
    return pid;
}

int main(void)
{
    alarm(30);
    FAILS(syscall(SYS_pidfd_open, 999999, 0), ESRCH);
    FAILS(syscall(SYS_pidfd_open, 0, 0), EINVAL);
    FAILS(syscall(SYS_pidfd_open, getpid(), 0x1234000), EINVAL);
    pid_t pid = sleeper();
    int fd = syscall(SYS_pidfd_open, pid, 0);
    NEED(fd >= 0);
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    struct pollfd item = {fd, POLLIN, 0};
    CHECK(poll(&item, 1, 0) == 0);
    siginfo_t info;
    CHECK(waitid(P_PIDFD, fd, &info, WEXITED | WNOHANG) == 0 && info.si_pid == 0);
    int nonblocking = syscall(SYS_pidfd_open, pid, O_NONBLOCK);
    FAILS(waitid(P_PIDFD, nonblocking, &info, WEXITED), EAGAIN);
    close(nonblocking);
    CHECK(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == 0);
    CHECK(syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0) == 0);
    CHECK(poll(&item, 1, 5000) == 1 && item.revents & POLLIN);
    CHECK(waitid(P_PIDFD, fd, &info, WEXITED | WNOWAIT) == 0 && info.si_pid == pid && info.si_code == CLD_KILLED);
    CHECK(waitid(P_PIDFD, fd, &info, WEXITED) == 0 && info.si_status == SIGTERM);
    FAILS(waitid(P_PIDFD, fd, &info, WEXITED), ECHILD);
    FAILS(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0), ESRCH);
    FAILS(syscall(SYS_pidfd_send_signal, 0, 0, NULL, 0), EBADF);
    FAILS(waitid(P_PIDFD, 999, &info, WEXITED), EBADF);
    CHECK(poll(&item, 1, 0) == 1);
    close(fd);

    /* With clone(2), and in epoll. */
    fd = -1;
    pid = syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, &fd, NULL, NULL);
    if (pid == 0) {
        usleep(10000);
        _exit(3);
    }
    NEED(pid > 0);
    CHECK(fd >= 0);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
    CHECK(epoll_wait(epoll, &event, 1, 5000) == 1 && event.data.fd == fd);
    CHECK(waitid(P_PIDFD, fd, &info, WEXITED) == 0 && info.si_status == 3);
    close(fd);

    /* Another process's descriptor. */
    int ends[2];
    NEED(pipe(ends) == 0);
    pid = sleeper();
    close(ends[0]);
    fd = syscall(SYS_pidfd_open, pid, 0);
    int taken = syscall(SYS_pidfd_getfd, fd, ends[0], 0);
    CHECK(taken >= 0);
    CHECK(write(ends[1], "x", 1) == 1);
    char byte = 0;
    CHECK(read(taken, &byte, 1) == 1 && byte == 'x');
    FAILS(syscall(SYS_pidfd_getfd, fd, 999, 0), EBADF);
    FAILS(syscall(SYS_pidfd_getfd, fd, 0, 1), EINVAL);
    FAILS(syscall(SYS_pidfd_getfd, 0, 0, 0), EBADF);
    if (syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 0) == 0) { /* not in every kernel */
        CHECK(syscall(SYS_kcmp, getpid(), pid, 0, ends[1], ends[1]) == 0);
        CHECK(syscall(SYS_kcmp, getpid(), pid, 0, ends[1], taken) != 0);
        CHECK(syscall(SYS_kcmp, getpid(), pid, 1, 0, 0) > 0);
        FAILS(syscall(SYS_kcmp, getpid(), 999999, 0, 0, 0), ESRCH);
        FAILS(syscall(SYS_kcmp, getpid(), getpid(), 99, 0, 0), EINVAL);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    DONE();
}
