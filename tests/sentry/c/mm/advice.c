/* brk, mremap, madvise, mlock, msync, mincore, and limits. */
#include "../check.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define PAGE 4096UL
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static void heap(void)
{
    char *end = (char *)syscall(SYS_brk, 0);
    CHECK((char *)syscall(SYS_brk, 1) == end);
    CHECK((char *)syscall(SYS_brk, end + 5 * PAGE + 3) == end + 5 * PAGE + 3);
    for (int i = 0; i < 5; i++)
        CHECK(end[i * PAGE + 100] == 0);
    memset(end, 'x', 5 * PAGE);
    CHECK((char *)syscall(SYS_brk, end + PAGE) == end + PAGE);
    CHECK((char *)syscall(SYS_brk, end + 3 * PAGE) == end + 3 * PAGE);
    CHECK(end[0] == 'x' && end[2 * PAGE + 100] == 0);
    CHECK((char *)syscall(SYS_brk, 1UL << 47) == end + 3 * PAGE);
    CHECK((char *)syscall(SYS_brk, end) == end);
    char *block = (char *)(((unsigned long)end + 64 * PAGE) & -PAGE);
    CHECK(mmap(block, PAGE, RW, ANON | MAP_FIXED, -1, 0) == block);
    CHECK((char *)syscall(SYS_brk, block + PAGE) == end); /* into another mapping */
    CHECK(munmap(block, PAGE) == 0);
}

static void moved(void)
{
    char *at = mmap(NULL, 4 * PAGE, RW, ANON, -1, 0);
    NEED(at != MAP_FAILED);
    for (int i = 0; i < 4; i++)
        at[i * PAGE] = (char)('a' + i);
    CHECK(mremap(at, 4 * PAGE, 2 * PAGE, 0) == at);
    CHECK(at[PAGE] == 'b');
    CHECK(mmap(at + 2 * PAGE, PAGE, PROT_READ, ANON | MAP_FIXED, -1, 0) == at + 2 * PAGE);
    FAILS((long)mremap(at, 2 * PAGE, 3 * PAGE, 0), ENOMEM);
    char *there = mremap(at, 2 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
    CHECK(there != MAP_FAILED && there != at);
    CHECK(there[0] == 'a' && there[PAGE] == 'b' && there[2 * PAGE] == 0 && there[7 * PAGE] == 0);
    CHECK(munmap(there + 6 * PAGE, 2 * PAGE) == 0);
    CHECK(mremap(there, 6 * PAGE, 8 * PAGE, 0) == there); /* into the room behind it */
    there[7 * PAGE] = 'z';
    char *target = mmap(NULL, 8 * PAGE, RW, ANON, -1, 0);
    NEED(target != MAP_FAILED);
    CHECK(mremap(there, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target);
    CHECK(target[0] == 'a' && target[7 * PAGE] == 'z');
    FAILS(mprotect(there, PAGE, PROT_READ), ENOMEM);
    FAILS((long)mremap(target, PAGE, 2 * PAGE, MREMAP_FIXED, there), EINVAL);
    FAILS((long)mremap(target, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target + PAGE), EINVAL);
    FAILS((long)mremap(target + 1, PAGE, PAGE, 0), EINVAL);
    FAILS((long)mremap(target, PAGE, 0, 0), EINVAL);
    FAILS((long)mremap(target, PAGE, PAGE, 64), EINVAL);
    FAILS((long)mremap(there, PAGE, 2 * PAGE, MREMAP_MAYMOVE), EFAULT);
    FAILS((long)mremap(target, 0, PAGE, MREMAP_MAYMOVE), EINVAL); /* only shared memory can be doubled */
#ifdef MREMAP_DONTUNMAP
    there = mremap(target, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
    CHECK(there != MAP_FAILED && there[0] == 'a' && target[0] == 0);
    CHECK(munmap(there, 8 * PAGE) == 0);
#endif
    CHECK(munmap(target, 8 * PAGE) == 0);
    int *shared = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int *twin = mremap(shared, 0, PAGE, MREMAP_MAYMOVE);
    CHECK(twin != MAP_FAILED && twin != shared);
    *shared = 5;
    CHECK(*twin == 5);
}

static void advised(void)
{
    char *at = mmap(NULL, 4 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    NEED(at != MAP_FAILED);
    for (int i = 0; i < 4; i++)
        at[i * PAGE] = (char)('a' + i);
    CHECK(syscall(SYS_remap_file_pages, at, PAGE, 0, 3, 0) == 0 && at[0] == 'd' && at[3 * PAGE] == 'd');
    CHECK(syscall(SYS_remap_file_pages, at + PAGE, 2 * PAGE, 0, 0, 0) == 0 && at[PAGE] == 'a' && at[2 * PAGE] == 'b');
    FAILS(syscall(SYS_remap_file_pages, at, PAGE, PROT_READ, 0, 0), EINVAL);
    FAILS(syscall(SYS_remap_file_pages, at, 0, 0, 0, 0), EINVAL);
    CHECK(munmap(at, 4 * PAGE) == 0);
    at = mmap(NULL, 4 * PAGE, RW, ANON, -1, 0);
    NEED(at != MAP_FAILED);
    FAILS(syscall(SYS_remap_file_pages, at, PAGE, 0, 0, 0), EINVAL);
    memset(at, 'x', 4 * PAGE);
    CHECK(madvise(at + PAGE, PAGE, MADV_DONTNEED) == 0);
    CHECK(at[0] == 'x' && at[PAGE] == 0 && at[2 * PAGE] == 'x');
    static const int harmless[] = {MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTFORK,
                                   MADV_DOFORK, MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK, MADV_KEEPONFORK};
    for (unsigned i = 0; i < sizeof harmless / sizeof *harmless; i++)
        CHECK(madvise(at, 4 * PAGE, harmless[i]) == 0);
    CHECK(madvise(at, 4 * PAGE, MADV_FREE) == 0);
    FAILS(madvise(at + 1, PAGE, MADV_NORMAL), EINVAL);
    FAILS(madvise(at, PAGE, 999), EINVAL);
    FAILS(madvise(at, PAGE, MADV_REMOVE), EINVAL); /* private memory */
    CHECK(madvise(at, 0, MADV_DONTNEED) == 0);
    CHECK(munmap(at + PAGE, PAGE) == 0);
    memset(at + 2 * PAGE, 'y', PAGE);
    FAILS(madvise(at, 4 * PAGE, MADV_DONTNEED), ENOMEM);
    CHECK(at[2 * PAGE] == 0); /* behind the hole all the same */
    memset(at, 'x', PAGE);
    CHECK(madvise(at, PAGE, MADV_WIPEONFORK) == 0);
    CHECK(madvise(at + 2 * PAGE, PAGE, MADV_DONTFORK) == 0);
    int ends[2];
    NEED(pipe(ends) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        int gone = write(ends[1], at + 2 * PAGE, 1) == -1 && errno == EFAULT;
        _exit(at[0] == 0 && gone && mprotect(at + 2 * PAGE, PAGE, PROT_READ) == -1 && errno == ENOMEM ? 0 : 1);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(at[0] == 'x' && munmap(at, 4 * PAGE) == 0);
    at = mmap(NULL, 4 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    NEED(at != MAP_FAILED);
    memset(at, 'x', 4 * PAGE);
    CHECK(madvise(at, PAGE, MADV_DONTNEED) == 0 && at[0] == 'x'); /* shared memory keeps its pages */
    CHECK(madvise(at, PAGE, MADV_REMOVE) == 0 && at[0] == 0 && at[PAGE] == 'x');
}

static void present(void)
{
    unsigned char vector[4];
    char *at = mmap(NULL, 4 * PAGE, RW, ANON, -1, 0);
    NEED(at != MAP_FAILED);
    at[PAGE] = 1;
    memset(vector, 0xee, sizeof vector);
    CHECK(mincore(at, 3 * PAGE, vector) == 0);
    CHECK((vector[0] & 1) == 0 && (vector[1] & 1) == 1 && (vector[2] & 1) == 0 && vector[3] == 0xee);
    FAILS(mincore(at + 1, PAGE, vector), EINVAL);
    FAILS(mincore(at, PAGE, NULL), EFAULT);
    CHECK(munmap(at + 3 * PAGE, PAGE) == 0);
    FAILS(mincore(at, 4 * PAGE, vector), ENOMEM);
    CHECK(mlock(at, 3 * PAGE) == 0);
    CHECK(mincore(at, 3 * PAGE, vector) == 0 && vector[0] & vector[1] & vector[2] & 1);
    FAILS(msync(at, PAGE, MS_INVALIDATE), EBUSY);
    CHECK(munlock(at + 1, PAGE) == 0);
    CHECK(munlock(at, 3 * PAGE) == 0);
    CHECK(msync(at, PAGE, MS_INVALIDATE) == 0);
    FAILS(mlock(at, 4 * PAGE), ENOMEM);
    FAILS(munlock(at, 4 * PAGE), ENOMEM);
    FAILS(msync(at, 4 * PAGE, MS_ASYNC), ENOMEM);
    FAILS(msync(at, PAGE, MS_ASYNC | MS_SYNC), EINVAL);
    FAILS(msync(at + 1, PAGE, MS_SYNC), EINVAL);
    FAILS(mlockall(0), EINVAL);
    FAILS(mlockall(64), EINVAL);
    CHECK(mlockall(MCL_FUTURE) == 0);
    char *locked = mmap(NULL, PAGE, RW, ANON, -1, 0);
    CHECK(locked != MAP_FAILED && mincore(locked, PAGE, vector) == 0 && vector[0] & 1);
    CHECK(munlockall() == 0);
    CHECK(mlock2(locked, PAGE, MLOCK_ONFAULT) == 0);
    FAILS(mlock2(locked, PAGE, 8), EINVAL);
}

static void limited(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit few = {256UL << 20, 256UL << 20};
        CHECK(setrlimit(RLIMIT_AS, &few) == 0);
        FAILS((long)mmap(NULL, 512UL << 20, RW, ANON, -1, 0), ENOMEM);
        char *at = mmap(NULL, 16UL << 20, RW, ANON, -1, 0);
        CHECK(at != MAP_FAILED);
        FAILS((long)mremap(at, 16UL << 20, 512UL << 20, MREMAP_MAYMOVE), ENOMEM);
        CHECK(mremap(at, 16UL << 20, 32UL << 20, MREMAP_MAYMOVE) != MAP_FAILED);
        char *end = (char *)syscall(SYS_brk, 0);
        CHECK((char *)syscall(SYS_brk, end + (512UL << 20)) == end);
        struct rlimit data = {8UL << 20, 8UL << 20};
        CHECK(setrlimit(RLIMIT_DATA, &data) == 0);
        FAILS((long)mmap(NULL, 16UL << 20, RW, ANON, -1, 0), ENOMEM);
        CHECK(mmap(NULL, 16UL << 20, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
        CHECK(mmap(NULL, 16UL << 20, PROT_READ, ANON, -1, 0) != MAP_FAILED);
        _exit(check_failures != 0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    pid = fork();
    if (pid == 0) {
        struct rlimit few = {64UL << 10, 64UL << 10};
        CHECK(setrlimit(RLIMIT_MEMLOCK, &few) == 0);
        CHECK(setresuid(1000, 1000, 1000) == 0);
        char *at = mmap(NULL, 32 * PAGE, RW, ANON, -1, 0);
        CHECK(at != MAP_FAILED);
        CHECK(mlock(at, 16 * PAGE) == 0);
        CHECK(mlock(at, 16 * PAGE) == 0);
        FAILS(mlock(at + 16 * PAGE, PAGE), ENOMEM);
        FAILS((long)mmap(NULL, PAGE, RW, ANON | MAP_LOCKED, -1, 0), EAGAIN);
        FAILS(mlockall(MCL_CURRENT), ENOMEM);
        _exit(check_failures != 0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static long deep(long depth)
{
    volatile char block[4096];
    memset((char *)block, (int)depth, sizeof block);
    return depth ? deep(depth - 1) + block[depth % 4096] * 0 : 0;
}

static sigjmp_buf back;

static void on_overflow(int signum)
{
    (void)signum;
    siglongjmp(back, 1);
}

static void stack(void)
{
    /* Memory that grows down, as old libraries have the stacks of threads. */
    unsigned long room = 4UL << 20;
    char *low = mmap(NULL, room, PROT_NONE, ANON, -1, 0);
    NEED(low != MAP_FAILED && munmap(low + PAGE, room - PAGE) == 0);
    char *top = mmap(low + room - 2 * PAGE, 2 * PAGE, RW, ANON | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
    NEED(top != MAP_FAILED);
    for (int i = 0; i < 100; i++)
        top[-i * (long)PAGE] = (char)i;
    CHECK(top[-99 * (long)PAGE] == 99 && munmap(top - 100 * PAGE, 102 * PAGE) == 0);

    CHECK(deep(1500) == 0); /* six of eight megabytes */
    static char other[65536];
    stack_t alternative = {.ss_sp = other, .ss_size = sizeof other};
    struct sigaction action = {.sa_handler = on_overflow, .sa_flags = SA_ONSTACK};
    CHECK(sigaltstack(&alternative, NULL) == 0 && sigaction(SIGSEGV, &action, NULL) == 0);
    int overflowed = 1;
    if (sigsetjmp(back, 1) == 0) {
        deep(1L << 40);
        overflowed = 0;
    }
    CHECK(overflowed);
}

int main(void)
{
    heap();
    moved();
    advised();
    present();
    limited();
    stack();
    DONE();
}
