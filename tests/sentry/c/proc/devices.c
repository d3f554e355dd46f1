/* /dev: null(4), zero, full(4), random(4), and links to open files. */
#include "check.h"
#include <fcntl.h>
#include <linux/random.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static void node(const char *path, int major, int minor) {
    struct stat found;
    CHECK(stat(path, &found) == 0);
    CHECK(S_ISCHR(found.st_mode) && found.st_rdev == makedev(major, minor));
}

int main(void) {
    char text[4096];
    node("/dev/null", 1, 3);
    node("/dev/zero", 1, 5);
    node("/dev/full", 1, 7);
    node("/dev/random", 1, 8);
    node("/dev/urandom", 1, 9);
    node("/dev/tty", 5, 0);
    node("/dev/ptmx", 5, 2);

    int fd = open("/dev/null", O_RDWR | O_TRUNC);
    NEED(fd >= 0);
    CHECK(read(fd, text, 10) == 0 && write(fd, text, 4096) == 4096);
    CHECK(pread(fd, text, 10, 5) == 0 && pwrite(fd, text, 10, 5) == 10);
    CHECK(lseek(fd, 100, SEEK_SET) == 0 && lseek(fd, 0, SEEK_END) == 0);
    struct pollfd one = {.fd = fd, .events = POLLIN | POLLOUT};
    CHECK(poll(&one, 1, 0) == 1 && one.revents == (POLLIN | POLLOUT));
    FAILS(ftruncate(fd, 10), EINVAL);
    FAILS(fsync(fd), EINVAL);
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENODEV);
    close(fd);

    fd = open("/dev/zero", O_RDWR);
    NEED(fd >= 0);
    memset(text, 1, sizeof text);
    CHECK(read(fd, text, sizeof text) == sizeof text);
    int sum = 0;
    for (size_t i = 0; i < sizeof text; i++)
        sum += text[i];
    CHECK(sum == 0);
    for (int shared = 0; shared < 2; shared++) {
        char *map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE, fd, 0);
        CHECK(map != MAP_FAILED);
        if (map != MAP_FAILED) {
            CHECK(map[0] == 0 && map[8191] == 0);
            map[5000] = 7;
            CHECK(map[5000] == 7);
            munmap(map, 8192);
        }
    }
    close(fd);

    fd = open("/dev/full", O_RDWR);
    NEED(fd >= 0);
    FAILS(write(fd, "x", 1), ENOSPC);
    CHECK(read(fd, text, 3) == 3 && text[0] == 0);
    close(fd);

    fd = open("/dev/urandom", O_RDONLY);
    NEED(fd >= 0);
    char other[32];
    CHECK(read(fd, text, 32) == 32 && read(fd, other, 32) == 32 && memcmp(text, other, 32));
    int count = 0;
    CHECK(ioctl(fd, RNDGETENTCNT, &count) == 0 && count > 0);
    FAILS(ioctl(fd, TIOCGWINSZ, text), EINVAL);
    close(fd);

    /* Links to open files. */
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    snprintf(text, sizeof text, "/dev/fd/%d", pipes[1]);
    fd = open(text, O_WRONLY);
    CHECK(fd >= 0 && write(fd, "via", 3) == 3 && read(pipes[0], text, 10) == 3);
    close(fd);
    struct stat a, b;
    snprintf(text, sizeof text, "/dev/fd/%d", pipes[0]);
    CHECK(stat(text, &a) == 0 && fstat(pipes[0], &b) == 0 && a.st_ino == b.st_ino && S_ISFIFO(a.st_mode));
    CHECK(stat("/dev/stdin", &a) == 0 && fstat(0, &b) == 0 && a.st_ino == b.st_ino);
    CHECK(stat("/dev/shm", &a) == 0 && (a.st_mode & 07777) == 01777);

    /* Numbers without a device. */
    if (geteuid() == 0) {
        unlink("./node");
        CHECK(mknod("./node", S_IFCHR | 0600, makedev(1, 3)) == 0);
        fd = open("./node", O_WRONLY);
        CHECK(fd >= 0 || errno == EACCES);
        if (fd >= 0)
            CHECK(write(fd, "x", 1) == 1);
        close(fd);
        unlink("./node");
    }
    DONE();
}
