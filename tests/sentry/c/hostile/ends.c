/* Threads and processes that end, run programs, kill and wait for each other all at once. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void *spins(void *argument)
{
    for (;;)
        __asm__ volatile("" ::: "memory");
    return argument;
}

static void *calls(void *argument)
{
    int fd = open("/dev/null", O_WRONLY);
    for (;;)
        if (write(fd, "x", 1) != 1)
            break;
    return argument;
}

static void *ends(void *argument)
{
    usleep((long)argument);
    return NULL;
}

static void *executes(void *argument)
{
    usleep((long)argument);
    execl("/proc/self/exe", "x", "nothing", NULL);
    return NULL;
}

static void *leaves(void *argument)
{
    usleep((long)argument);
    syscall(SYS_exit_group, 3);
    return NULL;
}

static void *forks(void *argument)
{
    for (;;) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        if (pid > 0)
            waitpid(pid, NULL, 0);
    }
    return argument;
}

static void process(int kind)
{
    pthread_t thread;
    for (int i = 0; i < 3; i++) {
        pthread_create(&thread, NULL, i == 1 ? calls : spins, NULL);
        pthread_create(&thread, NULL, ends, (void *)(long)(i * 300));
    }
    if (kind & 1)
        pthread_create(&thread, NULL, executes, (void *)(long)(kind * 100));
    if (kind & 2)
        pthread_create(&thread, NULL, leaves, (void *)(long)(kind * 150));
    if (kind & 4)
        pthread_create(&thread, NULL, forks, NULL);
    if (kind & 8)
        syscall(SYS_exit, 4);
    if (kind & 16)
        execl("/proc/self/exe", "x", "nothing", NULL);
    usleep(3000);
    if (kind & 32) {
        int *nowhere = NULL;
        *(volatile int *)nowhere = 1;
    }
    syscall(SYS_exit_group, 3);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return 0;
    alarm(100);
    for (int kind = 0; kind < 64; kind++) {
        pid_t pids[3];
        for (int i = 0; i < 3; i++) {
            pids[i] = fork();
            if (pids[i] == 0)
                process(kind);
            NEED(pids[i] > 0);
        }
        usleep(kind * 50);
        kill(pids[0], SIGKILL);
        /* A process whose first thread has ended and whose others spin has to be told. */
        if (kind & 8)
            kill(pids[1], SIGTERM), usleep(1000), kill(pids[2], SIGTERM);
        for (int i = 0; i < 3; i++) {
            int status = -1;
            pid_t pid = waitpid(pids[i], &status, 0);
            CHECK(pid == pids[i]);
            CHECK(WIFSIGNALED(status) || WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3);
        }
    }
    DONE();
}
