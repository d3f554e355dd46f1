/* wait4(2), waitid(2), _exit(2): who is waited for, what is told, what becomes of orphans. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static pid_t child(int code)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(code);
    return pid;
}

static pid_t waiting_child(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        for (;;)
            pause();
    }
    return pid;
}

static void statuses(void)
{
    int status;
    pid_t pid = child(7);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    pid = child(0x1FF);
    CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 0xFF);
    pid = waiting_child();
    CHECK(waitpid(pid, &status, WNOHANG) == 0);
    kill(pid, SIGTERM);
    CHECK(waitpid(-1, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    FAILS(waitpid(-1, &status, 0), ECHILD);
    FAILS(waitpid(getpid(), &status, WNOHANG), ECHILD);
    FAILS(syscall(SYS_wait4, -1, &status, 0x100, NULL), EINVAL);
    FAILS(waitpid((pid_t)0x80000000, &status, 0), ESRCH);
    pid = child(1);
    FAILS(syscall(SYS_wait4, pid, (int *)1, 0, NULL), EFAULT);
    FAILS(waitpid(pid, &status, 0), ECHILD);
}

static void by_group(void)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        pause();
        _exit(0);
    }
    setpgid(pid, pid);
    pid_t other = child(3);
    CHECK(waitpid(0, &status, 0) == other);
    FAILS(waitpid(0, &status, 0), ECHILD);
    CHECK(waitpid(-pid, &status, WNOHANG) == 0);
    kill(-pid, SIGKILL);
    CHECK(waitpid(-pid, &status, 0) == pid && WTERMSIG(status) == SIGKILL);
}

static void job_control(void)
{
    int status;
    pid_t pid = waiting_child();
    /* In a group of its own: one without a parent outside would not be stopped by SIGTSTP. */
    setpgid(pid, pid);
    kill(pid, SIGSTOP);
    CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK(waitpid(pid, &status, WUNTRACED | WNOHANG) == 0);
    kill(pid, SIGCONT);
    CHECK(waitpid(pid, &status, WCONTINUED) == pid && WIFCONTINUED(status));
    siginfo_t info;
    kill(pid, SIGTSTP);
    memset(&info, 0xFF, sizeof info);
    CHECK(waitid(P_PID, pid, &info, WSTOPPED | WNOWAIT) == 0);
    CHECK(info.si_signo == SIGCHLD && info.si_code == CLD_STOPPED && info.si_status == SIGTSTP && info.si_pid == pid);
    CHECK(waitid(P_PID, pid, &info, WSTOPPED) == 0 && info.si_code == CLD_STOPPED);
    kill(pid, SIGCONT);
    CHECK(waitid(P_PID, pid, &info, WCONTINUED) == 0 && info.si_code == CLD_CONTINUED && info.si_status == SIGCONT);
    kill(pid, SIGSTOP);
    CHECK(waitpid(pid, &status, WUNTRACED) == pid);
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, &status, 0) == pid && WTERMSIG(status) == SIGKILL);
}

static void with_waitid(void)
{
    siginfo_t info;
    pid_t pid = child(5);
    memset(&info, 0, sizeof info);
    CHECK(waitid(P_ALL, 0, &info, WEXITED | WNOWAIT) == 0);
    CHECK(info.si_pid == pid && info.si_code == CLD_EXITED && info.si_status == 5 && info.si_uid == getuid());
    CHECK(waitid(P_PGID, 0, &info, WEXITED | WNOWAIT) == 0 && info.si_pid == pid);
    CHECK(waitid(P_PGID, getpgrp(), &info, WEXITED) == 0 && info.si_pid == pid);
    FAILS(waitid(P_ALL, 0, &info, WEXITED), ECHILD);
    FAILS(waitid(P_ALL, 0, &info, 0), EINVAL);
    FAILS(waitid(P_ALL, 0, &info, WEXITED | 0x40), EINVAL);
    FAILS(waitid(9, 0, &info, WEXITED), EINVAL);
    FAILS(waitid(P_PID, 0, &info, WEXITED), EINVAL);
    pid = waiting_child();
    memset(&info, 0xFF, sizeof info);
    CHECK(waitid(P_PID, pid, &info, WEXITED | WNOHANG) == 0 && info.si_pid == 0 && info.si_signo == 0);
    kill(pid, SIGKILL);
    CHECK(waitid(P_PID, pid, &info, WEXITED) == 0 && info.si_code == CLD_KILLED && info.si_status == SIGKILL);
    pid = child(4);
    struct rusage used;
    memset(&used, 0xFF, sizeof used);
    CHECK(syscall(SYS_waitid, P_PID, pid, NULL, WEXITED, &used) == 0);
    CHECK(used.ru_utime.tv_sec == 0 && used.ru_utime.tv_usec < 1000000);
}

static volatile sig_atomic_t chld;
static siginfo_t told;
static void on_chld(int signum, siginfo_t *info, void *context)
{
    (void)signum, (void)context;
    told = *info;
    chld++;
}

static void sigchld(void)
{
    struct sigaction action = {.sa_sigaction = on_chld, .sa_flags = SA_SIGINFO};
    sigaction(SIGCHLD, &action, NULL);
    chld = 0;
    pid_t pid = child(6);
    int status;
    while (waitpid(pid, &status, 0) < 0)
        CHECK(errno == EINTR);
    CHECK(chld == 1 && told.si_pid == pid && told.si_code == CLD_EXITED && told.si_status == 6);
    CHECK(told.si_signo == SIGCHLD && told.si_uid == getuid());
    /* Nobody has to wait for the children of who does not want to know. */
    action.sa_flags |= SA_NOCLDWAIT;
    sigaction(SIGCHLD, &action, NULL);
    chld = 0;
    pid = child(1);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    FAILS(waitpid(pid, &status, 0), ECHILD);
    CHECK(chld == 1);
    signal(SIGCHLD, SIG_IGN);
    pid = child(1);
    FAILS(waitpid(pid, &status, 0), ECHILD);
    signal(SIGCHLD, SIG_DFL);
}

/* Orphans become the children of the nearest ancestor that asked for them. */
static void orphans(void)
{
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    int ends[2];
    NEED(pipe(ends) == 0);
    pid_t middle = fork();
    if (middle == 0) {
        pid_t pid = fork();
        if (pid == 0) {
            pid_t me = getpid();
            if (write(ends[1], &me, sizeof me) != sizeof me)
                _exit(1);
            char byte;
            close(ends[1]);
            _exit(read(ends[0], &byte, 0) == 0 ? 11 : 12);
        }
        _exit(0);
    }
    pid_t orphan;
    int status;
    CHECK(waitpid(middle, &status, 0) == middle);
    CHECK(read(ends[0], &orphan, sizeof orphan) == sizeof orphan);
    CHECK(waitpid(orphan, &status, 0) == orphan);
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 0) == 0);
    close(ends[0]);
    close(ends[1]);
}

static void death_signal(void)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    int ends[2];
    NEED(pipe(ends) == 0);
    pid_t middle = fork();
    if (middle == 0) {
        pid_t pid = fork();
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGUSR1);
            if (write(ends[1], "x", 1) != 1)
                _exit(1);
            for (;;)
                pause();
        }
        char byte;
        (void)!read(ends[0], &byte, 1);
        _exit(0);
    }
    int status;
    CHECK(waitpid(middle, &status, 0) == middle);
    CHECK(wait(&status) > 0 && WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1);
    prctl(PR_SET_CHILD_SUBREAPER, 0);
    close(ends[0]);
    close(ends[1]);
}

static int nothing(void *argument)
{
    return (int)(long)argument;
}

/* Children that tell their end by no signal, or by another one, are waited for with __WCLONE. */
static void clone_children(void)
{
    static char stack[65536];
    int status;
    pid_t pid = clone(nothing, stack + sizeof stack, 0, (void *)9L);
    NEED(pid > 0);
    FAILS(waitpid(pid, &status, 0), ECHILD);
    CHECK(waitpid(pid, &status, __WCLONE) == pid && WEXITSTATUS(status) == 9);
    pid = clone(nothing, stack + sizeof stack, 0, (void *)8L);
    CHECK(waitpid(pid, &status, __WALL) == pid && WEXITSTATUS(status) == 8);
}

static int *shared;

static void *ends_last(void *argument)
{
    usleep(20000);
    shared[0] = 1;
    syscall(SYS_exit, 5);
    return argument;
}

static void *ends_all(void *argument)
{
    usleep(10000);
    syscall(SYS_exit_group, 33);
    return argument;
}

static void *idles(void *argument)
{
    for (;;)
        pause();
    return argument;
}

/* The process ends with its last thread and that one's status, or at once with exit_group. */
static void threads(void)
{
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = fork();
    pthread_t thread;
    if (pid == 0) {
        pthread_create(&thread, NULL, ends_last, NULL);
        syscall(SYS_exit, 21);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(shared[0] == 1 && WEXITSTATUS(status) == 5);
    pid = fork();
    if (pid == 0) {
        for (int i = 0; i < 4; i++)
            pthread_create(&thread, NULL, idles, NULL);
        pthread_create(&thread, NULL, ends_all, NULL);
        for (;;)
            pause();
    }
    CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 33);
    /* A signal that kills does so with all threads. */
    pid = fork();
    if (pid == 0) {
        for (int i = 0; i < 4; i++)
            pthread_create(&thread, NULL, idles, NULL);
        usleep(5000);
        kill(getpid(), SIGUSR2);
        for (;;)
            pause();
    }
    CHECK(waitpid(pid, &status, 0) == pid && WTERMSIG(status) == SIGUSR2);
}

int main(void)
{
    alarm(60);
    statuses();
    by_group();
    job_control();
    with_waitid();
    sigchld();
    orphans();
    death_signal();
    clone_children();
    threads();
    DONE();
}
