/* Socket calls from several threads at once, on each other's descriptors, with arguments that make little sense and
 * lie in memory that other threads change meanwhile. The argument is where chance begins. */
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>

enum { RACERS = 2, CALLERS = 4, CALLS = 3000, FILES = 40 };

static unsigned shared[16384];
static volatile int stop;
static int seed;

static const long numbers[] = {
    SYS_socket, SYS_connect, SYS_sendto, SYS_recvfrom, SYS_sendmsg, SYS_recvmsg, SYS_shutdown, SYS_bind, SYS_listen,
    SYS_getsockname, SYS_getpeername, SYS_socketpair, SYS_setsockopt, SYS_getsockopt, SYS_accept4, SYS_recvmmsg,
    SYS_sendmmsg,
};

static void *race(void *argument)
{
    unsigned chance = seed * 100 + (long)argument;
    while (!stop)
        shared[rand_r(&chance) % 16384] = rand_r(&chance) % 3 ? rand_r(&chance) : rand_r(&chance) % 32;
    return NULL;
}

static long word(unsigned *chance)
{
    switch (rand_r(chance) % 5) {
    case 0:
        return rand_r(chance) % 64;
    case 1:
        return (long)shared + rand_r(chance) % 60000;
    case 2:
        return -1;
    case 3:
        return rand_r(chance);
    default:
        return 16;
    }
}

static void *call(void *argument)
{
    static const int families[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK};
    unsigned chance = seed * 100 + (long)argument;
    for (int i = 0; i < CALLS; i++) {
        long words[6], number = numbers[rand_r(&chance) % (sizeof numbers / sizeof *numbers)];
        int fd = 3 + rand_r(&chance) % FILES;
        for (int at = 0; at < 6; at++)
            words[at] = word(&chance);
        words[0] = fd;
        if (number == SYS_socket || number == SYS_socketpair) {
            words[0] = families[rand_r(&chance) % 4];
            words[1] = (1 + rand_r(&chance) % 3) | SOCK_NONBLOCK;
            words[2] = 0;
        }
        /* What waits would only take time. */
        if (number == SYS_sendto || number == SYS_recvfrom || number == SYS_recvmmsg || number == SYS_sendmmsg)
            words[3] = MSG_DONTWAIT;
        if (number == SYS_sendmsg || number == SYS_recvmsg)
            words[2] = MSG_DONTWAIT;
        if (number == SYS_accept4)
            words[3] = SOCK_NONBLOCK;
        syscall(number, words[0], words[1], words[2], words[3], words[4], words[5]);
        if (rand_r(&chance) % 8 == 0)
            close(3 + rand_r(&chance) % FILES);
    }
    return NULL;
}

int main(int count, char **arguments)
{
    pthread_t racers[RACERS], callers[CALLERS];
    seed = count > 1 ? atoi(arguments[1]) : 1;
    signal(SIGPIPE, SIG_IGN);
    for (long i = 0; i < RACERS; i++)
        NEED(pthread_create(&racers[i], NULL, race, (void *)i) == 0);
    for (long i = 0; i < CALLERS; i++)
        NEED(pthread_create(&callers[i], NULL, call, (void *)(RACERS + i)) == 0);
    for (int i = 0; i < CALLERS; i++)
        pthread_join(callers[i], NULL);
    stop = 1;
    for (int i = 0; i < RACERS; i++)
        pthread_join(racers[i], NULL);
    puts("ends");
    DONE();
}
