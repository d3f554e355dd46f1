/* stat(2), statx(2), chmod(2), chown(2), utimensat(2), access(2), statfs(2), umask(2), xattr(7), and permissions. */
#include "../check.h"
#include <fcntl.h>
#include <grp.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <sys/xattr.h>

static void times(void) {
    struct stat st;
    struct timespec at[2] = {{1000000000, 123456789}, {1100000000, 987654321}};
    CHECK(utimensat(AT_FDCWD, "file", at, 0) == 0 && stat("file", &st) == 0);
    CHECK(st.st_atim.tv_sec == 1000000000 && st.st_atim.tv_nsec == 123456789);
    CHECK(st.st_mtim.tv_sec == 1100000000 && st.st_mtim.tv_nsec == 987654321 && st.st_ctim.tv_sec > 1100000000);
    at[0].tv_nsec = UTIME_OMIT, at[1].tv_nsec = UTIME_NOW;
    CHECK(utimensat(AT_FDCWD, "file", at, 0) == 0 && stat("file", &st) == 0);
    CHECK(st.st_atim.tv_sec == 1000000000 && st.st_mtim.tv_sec > 1100000000);
    at[0].tv_nsec = at[1].tv_nsec = UTIME_OMIT;
    CHECK(utimensat(AT_FDCWD, "none", at, 0) == 0);
    at[0].tv_nsec = 1000000000;
    FAILS(utimensat(AT_FDCWD, "file", at, 0), EINVAL);
    FAILS(utimensat(AT_FDCWD, "none", 0, 0), ENOENT);
    at[0].tv_nsec = at[1].tv_nsec = 5, at[0].tv_sec = at[1].tv_sec = 50;
    CHECK(utimensat(AT_FDCWD, "link", at, AT_SYMLINK_NOFOLLOW) == 0 && lstat("link", &st) == 0 && st.st_mtime == 50);
    CHECK(stat("file", &st) == 0 && st.st_mtime != 50);
    int fd = open("file", O_RDONLY);
    CHECK(futimens(fd, at) == 0 && fstat(fd, &st) == 0 && st.st_mtime == 50 && st.st_mtim.tv_nsec == 5);
    struct timeval tv[2] = {{7, 8}, {9, 10}};
    CHECK(syscall(SYS_utimes, "file", tv) == 0 && fstat(fd, &st) == 0);
    CHECK(st.st_atim.tv_nsec == 8000 && st.st_mtime == 9);
    tv[0].tv_usec = 1000000;
    FAILS(syscall(SYS_utimes, "file", tv), EINVAL);
    long old[2] = {77, 88};
    CHECK(syscall(SYS_utime, "file", old) == 0 && fstat(fd, &st) == 0 && st.st_atime == 77 && st.st_mtime == 88);
    close(fd);
}

static void statx_and_fs(void) {
    struct statx sx;
    struct stat st;
    struct statfs fs;
    CHECK(stat("file", &st) == 0);
    CHECK(statx(AT_FDCWD, "file", 0, STATX_BASIC_STATS | STATX_BTIME, &sx) == 0);
    CHECK(sx.stx_ino == st.st_ino && sx.stx_mode == st.st_mode && sx.stx_nlink == st.st_nlink);
    CHECK((sx.stx_mask & STATX_BASIC_STATS) == STATX_BASIC_STATS && sx.stx_size == (unsigned long)st.st_size);
    CHECK(sx.stx_mtime.tv_sec == st.st_mtime && sx.stx_ctime.tv_nsec == st.st_ctim.tv_nsec);
    CHECK((((unsigned long)sx.stx_dev_major << 8) | sx.stx_dev_minor) == st.st_dev);
    CHECK(statx(AT_FDCWD, "link", AT_SYMLINK_NOFOLLOW, STATX_TYPE, &sx) == 0 && S_ISLNK(sx.stx_mode));
    CHECK(statx(AT_FDCWD, "", AT_EMPTY_PATH, STATX_TYPE, &sx) == 0 && S_ISDIR(sx.stx_mode));
    FAILS(statx(AT_FDCWD, "file", 0, 0x80000000, &sx), EINVAL);
    FAILS(statx(AT_FDCWD, "file", 0x2, 0, &sx), EINVAL);
    FAILS(statx(AT_FDCWD, "", 0, 0, &sx), ENOENT);
    FAILS(fstatat(AT_FDCWD, "file", &st, 2), EINVAL);
    FAILS(stat("file", (void *)8), EFAULT);
    FAILS(stat("none", &st), ENOENT);
    FAILS(fstat(-1, &st), EBADF);
    CHECK(statfs(".", &fs) == 0 && fs.f_bsize > 0 && fs.f_namelen == 255);
    CHECK(statfs("/proc", &fs) == 0 && fs.f_type == 0x9fa0);
    FAILS(statfs("none", &fs), ENOENT);
    FAILS(fstatfs(-1, &fs), EBADF);
}

static void xattrs(void) {
    static char big[70000];
    char buf[256];
    int fd = open("file", O_RDWR);
    if (setxattr("file", "user.one", "value", 5, 0) == -1 && errno == EOPNOTSUPP)
        return; /* not on this file system */
    CHECK(getxattr("file", "user.one", buf, sizeof buf) == 5 && memcmp(buf, "value", 5) == 0);
    CHECK(fgetxattr(fd, "user.one", 0, 0) == 5);
    FAILS(getxattr("file", "user.one", buf, 2), ERANGE);
    FAILS(getxattr("file", "user.none", buf, 2), ENODATA);
    FAILS(setxattr("file", "user.one", "x", 1, XATTR_CREATE), EEXIST);
    FAILS(setxattr("file", "user.two", "x", 1, XATTR_REPLACE), ENODATA);
    CHECK(fsetxattr(fd, "user.two", "", 0, XATTR_CREATE) == 0 && getxattr("link", "user.two", buf, 1) == 0);
    FAILS(lsetxattr("link", "user.one", "x", 1, 0), EPERM);
    FAILS(lgetxattr("link", "user.one", buf, 1), ENODATA);
    FAILS(setxattr("file", "nospace", "x", 1, 0), EOPNOTSUPP);
    FAILS(setxattr("file", "", "x", 1, 0), ERANGE);
    FAILS(setxattr("file", "user.one", big, sizeof big, 0), E2BIG);
    FAILS(setxattr("file", "user.one", "x", 1, 8), EINVAL);
    ssize_t size = listxattr("file", buf, sizeof buf);
    int found = 0;
    for (char *name = buf; name < buf + size; name += strlen(name) + 1)
        found += !strcmp(name, "user.one") + 2 * !strcmp(name, "user.two");
    CHECK(found == 3);
    FAILS(flistxattr(fd, buf, 1), ERANGE);
    CHECK(removexattr("file", "user.one") == 0 && fremovexattr(fd, "user.two") == 0);
    FAILS(removexattr("file", "user.one"), ENODATA);
    close(fd);
}

/* In a child, as somebody else. */
static int as(unsigned uid, unsigned gid, int (*what)(void)) {
    fflush(stderr);
    pid_t pid = fork();
    if (pid == 0) {
        if (setgroups(0, 0) || setgid(gid) || setuid(uid))
            _exit(99);
        _exit(what());
    }
    int status;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
}

static int stranger(void) {
    struct stat st;
    FAILS(open("private", O_RDONLY), EACCES);
    FAILS(open("readable", O_WRONLY), EACCES);
    int fd = open("readable", O_RDONLY);
    CHECK(fd >= 0);
    FAILS(fchmod(fd, 0777), EPERM);
    FAILS(fchown(fd, 1000, -1), EPERM);
    CHECK(fchown(fd, -1, -1) == 0);
    FAILS(futimens(fd, (struct timespec[2]){{1, 1}, {1, 1}}), EPERM);
    FAILS(futimens(fd, 0), EACCES);
    FAILS(open("readable", O_RDONLY | O_NOATIME), EPERM);
    FAILS(open("closed/inside", O_RDONLY), EACCES);
    FAILS(stat("closed/inside", &st), EACCES);
    FAILS(chdir("closed"), EACCES);
    FAILS(mkdir("new", 0700), EACCES);
    FAILS(unlink("readable"), EACCES);
    FAILS(rename("readable", "sticky/x"), EACCES);
    FAILS(access("private", R_OK), EACCES);
    FAILS(access("readable", W_OK), EACCES);
    CHECK(access("readable", R_OK) == 0 && access("readable", F_OK) == 0);
    FAILS(access("readable", X_OK), EACCES);
    FAILS(chroot("."), EPERM);
    FAILS(mknod("sticky/dev", S_IFCHR | 0600, 0x103), EPERM);
    /* In a sticky directory one's own names only go. */
    FAILS(unlink("sticky/root"), EPERM);
    FAILS(rename("sticky/root", "sticky/x"), EPERM);
    fd = open("sticky/own", O_CREAT | O_WRONLY, 06755);
    CHECK(fd >= 0 && fstat(fd, &st) == 0 && st.st_uid == 1000 && st.st_gid == 1000);
    CHECK(fchmod(fd, 06755) == 0 && fstat(fd, &st) == 0 && (st.st_mode & 07777) == 06755);
    CHECK(write(fd, "x", 1) == 1 && fstat(fd, &st) == 0 && (st.st_mode & 06000) == 0);
    FAILS(chown("sticky/own", 1001, -1), EPERM);
    FAILS(chown("sticky/own", -1, 1001), EPERM);
    CHECK(chown("sticky/own", 1000, 1000) == 0);
    CHECK(unlink("sticky/own") == 0);
    /* The directory's group, by its bit. */
    CHECK(mkdir("group/d", 0755) == 0 && stat("group/d", &st) == 0 && st.st_gid == 2000 && st.st_mode & S_ISGID);
    fd = open("group/f", O_CREAT | O_WRONLY, 0644);
    CHECK(fd >= 0 && fstat(fd, &st) == 0 && st.st_gid == 2000 && !(st.st_mode & S_ISGID));
    CHECK(unlink("group/f") == 0 && rmdir("group/d") == 0);
    return check_failures ? 1 : 0;
}

static void permissions(void) {
    CHECK(chmod(".", 0755) == 0);
    int fd = open("private", O_CREAT | O_WRONLY, 0600);
    close(fd);
    fd = open("readable", O_CREAT | O_WRONLY, 0644);
    close(fd);
    CHECK(mkdir("closed", 0700) == 0 && mkdir("sticky", 0700) == 0 && chmod("sticky", 01777) == 0);
    CHECK(mkdir("group", 0700) == 0 && chown("group", -1, 2000) == 0 && chmod("group", 02777) == 0);
    fd = open("sticky/root", O_CREAT | O_WRONLY, 0666);
    close(fd);
    CHECK(as(1000, 1000, stranger) == 0);
    /* Root may all but execute what nobody may. */
    CHECK(access("private", R_OK | W_OK) == 0);
    FAILS(access("private", X_OK), EACCES);
    FAILS(access("private", 8), EINVAL);
    FAILS(syscall(SYS_faccessat2, AT_FDCWD, "private", 0, 1), EINVAL);
    CHECK(syscall(SYS_faccessat2, AT_FDCWD, "private", R_OK, AT_EACCESS) == 0);
    /* access(2) asks for the real user. */
    CHECK(seteuid(1000) == 0);
    FAILS(open("private", O_RDONLY), EACCES);
    CHECK(access("private", R_OK) == 0);
    FAILS(syscall(SYS_faccessat2, AT_FDCWD, "private", R_OK, AT_EACCESS), EACCES);
    CHECK(seteuid(0) == 0);
    /* What a change of owner takes. */
    struct stat st;
    CHECK(chmod("private", 06755) == 0 && chown("private", 5, 6) == 0 && stat("private", &st) == 0);
    CHECK(st.st_uid == 5 && st.st_gid == 6 && (st.st_mode & 07777) == 0755);
    CHECK(symlink("private", "plink") == 0 && lchown("plink", 7, 8) == 0 && lstat("plink", &st) == 0 && st.st_uid == 7);
    CHECK(stat("plink", &st) == 0 && st.st_uid == 5);
    CHECK(fchownat(AT_FDCWD, "plink", 9, -1, AT_SYMLINK_NOFOLLOW) == 0 && lstat("plink", &st) == 0 && st.st_uid == 9);
    FAILS(fchownat(AT_FDCWD, "plink", 9, -1, 0x4), EINVAL);
    FAILS(chmod("none", 0600), ENOENT);
    FAILS(syscall(SYS_fchmodat, AT_FDCWD, "none", 0600), ENOENT);
    if (syscall(452, AT_FDCWD, "private", 0640, 0) == 0) { /* fchmodat2: newer than some kernels */
        CHECK(stat("private", &st) == 0 && (st.st_mode & 0777) == 0640);
        FAILS(syscall(452, AT_FDCWD, "plink", 0640, AT_SYMLINK_NOFOLLOW), EOPNOTSUPP);
        FAILS(syscall(452, AT_FDCWD, "private", 0640, 4), EINVAL);
        fd = open("private", O_PATH);
        CHECK(syscall(452, fd, "", 0600, AT_EMPTY_PATH) == 0 && fstat(fd, &st) == 0 && (st.st_mode & 0777) == 0600);
        close(fd);
    } else {
        CHECK(errno == ENOSYS);
    }
    unlink("plink"), unlink("private"), unlink("readable"), unlink("sticky/root");
    CHECK(rmdir("closed") == 0 && rmdir("sticky") == 0 && rmdir("group") == 0);
}

int main(void) {
    CHECK(umask(027) != 027 && umask(022) == 027);
    NEED(mkdir("attrs-case", 0755) == 0 && chdir("attrs-case") == 0);
    int fd = open("file", O_CREAT | O_WRONLY, 0644);
    NEED(fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0 && symlink("file", "link") == 0);
    times();
    statx_and_fs();
    xattrs();
    if (getuid() == 0)
        permissions();
    CHECK(unlink("file") == 0 && unlink("link") == 0 && chdir("..") == 0 && rmdir("attrs-case") == 0);
    DONE();
}
