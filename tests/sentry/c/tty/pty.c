/* Pseudo-terminals: pty(7), termios(3), ioctl_tty(2), without job control. */
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>

static long ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Wait for input, which takes a moment to come through a terminal. */
static int ready(int fd, int wait) {
    struct pollfd one = {.fd = fd, .events = POLLIN};
    poll(&one, 1, wait);
    return one.revents;
}

static int reads(int fd, const char *expected) {
    char text[4096];
    size_t have = 0, size = strlen(expected);
    while (have < size && ready(fd, 2000) & POLLIN) {
        ssize_t got = read(fd, text + have, sizeof text - have);
        if (got <= 0)
            break;
        have += got;
    }
    text[have] = 0;
    if (have != size || memcmp(text, expected, size)) {
        fprintf(stderr, "read \"%s\", not \"%s\"\n", text, expected);
        return 0;
    }
    return 1;
}

static void mode(int fd, tcflag_t clear, int min, int timeout) {
    struct termios settings;
    CHECK(tcgetattr(fd, &settings) == 0);
    settings.c_lflag &= ~clear;
    settings.c_cc[VMIN] = min;
    settings.c_cc[VTIME] = timeout;
    CHECK(tcsetattr(fd, TCSANOW, &settings) == 0);
}

static void names(void) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    NEED(master >= 0);
    char *name = ptsname(master);
    NEED(name != NULL);
    int number = -1, locked = 0;
    CHECK(ioctl(master, TIOCGPTN, &number) == 0);
    char expected[64];
    snprintf(expected, sizeof expected, "/dev/pts/%d", number);
    CHECK(!strcmp(name, expected));
    CHECK(ioctl(master, TIOCGPTLCK, &locked) == 0 && locked == 1);
    FAILS(open(name, O_RDWR | O_NOCTTY), EIO);
    CHECK(grantpt(master) == 0);
    CHECK(unlockpt(master) == 0);
    int slave = open(name, O_RDWR | O_NOCTTY);
    NEED(slave >= 0);
    CHECK(isatty(slave) && isatty(master));
    CHECK(!strcmp(ttyname(slave), name));
    struct stat found;
    CHECK(fstat(slave, &found) == 0 && S_ISCHR(found.st_mode));
    CHECK(found.st_rdev >> 8 == 136 && (found.st_rdev & 0xff) == (unsigned)number);
    CHECK(found.st_uid == geteuid() && (found.st_mode & 0600) == 0600);
    CHECK(fchmod(slave, 0600) == 0 && stat(name, &found) == 0 && (found.st_mode & 07777) == 0600);
    int peer = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    CHECK(peer >= 0 && isatty(peer) && !strcmp(ttyname(peer), name));
    close(peer);
    unsigned device = 0;
    CHECK(ioctl(slave, TIOCGDEV, &device) == 0 && device == found.st_rdev);
    FAILS(lseek(slave, 0, SEEK_SET), ESPIPE);
    FAILS(ioctl(slave, TIOCGPTN, &number), ENOTTY);
    FAILS(ioctl(slave, TIOCMGET, &number), ENOTTY);
    FAILS(ioctl(slave, 0x12345678, &number), ENOTTY);
    FAILS(tcgetpgrp(slave), ENOTTY);
    FAILS(tcgetsid(slave), ENOTTY);
    FAILS(tcsetpgrp(slave, getpgrp()), ENOTTY);
    FAILS(ioctl(slave, TIOCNOTTY), ENOTTY);
    FAILS(ioctl(slave, TCGETS, 1), EFAULT);
    FAILS(ioctl(slave, TIOCGWINSZ, 1), EFAULT);
    int line = -1;
    CHECK(ioctl(slave, TIOCGETD, &line) == 0 && line == N_TTY);
    close(slave);
    close(master);
    FAILS(open(name, O_RDWR | O_NOCTTY), ENOENT);
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    FAILS(ioctl(pipes[0], TCGETS, &line), ENOTTY);
    CHECK(!isatty(pipes[0]) && errno == ENOTTY);
    close(pipes[0]);
    close(pipes[1]);
}

static void canonical(int master, int slave) {
    struct termios settings;
    CHECK(tcgetattr(slave, &settings) == 0);
    CHECK(settings.c_iflag == (ICRNL | IXON) && settings.c_oflag == (OPOST | ONLCR));
    CHECK(settings.c_lflag == (ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN));
    CHECK(settings.c_cc[VINTR] == 3 && settings.c_cc[VERASE] == 127 && settings.c_cc[VEOF] == 4);
    CHECK(settings.c_cc[VMIN] == 1 && settings.c_cc[VSUSP] == 26 && settings.c_cc[VLNEXT] == 22);
    CHECK(cfgetospeed(&settings) == B38400);
    CHECK(write(master, "helo\x7flo\r", 8) == 8);
    CHECK(reads(master, "helo\b \blo\r\n"));
    int count = -1;
    CHECK(ioctl(slave, FIONREAD, &count) == 0 && count == 6);
    CHECK(reads(slave, "hello\n"));
    CHECK(write(master, "one\ntwo\n", 8) == 8);
    CHECK(reads(master, "one\r\ntwo\r\n"));
    char text[64];
    CHECK(ready(slave, 1000) & POLLIN);
    CHECK(read(slave, text, 2) == 2 && !memcmp(text, "on", 2));
    CHECK(read(slave, text, sizeof text) == 2 && !memcmp(text, "e\n", 2));
    CHECK(read(slave, text, sizeof text) == 4 && !memcmp(text, "two\n", 4));
    CHECK(!(ready(slave, 20) & POLLIN));
    CHECK(write(master, "part", 4) == 4);
    CHECK(!(ready(slave, 20) & POLLIN));
    CHECK(write(master, "\x04\x04", 2) == 2);
    CHECK(reads(master, "part"));
    CHECK(ready(slave, 1000) & POLLIN);
    CHECK(read(slave, text, sizeof text) == 4);
    CHECK(read(slave, text, sizeof text) == 0);
    fcntl(slave, F_SETFL, O_RDWR | O_NONBLOCK);
    FAILS(read(slave, text, sizeof text), EAGAIN);
    fcntl(slave, F_SETFL, O_RDWR);
    CHECK(write(slave, "out\n", 4) == 4);
    CHECK(reads(master, "out\r\n"));
    CHECK(tcdrain(slave) == 0);
    CHECK(write(master, "lost\n", 5) == 5);
    CHECK(reads(master, "lost\r\n"));
    CHECK(tcflush(slave, TCIFLUSH) == 0);
    CHECK(!(ready(slave, 20) & POLLIN));
    FAILS(ioctl(slave, TCFLSH, 17), EINVAL);
    FAILS(ioctl(slave, TCXONC, 17), EINVAL);
}

static void raw(int master, int slave) {
    char text[64];
    mode(slave, ICANON | ECHO | ISIG | IEXTEN, 0, 0);
    CHECK(read(slave, text, sizeof text) == 0);
    mode(slave, 0, 0, 2);
    long start = ms();
    CHECK(read(slave, text, sizeof text) == 0);
    CHECK(ms() - start >= 190 && ms() - start < 1500);
    CHECK(write(master, "\x03x", 2) == 2);
    CHECK(ready(slave, 1000) & POLLIN);
    CHECK(read(slave, text, sizeof text) == 2 && text[0] == 3);
    mode(slave, 0, 3, 0);
    CHECK(write(master, "ab", 2) == 2);
    CHECK(!(ready(slave, 30) & POLLIN));
    CHECK(write(master, "c", 1) == 1);
    CHECK(ready(slave, 1000) & POLLIN);
    CHECK(read(slave, text, sizeof text) == 3);
    mode(slave, 0, 5, 2);
    CHECK(write(master, "de", 2) == 2);
    start = ms();
    CHECK(read(slave, text, sizeof text) == 2);
    CHECK(ms() - start >= 180 && ms() - start < 1500);
    /* A writer in another process wakes the reader. */
    mode(slave, 0, 1, 0);
    pid_t child = fork();
    if (child == 0) {
        usleep(50000);
        _exit(write(master, "w", 1) == 1 ? 0 : 1);
    }
    CHECK(read(slave, text, 1) == 1 && text[0] == 'w');
    CHECK(waitpid(child, NULL, 0) == child);
}

static void window(int master, int slave) {
    struct winsize size = {.ws_row = 40, .ws_col = 132, .ws_xpixel = 5, .ws_ypixel = 6}, found = {0};
    CHECK(ioctl(master, TIOCSWINSZ, &size) == 0);
    CHECK(ioctl(slave, TIOCGWINSZ, &found) == 0);
    CHECK(found.ws_row == 40 && found.ws_col == 132 && found.ws_xpixel == 5 && found.ws_ypixel == 6);
}

static void packets(int master, int slave) {
    int on = 1, got = 0;
    char text[64];
    CHECK(ioctl(master, TIOCPKT, &on) == 0);
    CHECK(ioctl(master, TIOCGPKT, &got) == 0 && got == 1);
    CHECK(write(slave, "p", 1) == 1);
    CHECK(ready(master, 1000) & POLLIN);
    CHECK(read(master, text, sizeof text) == 2 && text[0] == TIOCPKT_DATA && text[1] == 'p');
    CHECK(tcflush(slave, TCIFLUSH) == 0);
    struct pollfd one = {.fd = master, .events = POLLIN | POLLPRI};
    CHECK(poll(&one, 1, 1000) == 1 && one.revents & POLLPRI);
    CHECK(read(master, text, sizeof text) == 1 && text[0] & TIOCPKT_FLUSHREAD);
    struct termios settings;
    CHECK(tcgetattr(slave, &settings) == 0);
    settings.c_iflag &= ~IXON;
    CHECK(tcsetattr(slave, TCSANOW, &settings) == 0);
    CHECK(read(master, text, sizeof text) == 1 && text[0] & TIOCPKT_NOSTOP);
    on = 0;
    CHECK(ioctl(master, TIOCPKT, &on) == 0);
}

static void ends(void) {
    int master, slave;
    char name[64], text[64];
    NEED(openpty(&master, &slave, name, NULL, NULL) == 0);
    struct pollfd one = {.fd = master, .events = POLLIN | POLLOUT};
    CHECK(poll(&one, 1, 0) == 1 && one.revents == POLLOUT);
    CHECK(write(slave, "bye", 3) == 3);
    close(slave);
    CHECK(poll(&one, 1, 1000) == 1 && one.revents & POLLHUP && one.revents & POLLIN);
    CHECK(read(master, text, sizeof text) == 3);
    FAILS(read(master, text, sizeof text), EIO);
    slave = open(name, O_RDWR | O_NOCTTY);
    CHECK(slave >= 0);
    CHECK(poll(&one, 1, 0) == 1 && one.revents == POLLOUT);
    close(master);
    struct pollfd other = {.fd = slave, .events = POLLIN | POLLOUT};
    CHECK(poll(&other, 1, 1000) == 1 && other.revents & POLLHUP);
    CHECK(read(slave, text, sizeof text) == 0);
    FAILS(write(slave, "x", 1), EIO);
    struct termios settings;
    FAILS(tcgetattr(slave, &settings), EIO);
    close(slave);
}

static void exclusive(void) {
    int master, slave, got = -1;
    char name[64];
    NEED(openpty(&master, &slave, name, NULL, NULL) == 0);
    CHECK(ioctl(slave, TIOCEXCL) == 0);
    CHECK(ioctl(slave, TIOCGEXCL, &got) == 0 && got == 1);
    if (geteuid() != 0)
        FAILS(open(name, O_RDWR | O_NOCTTY), EBUSY);
    CHECK(ioctl(slave, TIOCNXCL) == 0);
    close(slave);
    close(master);
}

int main(void) {
    names();
    int master, slave;
    NEED(openpty(&master, &slave, NULL, NULL, NULL) == 0);
    canonical(master, slave);
    window(master, slave);
    raw(master, slave);
    packets(master, slave);
    close(slave);
    close(master);
    ends();
    exclusive();
    DONE();
}
