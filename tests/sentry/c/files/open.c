/* open(2), openat(2), creat(2), openat2(2), close(2), close_range(2): flags, errors, descriptors. */
#include "../check.h"
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static int openat2(int dir, const char *path, unsigned long flags, unsigned long mode, unsigned long resolve) {
    struct open_how how = {flags, mode, resolve};
    return syscall(SYS_openat2, dir, path, &how, sizeof how);
}

int main(void) {
    struct stat st;
    char buf[64];
    umask(022);
    NEED(mkdir("open-case", 0755) == 0 || errno == EEXIST);
    NEED(chdir("open-case") == 0);
    unlink("file"), unlink("link"), unlink("dangling"), unlink("made"), unlink("loop"), rmdir("dir");
    NEED(mkdir("dir", 0755) == 0);

    FAILS(open("file", O_RDONLY), ENOENT);
    int fd = open("file", O_CREAT | O_EXCL | O_RDWR, 0666);
    NEED(fd >= 0);
    CHECK(fstat(fd, &st) == 0 && st.st_mode == (S_IFREG | 0644) && st.st_nlink == 1 && st.st_size == 0);
    FAILS(open("file", O_CREAT | O_EXCL | O_RDWR, 0666), EEXIST);
    CHECK(write(fd, "hello", 5) == 5);
    CHECK((fcntl(fd, F_GETFL) & (O_ACCMODE | O_APPEND | O_CREAT | O_EXCL)) == O_RDWR);
    CHECK(fcntl(fd, F_GETFD) == 0);
    CHECK(close(fd) == 0);
    FAILS(close(fd), EBADF);
    FAILS(close(-1), EBADF);

    FAILS(open("file/x", O_RDONLY), ENOTDIR);
    FAILS(open("file/", O_RDONLY), ENOTDIR);
    FAILS(open("dir", O_WRONLY), EISDIR);
    FAILS(open("dir", O_RDWR | O_CREAT, 0600), EISDIR);
    FAILS(open("dir/", O_WRONLY | O_CREAT, 0600), EISDIR);
    FAILS(open("nothing/", O_WRONLY | O_CREAT, 0600), EISDIR);
    FAILS(open("file", O_RDONLY | O_DIRECTORY), ENOTDIR);
    FAILS(open("", O_RDONLY), ENOENT);
    FAILS(open((char *)8, O_RDONLY), EFAULT);
    char name[300];
    memset(name, 'n', sizeof name);
    name[256] = 0;
    FAILS(open(name, O_RDONLY | O_CREAT, 0600), ENAMETOOLONG);
    name[255] = 0;
    FAILS(open(name, O_RDONLY), ENOENT);
    char *longest = malloc(5000);
    memset(longest, '/', 5000);
    longest[4999] = 0;
    FAILS(open(longest, O_RDONLY), ENAMETOOLONG);
    longest[4095] = 0;
    fd = open(longest, O_RDONLY);
    CHECK(fd >= 0 && close(fd) == 0);

    /* Links. */
    NEED(symlink("file", "link") == 0 && symlink("made", "dangling") == 0 && symlink("loop", "loop") == 0);
    FAILS(open("link", O_RDONLY | O_NOFOLLOW), ELOOP);
    FAILS(open("loop", O_RDONLY), ELOOP);
    FAILS(open("dangling", O_RDONLY), ENOENT);
    FAILS(open("dangling", O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
    fd = open("dangling", O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && stat("made", &st) == 0 && st.st_mode == (S_IFREG | 0600));
    close(fd);
    fd = open("link", O_RDONLY);
    CHECK(fd >= 0 && read(fd, buf, 10) == 5 && memcmp(buf, "hello", 5) == 0);
    FAILS(write(fd, "x", 1), EBADF);
    close(fd);

    /* Truncation, appending. */
    fd = open("file", O_WRONLY | O_APPEND);
    CHECK(write(fd, " world", 6) == 6 && lseek(fd, 0, SEEK_CUR) == 11);
    CHECK(lseek(fd, 0, SEEK_SET) == 0 && write(fd, "!", 1) == 1 && lseek(fd, 0, SEEK_CUR) == 12);
    FAILS(read(fd, buf, 1), EBADF);
    close(fd);
    CHECK(stat("file", &st) == 0 && st.st_size == 12);
    fd = creat("file", 0777);
    CHECK(fd >= 0 && fstat(fd, &st) == 0 && st.st_size == 0 && (st.st_mode & 0777) == 0644);
    close(fd);

    /* O_PATH. */
    fd = open("file", O_PATH);
    NEED(fd >= 0);
    FAILS(read(fd, buf, 1), EBADF);
    FAILS(lseek(fd, 0, SEEK_SET), EBADF);
    FAILS(fchmod(fd, 0600), EBADF);
    FAILS(ioctl(fd, 0x5421, &fd), EBADF);
    CHECK(fstat(fd, &st) == 0 && S_ISREG(st.st_mode));
    CHECK((fcntl(fd, F_GETFL) & O_PATH) == O_PATH);
    close(fd);
    fd = open("link", O_PATH | O_NOFOLLOW);
    CHECK(fd >= 0 && fstat(fd, &st) == 0 && S_ISLNK(st.st_mode));
    CHECK(readlinkat(fd, "", buf, sizeof buf) == 4 && memcmp(buf, "file", 4) == 0);
    close(fd);

    /* openat. */
    int dir = open("dir", O_RDONLY | O_DIRECTORY);
    NEED(dir >= 0);
    FAILS(read(dir, buf, 1), EISDIR);
    fd = openat(dir, "inside", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
    CHECK(stat("dir/inside", &st) == 0);
    FAILS(openat(fd, "x", O_RDONLY), ENOTDIR);
    FAILS(openat(999, "x", O_RDONLY), EBADF);
    int up = openat(dir, "..", O_RDONLY);
    CHECK(up >= 0 && fstatat(up, "dir/inside", &st, 0) == 0);
    close(up), close(fd);

    /* openat2. */
    fd = openat2(dir, "inside", O_RDONLY, 0, RESOLVE_BENEATH);
    CHECK(fd >= 0);
    close(fd);
    FAILS(openat2(dir, "../file", O_RDONLY, 0, RESOLVE_BENEATH), EXDEV);
    FAILS(openat2(dir, "/etc/passwd", O_RDONLY, 0, RESOLVE_BENEATH), EXDEV);
    FAILS(openat2(dir, "/etc/passwd", O_RDONLY, 0, RESOLVE_IN_ROOT), ENOENT);
    fd = openat2(dir, "/../../inside", O_RDONLY, 0, RESOLVE_IN_ROOT);
    CHECK(fd >= 0);
    close(fd);
    FAILS(openat2(AT_FDCWD, "link", O_RDONLY, 0, RESOLVE_NO_SYMLINKS), ELOOP);
    FAILS(openat2(AT_FDCWD, "file", O_RDONLY, 0600, 0), EINVAL);
    FAILS(openat2(AT_FDCWD, "file", O_RDONLY, 0, 0x100), EINVAL);
    FAILS(openat2(AT_FDCWD, "file", 1ul << 40, 0, 0), EINVAL);
    FAILS(syscall(SYS_openat2, AT_FDCWD, "file", buf, 8), EINVAL);
    close(dir);

    /* O_TMPFILE. */
    FAILS(open("dir", O_TMPFILE | O_RDONLY, 0600), EINVAL);
    fd = open("dir", O_TMPFILE | O_RDWR, 0600);
    if (fd >= 0) {
        CHECK(fstat(fd, &st) == 0 && st.st_nlink == 0);
        CHECK(write(fd, "named", 5) == 5);
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        CHECK(linkat(AT_FDCWD, name, AT_FDCWD, "dir/named", AT_SYMLINK_FOLLOW) == 0);
        CHECK(stat("dir/named", &st) == 0 && st.st_size == 5 && st.st_nlink == 1);
        close(fd);
        fd = open("dir", O_TMPFILE | O_RDWR | O_EXCL, 0600);
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        FAILS(linkat(AT_FDCWD, name, AT_FDCWD, "dir/other", AT_SYMLINK_FOLLOW), ENOENT);
        close(fd);
        unlink("dir/named");
    } else {
        CHECK(errno == EOPNOTSUPP);
    }

    /* The lowest descriptor; how many there may be. */
    fd = open("file", O_RDONLY);
    int next = dup(fd);
    CHECK(next > fd && close(fd) == 0 && open("file", O_RDONLY) == fd);
    struct rlimit limit, few;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    few = limit;
    few.rlim_cur = next + 1;
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    FAILS(open("file", O_RDONLY), EMFILE);
    FAILS(dup(fd), EMFILE);
    FAILS(dup2(fd, next + 1), EBADF);
    FAILS(fcntl(fd, F_DUPFD, next + 1), EINVAL);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);

    CHECK(dup2(fd, 50) == 50 && dup2(fd, 51) == 51 && dup2(fd, 53) == 53);
    CHECK(syscall(SYS_close_range, 50, 52, 4) == 0 && fcntl(50, F_GETFD) == FD_CLOEXEC && fcntl(53, F_GETFD) == 0);
    CHECK(syscall(SYS_close_range, 50, ~0u, 0) == 0);
    FAILS(fcntl(50, F_GETFD), EBADF);
    FAILS(fcntl(53, F_GETFD), EBADF);
    FAILS(syscall(SYS_close_range, 51, 50, 0), EINVAL);
    FAILS(syscall(SYS_close_range, 50, 51, 64), EINVAL);

    /* What runs is not written to. */
    FAILS(open("/proc/self/exe", O_WRONLY), ETXTBSY);
    FAILS(open("/proc/self/exe", O_RDONLY | O_TRUNC), ETXTBSY);
    FAILS(truncate("/proc/self/exe", 0), ETXTBSY);

    unlink("dir/inside"), unlink("file"), unlink("link"), unlink("dangling"), unlink("made"), unlink("loop");
    CHECK(rmdir("dir") == 0 && chdir("..") == 0 && rmdir("open-case") == 0);
    DONE();
}
