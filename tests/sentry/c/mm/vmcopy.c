/* process_vm_readv and process_vm_writev, and what /proc tells of memory. */
#include "../check.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define PAGE 4096UL
#define RW (PROT_READ | PROT_WRITE)

static char *theirs;

static void copies(pid_t pid)
{
    char one[100] = "", two[100] = "";
    struct iovec mine[2] = {{one, 5}, {two, 10}};
    struct iovec other[2] = {{theirs, 8}, {theirs + 100, 7}};
    CHECK(process_vm_readv(pid, mine, 2, other, 2, 0) == 15);
    CHECK(memcmp(one, "hello", 5) == 0 && memcmp(two, ", abcdefgh", 3) == 0 && two[3] == 'x');
    struct iovec far[2] = {{theirs + PAGE - 4, 4}, {theirs + PAGE, 4}};
    CHECK(process_vm_readv(pid, mine, 2, far, 2, 0) == 4); /* the second page cannot be read */
    FAILS(process_vm_readv(pid, mine, 2, far + 1, 1, 0), EFAULT);
    FAILS(process_vm_readv(pid, mine, 2, other, 2, 1), EINVAL);
    FAILS(process_vm_readv(pid, mine, 2, other, 1025, 0), EINVAL);
    FAILS(process_vm_readv(999999, mine, 2, other, 2, 0), ESRCH);
    FAILS(process_vm_readv(pid, (void *)8, 2, other, 2, 0), EFAULT);
    CHECK(process_vm_readv(pid, mine, 0, other, 2, 0) == 0);
    strcpy(one, "HOWDY");
    CHECK(process_vm_writev(pid, mine, 1, other, 1, 0) == 5);
    struct iovec constant = {theirs + 2 * PAGE, 4};
    FAILS(process_vm_writev(pid, mine, 1, &constant, 1, 0), EFAULT);
    static char large[1 << 21];
    struct iovec all = {large, sizeof large}, source = {large, sizeof large};
    CHECK(process_vm_readv(pid, &all, 1, &source, 1, 0) == sizeof large);
}

static int maps_have(const char *start, const char *what)
{
    char line[512];
    int found = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    NEED(maps != NULL);
    while (fgets(line, sizeof line, maps))
        if ((!start || strtoul(line, NULL, 16) == (unsigned long)start) && strstr(line, what))
            found++;
    fclose(maps);
    return found;
}

static void told(void)
{
    char *at = mmap(NULL, 3 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(at != MAP_FAILED);
    CHECK(mprotect(at + PAGE, PAGE, PROT_READ) == 0);
    CHECK(maps_have(at + PAGE, " r--p 00000000"));
    CHECK(maps_have(at + 2 * PAGE, " rw-p 00000000"));
    char name[] = "vmXXXXXX";
    int fd = mkstemp(name);
    CHECK(fd >= 0 && ftruncate(fd, 4 * PAGE) == 0);
    char *file = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 2 * PAGE);
    CHECK(maps_have(file, " r--s 00002000") && maps_have(file, name));
    CHECK(maps_have(NULL, "[heap]") == 1 && maps_have(NULL, "[stack]") == 1 && maps_have(NULL, "[vdso]") == 1);
    CHECK(unlink(name) == 0 && maps_have(file, "(deleted)"));
    char *shared = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(maps_have(shared, "/dev/zero (deleted)"));
#ifdef PR_SET_VMA
    if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at, PAGE, "mine") == 0) {
        CHECK(maps_have(at, "[anon:mine]"));
        FAILS(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at, PAGE, "not [this]"), EINVAL);
        FAILS(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, file, PAGE, "mine"), EBADF);
        FAILS(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at + 1, PAGE, "mine"), EINVAL);
        FAILS(prctl(PR_SET_VMA, 1, at, PAGE, "mine"), EINVAL);
        CHECK(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at, PAGE, NULL) == 0 && !maps_have(NULL, "[anon:mine]"));
    }
#endif
}

int main(void)
{
    CHECK(malloc(10) != NULL); /* so that there is a heap */
    theirs = mmap(NULL, 3 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(theirs != MAP_FAILED);
    int ends[2], go[2];
    NEED(pipe(ends) == 0 && pipe(go) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        strcpy(theirs, "hello, abc");
        memset(theirs + 100, 'x', 7);
        mprotect(theirs + PAGE, PAGE, PROT_NONE);
        mprotect(theirs + 2 * PAGE, PAGE, PROT_READ);
        char byte;
        _exit(write(ends[1], "", 1) == 1 && read(go[0], &byte, 1) == 1 && memcmp(theirs, "HOWDY, abc", 10) == 0 ? 0 : 1);
    }
    char byte;
    CHECK(read(ends[0], &byte, 1) == 1);
    copies(pid);
    int status;
    CHECK(write(go[1], "", 1) == 1 && waitpid(pid, &status, 0) == pid && status == 0);
    if (geteuid() == 0) {
        pid_t other = fork();
        if (other == 0) {
            CHECK(setresuid(1234, 1234, 1234) == 0);
            struct iovec vector = {&byte, 1};
            FAILS(process_vm_readv(getppid(), &vector, 1, &vector, 1, 0), EPERM);
            _exit(check_failures);
        }
        CHECK(waitpid(other, &status, 0) == other && status == 0);
    }
    told();
    DONE();
}
