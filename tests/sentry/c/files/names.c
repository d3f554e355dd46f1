/* Directories, links and renaming: mkdir(2), rmdir(2), unlink(2), link(2), symlink(2), readlink(2), rename(2), mknod(2),
 * getdents64(2), chdir(2), getcwd(2). */
#include "../check.h"
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

static int exists(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0;
}

static void put(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    CHECK(fd >= 0 && write(fd, path, strlen(path)) == (ssize_t)strlen(path));
    close(fd);
}

static void listing(void) {
    CHECK(mkdir("many", 0700) == 0);
    char name[64];
    for (int i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "many/file-with-a-long-name-%d", i);
        put(name);
    }
    DIR *dir = opendir("many");
    NEED(dir);
    int count = 0, dots = 0;
    struct dirent *entry;
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] == '.') {
            dots++;
            CHECK(entry->d_type == DT_DIR || entry->d_type == DT_UNKNOWN);
        } else {
            CHECK(entry->d_type == DT_REG || entry->d_type == DT_UNKNOWN);
            CHECK(unlinkat(dirfd(dir), entry->d_name, 0) == 0);
            count++;
        }
    }
    CHECK(count == 500 && dots == 2);
    rewinddir(dir);
    for (count = 0; readdir(dir);)
        count++;
    CHECK(count == 2);
    int fd = dirfd(dir);
    char buf[100];
    lseek(fd, 0, SEEK_SET);
    FAILS(syscall(SYS_getdents64, fd, buf, 10), EINVAL);
    FAILS(syscall(SYS_getdents64, fd, 8, 100), EFAULT);
    FAILS(syscall(SYS_getdents64, -1, buf, 100), EBADF);
    /* The old call has the kind at the end of each. */
    lseek(fd, 0, SEEK_SET);
    long size = syscall(SYS_getdents, fd, buf, sizeof buf);
    CHECK(size > 0 && buf[18] == '.' && *(unsigned short *)(buf + 16) == 24 && (buf[23] == DT_DIR || !buf[23]));
    /* A removed directory has nothing in it, and takes nothing. */
    CHECK(rmdir("many") == 0);
    lseek(fd, 0, SEEK_SET);
    size = syscall(SYS_getdents64, fd, buf, sizeof buf);
    CHECK(size == 0 || (size == -1 && errno == ENOENT));
    FAILS(openat(fd, "new", O_CREAT | O_WRONLY, 0600), ENOENT);
    closedir(dir);
}

static void renaming(void) {
    struct stat st, before;
    put("one"), put("two");
    CHECK(stat("one", &before) == 0 && rename("one", "three") == 0 && stat("three", &st) == 0);
    CHECK(st.st_ino == before.st_ino && !exists("one"));
    CHECK(rename("three", "two") == 0 && stat("two", &st) == 0 && st.st_ino == before.st_ino);
    FAILS(rename("none", "x"), ENOENT);
    CHECK(mkdir("d", 0755) == 0 && mkdir("d/e", 0755) == 0 && mkdir("f", 0755) == 0);
    FAILS(rename("d", "d/e/x"), EINVAL);
    FAILS(rename("d", "d/e"), EINVAL);
    FAILS(rename("d/e", "d"), ENOTEMPTY);
    FAILS(rename("f", "d"), ENOTEMPTY);
    FAILS(rename("two", "d"), EISDIR);
    FAILS(rename("d", "two"), ENOTDIR);
    FAILS(rename("two", "x/"), ENOTDIR);
    FAILS(rename(".", "x"), EBUSY);
    FAILS(rename("d/..", "x"), EBUSY);
    FAILS(rename("two", "/dev/x"), EXDEV);
    CHECK(rename("d/e", "f") == 0 && stat("d", &st) == 0 && st.st_nlink == 2);
    CHECK(rename("f", "d/g") == 0 && stat("d", &st) == 0 && st.st_nlink == 3);
    CHECK(link("two", "four") == 0 && rename("two", "four") == 0 && exists("two") && exists("four"));
    CHECK(renameat2(AT_FDCWD, "two", AT_FDCWD, "two", RENAME_EXCHANGE) == 0 && exists("two"));
    FAILS(renameat2(AT_FDCWD, "two", AT_FDCWD, "four", RENAME_NOREPLACE), EEXIST);
    CHECK(renameat2(AT_FDCWD, "two", AT_FDCWD, "d", RENAME_EXCHANGE) == 0);
    CHECK(stat("two", &st) == 0 && S_ISDIR(st.st_mode) && stat("d", &st) == 0 && S_ISREG(st.st_mode));
    FAILS(renameat2(AT_FDCWD, "two", AT_FDCWD, "none", RENAME_EXCHANGE), ENOENT);
    FAILS(renameat2(AT_FDCWD, "two", AT_FDCWD, "four", RENAME_EXCHANGE | RENAME_NOREPLACE), EINVAL);
    FAILS(renameat2(AT_FDCWD, "two", AT_FDCWD, "four", 64), EINVAL);
    /* Who stands in it, or holds it, goes along. */
    char cwd[PATH_MAX], name[PATH_MAX];
    CHECK(chdir("two") == 0);
    int fd = open("g", O_RDONLY | O_DIRECTORY);
    CHECK(rename("../two", "../moved") == 0 && getcwd(cwd, sizeof cwd) && strstr(cwd, "/moved"));
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, cwd, sizeof cwd - 1);
    cwd[length > 0 ? length : 0] = 0;
    CHECK(strstr(cwd, "/moved/g"));
    CHECK(rmdir("../moved/g") == 0);
    length = readlink(name, cwd, sizeof cwd - 1);
    cwd[length > 0 ? length : 0] = 0;
    CHECK(strstr(cwd, "/moved/g (deleted)"));
    close(fd);
    CHECK(chdir("..") == 0 && rmdir("moved") == 0 && unlink("d") == 0 && unlink("four") == 0);
}

int main(void) {
    struct stat st;
    char buf[PATH_MAX];
    umask(022);
    NEED(mkdir("names-case", 0777) == 0);
    CHECK(stat("names-case", &st) == 0 && st.st_mode == (S_IFDIR | 0755) && st.st_nlink == 2);
    NEED(chdir("names-case") == 0 && getcwd(buf, sizeof buf) && strcmp(strrchr(buf, '/'), "/names-case") == 0);
    FAILS(syscall(SYS_getcwd, buf, 3), ERANGE);
    FAILS(mkdir("../names-case", 0700), EEXIST);
    FAILS(mkdir("a/b", 0700), ENOENT);
    FAILS(mkdir(".", 0700), EEXIST);
    FAILS(mkdir("/", 0700), EEXIST);
    CHECK(mkdir("slash/", 0700) == 0 && rmdir("slash/") == 0);
    FAILS(rmdir("."), EINVAL);
    CHECK(mkdir("in", 0700) == 0 && stat(".", &st) == 0 && st.st_nlink == 3);
    FAILS(rmdir("in/.."), ENOTEMPTY);
    put("file");
    FAILS(rmdir("file"), ENOTDIR);
    FAILS(mkdir("file/x", 0700), ENOTDIR);
    FAILS(unlink("in"), EISDIR);
    FAILS(unlink("file/"), ENOTDIR);
    FAILS(unlink("none"), ENOENT);
    FAILS(unlinkat(AT_FDCWD, "file", AT_REMOVEDIR), ENOTDIR);
    FAILS(unlinkat(AT_FDCWD, "file", 1), EINVAL);
    CHECK(unlinkat(AT_FDCWD, "in", AT_REMOVEDIR) == 0);
    FAILS(chdir("file"), ENOTDIR);
    FAILS(chdir("none"), ENOENT);

    /* Links. */
    CHECK(link("file", "hard") == 0 && stat("hard", &st) == 0 && st.st_nlink == 2);
    FAILS(link("file", "hard"), EEXIST);
    FAILS(link("none", "x"), ENOENT);
    FAILS(link(".", "x"), EPERM);
    FAILS(linkat(AT_FDCWD, "file", AT_FDCWD, "x", 2), EINVAL);
    FAILS(link("file", "/dev/x"), EXDEV);
    CHECK(symlink("file", "soft") == 0 && lstat("soft", &st) == 0 && S_ISLNK(st.st_mode) && st.st_size == 4);
    CHECK((st.st_mode & 0777) == 0777);
    FAILS(symlink("file", "soft"), EEXIST);
    FAILS(symlink("", "x"), ENOENT);
    CHECK(readlink("soft", buf, sizeof buf) == 4 && readlink("soft", buf, 2) == 2);
    FAILS(readlink("file", buf, sizeof buf), EINVAL);
    FAILS(readlink("soft", buf, 0), EINVAL);
    FAILS(readlink("none", buf, 1), ENOENT);
    CHECK(linkat(AT_FDCWD, "soft", AT_FDCWD, "soft2", 0) == 0 && lstat("soft2", &st) == 0 && S_ISLNK(st.st_mode));
    CHECK(linkat(AT_FDCWD, "soft", AT_FDCWD, "hard2", AT_SYMLINK_FOLLOW) == 0);
    CHECK(lstat("hard2", &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 3);
    CHECK(unlink("soft2") == 0 && unlink("hard2") == 0 && unlink("hard") == 0);
    CHECK(stat("file", &st) == 0 && st.st_nlink == 1);
    /* Forty links in a row are followed, one more is not. */
    CHECK(symlink("file", "chain0") == 0);
    for (int i = 1; i <= 40; i++) {
        char from[32], to[32];
        snprintf(to, sizeof to, "chain%d", i - 1), snprintf(from, sizeof from, "chain%d", i);
        CHECK(symlink(to, from) == 0);
    }
    CHECK(stat("chain39", &st) == 0);
    FAILS(stat("chain40", &st), ELOOP);
    for (int i = 0; i <= 40; i++) {
        snprintf(buf, sizeof buf, "chain%d", i);
        unlink(buf);
    }

    /* Nodes. */
    CHECK(mknod("fifo", S_IFIFO | 0666, 0) == 0 && stat("fifo", &st) == 0 && st.st_mode == (S_IFIFO | 0644));
    CHECK(mknod("plain", 0600, 0) == 0 && stat("plain", &st) == 0 && S_ISREG(st.st_mode));
    CHECK(mknod("sock", S_IFSOCK | 0600, 0) == 0 && stat("sock", &st) == 0 && S_ISSOCK(st.st_mode));
    FAILS(open("sock", O_RDWR), ENXIO);
    FAILS(mknod("fifo", S_IFIFO | 0666, 0), EEXIST);
    FAILS(mknod("x", S_IFDIR | 0700, 0), EPERM);
    FAILS(mknod("x", 0xf000, 0), EINVAL);
    CHECK(unlink("fifo") == 0 && unlink("plain") == 0 && unlink("sock") == 0);

    CHECK(unlink("soft") == 0 && unlink("file") == 0);
    listing();
    renaming();

    /* A working directory that is removed. */
    CHECK(mkdir("gone", 0700) == 0 && chdir("gone") == 0 && rmdir("../gone") == 0);
    FAILS(syscall(SYS_getcwd, buf, sizeof buf), ENOENT);
    FAILS(open("x", O_CREAT | O_WRONLY, 0600), ENOENT);
    FAILS(mkdir("x", 0700), ENOENT);
    CHECK(stat(".", &st) == 0 && st.st_nlink == 0);
    CHECK(chdir("..") == 0 && getcwd(buf, sizeof buf) && chdir("..") == 0 && rmdir("names-case") == 0);
    DONE();
}
