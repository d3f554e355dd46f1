/* Runs programs whose headers are wrong in random ways, and scripts that are. Only for behind the sentry: what such a
 * program does when it starts at all is anybody's guess. Says "ends" when all have come to an end. */
#include "check.h"
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/wait.h>

static uint64_t state = 88172645463325252ULL;

static uint64_t rnd(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static char data[4 << 20];

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 100;
    int fd = open("/proc/self/exe", O_RDONLY);
    NEED(fd >= 0);
    ssize_t size = 0, got;
    while ((got = read(fd, data + size, sizeof data - size)) > 0)
        size += got;
    close(fd);
    NEED(size > 10000);
    static const uint64_t odd[] = {0, 1, 0xFF, 0xFFF, 0x1000, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFF000,
                                   0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFF000, 0xFFFFFFFFFFFFFFFF};
    int started = 0, refused = 0;
    for (int round = 0; round < rounds; round++) {
        char name[40];
        snprintf(name, sizeof name, "program%d", round);
        fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0755);
        NEED(fd >= 0);
        char head[1024];
        memcpy(head, data, sizeof head);
        int changes = 1 + rnd() % 3;
        for (int i = 0; i < changes; i++) {
            /* The header, or one of the program headers, mostly by whole words. */
            unsigned at = rnd() % 8 ? 16 + 8 * (rnd() % 70) : rnd() % 600;
            uint64_t value = rnd() % 4 ? odd[rnd() % (sizeof odd / sizeof *odd)] : rnd();
            memcpy(head + at, &value, 1 << rnd() % 4);
        }
        if (round % 10 == 9) {
            head[0] = '#';
            head[1] = '!';
            for (unsigned i = 2; i < 200; i++)
                head[i] = rnd() % 3 ? "/a \t\n"[rnd() % 5] : (char)rnd();
        }
        ssize_t length = rnd() % 8 ? size : (ssize_t)(rnd() % size);
        CHECK(write(fd, head, length < 1024 ? length : 1024) >= 0);
        if (length > 1024)
            CHECK(write(fd, data + 1024, length - 1024) == length - 1024);
        close(fd);
        pid_t pid = fork();
        if (pid == 0) {
            alarm(2);
            close(1);
            close(2);
            execl(name, name, "0", NULL);
            _exit(111);
        }
        NEED(pid > 0);
        int status;
        while (waitpid(pid, &status, 0) < 0)
            NEED(errno == EINTR);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 111)
            refused++;
        else
            started++;
        unlink(name);
    }
    /* The sentry is as it was. */
    pid_t pid = fork();
    if (pid == 0) {
        execl("/bin/true", "true", NULL);
        _exit(1);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(started + refused == rounds && (rounds < 50 || (refused > 10 && started > 5)));
    if (rounds)
        printf("ends: %d started, %d refused\n", started, refused);
    DONE();
}
