/* fcntl(2) locks (POSIX and of open files), flock(2), and the other commands of fcntl(2) and ioctl(2). */
#include "../check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#define F_OFD_GETLK_ 36
#define F_OFD_SETLK_ 37
#define F_OFD_SETLKW_ 38

static int lock(int fd, int command, int type, long start, long length) {
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(fd, command, &l);
}

static int child(int (*what)(void)) {
    fflush(stderr);
    pid_t pid = fork();
    if (pid == 0)
        _exit(what());
    int status;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
}

static pid_t parent;

static int other(void) {
    int fd = open("locks-case", O_RDWR);
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 0};
    CHECK(fcntl(fd, F_GETLK, &l) == 0 && l.l_type == F_WRLCK && l.l_start == 10 && l.l_len == 10 && l.l_pid == parent);
    FAILS(lock(fd, F_SETLK, F_RDLCK, 15, 1), EAGAIN);
    FAILS(lock(fd, F_SETLK, F_WRLCK, 0, 0), EAGAIN);
    FAILS(lock(fd, F_SETLK, F_WRLCK, 35, 1), EAGAIN);
    CHECK(lock(fd, F_SETLK, F_RDLCK, 35, 1) == 0);
    CHECK(lock(fd, F_SETLK, F_WRLCK, 0, 10) == 0 && lock(fd, F_SETLK, F_WRLCK, 20, 10) == 0);
    l.l_type = F_RDLCK, l.l_start = 0, l.l_len = 10;
    CHECK(fcntl(fd, F_GETLK, &l) == 0 && l.l_type == F_UNLCK);
    return check_failures ? 1 : 0;
}

static int split(void) {
    int fd = open("locks-case", O_RDWR);
    FAILS(lock(fd, F_SETLK, F_WRLCK, 12, 1), EAGAIN);
    CHECK(lock(fd, F_SETLK, F_WRLCK, 13, 4) == 0);
    FAILS(lock(fd, F_SETLK, F_WRLCK, 17, 1), EAGAIN);
    return check_failures ? 1 : 0;
}

static int released(void) {
    int fd = open("locks-case", O_RDWR);
    CHECK(lock(fd, F_SETLK, F_WRLCK, 0, 0) == 0);
    return check_failures ? 1 : 0;
}

/* A line of /proc/locks, which need not show other processes' ones. */
static int shown(const char *kind, long start, const char *end) {
    char line[200], wanted[100];
    int found = 0;
    snprintf(wanted, sizeof wanted, "%s  ADVISORY  WRITE %d ", kind, getpid());
    FILE *file = fopen("/proc/locks", "r");
    while (file && fgets(line, sizeof line, file)) {
        char tail[60];
        snprintf(tail, sizeof tail, " %ld %s\n", start, end);
        found |= strstr(line, wanted) && strstr(line, tail);
    }
    if (file)
        fclose(file);
    return found;
}

static void nothing(int signo) { (void)signo; }

static void waiting(void) {
    int go[2], fd = open("locks-case", O_RDWR);
    char c;
    NEED(pipe(go) == 0);
    CHECK(lock(fd, F_SETLK, F_WRLCK, 0, 1) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        int mine = open("locks-case", O_RDWR);
        /* A signal ends the waiting. */
        struct sigaction act = {.sa_handler = nothing};
        sigaction(SIGALRM, &act, 0);
        alarm(1);
        FAILS(lock(mine, F_SETLKW, F_WRLCK, 0, 1), EINTR);
        CHECK(write(go[1], "x", 1) == 1);
        CHECK(lock(mine, F_SETLKW, F_WRLCK, 0, 1) == 0);
        _exit(check_failures ? 1 : 0);
    }
    CHECK(read(go[0], &c, 1) == 1);
    usleep(100000);
    CHECK(lock(fd, F_SETLK, F_UNLCK, 0, 1) == 0);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    close(fd), close(go[0]), close(go[1]);

    /* Of two that would wait for each other, the one that comes last is told, whichever that is. */
    fd = open("locks-case", O_RDWR);
    NEED(pipe(go) == 0);
    CHECK(lock(fd, F_SETLK, F_WRLCK, 0, 1) == 0);
    pid = fork();
    if (pid == 0) {
        int mine = open("locks-case", O_RDWR);
        CHECK(lock(mine, F_SETLK, F_WRLCK, 1, 1) == 0);
        CHECK(write(go[1], "x", 1) == 1);
        int told = lock(mine, F_SETLKW, F_WRLCK, 0, 1) == -1 && errno == EDEADLK;
        _exit(check_failures ? 1 : told ? 7 : 0);
    }
    CHECK(read(go[0], &c, 1) == 1);
    usleep(200000);
    int told = lock(fd, F_SETLKW, F_WRLCK, 1, 1) == -1 && errno == EDEADLK;
    CHECK(lock(fd, F_SETLK, F_UNLCK, 0, 2) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == (told ? 0 : 7));
    close(fd), close(go[0]), close(go[1]);
}

static void open_files(void) {
    int a = open("locks-case", O_RDWR), b = open("locks-case", O_RDWR);
    CHECK(lock(a, F_OFD_SETLK_, F_WRLCK, 0, 10) == 0);
    FAILS(lock(b, F_OFD_SETLK_, F_RDLCK, 5, 1), EAGAIN);
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    CHECK(fcntl(b, F_OFD_GETLK_, &l) == 0 && l.l_type == F_WRLCK && l.l_pid == -1 && l.l_len == 10);
    l.l_pid = 1;
    FAILS(fcntl(b, F_OFD_SETLK_, &l), EINVAL);
    FAILS(lock(b, F_SETLK, F_WRLCK, 0, 1), EAGAIN);
    int c = dup(a);
    close(a);
    FAILS(lock(b, F_OFD_SETLK_, F_RDLCK, 5, 1), EAGAIN);
    close(c);
    CHECK(lock(b, F_OFD_SETLKW_, F_WRLCK, 5, 1) == 0);
    close(b);
}

static int flocked(void) {
    int fd = open("locks-case", O_RDONLY);
    FAILS(flock(fd, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    CHECK(flock(fd, LOCK_SH | LOCK_NB) == 0);
    return check_failures ? 1 : 0;
}

static void whole(void) {
    int a = open("locks-case", O_RDONLY), b = open("locks-case", O_RDONLY);
    CHECK(flock(a, LOCK_EX) == 0);
    FAILS(flock(b, LOCK_SH | LOCK_NB), EWOULDBLOCK);
    CHECK(shown("FLOCK", 0, "EOF"));
    CHECK(flock(a, LOCK_SH) == 0 && flock(b, LOCK_SH | LOCK_NB) == 0);
    FAILS(flock(b, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    CHECK(flock(b, LOCK_UN) == 0 && child(flocked) == 0);
    FAILS(flock(a, 77), EINVAL);
    FAILS(flock(-1, LOCK_SH), EBADF);
    CHECK(flock(a, LOCK_EX) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        int mine = open("locks-case", O_RDONLY);
        close(a);
        CHECK(flock(mine, LOCK_EX) == 0);
        _exit(check_failures ? 1 : 0);
    }
    usleep(100000);
    CHECK(flock(a, LOCK_UN) == 0);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    close(a), close(b);
}

static void commands(void) {
    int fd = open("locks-case", O_RDWR), on = 1, more;
    CHECK(fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK | O_EXCL | O_WRONLY) == 0);
    CHECK((fcntl(fd, F_GETFL) & (O_APPEND | O_NONBLOCK | O_EXCL | O_ACCMODE)) == (O_APPEND | O_NONBLOCK | O_RDWR));
    on = 0;
    CHECK(ioctl(fd, FIONBIO, &on) == 0 && !(fcntl(fd, F_GETFL) & O_NONBLOCK));
    more = fcntl(fd, F_DUPFD, 100);
    CHECK(more >= 100 && fcntl(more, F_GETFD) == 0 && (fcntl(more, F_GETFL) & O_APPEND));
    close(more);
    more = fcntl(fd, F_DUPFD_CLOEXEC, 100);
    CHECK(more >= 100 && fcntl(more, F_GETFD) == FD_CLOEXEC && fcntl(more, F_SETFD, 0) == 0 && !fcntl(more, F_GETFD));
    CHECK(ioctl(more, FIOCLEX) == 0 && fcntl(more, F_GETFD) == FD_CLOEXEC && ioctl(more, FIONCLEX) == 0);
    CHECK(dup3(fd, more, O_CLOEXEC) == more && fcntl(more, F_GETFD) == FD_CLOEXEC);
    FAILS(dup3(fd, fd, 0), EINVAL);
    FAILS(dup3(fd, more, 1), EINVAL);
    CHECK(dup2(fd, fd) == fd);
    FAILS(dup2(999, 998), EBADF);
    CHECK(ftruncate(fd, 10) == 0 && lseek(fd, 4, SEEK_SET) == 4 && ioctl(fd, FIONREAD, &on) == 0 && on == 6);
    FAILS(ioctl(fd, 0x12345678, 0), ENOTTY);
    FAILS(ioctl(-1, FIONREAD, &on), EBADF);
    FAILS(fcntl(fd, 12345, 0), EINVAL);
    CHECK(fcntl(fd, F_SETOWN, getpid()) == 0 && fcntl(fd, F_GETOWN) == getpid());
    CHECK(fcntl(fd, F_GETLEASE) == F_UNLCK);
    FAILS(fcntl(fd, F_GETPIPE_SZ), EBADF);
    close(fd), close(more);
}

int main(void) {
    int fd = open("locks-case", O_RDWR | O_CREAT | O_TRUNC, 0600), more;
    NEED(fd >= 0);
    parent = getpid();
    CHECK(lock(fd, F_SETLK, F_WRLCK, 10, 10) == 0 && lock(fd, F_SETLK, F_RDLCK, 30, 10) == 0);
    CHECK(child(other) == 0 && shown("POSIX", 10, "19"));
    CHECK(lock(fd, F_SETLK, F_UNLCK, 13, 4) == 0 && child(split) == 0);
    /* Any close of the file by the process gives all of them back. */
    more = open("locks-case", O_RDONLY);
    close(more);
    CHECK(child(released) == 0);
    FAILS(lock(fd, F_SETLK, F_RDLCK, -5, 1), EINVAL);
    FAILS(lock(fd, F_SETLK, 77, 0, 1), EINVAL);
    FAILS(lock(-1, F_SETLK, F_RDLCK, 0, 1), EBADF);
    more = open("locks-case", O_RDONLY);
    FAILS(lock(more, F_SETLK, F_WRLCK, 0, 1), EBADF);
    close(more);
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_END, .l_start = 5, .l_len = -3};
    CHECK(fcntl(fd, F_SETLK, &l) == 0);
    close(fd);
    waiting();
    open_files();
    whole();
    commands();
    unlink("locks-case");
    DONE();
}
