/* Makes every system call with arguments that make no sense, from a few processes. Only for behind the sentry. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

static uint64_t state = 88172645463325252ULL;

static uint64_t rnd(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Calls that end the process, make others or signal who must not be signalled. */
static const int skipped[] = {SYS_exit, SYS_exit_group, SYS_fork, SYS_vfork, SYS_clone, SYS_kill, SYS_tkill, SYS_tgkill,
                              SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, SYS_pidfd_send_signal, SYS_rt_sigreturn,
                              SYS_setsid, SYS_alarm, SYS_setitimer};

static int is_skipped(int number)
{
    for (unsigned i = 0; i < sizeof skipped / sizeof *skipped; i++)
        if (skipped[i] == number)
            return 1;
    return 0;
}

static char *good, *edge, *readonly;

static uint64_t argument(void)
{
    static const uint64_t odd[] = {0, 1, 2, 3, 4, 7, 8, 16, 64, 4096, 0xFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
                                   0x7FFFFFFFF000, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFF9C,
                                   0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFF000, 0x5555555555555555};
    switch (rnd() % 10) {
    case 0:
    case 1:
        return odd[rnd() % (sizeof odd / sizeof *odd)];
    case 2:
        return rnd() >> rnd() % 64;
    case 3:
        return (uint64_t)edge - rnd() % 130;
    case 4:
        return (uint64_t)readonly + rnd() % 64;
    case 5:
        return rnd() % 24; /* a descriptor, a small number */
    case 6:
        return 1ull << rnd() % 64;
    default:
        return (uint64_t)good + rnd() % 256 * 8;
    }
}

static void fill(void)
{
    for (int i = 0; i < 4096 / 8; i++)
        ((uint64_t *)good)[i] = argument();
    if (rnd() % 2)
        strcpy(good + rnd() % 2048, rnd() % 2 ? "/proc/self/status" : "/tmp/some/../file");
}

static void *idles(void *arg)
{
    for (;;)
        pause();
    return arg;
}

static void open_things(void)
{
    int ends[2];
    CHECK(open("/dev/null", O_RDWR) >= 0);
    CHECK(open("/proc/self", O_RDONLY) >= 0);
    CHECK(open("/dev/ptmx", O_RDWR | O_NOCTTY) >= 0);
    CHECK(open("/tmp", O_TMPFILE | O_RDWR, 0600) >= 0);
    CHECK(pipe2(ends, O_NONBLOCK) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, ends) == 0);
    CHECK(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0) >= 0);
    CHECK(socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK, 0) >= 0);
    CHECK(eventfd(0, EFD_NONBLOCK) >= 0);
    CHECK(epoll_create1(0) >= 0);
    CHECK(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK) >= 0);
    CHECK(memfd_create("x", MFD_ALLOW_SEALING) >= 0);
    CHECK(syscall(SYS_pidfd_open, getpid(), 0) >= 0);
    CHECK(syscall(SYS_inotify_init1, O_NONBLOCK) >= 0);
}

/* One process's share: one call, many times. */
static void make(int number, int times)
{
    good = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    edge = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(edge + 4096, 4096);
    edge += 4096;
    readonly = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct rlimit limit = {256 << 20, 256 << 20};
    setrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = limit.rlim_max = 1 << 20;
    setrlimit(RLIMIT_FSIZE, &limit);
    open_things();
    if (number % 3 == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, idles, NULL);
    }
    for (int i = 0; i < times; i++) {
        alarm(1);
        fill();
        syscall(number, argument(), argument(), argument(), argument(), argument(), argument());
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    int times = argc > 1 ? atoi(argv[1]) : 50;
    if (argc > 2)
        state += strtoull(argv[2], NULL, 0) * 0x9E3779B97F4A7C15ULL;
    int only = argc > 3 ? atoi(argv[3]) : -1;
    for (int number = 0; number < 460; number++) {
        if (is_skipped(number) || (only >= 0 && number != only))
            continue;
        rnd();
        pid_t pid = fork();
        if (pid == 0) {
            setpgid(0, 0);
            close(0);
            open("/dev/null", O_RDWR);
            make(number, times);
        }
        NEED(pid > 0);
        int status;
        pid_t got;
        /* With a mask of its own making, it may wait for ever: then it is killed. */
        for (int wait = 0; (got = waitpid(pid, &status, WNOHANG)) == 0; wait++) {
            usleep(wait < 100 ? 1000 : 20000);
            if (wait == 300)
                kill(-pid, SIGKILL), kill(pid, SIGKILL);
        }
        CHECK(got == pid);
    }
    printf("ends\n");
    DONE();
}
