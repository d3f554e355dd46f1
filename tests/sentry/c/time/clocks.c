/* Clocks: clock_gettime(2) and its relatives, by system calls (a vdso would answer the usual ones by itself). */
#include "check.h"
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <time.h>

static double get(clockid_t clock) {
    struct timespec ts = {0, 0};
    CHECK(syscall(SYS_clock_gettime, clock, &ts) == 0);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void burn(double seconds) {
    double start = get(CLOCK_PROCESS_CPUTIME_ID);
    while (get(CLOCK_PROCESS_CPUTIME_ID) - start < seconds)
        for (volatile int i = 0; i < 100000; i++)
            ;
}

static void *burner(void *unused) {
    (void)unused;
    double start = get(CLOCK_THREAD_CPUTIME_ID);
    CHECK(start < 0.02);
    while (get(CLOCK_THREAD_CPUTIME_ID) - start < 0.05)
        for (volatile int i = 0; i < 100000; i++)
            ;
    return NULL;
}

int main(void) {
    struct timespec ts, vdso;
    struct timeval tv;
    struct timezone tz;
    clockid_t clocks[] = {CLOCK_REALTIME,         CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE,
                          CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME,  CLOCK_TAI};
    for (unsigned i = 0; i < sizeof clocks / sizeof *clocks; i++) {
        CHECK(syscall(SYS_clock_getres, clocks[i], &ts) == 0 && ts.tv_sec == 0 && ts.tv_nsec > 0);
        double a = get(clocks[i]), b = get(clocks[i]);
        CHECK(b >= a);
        CHECK(clock_gettime(clocks[i], &vdso) == 0);
        double c = (double)vdso.tv_sec + (double)vdso.tv_nsec / 1e9;
        CHECK(c >= b - 0.000001 && c < b + 5);
    }
    CHECK(syscall(SYS_gettimeofday, &tv, &tz) == 0 && tz.tz_minuteswest == 0);
    CHECK((double)tv.tv_sec - get(CLOCK_REALTIME) < 5);
    time_t now = 0;
    CHECK(syscall(SYS_time, &now) == now && now >= tv.tv_sec);
    CHECK(syscall(SYS_time, NULL) >= now);
    FAILS(syscall(SYS_clock_gettime, 77, &ts), EINVAL);
    FAILS(syscall(SYS_clock_gettime, CLOCK_REALTIME, 1), EFAULT);
    FAILS(syscall(SYS_clock_getres, 77, &ts), EINVAL);
    CHECK(syscall(SYS_clock_getres, CLOCK_MONOTONIC, NULL) == 0);
    FAILS(syscall(SYS_clock_settime, CLOCK_MONOTONIC, &ts), EINVAL);
    FAILS(syscall(SYS_gettimeofday, 1, NULL), EFAULT);
    FAILS(syscall(SYS_clock_nanosleep, 77, 0, &ts, NULL), EINVAL);
    FAILS(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC_RAW, 0, &ts, NULL), EOPNOTSUPP);

    /* Processor time goes on while computing, and not while sleeping. */
    double process = get(CLOCK_PROCESS_CPUTIME_ID), thread = get(CLOCK_THREAD_CPUTIME_ID);
    usleep(100000);
    CHECK(get(CLOCK_PROCESS_CPUTIME_ID) - process < 0.05);
    burn(0.1);
    CHECK(get(CLOCK_PROCESS_CPUTIME_ID) - process >= 0.1);
    CHECK(get(CLOCK_THREAD_CPUTIME_ID) - thread >= 0.09);
    thread = get(CLOCK_THREAD_CPUTIME_ID);
    process = get(CLOCK_PROCESS_CPUTIME_ID);
    pthread_t other;
    pthread_create(&other, NULL, burner, NULL);
    pthread_join(other, NULL);
    CHECK(get(CLOCK_PROCESS_CPUTIME_ID) - process >= 0.05);
    CHECK(get(CLOCK_THREAD_CPUTIME_ID) - thread < 0.04);
    clockid_t mine;
    CHECK(clock_getcpuclockid(0, &mine) == 0 && get(mine) >= 0.1);
    CHECK(clock_getcpuclockid(getpid(), &mine) == 0 && get(mine) >= 0.1);
    CHECK(pthread_getcpuclockid(pthread_self(), &mine) == 0 && get(mine) >= 0.1);

    /* Sleeping until a moment. */
    clock_gettime(CLOCK_MONOTONIC, &ts);
    double start = (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
    ts.tv_nsec += 50000000;
    if (ts.tv_nsec >= 1000000000) {
        ts.tv_nsec -= 1000000000;
        ts.tv_sec++;
    }
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == 0);
    CHECK(get(CLOCK_MONOTONIC) - start >= 0.05);
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == 0);
    ts = (struct timespec){1, 0};
    CHECK(clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &ts, NULL) == 0);

    struct timex tx = {.modes = 0};
    CHECK(adjtimex(&tx) >= 0 && tx.tick > 9000 && tx.tick < 11000);
    tx.modes = 0;
    CHECK(clock_adjtime(CLOCK_REALTIME, &tx) >= 0);
    FAILS(syscall(SYS_adjtimex, 1), EFAULT);
    DONE();
}
