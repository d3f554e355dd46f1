/* timerfd_create(2). */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <sys/timerfd.h>
#include <time.h>

static long long now(clockid_t clock) {
    struct timespec ts;
    clock_gettime(clock, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static struct itimerspec spec(long long value, long long interval) {
    struct itimerspec it = {{interval / 1000000000, interval % 1000000000}, {value / 1000000000, value % 1000000000}};
    return it;
}

int main(void) {
    uint64_t ticks;
    struct itimerspec it, old;
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    NEED(fd >= 0);
    FAILS(read(fd, &ticks, 8), EAGAIN);
    FAILS(read(fd, &ticks, 4), EINVAL);
    FAILS(write(fd, &ticks, 8), EINVAL);
    CHECK(timerfd_gettime(fd, &old) == 0 && !old.it_value.tv_sec && !old.it_value.tv_nsec);
    long long began = now(CLOCK_MONOTONIC);
    it = spec(60000000, 0);
    CHECK(timerfd_settime(fd, 0, &it, 0) == 0);
    CHECK(timerfd_gettime(fd, &old) == 0 && old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 60000000);
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 0) == 0);
    CHECK(poll(&p, 1, 5000) == 1 && p.revents == POLLIN);
    CHECK(now(CLOCK_MONOTONIC) - began >= 60000000);
    CHECK(read(fd, &ticks, 8) == 8 && ticks == 1);
    FAILS(read(fd, &ticks, 8), EAGAIN);

    /* An interval: expirations are counted. */
    it = spec(10000000, 20000000);
    CHECK(timerfd_settime(fd, 0, &it, 0) == 0);
    usleep(105000);
    CHECK(read(fd, &ticks, 8) == 8 && ticks >= 5);
    CHECK(timerfd_gettime(fd, &old) == 0 && old.it_interval.tv_nsec == 20000000);
    CHECK(old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 20000000);
    CHECK(fcntl(fd, F_SETFL, 0) == 0);
    CHECK(read(fd, &ticks, 8) == 8 && ticks >= 1);
    it = spec(0, 0);
    CHECK(timerfd_settime(fd, 0, &it, &old) == 0 && old.it_interval.tv_nsec == 20000000);
    CHECK(poll(&p, 1, 40) == 0);

    /* Absolute times of both clocks; those that passed expire at once. */
    it = spec(now(CLOCK_MONOTONIC) + 40000000, 0);
    CHECK(timerfd_settime(fd, TFD_TIMER_ABSTIME, &it, 0) == 0 && read(fd, &ticks, 8) == 8 && ticks == 1);
    it = spec(1, 0);
    CHECK(timerfd_settime(fd, TFD_TIMER_ABSTIME, &it, 0) == 0 && read(fd, &ticks, 8) == 8 && ticks == 1);
    int real = timerfd_create(CLOCK_REALTIME, 0);
    NEED(real >= 0);
    it = spec(now(CLOCK_REALTIME) + 40000000, 0);
    CHECK(timerfd_settime(real, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &it, 0) == 0);
    CHECK(read(real, &ticks, 8) == 8 && ticks == 1);
    CHECK(now(CLOCK_REALTIME) >= it.it_value.tv_sec * 1000000000LL + it.it_value.tv_nsec);
    close(real);
    int boot = timerfd_create(CLOCK_BOOTTIME, 0);
    NEED(boot >= 0);
    it = spec(1000000, 0);
    CHECK(timerfd_settime(boot, 0, &it, 0) == 0 && read(boot, &ticks, 8) == 8);
    close(boot);

    FAILS(timerfd_create(CLOCK_THREAD_CPUTIME_ID, 0), EINVAL);
    FAILS(timerfd_create(CLOCK_MONOTONIC, 1), EINVAL);
    FAILS(timerfd_settime(fd, 4, &it, 0), EINVAL);
    it.it_value.tv_nsec = 1000000000;
    FAILS(timerfd_settime(fd, 0, &it, 0), EINVAL);
    it = spec(1, 0);
    FAILS(timerfd_settime(0, 0, &it, 0), EINVAL);
    FAILS(timerfd_settime(999, 0, &it, 0), EBADF);
    FAILS(timerfd_settime(fd, 0, (void *)8, 0), EFAULT);
    DONE();
}
