/* A program that takes all it can get of one thing, and must be told "no more" in the end. Argument: of what.
 * For containers with bounds; natively it would take them from the machine. */
#include "../check.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>

static void *idle(void *unused) {
    (void)unused;
    pause();
    return NULL;
}

int main(int argc, char **argv) {
    NEED(argc == 2);
    long count = 0;
    errno = 0;
    if (!strcmp(argv[1], "processes")) {
        pid_t child;
        while ((child = fork()) > 0)
            count++;
        if (child == 0) {
            pause();
            _exit(0);
        }
        CHECK(errno == EAGAIN && count > 10);
        signal(SIGTERM, SIG_IGN);
        kill(0, SIGTERM);
        while (wait(NULL) > 0)
            ;
        child = fork(); /* and again */
        if (child == 0)
            _exit(0);
        CHECK(child > 0 && waitpid(child, NULL, 0) == child);
    } else if (!strcmp(argv[1], "threads")) {
        pthread_t thread;
        int error;
        while ((error = pthread_create(&thread, NULL, idle, NULL)) == 0)
            count++;
        CHECK(error == EAGAIN && count > 10);
    } else if (!strcmp(argv[1], "descriptors")) {
        while (open("/dev/null", O_RDONLY) >= 0)
            count++;
        CHECK(errno == EMFILE && count > 100);
        close(10);
        int pair[2];
        FAILS(pipe(pair), EMFILE);
        FAILS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), EMFILE);
        CHECK(epoll_create1(0) == 10);
    } else if (!strcmp(argv[1], "timers")) {
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
        struct itimerspec when = {{0, 1000000}, {0, 1000000}};
        timer_t timer;
        signal(SIGUSR1, SIG_IGN);
        while (count < 100000 && timer_create(CLOCK_MONOTONIC, &event, &timer) == 0) {
            if (count % 100 == 0)
                timer_settime(timer, 0, &when, NULL);
            count++;
        }
        CHECK(count == 100000 || errno == EAGAIN);
        CHECK(count > 100);
    } else if (!strcmp(argv[1], "mappings")) {
        /* Each is apart from the next, so that they stay apart. */
        while (count < 200000 && mmap(NULL, 4096, count % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
               != MAP_FAILED)
            count++;
        CHECK(errno == ENOMEM && count > 1000);
    } else if (!strcmp(argv[1], "signals")) {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, NULL);
        while (count < 1000000 && sigqueue(getpid(), SIGRTMIN, (union sigval){0}) == 0)
            count++;
        CHECK(errno == EAGAIN && count > 10);
    } else {
        NEED(0 && "of what");
    }
    printf("%ld\n", count);
    DONE();
}
