/* Sessions with a terminal: who controls it, who is stopped by it, whom it signals. credentials(7), setpgid(2). */
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

static volatile sig_atomic_t seen[65];

static void note(int number) { seen[number]++; }

static void catch(int number) {
    struct sigaction action = {.sa_handler = note};
    sigaction(number, &action, NULL);
}

static int wait_for(int number) {
    for (int i = 0; i < 300 && !seen[number]; i++)
        usleep(10000);
    return seen[number];
}

/* What the session's leader does with its terminal on descriptor 0. */
static int leader(int master) {
    char text[64];
    CHECK(tcgetpgrp(0) == getpid() && tcgetsid(0) == getpid());
    int own = open("/dev/tty", O_RDWR);
    CHECK(own >= 0 && tcgetpgrp(own) == getpid());
    close(own);
    CHECK(ioctl(0, TIOCSCTTY, 0) == 0);

    /* Keys. */
    catch(SIGINT);
    catch(SIGQUIT);
    catch(SIGTSTP);
    catch(SIGWINCH);
    CHECK(write(master, "\x03", 1) == 1 && wait_for(SIGINT));
    CHECK(write(master, "\x1c", 1) == 1 && wait_for(SIGQUIT));
    CHECK(write(master, "\x1a", 1) == 1 && wait_for(SIGTSTP));
    struct winsize size = {.ws_row = 10, .ws_col = 20};
    CHECK(ioctl(0, TIOCSWINSZ, &size) == 0 && wait_for(SIGWINCH));
    seen[SIGWINCH] = 0;
    CHECK(ioctl(0, TIOCSWINSZ, &size) == 0);
    usleep(20000);
    CHECK(!seen[SIGWINCH]);

    /* A child in the background. */
    int status;
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        char one;
        _exit(read(0, &one, 1) == 1 && one == 'k' ? 5 : 6);
    }
    setpgid(child, child);
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTIN);
    CHECK(tcsetpgrp(0, child) == 0 && tcgetpgrp(0) == child);
    CHECK(write(master, "k\n", 2) == 2);
    CHECK(kill(-child, SIGCONT) == 0);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5);

    /* Now the leader itself is in the background: to take the terminal back it must not mind SIGTTOU. */
    signal(SIGTTOU, SIG_IGN);
    CHECK(tcsetpgrp(0, getpid()) == 0);
    signal(SIGTTOU, SIG_DFL);
    tcflush(0, TCIFLUSH);

    child = fork();
    if (child == 0) {
        setpgid(0, 0);
        FAILS(tcsetpgrp(0, 1 << 21), ESRCH);
        CHECK(tcsetpgrp(0, getpid()) == 0);
        _exit(check_failures ? 1 : 0);
    }
    setpgid(child, child);
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTOU);
    CHECK(kill(child, SIGKILL) == 0);
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));

    /* Writing from the background is allowed unless TOSTOP. */
    for (int stop = 0; stop < 2; stop++) {
        struct termios settings;
        CHECK(tcgetattr(0, &settings) == 0);
        settings.c_lflag = stop ? settings.c_lflag | TOSTOP : settings.c_lflag & ~TOSTOP;
        CHECK(tcsetattr(0, TCSANOW, &settings) == 0);
        child = fork();
        if (child == 0) {
            setpgid(0, 0);
            _exit(write(0, "x", 1) == 1 ? 0 : 1);
        }
        setpgid(child, child);
        CHECK(waitpid(child, &status, WUNTRACED) == child);
        if (stop) {
            CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTOU);
            kill(child, SIGKILL);
            CHECK(waitpid(child, &status, 0) == child);
        } else {
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
    }

    /* Who ignores or blocks SIGTTIN, or whom nobody could continue, gets an error instead. */
    child = fork();
    if (child == 0) {
        setpgid(0, 0);
        signal(SIGTTIN, SIG_IGN);
        FAILS(read(0, text, 1), EIO);
        signal(SIGTTIN, SIG_DFL);
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGTTIN);
        sigprocmask(SIG_BLOCK, &set, NULL);
        FAILS(read(0, text, 1), EIO);
        _exit(check_failures ? 1 : 0);
    }
    setpgid(child, child);
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    child = fork();
    if (child == 0) {
        setpgid(0, 0);
        if (fork() == 0) {
            while (getppid() != 1 && getppid() == getpgrp())
                usleep(1000);
            usleep(20000);
            errno = 0;
            int result = read(0, text, 1) == -1 && errno == EIO;
            _exit(write(pipes[1], &result, sizeof result) != sizeof result);
        }
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    int result = 0;
    CHECK(read(pipes[0], &result, sizeof result) == sizeof result && result == 1);

    /* Process groups of other sessions cannot have it; nor can other sessions take it. */
    child = fork();
    if (child == 0) {
        setsid();
        FAILS(open("/dev/tty", O_RDWR), ENXIO);
        FAILS(tcgetpgrp(0), ENOTTY);
        FAILS(ioctl(0, TIOCSCTTY, 0), EPERM);
        _exit(check_failures ? 1 : 0);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    FAILS(tcsetpgrp(0, getppid()), EPERM);
    FAILS(tcsetpgrp(0, -5), EINVAL);
    return check_failures ? 1 : 0;
}

/* The leader's end hangs the foreground up, which may be another process. */
static void leader_ends(void) {
    int pipes[2];
    NEED(pipe(pipes) == 0);
    int master;
    pid_t child = forkpty(&master, NULL, NULL, NULL);
    NEED(child >= 0);
    if (child == 0) {
        catch(SIGHUP);
        catch(SIGCONT);
        if (fork() == 0) {
            while (!seen[SIGHUP])
                usleep(1000);
            usleep(50000);
            int told = seen[SIGHUP] == 1 && seen[SIGCONT] == 0;
            int gone = open("/dev/tty", O_RDWR) == -1 && errno == ENXIO;
            int both[2] = {told, gone};
            _exit(write(pipes[1], both, sizeof both) != sizeof both);
        }
        usleep(20000);
        _exit(0);
    }
    int both[2] = {0, 0};
    CHECK(read(pipes[0], both, sizeof both) == sizeof both);
    CHECK(both[0]);
    CHECK(both[1]);
    CHECK(waitpid(child, NULL, 0) == child);
    close(master);
}

/* The master's end tells the leader. */
static void master_ends(void) {
    int master, status;
    pid_t child = forkpty(&master, NULL, NULL, NULL);
    NEED(child >= 0);
    if (child == 0) {
        char text[8];
        catch(SIGHUP);
        catch(SIGCONT);
        if (write(1, "r", 1) != 1)
            _exit(9);
        if (!wait_for(SIGHUP) || !wait_for(SIGCONT))
            _exit(2);
        if (read(0, text, sizeof text) != 0)
            _exit(3);
        _exit(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO ? 0 : 4);
    }
    char one;
    CHECK(read(master, &one, 1) == 1);
    close(master);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* TIOCNOTTY by the leader gives the terminal up. */
static void given_up(void) {
    int master, status;
    pid_t child = forkpty(&master, NULL, NULL, NULL);
    NEED(child >= 0);
    if (child == 0) {
        catch(SIGHUP);
        catch(SIGCONT);
        if (ioctl(0, TIOCNOTTY) != 0)
            _exit(2);
        if (seen[SIGHUP] != 1 || seen[SIGCONT] != 1)
            _exit(3);
        if (open("/dev/tty", O_RDWR) != -1)
            _exit(4);
        _exit(ioctl(0, TIOCSCTTY, 0) == 0 && tcgetpgrp(0) == getpgrp() ? 0 : 5);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(master);
}

/* vhangup(2): the terminal is gone for all who have it open, though its other side is there. */
static void hung_up(void) {
    int master, status;
    char name[64];
    pid_t child = forkpty(&master, name, NULL, NULL);
    NEED(child >= 0);
    if (child == 0) {
        char one;
        strcpy(name, ttyname(0));
        catch(SIGHUP);
        catch(SIGCONT);
        if (geteuid() != 0)
            _exit(vhangup() == -1 && errno == EPERM ? 0 : 2);
        if (vhangup() != 0 || seen[SIGHUP] != 1 || seen[SIGCONT] != 1)
            _exit(3);
        if (read(0, &one, 1) != 0 || write(1, "x", 1) != -1 || errno != EIO)
            _exit(4);
        if (open("/dev/tty", O_RDWR) != -1 || errno != ENXIO)
            _exit(5);
        /* As login(1) does: it can be opened anew, and controls the session again. */
        int again = open(name, O_RDWR);
        if (again < 0 || write(again, "new", 3) != 3 || tcgetpgrp(again) != getpgrp())
            _exit(6);
        if (write(1, "x", 1) != -1 || errno != EIO)
            _exit(7);
        _exit(read(again, &one, 1) == 1 && one == 'k' ? 0 : 8);
    }
    char text[8];
    if (geteuid() == 0) {
        CHECK(read(master, text, sizeof text) == 3 && !memcmp(text, "new", 3));
        CHECK(write(master, "k\n", 2) == 2);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(master);
}

int main(void) {
    int master, slave, status;
    NEED(openpty(&master, &slave, NULL, NULL, NULL) == 0);
    pid_t child = fork();
    NEED(child >= 0);
    if (child == 0) {
        if (setsid() == -1 || ioctl(slave, TIOCSCTTY, 0) != 0)
            _exit(20);
        dup2(slave, 0);
        close(slave);
        _exit(leader(master));
    }
    close(slave);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(master);
    leader_ends();
    master_ends();
    given_up();
    hung_up();
    DONE();
}
