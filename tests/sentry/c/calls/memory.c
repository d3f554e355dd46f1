/* Calls for memory that hardly any program makes: policies of nodes, keys, advice for others. */
#include "../check.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define CALL(name, ...) syscall(SYS_##name, ##__VA_ARGS__)
#define PAGE 4096l
enum { DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL };

static char *area;

static void policies(void)
{
    unsigned long first = 1, none = 0, far = 1ul << 40;
    int mode = -1;
    if (CALL(get_mempolicy, &mode, NULL, 0, NULL, 0) != 0) {
        CHECK(errno == ENOSYS); /* a Linux without nodes */
        return;
    }
    CHECK(mode == DEFAULT);
    FAILS(CALL(get_mempolicy, (void *)8, NULL, 0, NULL, 0), EFAULT);
    FAILS(CALL(get_mempolicy, &mode, NULL, 0, NULL, 64), EINVAL);
    CHECK(CALL(set_mempolicy, BIND, &first, 64) == 0 && CALL(set_mempolicy, PREFERRED, &first, 64) == 0);
    CHECK(CALL(set_mempolicy, PREFERRED, NULL, 0) == 0 && CALL(set_mempolicy, LOCAL, NULL, 0) == 0);
    CHECK(CALL(set_mempolicy, DEFAULT, NULL, 0) == 0);
    FAILS(CALL(set_mempolicy, 99, NULL, 0), EINVAL);
    FAILS(CALL(set_mempolicy, BIND, NULL, 0), EINVAL);
    FAILS(CALL(set_mempolicy, BIND, &none, 64), EINVAL);
    FAILS(CALL(set_mempolicy, BIND, &far, 64), EINVAL);
    FAILS(CALL(set_mempolicy, DEFAULT, &first, 64), EINVAL);
    FAILS(CALL(set_mempolicy, BIND, (void *)8, 64), EFAULT);
    FAILS(CALL(set_mempolicy, BIND, &first, 1 << 20), EINVAL);
    CHECK(CALL(mbind, area, PAGE, BIND, &first, 64, 0) == 0 && CALL(mbind, area, PAGE, DEFAULT, NULL, 0, 0) == 0);
    CHECK(CALL(mbind, area, 0, BIND, &first, 64, 0) == 0);
    FAILS(CALL(mbind, area + 1, PAGE, BIND, &first, 64, 0), EINVAL);
    FAILS(CALL(mbind, area, PAGE, BIND, &first, 64, 64), EINVAL);
    FAILS(CALL(mbind, area, PAGE, BIND, (void *)8, 64, 0), EFAULT);
    FAILS(CALL(mbind, area, 4 * PAGE, BIND, &first, 64, 0), EFAULT); /* a hole in it */
    CHECK(CALL(migrate_pages, 0, 64, &first, &first) == 0);
    FAILS(CALL(migrate_pages, 4000000, 64, &first, &first), ESRCH);
    FAILS(CALL(migrate_pages, 0, 64, &first, (void *)8), EFAULT);
    FAILS(CALL(migrate_pages, 0, 64, &first, &none), EINVAL);
    void *pages[2] = {area, area + PAGE};
    int status[2] = {99, 99}, nodes[2] = {0, 0};
    area[0] = 1;
    CHECK(CALL(move_pages, 0, 1, pages, NULL, status, 0) == 0 && status[0] == 0);
    CHECK(CALL(move_pages, 0, 1, pages, nodes, status, 2) == 0 && status[0] == 0);
    FAILS(CALL(move_pages, 0, 2, (void *)8, NULL, status, 0), EFAULT);
    FAILS(CALL(move_pages, 0, 1, pages, NULL, (void *)8, 0), EFAULT);
    FAILS(CALL(move_pages, 0, 1, pages, NULL, status, 64), EINVAL);
    FAILS(CALL(move_pages, 4000000, 1, pages, NULL, status, 0), ESRCH);
}

static void advising(void)
{
    int fd = CALL(pidfd_open, getpid(), 0);
    struct iovec pages = {area, PAGE}, hole = {area + 2 * PAGE, PAGE}, wrong = {area + 1, PAGE};
    NEED(fd >= 0);
    CHECK(CALL(process_madvise, fd, &pages, 1, MADV_WILLNEED, 0) == PAGE);
    CHECK(CALL(process_madvise, fd, &pages, 1, MADV_COLD, 0) == PAGE);
    FAILS(CALL(process_madvise, fd, &pages, 1, MADV_WILLNEED, 1), EINVAL);
    FAILS(CALL(process_madvise, fd, &pages, 1, 99, 0), EINVAL);
    FAILS(CALL(process_madvise, fd, &hole, 1, MADV_COLD, 0), ENOMEM);
    FAILS(CALL(process_madvise, fd, &wrong, 1, MADV_COLD, 0), EINVAL);
    FAILS(CALL(process_madvise, 0, &pages, 1, MADV_COLD, 0), EBADF);
    FAILS(CALL(process_madvise, fd, (void *)8, 1, MADV_COLD, 0), EFAULT);
    FAILS(CALL(process_mrelease, fd, 1), EINVAL);
    FAILS(CALL(process_mrelease, fd, 0), EINVAL); /* it does not end */
    FAILS(CALL(process_mrelease, 0, 0), EBADF);
    close(fd);
    CHECK(CALL(pkey_mprotect, area, PAGE, PROT_READ, -1) == 0 && CALL(pkey_mprotect, area, PAGE, PROT_READ | PROT_WRITE, -1) == 0);
    area[0] = 2;
    FAILS(CALL(pkey_mprotect, area, PAGE, PROT_READ, 15), EINVAL);
    FAILS(CALL(pkey_mprotect, area + 1, PAGE, PROT_READ, -1), EINVAL);
    FAILS(CALL(pkey_free, 15), EINVAL);
    CHECK(CALL(munlockall) == 0);
    char *end = (char *)CALL(brk, 0);
    CHECK((char *)CALL(brk, end + PAGE) == end + PAGE && (end[0] = 1) && (char *)CALL(brk, end) == end);
    CHECK((char *)CALL(brk, 8) == end && (char *)CALL(brk, -1l) == end); /* it says what there is instead of an error */
}

int main(void)
{
    area = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(area != MAP_FAILED && munmap(area + 2 * PAGE, PAGE) == 0);
    policies();
    advising();
    DONE();
}
