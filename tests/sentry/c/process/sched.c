/* sched(7): policies, parameters, processors. */
#include "check.h"
#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/wait.h>

struct attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

int main(void)
{
    struct sched_param param = {0};
    CHECK(sched_yield() == 0);
    CHECK(sched_getscheduler(0) == SCHED_OTHER);
    CHECK(sched_getparam(0, &param) == 0 && param.sched_priority == 0);
    FAILS(sched_getscheduler(-1), EINVAL);
    FAILS(sched_getscheduler(999999), ESRCH);
    FAILS(syscall(SYS_sched_getparam, 0, NULL), EINVAL);
    FAILS(syscall(SYS_sched_getparam, 0, 1), EFAULT);
    CHECK(sched_get_priority_max(SCHED_FIFO) == 99 && sched_get_priority_min(SCHED_RR) == 1);
    CHECK(sched_get_priority_max(SCHED_OTHER) == 0);
    FAILS(sched_get_priority_max(77), EINVAL);
    param.sched_priority = 1;
    FAILS(sched_setscheduler(0, SCHED_OTHER, &param), EINVAL);
    FAILS(sched_setscheduler(0, 77, &param), EINVAL);
    param.sched_priority = 0;
    CHECK(sched_setscheduler(0, SCHED_BATCH, &param) == 0 && sched_getscheduler(0) == SCHED_BATCH);
    CHECK(sched_setscheduler(0, SCHED_OTHER, &param) == 0);
    FAILS(sched_setscheduler(0, SCHED_FIFO, &param), EINVAL);
    param.sched_priority = 100;
    FAILS(sched_setscheduler(0, SCHED_FIFO, &param), EINVAL);
    struct timespec interval;
    CHECK(sched_rr_get_interval(0, &interval) == 0);
    struct attr attr;
    CHECK(syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) == 0);
    CHECK(attr.size == 48 && attr.policy == SCHED_OTHER && attr.priority == 0);
    FAILS(syscall(SYS_sched_getattr, 0, &attr, 20, 0), EINVAL);
    FAILS(syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 1), EINVAL);
    attr.nice = 3;
    CHECK(syscall(SYS_sched_setattr, 0, &attr, 0) == 0);
    CHECK(syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) == 0 && attr.nice == 3);

    cpu_set_t set;
    CPU_ZERO(&set);
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) >= 1);
    unsigned long words[128];
    long size = syscall(SYS_sched_getaffinity, 0, sizeof words, words);
    CHECK(size >= 8 && size % 8 == 0);
    FAILS(syscall(SYS_sched_getaffinity, 0, 1, words), EINVAL);
    FAILS(syscall(SYS_sched_getaffinity, 0, sizeof words, 1), EFAULT);
    FAILS(sched_getaffinity(999999, sizeof set, &set), ESRCH);
    int first = -1;
    for (int cpu = 0; cpu < CPU_SETSIZE && first < 0; cpu++)
        if (CPU_ISSET(cpu, &set))
            first = cpu;
    cpu_set_t one;
    CPU_ZERO(&one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == -1 && errno == EINVAL);
    CPU_SET(first, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    CPU_ZERO(&set);
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0 && CPU_EQUAL(&set, &one));
    pid_t pid = fork();
    if (pid == 0) {
        CPU_ZERO(&set);
        CHECK(sched_getaffinity(0, sizeof set, &set) == 0 && CPU_EQUAL(&set, &one));
        DONE();
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    unsigned cpu = 99, node = 99;
    CHECK(syscall(SYS_getcpu, &cpu, &node, NULL) == 0 && cpu == (unsigned)first && node == 0);
    DONE();
}
