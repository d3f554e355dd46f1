/* inotify(7): what is told, in which order. */
#include "../check.h"
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

static int in;

/* The next event is this one. */
static unsigned next(int wd, unsigned mask, const char *name) {
    static char buf[4096] __attribute__((aligned(8)));
    static size_t have, at;
    if (at == have) {
        ssize_t size = read(in, buf, sizeof buf);
        if (size < 0) {
            fprintf(stderr, "no event %x %s: %s\n", mask, name, strerror(errno));
            check_failures++;
            return 0;
        }
        have = size, at = 0;
    }
    struct inotify_event *event = (void *)(buf + at);
    at += sizeof *event + event->len;
    const char *told = event->len ? event->name : "";
    if (event->wd != wd || event->mask != mask || strcmp(told, name)) {
        fprintf(stderr, "wd %d mask %x name '%s' instead of %d %x '%s'\n", event->wd, event->mask, told, wd, mask, name);
        check_failures++;
    }
    return event->cookie;
}

int main(void) {
    char buf[4096];
    NEED(mkdir("inotify-case", 0700) == 0);
    in = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    NEED(in >= 0 && (fcntl(in, F_GETFL) & O_NONBLOCK) && fcntl(in, F_GETFD) == FD_CLOEXEC);
    FAILS(inotify_init1(1), EINVAL);
    int dir = inotify_add_watch(in, "inotify-case", IN_ALL_EVENTS);
    CHECK(dir >= 1);
    FAILS(read(in, buf, sizeof buf), EAGAIN);
    struct pollfd p = {in, POLLIN, 0};
    CHECK(poll(&p, 1, 0) == 0);

    int fd = open("inotify-case/file", O_CREAT | O_RDWR, 0600);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLIN);
    int queued = 0;
    CHECK(ioctl(in, FIONREAD, &queued) == 0 && queued == 64);
    FAILS(read(in, buf, 8), EINVAL);
    next(dir, IN_CREATE, "file"), next(dir, IN_OPEN, "file");
    CHECK(write(fd, "text", 4) == 4);
    next(dir, IN_MODIFY, "file");
    CHECK(pread(fd, buf, 4, 0) == 4);
    next(dir, IN_ACCESS, "file");
    CHECK(ftruncate(fd, 1) == 0);
    next(dir, IN_MODIFY, "file");
    CHECK(fchmod(fd, 0644) == 0);
    next(dir, IN_ATTRIB, "file");
    close(fd);
    next(dir, IN_CLOSE_WRITE, "file");
    fd = open("inotify-case/file", O_RDONLY);
    close(fd);
    next(dir, IN_OPEN, "file"), next(dir, IN_CLOSE_NOWRITE, "file");
    CHECK(rename("inotify-case/file", "inotify-case/moved") == 0);
    unsigned cookie = next(dir, IN_MOVED_FROM, "file");
    CHECK(cookie != 0 && next(dir, IN_MOVED_TO, "moved") == cookie);
    CHECK(mkdir("inotify-case/sub", 0700) == 0 && rmdir("inotify-case/sub") == 0);
    next(dir, IN_CREATE | IN_ISDIR, "sub"), next(dir, IN_DELETE | IN_ISDIR, "sub");
    CHECK(link("inotify-case/moved", "inotify-case/link") == 0);
    next(dir, IN_CREATE, "link");
    CHECK(symlink("x", "inotify-case/soft") == 0);
    next(dir, IN_CREATE, "soft");

    /* A file itself, and a mask that is changed. */
    int file = inotify_add_watch(in, "inotify-case/moved", IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF);
    CHECK(file == dir + 1 && inotify_add_watch(in, "inotify-case/moved", IN_MODIFY | IN_MASK_ADD) == file);
    FAILS(inotify_add_watch(in, "inotify-case/moved", IN_MODIFY | IN_MASK_CREATE), EEXIST);
    CHECK(inotify_add_watch(in, "inotify-case", IN_DELETE) == dir);
    CHECK(truncate("inotify-case/moved", 100) == 0);
    next(file, IN_MODIFY, "");
    CHECK(rename("inotify-case/moved", "inotify-case/again") == 0);
    next(file, IN_MOVE_SELF, "");
    CHECK(unlink("inotify-case/link") == 0);
    next(file, IN_ATTRIB, ""), next(dir, IN_DELETE, "link");
    CHECK(unlink("inotify-case/again") == 0);
    next(file, IN_ATTRIB, ""), next(file, IN_DELETE_SELF, ""), next(file, IN_IGNORED, "");
    next(dir, IN_DELETE, "again");
    FAILS(inotify_rm_watch(in, file), EINVAL);
    CHECK(unlink("inotify-case/soft") == 0);
    next(dir, IN_DELETE, "soft");

    /* Once. */
    fd = open("inotify-case/once", O_CREAT | O_WRONLY, 0600);
    int once = inotify_add_watch(in, "inotify-case/once", IN_MODIFY | IN_ONESHOT);
    CHECK(once > file && write(fd, "x", 1) == 1 && write(fd, "x", 1) == 1);
    next(once, IN_MODIFY, ""), next(once, IN_IGNORED, "");
    close(fd);
    CHECK(unlink("inotify-case/once") == 0);
    next(dir, IN_DELETE, "once");

    FAILS(inotify_add_watch(in, "none", IN_MODIFY), ENOENT);
    FAILS(inotify_add_watch(in, ".", 0), EINVAL);
    FAILS(inotify_add_watch(0, ".", IN_MODIFY), EINVAL);
    FAILS(inotify_add_watch(-1, ".", IN_MODIFY), EBADF);
    FAILS(inotify_add_watch(in, "/etc/passwd", IN_MODIFY | IN_ONLYDIR), ENOTDIR);
    FAILS(inotify_rm_watch(in, 999), EINVAL);
    CHECK(inotify_rm_watch(in, dir) == 0);
    next(dir, IN_IGNORED, "");
    FAILS(read(in, buf, sizeof buf), EAGAIN);
    /* There are not any number of them. */
    int all[2000], count = 0;
    while (count < 2000 && (all[count] = inotify_init1(0)) >= 0)
        count++;
    CHECK(count >= 16 && (count == 2000 || errno == EMFILE));
    while (count--)
        close(all[count]);
    CHECK(rmdir("inotify-case") == 0 && close(in) == 0);
    DONE();
}
