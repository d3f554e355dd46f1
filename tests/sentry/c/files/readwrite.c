/* read(2), write(2) and their family, lseek(2), holes, ftruncate(2), fallocate(2), RLIMIT_FSIZE. */
#include "../check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static volatile int exceeded;
static void xfsz(int signo) { exceeded = signo; }

static void sizes(int fd) {
    /* Any size, also those at which the way it is kept changes. */
    static char out[3 << 20], in[3 << 20];
    for (size_t i = 0; i < sizeof out; i++)
        out[i] = (char)(i * 7 + i / 4093);
    const size_t all[] = {1, 100, 4095, 4096, 4097, 16383, 16384, 16385, 65536, 1 << 20, (1 << 20) + 1, 3 << 20};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        struct stat st;
        CHECK(ftruncate(fd, 0) == 0 && lseek(fd, 0, SEEK_SET) == 0);
        CHECK(write(fd, out, all[i]) == (ssize_t)all[i]);
        CHECK(fstat(fd, &st) == 0 && st.st_size == (off_t)all[i]);
        CHECK(pread(fd, in, sizeof in, 0) == (ssize_t)all[i] && memcmp(in, out, all[i]) == 0);
        CHECK(lseek(fd, 0, SEEK_SET) == 0 && read(fd, in, all[i]) == (ssize_t)all[i] && read(fd, in, 1) == 0);
    }
}

int main(void) {
    void *volatile bad = (void *)8; /* no address */
    volatile int negative = -1, many = 1025;
    char buf[8192], *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(munmap(page + 4096, 4096) == 0);
    int fd = open("readwrite-case", O_RDWR | O_CREAT | O_TRUNC, 0600);
    NEED(fd >= 0);
    struct stat st;

    CHECK(write(fd, "0123456789", 10) == 10 && lseek(fd, 0, SEEK_CUR) == 10);
    CHECK(pread(fd, buf, 4, 3) == 4 && memcmp(buf, "3456", 4) == 0 && lseek(fd, 0, SEEK_CUR) == 10);
    CHECK(pwrite(fd, "ab", 2, 4) == 2 && pread(fd, buf, 10, 0) == 10 && memcmp(buf, "0123ab6789", 10) == 0);
    CHECK(pread(fd, buf, 10, 10) == 0 && pread(fd, buf, 10, 1000) == 0 && read(fd, buf, 0) == 0);
    FAILS(pread(fd, buf, 1, -1), EINVAL);
    FAILS(pwrite(fd, buf, 1, -1), EINVAL);
    FAILS(lseek(fd, -1, SEEK_SET), EINVAL);
    FAILS(lseek(fd, 0, 77), EINVAL);
    CHECK(lseek(fd, -3, SEEK_END) == 7 && read(fd, buf, 10) == 3);
    CHECK(write(fd, 0, 0) == 0);
    FAILS(write(fd, bad, 1), EFAULT);
    lseek(fd, 0, SEEK_SET);
    FAILS(read(fd, bad, 1), EFAULT);
    CHECK(lseek(fd, 0, SEEK_CUR) == 0);
    FAILS(read(-1, buf, 1), EBADF);
    FAILS(write(-1, buf, 1), EBADF);

    /* Vectors. */
    struct iovec v[3] = {{buf, 2}, {buf + 10, 0}, {buf + 20, 5}};
    CHECK(readv(fd, v, 3) == 7 && memcmp(buf, "01", 2) == 0 && memcmp(buf + 20, "23ab6", 5) == 0);
    CHECK(preadv(fd, v, 3, 1) == 7 && memcmp(buf + 20, "3ab67", 5) == 0);
    v[0].iov_base = "xx", v[2].iov_base = "yyyyy";
    CHECK(pwritev(fd, v, 3, 0) == 7 && pread(fd, buf, 10, 0) == 10 && memcmp(buf, "xxyyyyy789", 10) == 0);
    CHECK(lseek(fd, 8, SEEK_SET) == 8 && writev(fd, v, 3) == 7 && lseek(fd, 0, SEEK_END) == 15);
    FAILS(writev(fd, v, negative), EINVAL);
    FAILS(readv(fd, v, many), EINVAL);
    FAILS(preadv(fd, v, 1, -1), EINVAL);
    CHECK(writev(fd, v, 0) == 0);
    v[0].iov_len = (size_t)-1;
    FAILS(writev(fd, v, 3), EINVAL);
    v[0].iov_len = 2;
    v[0].iov_base = buf, v[2].iov_base = buf + 20;
    lseek(fd, 8, SEEK_SET);
    CHECK(preadv2(fd, v, 3, -1, 0) == 7 && lseek(fd, 0, SEEK_CUR) == 15);
    FAILS(preadv2(fd, v, 3, 0, 0x4000), EOPNOTSUPP);
    CHECK(pwritev2(fd, v, 1, 0, RWF_APPEND) == 2 && lseek(fd, 0, SEEK_END) == 17);

    /* Holes. */
    CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, "end", 3, 1 << 20) == 3);
    CHECK(fstat(fd, &st) == 0 && st.st_size == (1 << 20) + 3 && st.st_blocks < 2048);
    CHECK(pread(fd, buf, 8192, 4096) == 8192 && buf[0] == 0 && buf[8191] == 0);
    CHECK(lseek(fd, 0, SEEK_DATA) <= 1 << 20 && lseek(fd, 0, SEEK_HOLE) <= (1 << 20) + 3);
    CHECK(lseek(fd, 1 << 20, SEEK_HOLE) == (1 << 20) + 3);
    FAILS(lseek(fd, 2 << 20, SEEK_DATA), ENXIO);
    FAILS(lseek(fd, 2 << 20, SEEK_HOLE), ENXIO);
    CHECK(ftruncate(fd, 100) == 0 && ftruncate(fd, 200) == 0 && pread(fd, buf, 8192, 0) == 200 && buf[199] == 0);
    CHECK(ftruncate(fd, 50000) == 0 && fstat(fd, &st) == 0 && st.st_size == 50000);
    FAILS(ftruncate(fd, -1), EINVAL);
    FAILS(ftruncate(-1, 1), EBADF);
    CHECK(truncate("readwrite-case", 3) == 0 && lseek(fd, 0, SEEK_END) == 3);
    FAILS(truncate("readwrite-case", -1), EINVAL);
    FAILS(truncate("/tmp", 1), EISDIR);
    FAILS(truncate("/nowhere", 1), ENOENT);
    FAILS(truncate("/dev/null", 1), EINVAL);

    /* Room in advance, and its return. */
    CHECK(ftruncate(fd, 0) == 0 && fallocate(fd, 0, 0, 65536) == 0 && fstat(fd, &st) == 0 && st.st_size == 65536);
    CHECK(st.st_blocks >= 128);
    CHECK(fallocate(fd, FALLOC_FL_KEEP_SIZE, 65536, 65536) == 0 && fstat(fd, &st) == 0 && st.st_size == 65536);
    memset(buf, 'x', sizeof buf);
    CHECK(pwrite(fd, buf, 8192, 4096) == 8192);
    CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5000, 5000) == 0);
    CHECK(pread(fd, buf, 8192, 4096) == 8192 && buf[903] == 'x' && buf[904] == 0 && buf[5903] == 0 && buf[5904] == 'x');
    FAILS(fallocate(fd, 0, -1, 1), EINVAL);
    FAILS(fallocate(fd, 0, 0, 0), EINVAL);
    FAILS(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 1), EOPNOTSUPP);
    CHECK(posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL) == 0 && posix_fadvise(fd, 0, 0, 77) == EINVAL);
    CHECK(fsync(fd) == 0 && fdatasync(fd) == 0 && sync_file_range(fd, 0, 10, 2) == 0 && syncfs(fd) == 0);
    FAILS(fsync(-1), EBADF);

    sizes(fd);

    /* A mapping and the file are one. */
    CHECK(ftruncate(fd, 8192) == 0 && pwrite(fd, "before", 6, 0) == 6);
    char *shared = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    NEED(shared != MAP_FAILED);
    CHECK(memcmp(shared, "before", 6) == 0);
    memcpy(shared + 5000, "mapped", 6);
    CHECK(pread(fd, buf, 6, 5000) == 6 && memcmp(buf, "mapped", 6) == 0);
    CHECK(pwrite(fd, "later", 5, 6000) == 5 && memcmp(shared + 6000, "later", 5) == 0);
    munmap(shared, 8192);

    /* Part of a buffer is not there. */
    CHECK(ftruncate(fd, 0) == 0 && lseek(fd, 0, SEEK_SET) == 0);
    memset(page, 'p', 4096);
    ssize_t done = write(fd, page + 4000, 200);
    CHECK(done == 96 || (done == -1 && errno == EFAULT));

    /* Limits. */
    struct rlimit limit = {1000, RLIM_INFINITY};
    signal(SIGXFSZ, xfsz);
    CHECK(ftruncate(fd, 0) == 0 && setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK(pwrite(fd, buf, 200, 900) == 100 && exceeded == 0);
    FAILS(pwrite(fd, buf, 1, 1000), EFBIG);
    CHECK(exceeded == SIGXFSZ);
    exceeded = 0;
    FAILS(ftruncate(fd, 1001), EFBIG);
    CHECK(exceeded == SIGXFSZ);
    limit.rlim_cur = RLIM_INFINITY;
    setrlimit(RLIMIT_FSIZE, &limit);
    FAILS(pwrite(fd, buf, 1, 0x7fffffffffffffff), EINVAL);
    FAILS(pread(fd, buf, 1, 0x7fffffffffffffff), EINVAL);
    CHECK(unlink("readwrite-case") == 0 && write(fd, "x", 1) == 1 && fstat(fd, &st) == 0 && st.st_nlink == 0);
    DONE();
}
