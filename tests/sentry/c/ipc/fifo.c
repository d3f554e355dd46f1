/* fifo(7): opening waits for the other end. */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void caught(int signo) { (void)signo; }

int main(void) {
    const char *path = "fifo-case";
    char buf[100];
    unlink(path);
    NEED(mkfifo(path, 0600) == 0);
    FAILS(mkfifo(path, 0600), EEXIST);
    FAILS(open(path, O_WRONLY | O_NONBLOCK), ENXIO);
    signal(SIGPIPE, SIG_IGN);

    /* Reader first, without waiting: end of file, no hangup yet. */
    int r = open(path, O_RDONLY | O_NONBLOCK);
    NEED(r >= 0);
    struct pollfd p = {r, POLLIN, 0};
    CHECK(read(r, buf, 1) == 0);
    CHECK(poll(&p, 1, 0) == 0);
    int w = open(path, O_WRONLY | O_NONBLOCK);
    NEED(w >= 0);
    FAILS(read(r, buf, 1), EAGAIN);
    CHECK(write(w, "data", 4) == 4);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLIN);
    close(w);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLHUP));
    CHECK(read(r, buf, 10) == 4 && read(r, buf, 10) == 0);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLHUP);
    close(r);

    /* Both wait for each other; the name may go meanwhile. */
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(path, O_RDONLY);
        if (fd < 0 || read(fd, buf, 5) != 5 || memcmp(buf, "hello", 5) || read(fd, buf, 1) != 0)
            _exit(1);
        _exit(0);
    }
    usleep(50000);
    w = open(path, O_WRONLY);
    unlink(path);
    CHECK(w >= 0 && write(w, "hello", 5) == 5 && close(w) == 0);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);

    /* The other way round. */
    NEED(mkfifo(path, 0600) == 0);
    pid = fork();
    if (pid == 0) {
        int fd = open(path, O_WRONLY);
        _exit(fd < 0 || write(fd, "there", 5) != 5);
    }
    usleep(50000);
    r = open(path, O_RDONLY);
    CHECK(r >= 0 && read(r, buf, 5) == 5 && read(r, buf, 5) == 0 && close(r) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);

    /* Reading and writing by one descriptor never waits. */
    int both = open(path, O_RDWR);
    NEED(both >= 0);
    CHECK(write(both, "abc", 3) == 3);
    p.fd = both;
    p.events = POLLIN | POLLOUT;
    CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLOUT));
    CHECK(read(both, buf, 10) == 3);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLOUT);
    /* Data stays while somebody has it open, and goes with the last. */
    CHECK(write(both, "gone", 4) == 4);
    w = open(path, O_WRONLY);
    CHECK(w >= 0);
    close(both);
    r = open(path, O_RDONLY);
    CHECK(read(r, buf, 10) == 4);
    CHECK(write(w, "lost", 4) == 4);
    close(r), close(w);
    r = open(path, O_RDONLY | O_NONBLOCK);
    CHECK(read(r, buf, 10) == 0);
    close(r);

    /* A signal ends the wait, and leaves no reader behind. */
    struct sigaction action = {.sa_handler = caught};
    sigaction(SIGALRM, &action, 0);
    ualarm(30000, 0);
    FAILS(open(path, O_RDONLY), EINTR);
    FAILS(open(path, O_WRONLY | O_NONBLOCK), ENXIO);
    /* Nor does a killed one. */
    pid = fork();
    if (pid == 0) {
        open(path, O_RDONLY);
        _exit(0);
    }
    usleep(50000);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    FAILS(open(path, O_WRONLY | O_NONBLOCK), ENXIO);

    struct stat st;
    CHECK(stat(path, &st) == 0 && S_ISFIFO(st.st_mode) && st.st_size == 0);
    unlink(path);
    DONE();
}
