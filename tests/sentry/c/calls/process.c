/* Calls for processes by their numbers, where the C library makes others, and those that it has no function for. */
#include "../check.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/times.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#define CALL(name, ...) syscall(SYS_##name, ##__VA_ARGS__)
#define IO_CLASS(kind, level) ((kind) << 13 | (level))

/* In a child; its status is what is wrong there. */
#define CHILD(...) \
    do { \
        fflush(NULL); \
        pid_t child_pid = CALL(fork); \
        if (child_pid == 0) { \
            check_failures = 0; \
            __VA_ARGS__; \
            _exit(check_failures != 0); \
        } \
        int child_status = -1; \
        CHECK(child_pid > 0 && waitpid(child_pid, &child_status, 0) == child_pid && child_status == 0); \
    } while (0)

static void other_user(void)
{
    NEED(setgid(54321) == 0 && setuid(54321) == 0);
}

static void children(void)
{
    int status;
    pid_t pid = CALL(fork);
    if (pid == 0)
        CALL(exit_group, 7);
    CHECK(pid > 0 && CALL(wait4, pid, &status, 0, NULL) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    FAILS(CALL(wait4, pid, &status, 0, NULL), ECHILD);
    FAILS(CALL(clone, CLONE_SIGHAND | SIGCHLD, 0, 0, 0, 0), EINVAL); /* without the memory */
    FAILS(CALL(clone, CLONE_THREAD | CLONE_SIGHAND | SIGCHLD, 0, 0, 0, 0), EINVAL);
    FAILS(CALL(clone, CLONE_FS | CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0), EINVAL);
    CHILD({
        struct rlimit none = {0, 0};
        other_user();
        CHECK(setrlimit(RLIMIT_NPROC, &none) == 0);
        FAILS(CALL(fork), EAGAIN);
        FAILS(CALL(vfork), EAGAIN);
        FAILS(CALL(clone, SIGCHLD, 0, 0, 0, 0), EAGAIN);
    });
    CHECK(CALL(unshare, CLONE_FS | CLONE_FILES) == 0);
    FAILS(CALL(unshare, 1), EINVAL);
}

static void limits(void)
{
    struct rlimit limit = {100, 200}, now;
    CHILD({
        CHECK(CALL(setrlimit, RLIMIT_NOFILE, &limit) == 0);
        CHECK(CALL(getrlimit, RLIMIT_NOFILE, &now) == 0 && now.rlim_cur == 100 && now.rlim_max == 200);
        limit.rlim_cur = 300;
        FAILS(CALL(setrlimit, RLIMIT_NOFILE, &limit), EINVAL);
        other_user();
        limit.rlim_cur = 50;
        limit.rlim_max = 201;
        FAILS(CALL(setrlimit, RLIMIT_NOFILE, &limit), EPERM);
        FAILS(CALL(getrlimit, 99, &now), EINVAL);
        FAILS(CALL(setrlimit, RLIMIT_NOFILE, (void *)8), EFAULT);
    });
    struct tms used;
    CHECK(CALL(times, &used) > 0);
    FAILS(CALL(times, (void *)8), EFAULT);
}

static void scheduling(void)
{
    struct sched_param zero = {0}, one = {1}, now;
    struct timespec interval;
    CHECK(CALL(sched_yield) == 0);
    CHILD({
        CHECK(CALL(sched_setscheduler, 0, SCHED_BATCH, &zero) == 0 && CALL(sched_getscheduler, 0) == SCHED_BATCH);
        CHECK(CALL(sched_setparam, 0, &zero) == 0 && CALL(sched_getparam, 0, &now) == 0 && now.sched_priority == 0);
        FAILS(CALL(sched_setparam, 0, &one), EINVAL);
        FAILS(CALL(sched_setparam, 0, NULL), EINVAL);
        FAILS(CALL(sched_setparam, -1, &zero), EINVAL);
        FAILS(CALL(sched_setparam, 4000000, &zero), ESRCH);
        CHECK(CALL(sched_rr_get_interval, 0, &interval) == 0);
        FAILS(CALL(sched_rr_get_interval, -1, &interval), EINVAL);
        FAILS(CALL(sched_get_priority_min, 99), EINVAL);
        CHECK(CALL(ioprio_set, 1, 0, IO_CLASS(2, 5)) == 0 && CALL(ioprio_get, 1, 0) == IO_CLASS(2, 5));
        FAILS(CALL(ioprio_set, 1, 0, IO_CLASS(4, 0)), EINVAL);
        FAILS(CALL(ioprio_set, 9, 0, IO_CLASS(2, 1)), EINVAL);
        FAILS(CALL(ioprio_set, 1, 4000000, IO_CLASS(2, 1)), ESRCH);
        FAILS(CALL(ioprio_get, 9, 0), EINVAL);
        FAILS(CALL(ioprio_get, 1, 4000000), ESRCH);
        CHECK(CALL(ioprio_set, 1, 0, 0) == 0 && CALL(setpriority, PRIO_PROCESS, 0, 10) == 0);
        CHECK(CALL(getpriority, PRIO_PROCESS, 0) == 10); /* 20 less the nice value */
        other_user();
        FAILS(CALL(ioprio_set, 1, 0, IO_CLASS(1, 1)), EPERM);
        FAILS(CALL(ioprio_set, 1, 1, IO_CLASS(2, 1)), EPERM);
        FAILS(CALL(setpriority, PRIO_PROCESS, 0, 0), EACCES);
        FAILS(CALL(sched_setscheduler, 0, SCHED_FIFO, &one), EPERM);
        FAILS(CALL(sched_setscheduler, 1, SCHED_BATCH, &zero), EPERM);
        CHECK(CALL(sched_setscheduler, 0, SCHED_IDLE, &zero) == 0);
        FAILS(CALL(sched_setscheduler, 0, SCHED_OTHER, &zero), EPERM); /* it would become nicer to itself */
        struct {
            unsigned size, policy;
            unsigned long flags;
            int nice;
            unsigned priority;
            unsigned long deadline[3];
        } attributes = {48, SCHED_FIFO, 0, 0, 1, {0}};
        FAILS(CALL(sched_setattr, 0, &attributes, 0), EPERM);
        FAILS(CALL(sched_setattr, 0, NULL, 0), EINVAL);
        attributes.size = 40;
        FAILS(CALL(sched_setattr, 0, &attributes, 0), E2BIG);
        FAILS(CALL(getcpu, (void *)8, NULL, NULL), EFAULT);
    });
}

static void names(void)
{
    struct utsname name;
    NEED(uname(&name) == 0);
    CHILD({
        /* Natively not the host's own. */
        if (unshare(CLONE_NEWUTS) == 0 || strstr(name.release, "casemate") != NULL) {
            CHECK(CALL(sethostname, "elsewhere", 9) == 0 && CALL(setdomainname, "net.example", 11) == 0);
            CHECK(uname(&name) == 0 && strcmp(name.nodename, "elsewhere") == 0);
            CHECK(strcmp(name.domainname, "net.example") == 0);
            FAILS(CALL(sethostname, "x", 65), EINVAL);
            FAILS(CALL(setdomainname, "x", -1), EINVAL);
            FAILS(CALL(sethostname, (void *)8, 5), EFAULT);
        }
        other_user();
        FAILS(CALL(sethostname, "x", 1), EPERM);
        FAILS(CALL(setdomainname, "x", 1), EPERM);
        FAILS(CALL(chroot, "/"), EPERM);
        FAILS(CALL(settimeofday, &(long[2]){1, 0}, NULL), EPERM);
        FAILS(CALL(syslog, 2, name.release, 10), EPERM);
        FAILS(CALL(reboot, 0, 0, 0, 0), EPERM);
        FAILS(CALL(vhangup), EPERM);
    });
    CHILD({
        setsid(); /* without a terminal: nothing is hung up */
        CHECK(CALL(vhangup) == 0);
    });
    CHECK(CALL(syslog, 10, NULL, 0) >= 0);
    FAILS(CALL(syslog, 99, NULL, 0), EINVAL);
    FAILS(CALL(syslog, 3, NULL, 0), EINVAL);
    FAILS(CALL(reboot, 1, 2, 3, 0), EINVAL);
    CHILD({
        CHECK(CALL(personality, 0xFFFFFFFF) == 0 && CALL(personality, ADDR_NO_RANDOMIZE) == 0);
        CHECK(CALL(personality, 0xFFFFFFFF) == ADDR_NO_RANDOMIZE);
        CHECK(CALL(umask, 0777027) >= 0 && CALL(umask, 0) == 027); /* only nine bits are kept */
        CHECK(CALL(setfsuid, 77) == 0 && CALL(setfsuid, -1) == 77 && CALL(setfsgid, 78) == 0 && CALL(setfsgid, -1) == 78);
        other_user();
        CHECK(CALL(setfsuid, 5) == 54321 && CALL(setfsuid, -1) == 54321); /* refused without an error */
    });
}

static void ids(void)
{
    int word = -1;
    CHECK(CALL(getpid) == gettid() && CALL(set_tid_address, &word) == gettid() && CALL(getppid) == getppid());
    CHILD({
        unsigned real, effective, saved;
        CHECK(CALL(setresuid, 1, 2, 3) == 0 && CALL(getresuid, &real, &effective, &saved) == 0);
        CHECK(real == 1 && effective == 2 && saved == 3 && CALL(getuid) == 1 && CALL(geteuid) == 2);
        FAILS(CALL(setresuid, 9, -1, -1), EPERM);
        FAILS(CALL(setreuid, 9, -1), EPERM);
        FAILS(CALL(setuid, 9), EPERM);
        FAILS(CALL(getresuid, &real, &effective, (void *)8), EFAULT);
        FAILS(CALL(setgroups, 0, NULL), EPERM);
    });
    CHILD({
        unsigned real, effective, saved;
        CHECK(CALL(setresgid, 1, 2, 3) == 0 && CALL(getresgid, &real, &effective, &saved) == 0);
        CHECK(real == 1 && effective == 2 && saved == 3 && CALL(getgid) == 1 && CALL(getegid) == 2);
        FAILS(CALL(getresgid, (void *)8, &effective, &saved), EFAULT);
        CHECK(setuid(5) == 0);
        FAILS(CALL(setresgid, 9, -1, -1), EPERM);
        FAILS(CALL(setregid, 9, -1), EPERM);
        FAILS(CALL(setgid, 9), EPERM);
    });
    CHILD({
        CHECK(CALL(setsid) == getpid() && CALL(getpgrp) == getpid() && CALL(getsid, 0) == getpid());
        FAILS(CALL(setsid), EPERM);
        FAILS(CALL(setpgid, 0, 0), EPERM); /* who leads a session stays */
        FAILS(CALL(getpgid, 4000000), ESRCH);
        FAILS(CALL(getsid, 4000000), ESRCH);
    });
}

int main(void)
{
    children();
    limits();
    scheduling();
    names();
    ids();
    DONE();
}
