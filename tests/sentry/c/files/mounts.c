/* mount(2), umount2(2), pivot_root(2), chroot(2), /proc/mounts. */
#include "../check.h"
#include <fcntl.h>
#include <sched.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void put(const char *path) {
    int fd = open(path, O_CREAT | O_WRONLY, 0644);
    CHECK(fd >= 0);
    close(fd);
}

static int has(const char *text) {
    static char buf[65536];
    int fd = open("/proc/self/mounts", O_RDONLY);
    ssize_t size = 0, step;
    while ((step = read(fd, buf + size, sizeof buf - 1 - size)) > 0)
        size += step;
    close(fd);
    buf[size] = 0;
    return strstr(buf, text) != 0;
}

static void pivot(void) {
    char cwd[100];
    NEED(mkdir("new", 0755) == 0 && mount("newroot", "new", "tmpfs", 0, "") == 0 && mkdir("new/old", 0755) == 0);
    put("new/here");
    FAILS(syscall(SYS_pivot_root, "new", "."), EBUSY);
    FAILS(syscall(SYS_pivot_root, "new/old", "new/old"), EINVAL);
    FAILS(syscall(SYS_pivot_root, "new", "new/here"), ENOTDIR);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(syscall(SYS_pivot_root, "new", "new/old") == 0);
        CHECK(chdir("/") == 0 && access("/here", F_OK) == 0 && access("/old/proc", F_OK) == 0);
        CHECK(umount2("/old", MNT_DETACH) == 0 && access("/old/proc", F_OK) != 0 && rmdir("/old") == 0);
        CHECK(getcwd(cwd, sizeof cwd) && strcmp(cwd, "/") == 0);
        _exit(check_failures ? 1 : 0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

int main(void) {
    struct stat st, before;
    struct statfs fs;
    if (unshare(CLONE_NEWNS) == 0)
        NEED(mount("", "/", 0, MS_REC | MS_PRIVATE, 0) == 0);
    NEED(mkdir("mounts-case", 0755) == 0 && chdir("mounts-case") == 0 && mkdir("a", 0755) == 0 && mkdir("b", 0755) == 0);
    put("hidden"), put("a/under");
    CHECK(mount("source", "a", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=700") == 0);
    CHECK(stat("a", &st) == 0 && stat(".", &before) == 0 && st.st_dev != before.st_dev && st.st_mode == (S_IFDIR | 0700));
    CHECK(statfs("a", &fs) == 0 && fs.f_type == 0x01021994 && fs.f_blocks == 256 && (fs.f_flags & 6) == 6);
    CHECK(has("source /") && has("/mounts-case/a tmpfs rw,nosuid,nodev"));
    FAILS(access("a/under", F_OK), ENOENT);
    put("a/file");

    /* It is full at some point. */
    int fd = open("a/big", O_CREAT | O_RDWR, 0600);
    static char data[65536];
    ssize_t size, total = 0;
    while ((size = write(fd, data, sizeof data)) > 0)
        total += size;
    CHECK(size == -1 && errno == ENOSPC && total > 900 << 10 && total <= 1 << 20);
    CHECK(statfs("a", &fs) == 0 && fs.f_bfree == 0);
    CHECK(ftruncate(fd, 0) == 0 && statfs("a", &fs) == 0 && fs.f_bfree > 250);
    FAILS(umount2("a", 0), EBUSY);
    close(fd);

    /* Binds, also of files, also read-only. */
    CHECK(mount("a", "b", 0, MS_BIND, 0) == 0 && access("b/file", F_OK) == 0);
    CHECK(mount("", "b", 0, MS_BIND | MS_REMOUNT | MS_RDONLY, 0) == 0 && has("/mounts-case/b tmpfs ro"));
    FAILS(open("b/new", O_CREAT | O_WRONLY, 0600), EROFS);
    FAILS(open("b/file", O_WRONLY), EROFS);
    FAILS(unlink("b/file"), EROFS);
    FAILS(mkdir("b/d", 0700), EROFS);
    FAILS(chmod("b/file", 0600), EROFS);
    FAILS(rename("b/file", "b/x"), EROFS);
    FAILS(access("b/file", W_OK), EROFS);
    FAILS(truncate("b/file", 0), EROFS);
    FAILS(link("a/file", "b/x"), EROFS);
    put("a/new");
    CHECK(access("b/new", F_OK) == 0);
    CHECK(mount("a/file", "hidden", 0, MS_BIND, 0) == 0 && stat("hidden", &st) == 0 && stat("a/file", &before) == 0);
    CHECK(st.st_ino == before.st_ino && umount("hidden") == 0);
    FAILS(mount("a", "hidden", 0, MS_BIND, 0), ENOTDIR);
    FAILS(mount("none", "a", 0, MS_BIND, 0), ENOENT);

    /* What is mounted on cannot go. */
    FAILS(rmdir("b"), EBUSY);
    FAILS(rename("b", "c"), EBUSY);
    FAILS(rename("a/new", "new"), EXDEV);
    CHECK(chdir("b") == 0 && access("../a", F_OK) == 0);
    char cwd[200];
    CHECK(getcwd(cwd, sizeof cwd) && strstr(cwd, "/mounts-case/b"));
    FAILS(umount("../b"), EBUSY);
    CHECK(chdir("..") == 0 && umount("b") == 0);
    FAILS(umount("b"), EINVAL);
    FAILS(umount("none"), ENOENT);
    FAILS(umount2("a", 77), EINVAL);

    /* Moved, one on the other, taken out of sight in use. */
    CHECK(mount("a", "b", 0, MS_MOVE, 0) == 0 && access("b/file", F_OK) == 0 && access("a/under", F_OK) == 0);
    CHECK(mount("second", "b", "tmpfs", 0, 0) == 0 && access("b/file", F_OK) != 0 && umount("b") == 0);
    fd = open("b/file", O_RDWR);
    CHECK(fd >= 0 && umount2("b", MNT_DETACH) == 0 && write(fd, "x", 1) == 1 && !has("/mounts-case/b"));
    close(fd);

    /* Who watches hears of it. */
    struct inotify_event event;
    int in = inotify_init1(IN_NONBLOCK);
    CHECK(mount("x", "b", "tmpfs", 0, 0) == 0 && inotify_add_watch(in, "b", IN_CREATE) == 1 && umount("b") == 0);
    CHECK(read(in, &event, sizeof event) == sizeof event && event.mask == (IN_UNMOUNT | IN_ISDIR) && event.wd == 1);
    CHECK(read(in, &event, sizeof event) == sizeof event && event.mask == IN_IGNORED && event.wd == 1);
    close(in);

    FAILS(mount("x", "b", "nosuchfs", 0, 0), ENODEV);
    FAILS(mount("x", "none", "tmpfs", 0, 0), ENOENT);
    FAILS(mount("x", "hidden", "tmpfs", 0, 0), ENOTDIR);
    CHECK(mount("p", "b", "proc", 0, 0) == 0 && access("b/self/stat", F_OK) == 0 && umount("b") == 0);
    CHECK(mount("x", "b", "tmpfs", MS_NOEXEC, 0) == 0);
    put("b/program");
    CHECK(chmod("b/program", 0755) == 0);
    char *none[] = {0};
    FAILS(execve("b/program", none, none), EACCES);
    CHECK(umount("b") == 0);

    pid_t pid = fork();
    if (pid == 0) {
        put("a/inside");
        CHECK(chroot("a") == 0 && chdir("/") == 0 && access("/inside", F_OK) == 0 && access("/../inside", F_OK) == 0);
        CHECK(getcwd(cwd, sizeof cwd) && strcmp(cwd, "/") == 0);
        FAILS(access("/etc", F_OK), ENOENT);
        FAILS(chroot("inside"), ENOTDIR);
        _exit(check_failures ? 1 : 0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    unlink("a/inside"), unlink("a/under"), unlink("hidden");
    CHECK(rmdir("a") == 0 && rmdir("b") == 0 && chdir("..") == 0 && rmdir("mounts-case") == 0);
    pivot(); /* and nothing behind it: behind the sentry, which has one mount namespace, the root is another now */
    DONE();
}
