/* Calls of one family after the other with arguments that mean little: run behind the sentry only, whose log must not
 * tell of a defect. Arguments: a seed, how many calls. */
#include "../check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>

static const int calls[] = {
    SYS_pipe, SYS_pipe2, SYS_poll, SYS_ppoll, SYS_select, SYS_pselect6, SYS_epoll_create, SYS_epoll_create1,
    SYS_epoll_ctl, SYS_epoll_ctl, SYS_epoll_wait, SYS_epoll_pwait, 441 /* epoll_pwait2 */, SYS_eventfd, SYS_eventfd2,
    SYS_timerfd_create, SYS_timerfd_settime, SYS_timerfd_gettime, SYS_signalfd, SYS_signalfd4, SYS_memfd_create,
    SYS_semget, SYS_semop, SYS_semtimedop, SYS_semctl, SYS_msgget, SYS_msgsnd, SYS_msgrcv, SYS_msgctl, SYS_mq_open,
    SYS_mq_unlink, SYS_mq_timedsend, SYS_mq_timedreceive, SYS_mq_notify, SYS_mq_getsetattr, SYS_read, SYS_write,
    SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_fcntl, SYS_ioctl, SYS_dup, SYS_close, SYS_lseek,
    SYS_ftruncate, SYS_fallocate, SYS_fstat, SYS_splice, SYS_tee, SYS_sendfile, SYS_vmsplice,
};

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static void caught(int signo) { (void)signo; }

int main(int count, char **arguments) {
    NEED(count == 3);
    srand(atoi(arguments[1]));
    char *memory = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned long at = (unsigned long)memory;
    const unsigned long words[] = {
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 20, 31, 64, 100, 1000, 4095, 4096, 65536,
        1UL << 31, (1UL << 31) - 1, 1UL << 32, ~0UL, ~0UL - 1, 1UL << 63, (1UL << 63) - 1, at, at + 8, at + 4090,
        at + 65530, at + 65536, 0x7ffffffff000, O_NONBLOCK, O_CLOEXEC, 01000, 02000, O_DIRECT, 0x40000000,
        F_SETPIPE_SZ, F_ADD_SEALS, F_SETOWN, O_ASYNC, 0x5421 /* FIONBIO */, 0x5452 /* FIOASYNC */, 0x541b /* FIONREAD */,
    };
    for (int signo = 1; signo <= 64; signo++)
        if (signo != SIGSEGV && signo != SIGBUS)
            signal(signo, SIG_IGN);
    struct sigaction action = {.sa_handler = caught};
    sigaction(SIGALRM, &action, 0);
    for (int left = atoi(arguments[2]); left > 0; left--) {
        /* Numbers that may be descriptors, addresses, or neither. */
        for (int i = 0; i < 64; i++)
            ((unsigned *)memory)[rand() % 16384] = rand() % 4 ? rand() % 20 : rand() * 2U;
        if (rand() % 3 == 0)
            for (int i = 0; i < 16; i++)
                ((unsigned long *)memory)[i] = words[rand() % COUNT(words)];
        if (rand() % 5 == 0)
            memset(memory, 0, 64);
        if (rand() % 5 == 0)
            strcpy(memory, rand() % 2 ? "first" : "second");
        unsigned long x[6];
        for (int i = 0; i < 6; i++)
            x[i] = words[rand() % COUNT(words)];
        if (rand() % 2)
            x[0] = 3 + rand() % 20;
        int number = calls[rand() % COUNT(calls)];
        /* What it is started with stays as it is, and files small. */
        if ((unsigned)x[0] < 3 || (number == SYS_close && rand() % 3))
            continue;
        if (number == SYS_fallocate || number == SYS_ftruncate)
            x[1] &= 0xfffff, x[2] &= 0xfffff, x[3] &= 0xfffff;
        /* No call waits for ever. */
        struct itimerval soon = {{0, 20000}, {0, 3000}};
        setitimer(ITIMER_REAL, &soon, 0);
        syscall(number, x[0], x[1], x[2], x[3], x[4], x[5]);
    }
    puts("done");
    DONE();
}
