/* A program that means no good with terminals and the files of /proc: whatever it asks for, the sandbox's kernel has to
 * answer. Only for behind the sentry: natively some of these would do harm. Arguments: a seed, and how many rounds. */
#include "check.h"
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static const unsigned long commands[] = {
    0x5401, 0x5402, 0x5403, 0x5404, 0x5405, 0x5406, 0x5407, 0x5408, 0x5409, 0x540A, 0x540B, 0x540C, 0x540D, 0x540E, 0x540F,
    0x5410, 0x5411, 0x5412, 0x5413, 0x5414, 0x541B, 0x541D, 0x5420, 0x5421, 0x5422, 0x5423, 0x5424, 0x5425, 0x5427, 0x5428,
    0x5429, 0x5450, 0x5451, 0x5452, 0x80045430, 0x40045431, 0x80045432, 0x40045436, 0x80045438, 0x80045439, 0x80045440,
    0x5441, 0x802C542A, 0x402C542B, 0x402C542C, 0x402C542D, 0x80045200, 0x40045201, 0x40085203, 0x5204,
};

static char *page;

static unsigned long word(void) {
    switch (random() % 8) {
    case 0: return 0;
    case 1: return (unsigned long)page;
    case 2: return (unsigned long)page + 4090;
    case 3: return -1UL;
    case 4: return 0x7ffffffff000;
    case 5: return random() % 100;
    case 6: return 1UL << (random() % 64);
    default: return (unsigned long)random() << 32 | random();
    }
}

static int files[256], count;

static void collect(const char *path, int depth) {
    DIR *dir = opendir(path);
    if (!dir)
        return;
    for (struct dirent *entry; (entry = readdir(dir)) && count < 250;) {
        char name[512];
        /* Its own standard output is the tester's. */
        if (entry->d_name[0] == '.' || !strcmp(entry->d_name, "fd") || !strncmp(entry->d_name, "std", 3))
            continue;
        snprintf(name, sizeof name, "%s/%.200s", path, entry->d_name);
        struct stat found;
        if (lstat(name, &found) == 0 && S_ISDIR(found.st_mode) && depth > 0)
            collect(name, depth - 1);
        int fd = open(name, (random() % 2 ? O_RDWR : O_RDONLY) | O_NONBLOCK | O_NOCTTY);
        if (fd >= 0)
            files[count++] = fd;
    }
    closedir(dir);
}

int main(int argc, char **argv) {
    NEED(argc == 3);
    srandom(atoi(argv[1]));
    setbuf(stdout, NULL);
    setsid();
    for (int i = 1; i < 32; i++)
        if (i != SIGKILL && i != SIGSTOP)
            signal(i, SIG_IGN);
    page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    for (int i = 0; i < 8; i++) {
        int master = open("/dev/ptmx", O_RDWR | O_NONBLOCK), zero = 0, number = 0;
        char name[64];
        ioctl(master, TIOCSPTLCK, &zero);
        ioctl(master, TIOCGPTN, &number);
        snprintf(name, sizeof name, "/dev/pts/%d", number);
        files[count++] = master;
        files[count++] = open(name, O_RDWR | O_NONBLOCK | (i ? O_NOCTTY : 0));
    }
    collect("/dev", 1);
    collect("/proc/self", 1);
    collect("/proc", 0);
    collect("/proc/sys/kernel", 1);
    CHECK(count > 60);
    int rounds = atoi(argv[2]);
    for (int round = 0; round < rounds; round++) {
        int fd = files[random() % count];
        for (int i = 0; i < 64; i++)
            page[random() % 4096] = random();
        switch (random() % 12) {
        case 0: case 1: case 2: case 3:
            ioctl(fd, random() % 20 ? commands[random() % (sizeof commands / sizeof *commands)] : word(), word());
            break;
        case 4: syscall(SYS_read, fd, page, random() % 4096); break;
        case 5: syscall(SYS_read, fd, word(), word()); break;
        case 6: syscall(SYS_write, fd, page, random() % 4096); break;
        case 7: syscall(SYS_write, fd, word(), word() % 70000); break;
        case 8: syscall(SYS_lseek, fd, word(), random() % 6); break;
        case 9: syscall(SYS_pread64, fd, page, random() % 4096, word()); break;
        case 10: syscall(SYS_pwrite64, fd, page, random() % 64, word()); break;
        case 11: syscall(SYS_getdents64, fd, page, random() % 4096); break;
        }
    }
    puts("still there");
    DONE();
}
