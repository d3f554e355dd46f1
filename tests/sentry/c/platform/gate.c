/* What the platform keeps in each process's memory cannot be taken away, changed or moved, and calls made by odd ways are
 * served or refused like any. Natively the same calls hit nothing, or what Linux keeps there. */
#include "../check.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define TOP 0x7ffffffff000UL

static long compat(long number) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(0), "c"(0), "d"(0) : "memory", "r8", "r9", "r10", "r11");
    return result;
}

int main(void) {
    static char page[4096];
    for (unsigned long at = TOP - 64 * 4096; at < TOP; at += 4096) {
        void *got = mmap((void *)at, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (got != MAP_FAILED) {
            CHECK(got == (void *)at);
            memset(got, 0x90, 4096);
        }
        if (getenv("HERE")) {
            mprotect((void *)at, 4096, PROT_READ | PROT_WRITE);
            mremap(page, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, at);
            mmap((void *)at, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            munmap((void *)at, 4096);
        }
    }
    /* Memory and processes can still be made. */
    char *more = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(more != MAP_FAILED);
    memset(more, 1, 1 << 20);
    pid_t child = fork();
    NEED(child >= 0);
    if (child == 0)
        _exit(more[4095] == 1 ? 7 : 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    child = vfork();
    if (child == 0) {
        execl("/bin/true", "true", (char *)NULL);
        _exit(127);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    /* No numbers of other tables: x32, 32-bit calls. getppid is 110 there; 64 in the table of 32-bit programs. */
    errno = 0;
    CHECK(syscall(110 | 0x40000000) == -1 && errno == ENOSYS);
    if (getenv("HERE"))
        CHECK(compat(64) == -ENOSYS);
    CHECK(syscall(100000) == -1 && errno == ENOSYS);
    CHECK(syscall(-1) == -1 && errno == ENOSYS);
    DONE();
}
