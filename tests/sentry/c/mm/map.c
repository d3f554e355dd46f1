/* mmap, munmap, mprotect: what they do, and what they refuse. */
#include "../check.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define PAGE 4096UL
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static sigjmp_buf back;
static volatile siginfo_t seen;

static void on_fault(int signum, siginfo_t *info, void *context)
{
    (void)signum;
    (void)context;
    *(siginfo_t *)&seen = *info;
    siglongjmp(back, 1);
}

/* Whether writing (or reading) there faults, with this signal and code. */
static int faults(volatile char *at, int writes, int signum, int code)
{
    if (sigsetjmp(back, 1) == 0) {
        if (writes)
            *at = 1;
        else
            (void)*at;
        return 0;
    }
    siginfo_t info = *(siginfo_t *)&seen;
    seen.si_signo = 0;
    return info.si_signo == signum && info.si_code == code && info.si_addr == (void *)at;
}

static void anonymous(void)
{
    char *at = mmap(NULL, 3 * PAGE, RW, ANON, -1, 0);
    NEED(at != MAP_FAILED);
    CHECK((unsigned long)at % PAGE == 0);
    for (unsigned long i = 0; i < 3 * PAGE; i++)
        CHECK(at[i] == 0);
    memset(at, 'x', 3 * PAGE);
    CHECK(mprotect(at + PAGE, PAGE, PROT_READ) == 0);
    CHECK(at[PAGE] == 'x');
    CHECK(faults(at + PAGE, 1, SIGSEGV, SEGV_ACCERR));
    CHECK(mprotect(at + PAGE, PAGE, PROT_NONE) == 0);
    CHECK(faults(at + PAGE, 0, SIGSEGV, SEGV_ACCERR));
    CHECK(mprotect(at + PAGE, PAGE, RW) == 0);
    CHECK(at[PAGE] == 'x');
    CHECK(munmap(at + PAGE, PAGE) == 0);
    CHECK(faults(at + PAGE, 0, SIGSEGV, SEGV_MAPERR));
    CHECK(at[0] == 'x' && at[2 * PAGE] == 'x');
    CHECK(munmap(at + PAGE, PAGE) == 0);
    FAILS(mprotect(at, 3 * PAGE, PROT_READ), ENOMEM);
    CHECK(faults(at, 1, SIGSEGV, SEGV_ACCERR)); /* what comes before the hole was changed */
    CHECK(munmap(at, 3 * PAGE) == 0);
}

static void refused(void)
{
    char *at = mmap(NULL, 2 * PAGE, RW, ANON, -1, 0);
    NEED(at != MAP_FAILED);
    FAILS((long)mmap(NULL, 0, RW, ANON, -1, 0), EINVAL);
    FAILS((long)mmap(NULL, PAGE, RW, MAP_ANONYMOUS, -1, 0), EINVAL);
    FAILS((long)mmap(NULL, PAGE, RW, MAP_PRIVATE, -1, 0), EBADF);
    FAILS((long)mmap(NULL, PAGE, RW, MAP_PRIVATE, 987, 0), EBADF);
    FAILS((long)mmap(at + 1, PAGE, RW, ANON | MAP_FIXED, -1, 0), EINVAL);
    FAILS((long)mmap(NULL, 1UL << 48, RW, ANON, -1, 0), ENOMEM);
    FAILS((long)mmap(NULL, ~0UL, RW, ANON, -1, 0), ENOMEM);
    FAILS((long)mmap((void *)(1UL << 47), PAGE, RW, ANON | MAP_FIXED, -1, 0), ENOMEM);
    FAILS((long)mmap(at, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
    FAILS((long)mmap(NULL, PAGE, RW, MAP_SHARED_VALIDATE | MAP_ANONYMOUS, -1, 0), EINVAL);
    FAILS(munmap(at + 1, PAGE), EINVAL);
    FAILS(munmap(at, 0), EINVAL);
    FAILS(munmap(at, 1UL << 48), EINVAL);
    FAILS(mprotect(at + 1, PAGE, RW), EINVAL);
    FAILS(mprotect(at, PAGE, 0x100), EINVAL);
    FAILS(mprotect(at, PAGE, PROT_GROWSDOWN | PROT_GROWSUP), EINVAL);
    FAILS(mprotect(at, ~0UL & -PAGE, PROT_READ), ENOMEM);
    CHECK(mprotect(at, 0, PROT_READ) == 0);
    CHECK(mprotect(at, 1, PROT_READ) == 0);
    CHECK(faults(at + PAGE - 1, 1, SIGSEGV, SEGV_ACCERR));
    at[PAGE] = 1;
    CHECK(munmap(at, 2 * PAGE) == 0);
}

static void placed(void)
{
    char *at = mmap(NULL, 8 * PAGE, RW, ANON, -1, 0);
    NEED(at != MAP_FAILED);
    memset(at, 'x', 8 * PAGE);
    char *over = mmap(at + 2 * PAGE, 2 * PAGE, PROT_READ, ANON | MAP_FIXED, -1, 0);
    CHECK(over == at + 2 * PAGE && over[0] == 0 && at[PAGE] == 'x' && at[4 * PAGE] == 'x');
    CHECK(munmap(at + 4 * PAGE, 2 * PAGE) == 0);
    CHECK(mmap(at + 4 * PAGE, PAGE, RW, ANON, -1, 0) == at + 4 * PAGE); /* a hint that is free */
    CHECK(mmap(at + 4 * PAGE + 5, PAGE, RW, ANON, -1, 0) == at + 5 * PAGE); /* rounded up */
    char *elsewhere = mmap(at, PAGE, RW, ANON, -1, 0); /* a hint that is not */
    CHECK(elsewhere != MAP_FAILED && elsewhere != at && at[0] == 'x');
    char *low = mmap(NULL, PAGE, RW, ANON | MAP_32BIT, -1, 0);
    CHECK(low != MAP_FAILED && (unsigned long)low < 1UL << 31);
    CHECK(munmap(low, PAGE) == 0);
    CHECK(munmap(at, 8 * PAGE) == 0);
}

static void of_files(void)
{
    char name[] = "mapXXXXXX";
    int fd = mkstemp(name);
    NEED(fd >= 0);
    CHECK(ftruncate(fd, 3 * PAGE + 100) == 0);
    CHECK(pwrite(fd, "hello", 5, 0) == 5 && pwrite(fd, "page two", 8, PAGE) == 8);
    char *shared = mmap(NULL, 5 * PAGE, RW, MAP_SHARED, fd, 0);
    char *private = mmap(NULL, 2 * PAGE, RW, MAP_PRIVATE, fd, PAGE);
    NEED(shared != MAP_FAILED && private != MAP_FAILED);
    CHECK(memcmp(shared, "hello", 5) == 0 && memcmp(private, "page two", 8) == 0);
    shared[1] = 'a';
    char buffer[8];
    CHECK(pread(fd, buffer, 5, 0) == 5 && memcmp(buffer, "hallo", 5) == 0);
    CHECK(pwrite(fd, "H", 1, 0) == 1 && shared[0] == 'H');
    private[0] = 'P';
    CHECK(pread(fd, buffer, 4, PAGE) == 4 && memcmp(buffer, "page", 4) == 0);
    CHECK(msync(shared, 4 * PAGE, MS_SYNC) == 0);
    CHECK(shared[3 * PAGE + 100] == 0); /* the rest of the last page */
    CHECK(faults(shared + 4 * PAGE, 0, SIGBUS, BUS_ADRERR));
    FAILS((long)mmap(NULL, PAGE, RW, MAP_SHARED, fd, 1), EINVAL);
    FAILS((long)mmap(NULL, PAGE, RW, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0), EOPNOTSUPP);
    CHECK(mmap(NULL, PAGE, RW, MAP_SHARED_VALIDATE, fd, 0) != MAP_FAILED);
    FAILS((long)mmap(NULL, PAGE, RW, MAP_SHARED, fd, ~0UL & -PAGE), EOVERFLOW);
    CHECK(close(fd) == 0);
    CHECK(shared[0] == 'H'); /* the mapping keeps the file */

    fd = open(name, O_RDONLY);
    NEED(fd >= 0);
    FAILS((long)mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0), EACCES);
    char *read = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(read != MAP_FAILED && read[1] == 'a');
    FAILS(mprotect(read, PAGE, RW), EACCES);
    CHECK(mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0) != MAP_FAILED);
    close(fd);
    fd = open(name, O_WRONLY);
    FAILS((long)mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0), EACCES);
    close(fd);
    fd = open(name, O_PATH);
    FAILS((long)mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0), EBADF);
    close(fd);
    fd = open(".", O_RDONLY | O_DIRECTORY);
    FAILS((long)mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0), ENODEV);
    close(fd);
    int ends[2];
    CHECK(pipe(ends) == 0);
    FAILS((long)mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, ends[0], 0), ENODEV);
    CHECK(unlink(name) == 0);
    CHECK(shared[0] == 'H' && memcmp(private, "Page", 4) == 0);
    CHECK(munmap(shared, 5 * PAGE) == 0 && munmap(private, 2 * PAGE) == 0);

    fd = open("/dev/zero", O_RDWR);
    NEED(fd >= 0);
    char *zero = mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0);
    CHECK(zero != MAP_FAILED && zero[5] == 0 && (zero[5] = 1));
    zero = mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0);
    CHECK(zero != MAP_FAILED && zero[5] == 0 && (zero[5] = 1));
    close(fd);
}

static void without_execution(void)
{
    if (mkdir("noexec", 0700) || mount("none", "noexec", "tmpfs", MS_NOEXEC, NULL)) {
        CHECK(errno == EPERM || errno == EACCES); /* not as root */
        return;
    }
    int fd = open("noexec/file", O_RDWR | O_CREAT, 0700);
    NEED(fd >= 0 && ftruncate(fd, PAGE) == 0);
    FAILS((long)mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0), EPERM);
    char *at = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(at != MAP_FAILED);
    FAILS(mprotect(at, PAGE, PROT_READ | PROT_EXEC), EACCES);
    CHECK(munmap(at, PAGE) == 0 && close(fd) == 0);
    CHECK(umount("noexec") == 0 && rmdir("noexec") == 0);
}

static void calls_and_rights(void)
{
    /* The kernel writes only where the program may. */
    char *at = mmap(NULL, 2 * PAGE, RW, ANON, -1, 0);
    int fd = open("/dev/zero", O_RDONLY), ends[2];
    NEED(at != MAP_FAILED && fd >= 0 && pipe(ends) == 0);
    CHECK(mprotect(at, PAGE, PROT_READ) == 0);
    FAILS(read(fd, at, 1), EFAULT);
    char *volatile nowhere = NULL;
    FAILS(read(fd, nowhere, 1), EFAULT);
    CHECK(write(ends[1], at, 1) == 1);
    CHECK(mprotect(at, PAGE, PROT_NONE) == 0);
    FAILS(write(ends[1], at, 1), EFAULT);
    CHECK(munmap(at, PAGE) == 0);
    FAILS(write(ends[1], at, 1), EFAULT);
    CHECK(read(ends[0], at + PAGE, 1) == 1);
    CHECK(munmap(at + PAGE, PAGE) == 0);
}

static void shared_by_forks(void)
{
    int *shared = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int *private = mmap(NULL, PAGE, RW, ANON, -1, 0);
    NEED(shared != MAP_FAILED && private != MAP_FAILED);
    *private = 1;
    pid_t pid = fork();
    if (pid == 0) {
        *shared = 42;
        *private = 2;
        _exit(munmap(shared, PAGE) == 0 ? 7 : 1);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    CHECK(*shared == 42 && *private == 1);
}

static void executable(void)
{
    /* mov $42, %eax; ret: written, then run, as a JIT does. */
    static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};
    unsigned char *at = mmap(NULL, PAGE, RW, ANON, -1, 0);
    NEED(at != MAP_FAILED);
    memcpy(at, code, sizeof code);
    CHECK(mprotect(at, PAGE, PROT_READ | PROT_EXEC) == 0);
    CHECK(((int (*)(void))at)() == 42);
    CHECK(mprotect(at, PAGE, RW | PROT_EXEC) == 0);
    at[1] = 43;
    CHECK(((int (*)(void))at)() == 43);
}

static void reservations(void)
{
    unsigned long size = 1UL << 43;
    char *at = mmap(NULL, size, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);
    NEED(at != MAP_FAILED);
    CHECK(mprotect(at + (1UL << 42), PAGE, RW) == 0);
    at[1UL << 42] = 1;
    CHECK(munmap(at, size) == 0);
    /* Many small ones, some given back: splits and joins. */
    at = mmap(NULL, 512 * PAGE, PROT_NONE, ANON, -1, 0);
    NEED(at != MAP_FAILED);
    for (int i = 0; i < 512; i += 2)
        CHECK(mprotect(at + i * PAGE, PAGE, RW) == 0);
    for (int i = 0; i < 512; i += 2)
        at[i * PAGE] = (char)i;
    for (int i = 1; i < 512; i += 2)
        CHECK(mprotect(at + i * PAGE, PAGE, RW) == 0);
    for (int i = 0; i < 512; i += 2)
        CHECK(at[i * PAGE] == (char)i && at[(i + 1) * PAGE] == 0);
    CHECK(munmap(at, 512 * PAGE) == 0);
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    anonymous();
    refused();
    placed();
    of_files();
    without_execution();
    calls_and_rights();
    shared_by_forks();
    executable();
    reservations();
    DONE();
}
