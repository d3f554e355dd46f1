/* Calls for files by their numbers: the old ones that the C library does not make any more, and those that take a
 * directory's descriptor. */
#include "../check.h"
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <utime.h>

#define CALL(name, ...) syscall(SYS_##name, ##__VA_ARGS__)

static void old_ones(void)
{
    struct stat one, two;
    int fd = CALL(open, "old", O_CREAT | O_EXCL | O_RDWR, 0640);
    NEED(fd >= 0);
    FAILS(CALL(open, "old", O_CREAT | O_EXCL | O_RDWR, 0640), EEXIST);
    FAILS(CALL(open, "none", O_RDONLY), ENOENT);
    FAILS(CALL(open, "old/x", O_RDONLY), ENOTDIR);
    FAILS(CALL(open, ".", O_WRONLY), EISDIR);
    FAILS(CALL(open, "old", O_RDONLY | O_DIRECTORY), ENOTDIR);
    FAILS(CALL(open, NULL, O_RDONLY), EFAULT);
    CHECK(write(fd, "12345", 5) == 5);
    CHECK(CALL(fstat, fd, &one) == 0 && one.st_size == 5 && (one.st_mode & 07777) == 0640);
    CHECK(CALL(stat, "old", &two) == 0 && two.st_ino == one.st_ino && two.st_nlink == 1 && S_ISREG(two.st_mode));
    CHECK(symlink("old", "link") == 0);
    CHECK(CALL(lstat, "link", &two) == 0 && S_ISLNK(two.st_mode) && two.st_size == 3);
    CHECK(CALL(stat, "link", &two) == 0 && two.st_ino == one.st_ino);
    FAILS(CALL(stat, "none", &two), ENOENT);
    FAILS(CALL(lstat, "", &two), ENOENT);
    FAILS(CALL(stat, "old", (void *)8), EFAULT);
    FAILS(CALL(fstat, -1, &two), EBADF);
    CHECK(CALL(access, "old", R_OK | W_OK) == 0);
    FAILS(CALL(access, "old", X_OK), EACCES);
    int made = CALL(creat, "old", 0600); /* there already: made empty, its mode stays */
    CHECK(made >= 0 && fstat(made, &two) == 0 && two.st_size == 0 && (two.st_mode & 07777) == 0640);
    FAILS(CALL(creat, ".", 0600), EISDIR);
    FAILS(read(made, &two, 1), EBADF);
    close(made);
    CHECK(CALL(mknod, "fifo", S_IFIFO | 0600, 0) == 0 && lstat("fifo", &two) == 0 && S_ISFIFO(two.st_mode));
    CHECK(CALL(mknod, "plain", 0600, 0) == 0 && lstat("plain", &two) == 0 && S_ISREG(two.st_mode));
    FAILS(CALL(mknod, "plain", 0600, 0), EEXIST);
    FAILS(CALL(mknod, "somedir", S_IFDIR | 0700, 0), EPERM);
    FAILS(CALL(mknod, "somelink", S_IFLNK | 0700, 0), EINVAL);
    CHECK(CALL(mkdir, "d", 0700) == 0);
    FAILS(CALL(mkdir, "d", 0700), EEXIST);
    CHECK(CALL(rename, "plain", "d/plain") == 0 && access("plain", F_OK) < 0 && access("d/plain", F_OK) == 0);
    FAILS(CALL(rename, "d", "d/inside"), EINVAL);
    FAILS(CALL(rename, "old", "d"), EISDIR);
    FAILS(CALL(rmdir, "d"), ENOTEMPTY);
    CHECK(CALL(link, "old", "hard") == 0 && stat("old", &two) == 0 && two.st_nlink == 2);
    FAILS(CALL(link, "d", "d2"), EPERM);
    CHECK(CALL(unlink, "hard") == 0);
    FAILS(CALL(unlink, "d"), EISDIR);
    struct utimbuf when = {1000, 2000};
    CHECK(CALL(utime, "old", &when) == 0 && stat("old", &two) == 0 && two.st_atime == 1000 && two.st_mtime == 2000);
    FAILS(CALL(utime, "none", &when), ENOENT);
    FAILS(CALL(utime, "old", (void *)8), EFAULT);
    CHECK(CALL(lchown, "link", 1, 2) == 0 && lstat("link", &two) == 0 && two.st_uid == 1 && two.st_gid == 2);
    CHECK(stat("old", &two) == 0 && two.st_uid == 0);
    FAILS(CALL(lchown, "none", 1, 2), ENOENT);
    struct statfs fs, of_fd;
    CHECK(CALL(statfs, ".", &fs) == 0 && CALL(fstatfs, fd, &of_fd) == 0);
    CHECK(fs.f_type == of_fd.f_type && fs.f_bsize == of_fd.f_bsize && fs.f_namelen == of_fd.f_namelen);
    FAILS(CALL(fstatfs, 999, &fs), EBADF);
    FAILS(CALL(fstatfs, fd, NULL), EFAULT);
    CHECK(CALL(readahead, fd, 0L, 4096L) == 0);
    FAILS(CALL(readahead, fd, 0L, -1L), EINVAL);
    CHECK(CALL(sync_file_range, fd, 0L, 0L, 7) == 0);
    FAILS(CALL(sync_file_range, fd, 0L, 0L, 8), EINVAL);
    FAILS(CALL(sync_file_range, fd, -1L, 0L, 7), EINVAL);
    CHECK(CALL(fdatasync, fd) == 0 && CALL(fsync, fd) == 0 && CALL(syncfs, fd) == 0);
    FAILS(CALL(syncfs, -1), EBADF);
    int directory = open(".", O_RDONLY | O_DIRECTORY);
    CHECK(CALL(fsync, directory) == 0 && CALL(fdatasync, directory) == 0); /* what databases do after a rename */
    close(directory);
    close(fd);
}

struct linux_dirent {
    unsigned long ino;
    long off;
    unsigned short reclen;
    char name[];
};

static void reading_directories(void)
{
    char text[2048];
    int found = 0, fd = open("d", O_RDONLY | O_DIRECTORY);
    long n;
    FAILS(CALL(getdents, fd, text, 8), EINVAL); /* no room for one */
    while ((n = CALL(getdents, fd, text, sizeof text)) > 0)
        for (long at = 0; at < n;) {
            struct linux_dirent *entry = (void *)(text + at);
            char kind = text[at + entry->reclen - 1]; /* its place in this old structure */
            if (strcmp(entry->name, "plain") == 0) {
                found++;
                CHECK(kind == DT_REG);
            }
            at += entry->reclen;
        }
    CHECK(n == 0 && found == 1);
    FAILS(CALL(getdents, 999, text, sizeof text), EBADF);
    CHECK(CALL(lseek, fd, 0L, SEEK_SET) == 0);
    FAILS(CALL(getdents, fd, (void *)8, sizeof text), EFAULT);
    close(fd);
    fd = open("old", O_RDONLY);
    FAILS(CALL(getdents, fd, text, sizeof text), ENOTDIR);
    close(fd);
}

static void at_descriptors(void)
{
    struct stat one;
    char text[PATH_MAX], before[PATH_MAX];
    int d = open("d", O_RDONLY | O_DIRECTORY), file = open("old", O_RDONLY);
    CHECK(CALL(mkdirat, d, "sub", 0751) == 0 && stat("d/sub", &one) == 0 && (one.st_mode & 07777) == 0751);
    FAILS(CALL(mkdirat, d, "sub", 0751), EEXIST);
    FAILS(CALL(mkdirat, file, "sub", 0751), ENOTDIR);
    FAILS(CALL(mkdirat, 999, "sub", 0751), EBADF);
    FAILS(CALL(mkdirat, d, "none/sub", 0751), ENOENT);
    CHECK(CALL(mkdirat, 999, "/tmp", 0751) == -1 && errno == EEXIST); /* an absolute path needs no descriptor */
    CHECK(CALL(symlinkat, "a text", d, "sym") == 0);
    FAILS(CALL(symlinkat, "a text", d, "sym"), EEXIST);
    FAILS(CALL(symlinkat, "", d, "sym2"), ENOENT);
    FAILS(CALL(symlinkat, "a text", file, "sym"), ENOTDIR);
    memset(text, '#', sizeof text);
    CHECK(CALL(readlinkat, d, "sym", text, sizeof text) == 6 && memcmp(text, "a text#", 7) == 0);
    CHECK(CALL(readlinkat, d, "sym", text, 3) == 3);
    FAILS(CALL(readlinkat, d, "sub", text, sizeof text), EINVAL);
    FAILS(CALL(readlinkat, d, "sym", text, 0), EINVAL);
    CHECK(CALL(renameat, d, "sym", AT_FDCWD, "moved") == 0 && lstat("moved", &one) == 0 && S_ISLNK(one.st_mode));
    FAILS(CALL(renameat, d, "sym", AT_FDCWD, "moved"), ENOENT);
    FAILS(CALL(renameat, file, "x", AT_FDCWD, "moved"), ENOTDIR);
    FAILS(CALL(renameat, d, "sub", d, "sub/in"), EINVAL);
    FAILS(CALL(renameat, d, "plain", d, "sub"), EISDIR);
    FAILS(CALL(renameat, d, "sub", d, "plain"), ENOTDIR);
    CHECK(CALL(faccessat, d, "plain", R_OK) == 0);
    FAILS(CALL(faccessat, d, "plain", X_OK), EACCES);
    FAILS(CALL(faccessat, d, "none", F_OK), ENOENT);
    FAILS(CALL(faccessat, d, "plain", 64), EINVAL);
    struct timeval times[2] = {{3000, 5}, {4000, 6}}, wrong[2] = {{1, 1000000}, {1, 1}};
    CHECK(CALL(futimesat, d, "plain", times) == 0 && stat("d/plain", &one) == 0 && one.st_atim.tv_sec == 3000 &&
          one.st_mtim.tv_sec == 4000 && one.st_mtim.tv_nsec == 6000);
    CHECK(CALL(futimesat, file, NULL, times) == 0 && fstat(file, &one) == 0 && one.st_mtime == 4000);
    FAILS(CALL(futimesat, d, "plain", wrong), EINVAL);
    FAILS(CALL(futimesat, d, "none", times), ENOENT);
    CHECK(CALL(mknodat, d, "node", S_IFSOCK | 0600, 0) == 0 && CALL(unlinkat, d, "node", 0) == 0);
    FAILS(CALL(unlinkat, d, "sub", 0), EISDIR);
    CHECK(CALL(unlinkat, d, "sub", AT_REMOVEDIR) == 0);
    CHECK(getcwd(before, sizeof before) != NULL);
    CHECK(CALL(fchdir, d) == 0 && access("plain", F_OK) == 0 && CALL(getcwd, text, sizeof text) > 0);
    CHECK(strcmp(text + strlen(text) - 2, "/d") == 0);
    FAILS(CALL(getcwd, text, 2), ERANGE);
    FAILS(CALL(fchdir, file), ENOTDIR);
    FAILS(CALL(fchdir, 999), EBADF);
    CHECK(chdir(before) == 0);
    close(d);
    close(file);
}

static void attributes(void)
{
    char text[256];
    int fd = open("old", O_RDWR);
    if (CALL(setxattr, "old", "user.a", "one", 3, XATTR_CREATE) != 0) {
        CHECK(errno == EOPNOTSUPP); /* this file system has none */
        return;
    }
    FAILS(CALL(setxattr, "old", "user.a", "two", 3, XATTR_CREATE), EEXIST);
    CHECK(CALL(lsetxattr, "old", "user.b", "four", 4, 0) == 0);
    FAILS(CALL(lsetxattr, "link", "user.b", "four", 4, 0), EPERM); /* a link has no attributes of users */
    FAILS(CALL(lsetxattr, "old", "user.c", "", 0, XATTR_REPLACE), ENODATA);
    CHECK(CALL(fsetxattr, fd, "user.b", "fives", 5, XATTR_REPLACE) == 0);
    FAILS(CALL(fsetxattr, fd, "plain", "x", 1, 0), EOPNOTSUPP);
    FAILS(CALL(fsetxattr, 999, "user.b", "x", 1, 0), EBADF);
    FAILS(CALL(fsetxattr, fd, "user.b", "x", 70000, 0), E2BIG);
    CHECK(CALL(lgetxattr, "old", "user.b", text, sizeof text) == 5 && memcmp(text, "fives", 5) == 0);
    CHECK(CALL(fgetxattr, fd, "user.a", NULL, 0) == 3);
    FAILS(CALL(lgetxattr, "old", "user.b", text, 2), ERANGE);
    FAILS(CALL(fgetxattr, fd, "user.none", text, sizeof text), ENODATA);
    long all = CALL(listxattr, "link", text, sizeof text); /* through the link */
    CHECK(all >= 14 && memmem(text, all, "user.a", 7) && memmem(text, all, "user.b", 7));
    CHECK(CALL(flistxattr, fd, NULL, 0) == all && CALL(llistxattr, "old", text, sizeof text) == all);
    CHECK(CALL(llistxattr, "link", text, sizeof text) < all);
    FAILS(CALL(flistxattr, fd, text, 3), ERANGE);
    FAILS(CALL(llistxattr, "none", text, sizeof text), ENOENT);
    FAILS(CALL(listxattr, "none", text, sizeof text), ENOENT);
    FAILS(CALL(flistxattr, 999, text, sizeof text), EBADF);
    CHECK(CALL(lremovexattr, "old", "user.a") == 0 && CALL(fremovexattr, fd, "user.b") == 0);
    FAILS(CALL(lremovexattr, "old", "user.a"), ENODATA);
    FAILS(CALL(fremovexattr, fd, "user.b"), ENODATA);
    FAILS(CALL(removexattr, "none", "user.b"), ENOENT);
    close(fd);
}

int main(void)
{
    char template[] = "names-XXXXXX";
    umask(0);
    NEED(mkdtemp(template) != NULL && chdir(template) == 0);
    old_ones();
    reading_directories();
    at_descriptors();
    attributes();
    CHECK(CALL(sync) == 0);
    DONE();
}
