/* signalfd(2). */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

int main(void) {
    sigset_t set;
    struct signalfd_siginfo info[4];
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGRTMIN);
    CHECK(sigprocmask(SIG_BLOCK, &set, 0) == 0);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    NEED(fd >= 0);
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 0) == 0);
    FAILS(read(fd, info, sizeof info), EAGAIN);
    FAILS(read(fd, info, 127), EINVAL);
    FAILS(write(fd, info, 128), EINVAL);
    kill(getpid(), SIGUSR1);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLIN);
    CHECK(read(fd, info, sizeof info) == 128);
    CHECK(info[0].ssi_signo == SIGUSR1 && info[0].ssi_code == SI_USER && (pid_t)info[0].ssi_pid == getpid());
    CHECK(info[0].ssi_uid == getuid());
    union sigval value = {.sival_int = 1234};
    sigqueue(getpid(), SIGRTMIN, value);
    value.sival_int = 99;
    sigqueue(getpid(), SIGRTMIN, value);
    CHECK(read(fd, info, sizeof info) == 256);
    CHECK(info[0].ssi_code == SI_QUEUE && info[0].ssi_int == 1234 && info[1].ssi_int == 99);

    /* A child's end, by epoll. */
    int ep = epoll_create1(0);
    struct epoll_event event = {EPOLLIN, {.u32 = 5}};
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        usleep(30000);
        _exit(7);
    }
    CHECK(epoll_wait(ep, &event, 1, 5000) == 1 && event.data.u32 == 5);
    CHECK(read(fd, info, sizeof info) == 128);
    CHECK(info[0].ssi_signo == SIGCHLD && (pid_t)info[0].ssi_pid == pid && info[0].ssi_status == 7);
    CHECK(info[0].ssi_code == CLD_EXITED);
    CHECK(waitpid(pid, 0, 0) == pid);

    /* The set can be changed; blocking reads wait; a signal to the thread is seen as well. */
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, 0);
    CHECK(signalfd(fd, &set, 0) == fd);
    kill(getpid(), SIGUSR1);
    CHECK(poll(&p, 1, 0) == 0);
    fcntl(fd, F_SETFL, 0);
    pid = fork();
    if (pid == 0) {
        usleep(30000);
        kill(getppid(), SIGUSR2);
        _exit(0);
    }
    CHECK(read(fd, info, 128) == 128 && info[0].ssi_signo == SIGUSR2 && (pid_t)info[0].ssi_pid == pid);
    waitpid(pid, 0, 0);
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR2);
    CHECK(read(fd, info, 128) == 128 && info[0].ssi_code == SI_TKILL);

    FAILS(signalfd(0, &set, 0), EINVAL);
    FAILS(signalfd(999, &set, 0), EBADF);
    FAILS(signalfd(-1, &set, 1), EINVAL);
    FAILS(syscall(SYS_signalfd4, -1, &set, 4L, 0), EINVAL);
    DONE();
}
