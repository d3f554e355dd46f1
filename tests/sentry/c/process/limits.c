/* getrlimit(2), setrlimit(2), prlimit(2), getrusage(2), times(2), getpriority(2). */
#include "check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/times.h>
#include <sys/wait.h>
#include <time.h>

static void burn(double seconds)
{
    struct timespec now;
    do {
        for (volatile int i = 0; i < 1000000; i++)
            ;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    } while (now.tv_sec + now.tv_nsec / 1e9 < seconds);
}

static void limits(void)
{
    struct rlimit limit, old;
    FAILS(getrlimit(16, &limit), EINVAL);
    FAILS(setrlimit(16, &limit), EINVAL);
    FAILS(syscall(SYS_getrlimit, RLIMIT_CORE, 1), EFAULT);
    FAILS(syscall(SYS_setrlimit, RLIMIT_CORE, 1), EFAULT);
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0 && old.rlim_cur <= old.rlim_max);
    limit = old;
    limit.rlim_cur = 20;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    int last = -1, fd;
    while ((fd = open("/", O_RDONLY)) >= 0)
        last = fd;
    CHECK(errno == EMFILE && last == 19);
    FAILS(dup2(0, 20), EBADF);
    FAILS(fcntl(0, F_DUPFD, 20), EINVAL);
    while (last > 2)
        close(last--);
    limit.rlim_max = 30;
    limit.rlim_cur = 31;
    FAILS(setrlimit(RLIMIT_NOFILE, &limit), EINVAL);
    CHECK(prlimit(getpid(), RLIMIT_CORE, NULL, &old) == 0);
    limit.rlim_cur = 0;
    limit.rlim_max = old.rlim_max;
    CHECK(prlimit(0, RLIMIT_CORE, &limit, &old) == 0);
    CHECK(prlimit(0, RLIMIT_CORE, NULL, &limit) == 0 && limit.rlim_cur == 0);
    FAILS(prlimit(999999, RLIMIT_CORE, NULL, &limit), ESRCH);
    /* Children have their parents' limits, and each process its own. */
    limit.rlim_cur = limit.rlim_max = 4096 * 100;
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
        pid_t child = fork();
        if (child == 0) {
            struct rlimit mine;
            CHECK(getrlimit(RLIMIT_FSIZE, &mine) == 0 && mine.rlim_max == 4096 * 100);
            if (syscall(SYS_setresuid, 1000, 1000, 1000) == 0) {
                mine.rlim_max++;
                FAILS(setrlimit(RLIMIT_FSIZE, &mine), EPERM);
            }
            _exit(check_failures ? 1 : 0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        _exit(check_failures ? 1 : 0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_max != 4096 * 100);
}

static void processor_time(void)
{
    struct rusage used, later;
    CHECK(getrusage(RUSAGE_SELF, &used) == 0);
    FAILS(getrusage(7, &used), EINVAL);
    FAILS(syscall(SYS_getrusage, RUSAGE_SELF, 1), EFAULT);
    burn(0.15);
    CHECK(getrusage(RUSAGE_SELF, &later) == 0);
    CHECK(later.ru_utime.tv_sec + later.ru_utime.tv_usec / 1e6 + later.ru_stime.tv_usec / 1e6 >= 0.1);
    CHECK(later.ru_maxrss > 0 && later.ru_maxrss < 1000000);
    CHECK(getrusage(RUSAGE_THREAD, &later) == 0 && later.ru_utime.tv_usec + later.ru_stime.tv_usec >= 100000);
    struct tms before, after;
    clock_t start = times(&before);
    CHECK(start != (clock_t)-1);
    pid_t pid = fork();
    if (pid == 0) {
        burn(0.2);
        _exit(0);
    }
    int status;
    CHECK(wait4(pid, &status, 0, &used) == pid);
    CHECK(used.ru_utime.tv_usec + used.ru_stime.tv_usec >= 150000 || used.ru_utime.tv_sec);
    CHECK(times(&after) >= start + 15);
    CHECK(after.tms_cutime + after.tms_cstime >= 15 && before.tms_cutime == 0);
    CHECK(getrusage(RUSAGE_CHILDREN, &used) == 0 && used.ru_utime.tv_usec + used.ru_stime.tv_usec >= 150000);
    /* Who uses more than RLIMIT_CPU gets SIGXCPU, and is killed at the hard limit. */
    pid = fork();
    if (pid == 0) {
        struct rlimit limit = {1, 2};
        CHECK(setrlimit(RLIMIT_CPU, &limit) == 0);
        burn(10);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGXCPU);
}

static void priorities(void)
{
    errno = 0;
    int mine = getpriority(PRIO_PROCESS, 0);
    CHECK(errno == 0 && mine >= -20 && mine <= 19);
    CHECK(setpriority(PRIO_PROCESS, 0, 5) == 0 && getpriority(PRIO_PROCESS, 0) == 5);
    CHECK(setpriority(PRIO_PROCESS, 0, 100) == 0 && getpriority(PRIO_PROCESS, getpid()) == 19);
    FAILS(getpriority(3, 0), EINVAL);
    FAILS(getpriority(PRIO_PROCESS, 999999), ESRCH);
    FAILS(setpriority(PRIO_PROCESS, 999999, 0), ESRCH);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(getpriority(PRIO_PROCESS, 0) == 19);
        if (syscall(SYS_setresuid, 1000, 1000, 1000) == 0)
            FAILS(setpriority(PRIO_PROCESS, 0, -5), EACCES);
        _exit(check_failures ? 1 : 0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

int main(void)
{
    limits();
    processor_time();
    priorities();
    DONE();
}
