/* What benchmarks/sentry.py measures inside: one operation many times, and how long one took, in microseconds.
 *     sentry_ops NAME COUNT */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void need(int fine, const char *what) {
    if (!fine) {
        perror(what);
        exit(1);
    }
}

static atomic_int turn;
static long rounds;

static void take_turns(int me) {
    for (long i = 0; i < rounds; i++) {
        while (atomic_load(&turn) != me)
            syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, 1 - me, NULL, NULL, 0);
        atomic_store(&turn, 1 - me);
        syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

static void *other(void *unused) {
    (void)unused;
    take_turns(1);
    return NULL;
}

static volatile unsigned long sink;

int main(int argc, char **argv) {
    need(argc == 3, "arguments");
    const char *name = argv[1];
    long count = atol(argv[2]);
    char buffer[4096];
    memset(buffer, 'x', sizeof buffer);
    char path[] = "/tmp/sentry-ops-XXXXXX";
    int fd = mkstemp(path);
    need(fd >= 0 && write(fd, buffer, sizeof buffer) == sizeof buffer, "file");
    int there[2], back[2];
    need(pipe(there) == 0 && pipe(back) == 0, "pipe");
    double begin = now();
    if (!strcmp(name, "getppid")) {
        for (long i = 0; i < count; i++)
            syscall(SYS_getppid);
    } else if (!strcmp(name, "pread")) {
        for (long i = 0; i < count; i++)
            need(pread(fd, buffer, 4096, 0) == 4096, "pread");
    } else if (!strcmp(name, "pwrite")) {
        for (long i = 0; i < count; i++)
            need(pwrite(fd, buffer, 4096, 0) == 4096, "pwrite");
    } else if (!strcmp(name, "open")) {
        for (long i = 0; i < count; i++) {
            int again = open(path, O_RDONLY);
            need(again >= 0, "open");
            close(again);
        }
    } else if (!strcmp(name, "stat")) {
        struct stat what;
        for (long i = 0; i < count; i++)
            need(stat(path, &what) == 0, "stat");
    } else if (!strcmp(name, "pipe")) {
        char byte = 0;
        if (fork() == 0) {
            close(there[1]);
            while (read(there[0], &byte, 1) == 1)
                need(write(back[1], &byte, 1) == 1, "write");
            _exit(0);
        }
        begin = now();
        for (long i = 0; i < count; i++) {
            need(write(there[1], &byte, 1) == 1, "write");
            need(read(back[0], &byte, 1) == 1, "read");
        }
    } else if (!strcmp(name, "futex")) {
        pthread_t thread;
        rounds = count;
        need(pthread_create(&thread, NULL, other, NULL) == 0, "thread");
        begin = now();
        take_turns(0);
        pthread_join(thread, NULL);
    } else if (!strcmp(name, "fork")) {
        for (long i = 0; i < count; i++) {
            pid_t child = fork();
            if (child == 0)
                _exit(0);
            need(waitpid(child, NULL, 0) == child, "waitpid");
        }
    } else if (!strcmp(name, "exec")) {
        for (long i = 0; i < count; i++) {
            pid_t child = vfork();
            if (child == 0) {
                execl("/bin/true", "true", (char *)NULL);
                _exit(127);
            }
            int status;
            need(waitpid(child, &status, 0) == child && status == 0, "exec");
        }
    } else if (!strcmp(name, "mmap")) {
        for (long i = 0; i < count; i++) {
            char *memory = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            need(memory != MAP_FAILED, "mmap");
            memory[0] = 1;
            munmap(memory, 65536);
        }
    } else if (!strcmp(name, "cpu")) {
        /* In parts of which the quickest counts: somebody else may want the processor, too. */
        unsigned long value = 1;
        long part = count / 20;
        double least = 0;
        need(part > 0, "count");
        for (int parts = 0; parts < 20; parts++) {
            double from = now();
            for (long i = 0; i < part; i++)
                value = value * 6364136223846793005UL + 1442695040888963407UL;
            double taken = (now() - from) / part;
            if (parts == 0 || taken < least)
                least = taken;
        }
        sink = value;
        begin = now() - least * count;
    } else {
        need(0, "operation");
    }
    printf("%.4f\n", (now() - begin) / count);
    unlink(path);
    return 0;
}
