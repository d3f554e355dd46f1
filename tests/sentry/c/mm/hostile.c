/* Random memory calls with random arguments: they may fail or end the child that makes them, nothing else. */
#include "../check.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static uint64_t state;

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static char *arena;
static int segment;
#define ROOM (64UL << 12)

static uint64_t word(void)
{
    static const uint64_t edges[] = {0, 1, 4095, 4096, 1UL << 31, 1UL << 32, 1UL << 47, (1UL << 47) - 4096, 1UL << 63,
                                     ~0UL, ~0UL - 4095, -4096UL, 0xffffffff81000000};
    switch (next() % 8) {
    case 0:
        return edges[next() % (sizeof edges / sizeof *edges)];
    case 1:
        return next();
    case 2:
        return next() % 64;
    case 3:
        return (uint64_t)&state; /* its own data */
    case 4:
        return (uint64_t)__builtin_frame_address(0) & -4096UL;
    default:
        return (uint64_t)arena + next() % 64 * 4096 + (next() % 4 ? 0 : next() % 4096);
    }
}

static uint64_t size(void)
{
    return next() % 6 ? next() % 16 * 4096 + (next() % 4 ? 0 : 1) : word();
}

static const int calls[] = {SYS_mmap, SYS_munmap, SYS_mprotect, SYS_brk, SYS_mremap, SYS_madvise, SYS_mlock, SYS_munlock,
                            SYS_msync, SYS_mincore, SYS_shmat, SYS_shmdt, SYS_shmctl, SYS_futex,
                            SYS_remap_file_pages, SYS_process_vm_readv, SYS_process_vm_writev, SYS_set_robust_list,
                            SYS_get_robust_list, SYS_mlock2, SYS_pkey_mprotect, SYS_pkey_alloc, SYS_mlockall,
                            SYS_munlockall};

static void child(unsigned seed, int fd)
{
    state = 0x9e3779b97f4a7c15 * (seed + 1);
    alarm(2); /* a futex that nobody wakes */
    for (int i = 0; i < 400; i++) {
        int call = calls[next() % (sizeof calls / sizeof *calls)];
        uint64_t a = word(), b = size(), c = next() % 3 ? next() % 8 : word();
        uint64_t d = next() % 3 ? (next() % 3) | (next() % 2 << 5) | (next() % 2 << 4) : word();
        uint64_t e = next() % 2 ? (uint64_t)fd : word(), f = next() % 2 ? 0 : word();
        if (call == SYS_futex) {
            b &= 0x1ff;
            static const struct timespec soon = {0, 1000};
            if (d % 4)
                d = (uint64_t)&soon;
        } else if (call == SYS_mremap) {
            uint64_t swap = c;
            c = size();
            d = next() % 8;
            e = word();
            (void)swap;
        } else if (call == SYS_madvise && c > 30) {
            c = next() % 26;
        } else if (call == SYS_mmap && b > 1UL << 30) {
            d |= MAP_NORESERVE;
            d &= ~(uint64_t)MAP_POPULATE;
        } else if (call == SYS_shmat || call == SYS_shmctl) {
            a = next() % 4 ? (uint64_t)segment : a;
            if (call == SYS_shmat) {
                b = next() % 2 ? 0 : word();
                c = next() % 16 << 12;
            }
        } else if (call == SYS_mlockall) {
            a = next() % 8;
        }
        syscall(call, a, b, c, d, e, f);
    }
    _exit(0);
}

int main(int count, char **arguments)
{
    unsigned seeds = count > 1 ? (unsigned)atoi(arguments[1]) : 20;
    char name[] = "hostileXXXXXX";
    int fd = mkstemp(name);
    NEED(fd >= 0 && unlink(name) == 0 && ftruncate(fd, ROOM) == 0);
    arena = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(arena != MAP_FAILED);
    segment = shmget(IPC_PRIVATE, 5 << 12, 0600);
    NEED(segment >= 0);
    int status;
    for (unsigned seed = 0; seed < seeds; seed++) {
        pid_t pid = fork();
        NEED(pid >= 0);
        if (pid == 0)
            child(seed, fd);
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(WIFEXITED(status) || WIFSIGNALED(status));
    }
    shmctl(segment, IPC_RMID, NULL);
    /* And all is well afterwards. */
    char *at = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED && at[12345] == 0 && munmap(at, 1 << 20) == 0);
    DONE();
}
