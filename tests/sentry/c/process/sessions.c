/* setsid(2), setpgid(2) and their kin. */
#include "check.h"
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int ends[2];

static void wait_byte(void)
{
    char byte;
    CHECK(read(ends[0], &byte, 1) == 1);
}

int main(int argc, char **argv)
{
    if (argc > 1) { /* after exec */
        CHECK(write(atoi(argv[1]), "x", 1) == 1);
        pause();
        return 0;
    }
    alarm(30);
    int status;
    CHECK(getpid() > 0 && getppid() >= 0 && syscall(SYS_gettid) == getpid());
    CHECK(getpgid(0) == getpgrp() && getpgid(getpid()) == getpgrp());
    CHECK(getsid(0) == getsid(getpid()));
    FAILS(getpgid(999999), ESRCH);
    FAILS(getsid(999999), ESRCH);
    FAILS(setpgid(0, -1), EINVAL);
    FAILS(setpgid(999999, 0), ESRCH);
    CHECK(syscall(SYS_set_tid_address, NULL) == getpid());
    NEED(pipe(ends) == 0);

    pid_t pid = fork();
    if (pid == 0) {
        pid_t me = getpid();
        CHECK(setsid() == me);
        CHECK(getsid(0) == me && getpgrp() == me);
        FAILS(setsid(), EPERM);
        FAILS(setpgid(0, 0), EPERM);
        pid_t child = fork();
        if (child == 0) {
            CHECK(getsid(0) == me && getpgrp() == me);
            CHECK(setpgid(0, 0) == 0 && getpgrp() == getpid());
            CHECK(setpgid(0, me) == 0 && getpgrp() == me);
            FAILS(setpgid(0, getpid() + 1000), EPERM);
            FAILS(setpgid(me, 0), ESRCH); /* the parent is no child */
            CHECK(setsid() == getpid());
            DONE();
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        FAILS(setpgid(child, 0), ESRCH);
        DONE();
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);

    /* A parent may move a child, but not once that runs another program, nor to another session. */
    pid = fork();
    if (pid == 0) {
        for (;;)
            pause();
    }
    CHECK(setpgid(pid, 0) == 0 && getpgid(pid) == pid);
    CHECK(setpgid(pid, getpgrp()) == 0 && getpgid(pid) == getpgrp());
    FAILS(setpgid(pid, 999999), EPERM);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    char fd[10];
    snprintf(fd, sizeof fd, "%d", ends[1]);
    pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", "x", fd, NULL);
        _exit(1);
    }
    wait_byte();
    FAILS(setpgid(pid, 0), EACCES);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    pid = fork();
    if (pid == 0) {
        setsid();
        CHECK(write(ends[1], "x", 1) == 1);
        pause();
    }
    wait_byte();
    FAILS(setpgid(pid, 0), EPERM);
    CHECK(getsid(pid) == pid && getpgid(pid) == pid);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);

    /* kill(2) of a whole group. */
    pid_t first = fork();
    if (first == 0) {
        setpgid(0, 0);
        for (;;)
            pause();
    }
    setpgid(first, first);
    pid_t second = fork();
    if (second == 0) {
        for (;;)
            pause();
    }
    setpgid(second, first);
    CHECK(killpg(first, SIGTERM) == 0);
    CHECK(waitpid(-first, &status, 0) > 0 && WTERMSIG(status) == SIGTERM);
    CHECK(waitpid(-first, &status, 0) > 0 && WTERMSIG(status) == SIGTERM);
    FAILS(killpg(first, 0), ESRCH);
    DONE();
}
