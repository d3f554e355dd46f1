/* Processes of two threads: one is signalled by the other and maps memory, for ever. Tells how each came to its end, until
 * as many have as the argument says. */
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "check.h"

static pthread_t first;

static void nothing(int number) {
    (void)number;
}

static void *storm(void *unused) {
    for (;;)
        pthread_kill(first, SIGUSR1);
    return unused;
}

static void run(void) {
    struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    pthread_t other;
    first = pthread_self();
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    CHECK(pthread_create(&other, NULL, storm, NULL) == 0);
    puts("runs");
    for (;;)
        munmap(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < count; i++) {
        int status;
        pid_t child = fork();
        NEED(child >= 0);
        if (child == 0)
            run();
        CHECK(waitpid(child, &status, 0) == child);
        printf("ended by %d\n", status & 0x7f);
    }
    return check_failures != 0;
}
