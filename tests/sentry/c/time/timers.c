/* Timers: alarm(2), setitimer(2), timer_create(2). */
#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

static volatile sig_atomic_t count;
static siginfo_t seen;
static volatile pid_t handled_by;
static volatile int overruns; /* the most that a signal told */

static void handler(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)context;
    seen = *info;
    if (info->si_code == SI_TIMER && info->si_overrun > overruns)
        overruns = info->si_overrun;
    handled_by = (pid_t)syscall(SYS_gettid);
    count++; /* what is waited for */
}

static double now(clockid_t clock) {
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void wait_for(int wanted) {
    double start = now(CLOCK_MONOTONIC);
    while (count < wanted && now(CLOCK_MONOTONIC) - start < 20)
        usleep(2000);
}

static void test_itimers(void) {
    struct itimerval it = {{0, 20000}, {0, 50000}}, got, zero = {{0, 0}, {0, 0}};
    count = 0;
    double start = now(CLOCK_MONOTONIC);
    CHECK(setitimer(ITIMER_REAL, &it, NULL) == 0);
    CHECK(getitimer(ITIMER_REAL, &got) == 0 && got.it_interval.tv_usec == 20000 && got.it_value.tv_usec > 0 &&
          got.it_value.tv_usec <= 50000);
    wait_for(5);
    double took = now(CLOCK_MONOTONIC) - start;
    CHECK(count >= 5 && took >= 0.13);
    CHECK(seen.si_signo == SIGALRM && seen.si_code == SI_KERNEL);
    CHECK(setitimer(ITIMER_REAL, &zero, &got) == 0 && got.it_interval.tv_usec == 20000);
    CHECK(getitimer(ITIMER_REAL, &got) == 0 && got.it_value.tv_sec == 0 && got.it_value.tv_usec == 0);
    FAILS(setitimer(5, &it, NULL), EINVAL);
    it.it_value.tv_usec = 1000000;
    FAILS(setitimer(ITIMER_REAL, &it, NULL), EINVAL);
    FAILS(syscall(SYS_setitimer, ITIMER_REAL, 1, NULL), EFAULT);
    FAILS(syscall(SYS_getitimer, ITIMER_REAL, 1), EFAULT);

    /* Of processor time: they do not run while the program sleeps. */
    count = 0;
    it = (struct itimerval){{0, 0}, {0, 50000}};
    CHECK(setitimer(ITIMER_PROF, &it, NULL) == 0);
    struct timespec tenth = {0, 150000000};
    CHECK(nanosleep(&tenth, NULL) == 0 && count == 0);
    start = now(CLOCK_PROCESS_CPUTIME_ID);
    while (count == 0 && now(CLOCK_PROCESS_CPUTIME_ID) - start < 5)
        for (volatile int i = 0; i < 100000; i++)
            ;
    took = now(CLOCK_PROCESS_CPUTIME_ID) - start;
    CHECK(count == 1 && seen.si_signo == SIGPROF && took > 0.03 && took < 2);
    count = 0;
    it = (struct itimerval){{0, 10000}, {0, 10000}};
    CHECK(setitimer(ITIMER_VIRTUAL, &it, NULL) == 0);
    start = now(CLOCK_PROCESS_CPUTIME_ID);
    while (count < 3 && now(CLOCK_PROCESS_CPUTIME_ID) - start < 5)
        for (volatile int i = 0; i < 100000; i++)
            ;
    CHECK(count >= 3 && seen.si_signo == SIGVTALRM);
    CHECK(setitimer(ITIMER_VIRTUAL, &zero, NULL) == 0);
}

static void test_alarm(void) {
    CHECK(alarm(100) == 0);
    unsigned left = alarm(1);
    CHECK(left == 100 || left == 99);
    count = 0;
    double start = now(CLOCK_MONOTONIC);
    pause();
    CHECK(count == 1 && now(CLOCK_MONOTONIC) - start >= 0.99);
    alarm(10);
    CHECK(alarm(0) > 0);
    CHECK(alarm(0) == 0);
    /* Not inherited. */
    alarm(50);
    int status, child = fork();
    if (child == 0)
        _exit(alarm(0) == 0 ? 0 : 1);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(alarm(0) > 0);
}

static void *idle(void *tid) {
    *(volatile pid_t *)tid = (pid_t)syscall(SYS_gettid);
    while (tid != NULL)
        pause();
    return NULL;
}

static void test_posix(void) {
    timer_t timer, other;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 77};
    struct itimerspec it = {{0, 0}, {0, 30000000}}, got, old;
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    CHECK(timer_gettime(timer, &got) == 0 && got.it_value.tv_sec == 0 && got.it_value.tv_nsec == 0);
    count = 0;
    CHECK(timer_settime(timer, 0, &it, NULL) == 0);
    CHECK(timer_gettime(timer, &got) == 0 && got.it_value.tv_nsec > 0 && got.it_value.tv_nsec <= 30000000);
    wait_for(1);
    CHECK(count == 1 && seen.si_signo == SIGRTMIN && seen.si_code == SI_TIMER && seen.si_value.sival_int == 77);
    CHECK(seen.si_overrun == 0 && timer_getoverrun(timer) == 0);
    CHECK(timer_gettime(timer, &got) == 0 && got.it_value.tv_nsec == 0);

    /* Again and again; while the signal is blocked, expirations are counted. */
    sigset_t set, before;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, &before);
    it.it_interval.tv_nsec = 10000000;
    count = 0;
    CHECK(timer_settime(timer, 0, &it, &old) == 0);
    struct timespec more = {0, 200000000};
    nanosleep(&more, NULL);
    sigprocmask(SIG_SETMASK, &before, NULL);
    CHECK(count >= 1 && overruns >= 10);
    CHECK(timer_getoverrun(timer) >= 0);
    wait_for(4);
    CHECK(count >= 4);
    CHECK(timer_delete(timer) == 0);
    usleep(30000);
    int last = count;
    usleep(50000);
    CHECK(count == last);
    FAILS(syscall(SYS_timer_delete, timer), EINVAL);

    /* At a moment of a clock; one that has passed expires at once. */
    CHECK(timer_create(CLOCK_REALTIME, &event, &timer) == 0);
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    it = (struct itimerspec){{0, 0}, at};
    count = 0;
    CHECK(timer_settime(timer, TIMER_ABSTIME, &it, NULL) == 0);
    wait_for(1);
    CHECK(count == 1);
    it.it_value.tv_nsec = 1000000000;
    FAILS(timer_settime(timer, 0, &it, NULL), EINVAL);
    timer_delete(timer);

    /* Without a signal; with the default one; to a thread. */
    event.sigev_notify = SIGEV_NONE;
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    it = (struct itimerspec){{0, 7000000}, {0, 20000000}};
    CHECK(timer_settime(timer, 0, &it, NULL) == 0);
    usleep(40000);
    CHECK(timer_gettime(timer, &got) == 0 && got.it_value.tv_nsec > 0 && got.it_value.tv_nsec <= 7000000);
    timer_delete(timer);
    CHECK(timer_create(CLOCK_MONOTONIC, NULL, &timer) == 0);
    it = (struct itimerspec){{0, 0}, {0, 5000000}};
    count = 0;
    timer_settime(timer, 0, &it, NULL);
    wait_for(1);
    CHECK(count == 1 && seen.si_signo == SIGALRM && seen.si_code == SI_TIMER);
    timer_delete(timer);
    pthread_t thread;
    volatile pid_t tid = 0;
    pthread_create(&thread, NULL, idle, (void *)&tid);
    while (!tid)
        usleep(1000);
    event.sigev_notify = SIGEV_THREAD_ID;
    event._sigev_un._tid = tid;
    count = 0;
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    timer_settime(timer, 0, &it, NULL);
    wait_for(1);
    CHECK(count == 1 && handled_by == tid);
    event._sigev_un._tid = 999999;
    FAILS(timer_create(CLOCK_MONOTONIC, &event, &other), EINVAL);
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = 99;
    FAILS(timer_create(CLOCK_MONOTONIC, &event, &other), EINVAL);
    event.sigev_signo = SIGRTMIN;
    FAILS(timer_create(55, &event, &other), EINVAL);
    FAILS(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, 1), EFAULT);
    FAILS(syscall(SYS_timer_gettime, 12345, &got), EINVAL);

    /* Of processor time. */
    CHECK(timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer) == 0);
    it = (struct itimerspec){{0, 0}, {0, 30000000}};
    count = 0;
    timer_settime(timer, 0, &it, NULL);
    double start = now(CLOCK_PROCESS_CPUTIME_ID);
    while (count == 0 && now(CLOCK_PROCESS_CPUTIME_ID) - start < 5)
        for (volatile int i = 0; i < 100000; i++)
            ;
    CHECK(count == 1 && now(CLOCK_PROCESS_CPUTIME_ID) - start > 0.02);
    timer_delete(timer);
}

/* Moments that never come. */
static void test_far(void) {
    struct itimerspec it = {{0x7fffffffffffffffL, 999999999}, {0x7fffffffffffffffL, 999999999}}, got;
    struct itimerval real = {{0x7fffffffffffffffL, 999999}, {0x7fffffffffffffffL, 999999}}, zero = {{0, 0}, {0, 0}};
    struct timespec left = {0, 0}, ever = {0x7fffffffffffffffL, 999999999};
    clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_PROCESS_CPUTIME_ID};
    timer_t timer;
    for (int i = 0; i < 4; i++)
        for (int flags = 0; flags <= TIMER_ABSTIME; flags++) {
            CHECK(timer_create(clocks[i], NULL, &timer) == 0);
            CHECK(timer_settime(timer, flags, &it, NULL) == 0);
            CHECK(timer_gettime(timer, &got) == 0 && got.it_value.tv_sec > 1000000);
            CHECK(timer_delete(timer) == 0);
        }
    CHECK(setitimer(ITIMER_REAL, &real, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &zero, &real) == 0 && real.it_value.tv_sec > 1000000);
    CHECK(alarm(0xffffffff) == 0);
    CHECK(alarm(0) > 1000000);
    real = (struct itimerval){{0, 0}, {0, 30000}};
    count = 0;
    CHECK(setitimer(ITIMER_REAL, &real, NULL) == 0);
    FAILS(nanosleep(&ever, &left), EINTR);
    CHECK(left.tv_sec > 1000000 && count == 1);
}

int main(void) {
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    int signals[] = {SIGALRM, SIGVTALRM, SIGPROF, SIGRTMIN};
    for (int i = 0; i < 4; i++)
        sigaction(signals[i], &sa, NULL);
    test_itimers();
    test_alarm();
    test_posix();
    test_far();
    DONE();
}
