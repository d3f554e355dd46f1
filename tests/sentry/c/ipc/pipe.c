/* pipe(2), pipe2(2), pipe(7). */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

static char big[1 << 20];
static void *volatile nowhere = (void *)8;

static void basics(void) {
    int fds[2];
    NEED(pipe(fds) == 0);
    CHECK(fcntl(fds[0], F_GETFD) == 0);
    CHECK((fcntl(fds[0], F_GETFL) & O_ACCMODE) == O_RDONLY && (fcntl(fds[1], F_GETFL) & O_ACCMODE) == O_WRONLY);
    struct stat st, st2;
    CHECK(fstat(fds[0], &st) == 0 && S_ISFIFO(st.st_mode) && (st.st_mode & 07777) == 0600);
    CHECK(fstat(fds[1], &st2) == 0 && st2.st_ino == st.st_ino && st2.st_dev == st.st_dev);
    char buf[100], name[100], want[100];
    CHECK(write(fds[1], "hello", 5) == 5 && write(fds[1], " world", 6) == 6);
    int queued = 0;
    CHECK(ioctl(fds[0], FIONREAD, &queued) == 0 && queued == 11);
    CHECK(read(fds[0], buf, 3) == 3 && !memcmp(buf, "hel", 3));
    CHECK(read(fds[0], buf, sizeof buf) == 8 && !memcmp(buf, "lo world", 8));
    CHECK(write(fds[1], "", 0) == 0 && read(fds[0], buf, 0) == 0);
    FAILS(read(fds[1], buf, 1), EBADF);
    FAILS(write(fds[0], buf, 1), EBADF);
    FAILS(lseek(fds[0], 0, SEEK_SET), ESPIPE);
    FAILS(pread(fds[0], buf, 1, 0), ESPIPE);
    FAILS(pwrite(fds[1], buf, 1, 0), ESPIPE);
    FAILS(ftruncate(fds[1], 0), EINVAL);
    FAILS(fsync(fds[1]), EINVAL);
    FAILS(ioctl(fds[0], 0x5401, buf), ENOTTY);
    FAILS(write(fds[1], nowhere, 10), EFAULT);
    sprintf(name, "/proc/self/fd/%d", fds[0]);
    sprintf(want, "pipe:[%lu]", (unsigned long)st.st_ino);
    ssize_t n = readlink(name, buf, sizeof buf);
    CHECK(n == (ssize_t)strlen(want) && !memcmp(buf, want, n));
    /* The link opens the same pipe again. */
    int again = open(name, O_WRONLY);
    CHECK(again >= 0 && write(again, "x", 1) == 1 && read(fds[0], buf, 10) == 1 && close(again) == 0);
    struct iovec iov[3] = {{"ab", 2}, {"", 0}, {"cde", 3}};
    CHECK(writev(fds[1], iov, 3) == 5);
    char a[2], b[9];
    struct iovec into[2] = {{a, 2}, {b, 9}};
    CHECK(readv(fds[0], into, 2) == 5 && !memcmp(a, "ab", 2) && !memcmp(b, "cde", 3));
    close(fds[1]);
    CHECK(read(fds[0], buf, 10) == 0);
    close(fds[0]);
    FAILS(pipe2(fds, 0x4), EINVAL);
    FAILS(pipe(nowhere), EFAULT);
    NEED(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0);
    CHECK(fcntl(fds[0], F_GETFD) == FD_CLOEXEC && fcntl(fds[1], F_GETFL) == (O_WRONLY | O_NONBLOCK));
    FAILS(read(fds[0], buf, 1), EAGAIN);
    close(fds[0]), close(fds[1]);
}

static void broken(void) {
    int fds[2];
    NEED(pipe(fds) == 0);
    close(fds[0]);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGPIPE, SIG_DFL);
        write(fds[1], "x", 1);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE);
    signal(SIGPIPE, SIG_IGN);
    FAILS(write(fds[1], "x", 1), EPIPE);
    struct pollfd p = {fds[1], POLLOUT, 0};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLOUT | POLLERR));
    close(fds[1]);
}

static void capacity(void) {
    int fds[2];
    NEED(pipe2(fds, O_NONBLOCK) == 0);
    CHECK(fcntl(fds[0], F_GETPIPE_SZ) == 65536);
    CHECK(write(fds[1], big, sizeof big) == 65536);
    FAILS(write(fds[1], big, 1), EAGAIN);
    struct pollfd p = {fds[1], POLLOUT, 0};
    CHECK(poll(&p, 1, 0) == 0);
    CHECK(read(fds[0], big, 4095) == 4095);
    CHECK(poll(&p, 1, 0) == 0);
    FAILS(write(fds[1], big, 4096), EAGAIN);
    CHECK(read(fds[0], big, 1) == 1);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLOUT);
    CHECK(write(fds[1], big, 4096) == 4096);
    FAILS(fcntl(fds[1], F_SETPIPE_SZ, 4096), EBUSY);
    CHECK(fcntl(fds[1], F_SETPIPE_SZ, 100000) == 131072 && fcntl(fds[0], F_GETPIPE_SZ) == 131072);
    CHECK(write(fds[1], big, sizeof big) == 65536);
    ssize_t all = 0, n;
    while ((n = read(fds[0], big, 50000)) > 0)
        all += n;
    CHECK(n == -1 && errno == EAGAIN && all == 131072);
    CHECK(fcntl(fds[1], F_SETPIPE_SZ, 1) == 4096);
    CHECK(write(fds[1], big, 5000) == 4096);
    FAILS(fcntl(open("/dev/null", O_RDONLY), F_GETPIPE_SZ), EBADF);
    close(fds[0]), close(fds[1]);
    /* Single bytes fill all of it. */
    NEED(pipe2(fds, O_NONBLOCK) == 0);
    fcntl(fds[1], F_SETPIPE_SZ, 8192);
    int count = 0;
    while (write(fds[1], "x", 1) == 1)
        count++;
    CHECK(count == 8192);
    close(fds[0]), close(fds[1]);
}

static void packets(void) {
    int fds[2];
    char buf[8192];
    NEED(pipe2(fds, O_DIRECT | O_NONBLOCK) == 0);
    CHECK(write(fds[1], "one", 3) == 3 && write(fds[1], "twotwo", 6) == 6);
    CHECK(read(fds[0], buf, sizeof buf) == 3 && !memcmp(buf, "one", 3));
    CHECK(read(fds[0], buf, 2) == 2 && !memcmp(buf, "tw", 2));
    FAILS(read(fds[0], buf, sizeof buf), EAGAIN);
    CHECK(write(fds[1], big, 5000) == 5000);
    CHECK(read(fds[0], buf, sizeof buf) == 4096 && read(fds[0], buf, sizeof buf) == 904);
    close(fds[0]), close(fds[1]);
}

static void *writer(void *arg) {
    int fd = *(int *)arg;
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (char)(i * 7 + (i >> 11));
    long n = write(fd, big, sizeof big);
    close(fd);
    return (void *)n;
}

static void large(void) {
    int fds[2];
    static char got[sizeof big + 10];
    NEED(pipe(fds) == 0);
    pthread_t t;
    NEED(pthread_create(&t, 0, writer, &fds[1]) == 0);
    size_t at = 0;
    ssize_t n;
    while ((n = read(fds[0], got + at, at % 2 ? 30001 : 9999)) > 0)
        at += n;
    void *result;
    pthread_join(t, &result);
    CHECK(n == 0 && at == sizeof big && (long)result == sizeof big && !memcmp(big, got, sizeof big));
    close(fds[0]);
}

static void atomic(void) {
    /* Writes of PIPE_BUF bytes by several at once stay whole. */
    int fds[2];
    NEED(pipe(fds) == 0);
    fcntl(fds[1], F_SETPIPE_SZ, 4096 * 2);
    for (int who = 0; who < 3; who++)
        if (fork() == 0) {
            char mine[3000];
            memset(mine, 'a' + who, sizeof mine);
            close(fds[0]);
            for (int i = 0; i < 20; i++)
                if (write(fds[1], mine, sizeof mine) != sizeof mine)
                    _exit(1);
            _exit(0);
        }
    close(fds[1]);
    char got[3000];
    int count = 0;
    for (;;) {
        size_t have = 0;
        ssize_t n = 0;
        while (have < sizeof got && (n = read(fds[0], got + have, sizeof got - have)) > 0)
            have += n;
        if (!have)
            break;
        CHECK(have == sizeof got);
        for (size_t i = 1; i < have; i++)
            if (got[i] != got[0]) {
                CHECK(!"mixed");
                break;
            }
        count++;
    }
    CHECK(count == 60);
    int status;
    while (wait(&status) > 0)
        CHECK(status == 0);
    close(fds[0]);
}

static void caught(int signo) { (void)signo; }

static void interrupted(void) {
    int fds[2];
    char c;
    struct sigaction action = {.sa_handler = caught};
    NEED(pipe(fds) == 0);
    sigaction(SIGALRM, &action, 0);
    ualarm(30000, 0);
    FAILS(read(fds[0], &c, 1), EINTR);
    /* A write that has put something tells how much. */
    ualarm(30000, 0);
    CHECK(write(fds[1], big, 100000) == 65536);
    ualarm(30000, 0);
    FAILS(write(fds[1], big, 100), EINTR);
    close(fds[0]), close(fds[1]);
    /* With SA_RESTART reading goes on. */
    action.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &action, 0);
    NEED(pipe(fds) == 0);
    if (fork() == 0) {
        usleep(120000);
        write(fds[1], "z", 1);
        _exit(0);
    }
    ualarm(30000, 0);
    CHECK(read(fds[0], &c, 1) == 1 && c == 'z');
    wait(0);
    close(fds[0]), close(fds[1]);
}

static int moved[2];

static void *reader(void *arg) {
    (void)arg;
    char c = 0;
    return (void *)(long)(read(moved[0], &c, 1) == 1 ? c : -1);
}

static void replaced(void) {
    /* A call that waits goes on with the file that it began with. */
    int other[2];
    pthread_t t;
    void *got;
    NEED(pipe(moved) == 0 && pipe(other) == 0);
    int copy = dup(moved[0]);
    CHECK(write(other[1], "o", 1) == 1);
    pthread_create(&t, 0, reader, 0);
    usleep(50000);
    CHECK(dup2(other[0], moved[0]) == moved[0]);
    CHECK(write(moved[1], "m", 1) == 1);
    pthread_join(t, &got);
    CHECK((long)got == 'm');
    close(copy), close(moved[0]), close(moved[1]), close(other[0]), close(other[1]);
}

int main(void) {
    replaced();
    basics();
    broken();
    capacity();
    packets();
    large();
    atomic();
    interrupted();
    DONE();
}
