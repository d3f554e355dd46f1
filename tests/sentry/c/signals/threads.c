/* Signals and threads: who gets what, and that a computing thread is interrupted at once. */
#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static volatile sig_atomic_t count;
static volatile pid_t handled_by;
static volatile int spinning, stop_spinning;
static volatile pid_t tids[4];

static void handler(int signo) {
    (void)signo;
    handled_by = (pid_t)syscall(SYS_gettid);
    count++;
}

static void nap(long us) {
    struct timespec ts = {0, us * 1000};
    nanosleep(&ts, NULL);
}

static void *spin(void *unused) {
    (void)unused;
    tids[0] = (pid_t)syscall(SYS_gettid);
    spinning = 1;
    while (!stop_spinning)
        ;
    return NULL;
}

static void *wait_for_one(void *set) {
    int signo = 0;
    CHECK(sigwait(set, &signo) == 0);
    return (void *)(long)signo;
}

static void *block_and_sleep(void *set) {
    pthread_sigmask(SIG_BLOCK, set, NULL);
    tids[1] = (pid_t)syscall(SYS_gettid);
    while (!stop_spinning)
        nap(5000);
    return NULL;
}

static void test_spinning(void) {
    pthread_t thread;
    spinning = stop_spinning = 0;
    pthread_create(&thread, NULL, spin, NULL);
    while (!spinning)
        sched_yield();
    for (int i = 1; i <= 20; i++) {
        count = 0;
        CHECK(pthread_kill(thread, SIGUSR1) == 0);
        for (int wait = 0; count == 0 && wait < 5000; wait++)
            nap(1000);
        CHECK(count == 1 && handled_by == tids[0]);
    }
    /* Blocked here, a signal of the process goes to the other thread. */
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    count = 0;
    kill(getpid(), SIGUSR1);
    for (int wait = 0; count == 0 && wait < 5000; wait++)
        nap(1000);
    CHECK(count == 1 && handled_by == tids[0]);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    stop_spinning = 1;
    pthread_join(thread, NULL);
}

static void test_sigwait(void) {
    sigset_t set, old, pending;
    pthread_t thread;
    void *result;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    pthread_create(&thread, NULL, wait_for_one, &set);
    nap(20000);
    kill(getpid(), SIGUSR2);
    pthread_join(thread, &result);
    CHECK((long)result == SIGUSR2);
    CHECK(sigpending(&pending) == 0 && !sigismember(&pending, SIGUSR2));
    /* Sent to this thread, another one cannot take it. */
    pthread_create(&thread, NULL, wait_for_one, &set);
    raise(SIGUSR2);
    nap(20000);
    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR2));
    kill(getpid(), SIGUSR2);
    pthread_join(thread, &result);
    CHECK((long)result == SIGUSR2);
    int signo;
    CHECK(sigwait(&set, &signo) == 0 && signo == SIGUSR2);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* All block it: whoever unblocks it first gets it. */
static void test_later(void) {
    sigset_t set, old;
    pthread_t thread;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    stop_spinning = 0;
    tids[1] = 0;
    pthread_create(&thread, NULL, block_and_sleep, &set);
    while (!tids[1])
        nap(1000);
    count = 0;
    kill(getpid(), SIGUSR1);
    nap(20000);
    CHECK(count == 0);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    CHECK(count == 1 && handled_by == getpid());
    stop_spinning = 1;
    pthread_join(thread, NULL);
}

/* A fatal signal to one computing thread ends all. */
static void test_fatal(void) {
    int status, child = fork();
    if (child == 0) {
        pthread_t thread;
        spinning = stop_spinning = 0;
        signal(SIGTERM, SIG_DFL);
        pthread_create(&thread, NULL, spin, NULL);
        while (!spinning)
            sched_yield();
        pthread_kill(thread, SIGTERM);
        for (;;)
            pause();
    }
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    child = fork();
    if (child == 0) {
        pthread_t thread;
        spinning = stop_spinning = 0;
        pthread_create(&thread, NULL, spin, NULL);
        for (;;)
            ;
    }
    nap(50000);
    kill(child, SIGKILL);
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Two threads send each other signals while both compute and block. */
static volatile sig_atomic_t storm;
static void storming(int signo) {
    (void)signo;
    __atomic_add_fetch((int *)&storm, 1, __ATOMIC_SEQ_CST);
}
static void *sender(void *target) {
    for (int i = 0; i < 300; i++) {
        CHECK(pthread_kill(*(pthread_t *)target, SIGUSR2) == 0);
        if (i % 3 == 0)
            sched_yield();
    }
    return NULL;
}
static void test_storm(void) {
    struct sigaction sa = {.sa_handler = storming, .sa_flags = SA_RESTART};
    pthread_t self = pthread_self(), a, b;
    sigaction(SIGUSR2, &sa, NULL);
    pthread_create(&a, NULL, sender, &self);
    pthread_create(&b, NULL, sender, &self);
    pthread_join(a, NULL);
    pthread_join(b, NULL);
    CHECK(storm >= 1 && storm <= 600);
}

int main(void) {
    struct sigaction sa = {.sa_handler = handler};
    sigaction(SIGUSR1, &sa, NULL);
    test_spinning();
    test_sigwait();
    test_later();
    test_fatal();
    test_storm();
    DONE();
}
