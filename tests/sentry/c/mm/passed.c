/* munmap, mprotect and madvise, which the host may make by itself: their results, and that no thread's comes after what
 * another thread has mapped, and no fork before it. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "check.h"
#include "faults.h"

#define PAGE 4096
#define SIZE (16 * PAGE)

static char *anonymous(int size) {
    char *made = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(made != MAP_FAILED);
    return made;
}

static void results(void) {
    char *at = anonymous(SIZE);
    memset(at, 1, SIZE);
    CHECK(mprotect(at + PAGE, PAGE, PROT_READ) == 0);
    CHECK(!faults(at + PAGE, 0) && faults(at + PAGE, 1) && !faults(at, 1) && !faults(at + 2 * PAGE, 1));
    CHECK(mprotect(at + PAGE, PAGE, PROT_NONE) == 0 && faults(at + PAGE, 0));
    CHECK(mprotect(at + PAGE, PAGE - 1, PROT_READ | PROT_WRITE) == 0 && at[PAGE] == 1);
    CHECK(madvise(at + 3 * PAGE, PAGE, MADV_DONTNEED) == 0 && at[3 * PAGE] == 0 && at[4 * PAGE] == 1);
    CHECK(munmap(at + 5 * PAGE, 1) == 0 && faults(at + 5 * PAGE, 0) && at[6 * PAGE] == 1);
    CHECK(mmap(at + 5 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
          at + 5 * PAGE);
    CHECK(munmap(at + 5 * PAGE, PAGE) == 0);
    FAILS(munmap(at + 1, PAGE), EINVAL);
    FAILS(munmap(at, 0), EINVAL);
    FAILS(mprotect(at, SIZE, PROT_READ), ENOMEM);
    FAILS(mprotect(at + 1, PAGE, PROT_READ), EINVAL);
    FAILS(mprotect(at, PAGE, 0x40000000), EINVAL);
    FAILS(madvise(at, PAGE, 9999), EINVAL);
    FAILS(madvise(at + 4 * PAGE, 2 * PAGE, MADV_DONTNEED), ENOMEM);
    CHECK(munmap(at, SIZE) == 0 && munmap(at, SIZE) == 0);
    /* Registers that these calls do not have make no difference. */
    for (int i = 0; i < 3; i++) {
        long more[] = {0, 0x6d736163, -1};
        at = anonymous(SIZE);
        CHECK(syscall(SYS_mprotect, at, SIZE, PROT_READ, more[i], more[i], more[i]) == 0 && faults(at, 1));
        CHECK(syscall(SYS_madvise, at, SIZE, MADV_DONTNEED, more[i], more[i], more[i]) == 0);
        CHECK(syscall(SYS_munmap, at, SIZE, more[i], more[i], more[i]) == 0 && faults(at, 0));
    }
}

static atomic_int over, ready_to_go;

/* Takes and gives memory back, in ways after which it makes no further call for a while. */
static void *churn(void *argument) {
    uintptr_t seed = (uintptr_t)argument;
    for (int i = 0; i < 400; i++) {
        char *at = anonymous(SIZE);
        for (int page = 0; page < SIZE / PAGE; page++) {
            CHECK(at[page * PAGE] == 0);
            at[page * PAGE] = (char)seed;
        }
        if (i % 3 == 0)
            NEED(mprotect(at, SIZE, PROT_READ) == 0);
        if (i % 7 == 0)
            for (volatile int spin = 0; spin < 20000; spin++)
                ;
        for (int page = 0; page < SIZE / PAGE; page++)
            NEED(at[page * PAGE] == (char)seed);
        if (i % 5 == 0)
            NEED(madvise(at, SIZE, MADV_DONTNEED) == 0 && at[0] == 0);
        NEED(munmap(at, SIZE) == 0);
    }
    return NULL;
}

static void *spin(void *unused) {
    char *at = anonymous(SIZE);
    NEED(munmap(at, SIZE) == 0);
    atomic_store(&ready_to_go, 1);
    while (!atomic_load(&over))
        ;
    return unused;
}

static atomic_long signals;

static void count(int number) {
    (void)number;
    atomic_fetch_add(&signals, 1);
}

static void *storm(void *argument) {
    while (!atomic_load(&over)) {
        pthread_kill(*(pthread_t *)argument, SIGUSR1);
        for (volatile int wait = 0; wait < 2000; wait++)
            ;
    }
    return NULL;
}

static void threads(void) {
    pthread_t some[4], spinning, storming, self = pthread_self();
    NEED(pthread_create(&spinning, NULL, spin, NULL) == 0);
    while (!atomic_load(&ready_to_go))
        sched_yield();
    for (uintptr_t i = 0; i < 4; i++)
        NEED(pthread_create(&some[i], NULL, churn, (void *)(i + 1)) == 0);
    for (int i = 0; i < 20; i++) {
        char *at = anonymous(SIZE);
        at[0] = 7;
        NEED(munmap(at, SIZE) == 0);
        pid_t child = fork();
        NEED(child >= 0);
        if (child == 0) {
            churn((void *)9);
            _exit(check_failures != 0);
        }
        int status;
        NEED(waitpid(child, &status, 0) == child && status == 0);
    }
    for (int i = 0; i < 4; i++)
        NEED(pthread_join(some[i], NULL) == 0);
    NEED(pthread_create(&storming, NULL, storm, &self) == 0);
    churn((void *)5);
    atomic_store(&over, 1);
    NEED(pthread_join(storming, NULL) == 0 && pthread_join(spinning, NULL) == 0);
    CHECK(atomic_load(&signals) > 0);
}

int main(void) {
    struct sigaction fault = {.sa_handler = jump}, counting = {.sa_handler = count, .sa_flags = SA_RESTART};
    NEED(sigaction(SIGSEGV, &fault, NULL) == 0 && sigaction(SIGUSR1, &counting, NULL) == 0);
    results();
    threads();
    DONE();
}
