/* futex(2) itself: waits, wake-ups, requeues, operations, deadlines. */
#include "../check.h"
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static long futex(void *word, int op, uint32_t value, const void *timeout, void *word2, uint32_t value3)
{
    return syscall(SYS_futex, word, op, value, timeout, word2, value3);
}

static _Atomic uint32_t words[4];
static atomic_int awake;

static void pause_ms(long ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&time, &time) && errno == EINTR)
        ;
}

static double now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Until that thread waits in a call. */
static void until_waiting(int pid, int tid)
{
    char name[64], line[256];
    snprintf(name, sizeof name, "/proc/%d/task/%d/stat", pid, tid);
    for (int i = 0; i < 10000; i++) {
        FILE *stat = fopen(name, "r");
        char *state = stat && fgets(line, sizeof line, stat) ? strrchr(line, ')') : NULL;
        if (stat)
            fclose(stat);
        if (state && state[2] == 'S')
            return;
        pause_ms(1);
    }
    CHECK(!"it never waits");
}

struct wait {
    atomic_int tid;
    int op;
    _Atomic uint32_t *word;
    uint32_t value, bits;
    void *word2;
    long result;
    int error;
};

static void *waits(void *argument)
{
    struct wait *wait = argument;
    wait->tid = (int)syscall(SYS_gettid);
    wait->result = futex(wait->word, wait->op, wait->value, NULL, wait->word2, wait->bits);
    wait->error = errno;
    awake++;
    return NULL;
}

static void start(pthread_t *threads, struct wait *list, int count)
{
    awake = 0;
    for (int i = 0; i < count; i++) {
        list[i].tid = 0;
        NEED(pthread_create(&threads[i], NULL, waits, &list[i]) == 0);
        while (!list[i].tid)
            pause_ms(1);
        until_waiting(getpid(), list[i].tid); /* one after the other, so that their order is known */
    }
}

static void until(int count)
{
    for (int i = 0; i < 5000 && awake < count; i++)
        pause_ms(2);
    CHECK(awake == count);
}

static void plain(int private)
{
    pthread_t threads[4];
    struct wait list[4];
    for (int i = 0; i < 4; i++)
        list[i] = (struct wait){.op = FUTEX_WAIT | private, .word = &words[0], .value = 0};
    start(threads, list, 4);
    CHECK(futex(&words[0], FUTEX_WAKE | private, 1, NULL, NULL, 0) == 1);
    until(1);
    CHECK(futex(&words[0], FUTEX_WAKE | private, 2, NULL, NULL, 0) == 2);
    until(3);
    CHECK(futex(&words[0], FUTEX_WAKE | private, 1000, NULL, NULL, 0) == 1);
    until(4);
    CHECK(futex(&words[0], FUTEX_WAKE | private, 1, NULL, NULL, 0) == 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        CHECK(list[i].result == 0);
    }
}

static void refused(void)
{
    struct timespec bad = {0, 1000000000}, none = {0, 0};
    FAILS(futex(&words[0], FUTEX_WAIT, 1, NULL, NULL, 0), EAGAIN);
    FAILS(futex(&words[0], FUTEX_WAIT, 0, &bad, NULL, 0), EINVAL);
    FAILS(futex(&words[0], FUTEX_WAIT, 0, &none, NULL, 0), ETIMEDOUT);
    FAILS(futex(&words[0], FUTEX_WAIT, 0, (void *)8, NULL, 0), EFAULT);
    FAILS(futex((char *)&words[0] + 1, FUTEX_WAIT, 0, NULL, NULL, 0), EINVAL);
    FAILS(futex((char *)&words[0] + 2, FUTEX_WAKE, 0, NULL, NULL, 0), EINVAL);
    FAILS(futex((void *)4096, FUTEX_WAIT, 0, NULL, NULL, 0), EFAULT);
    FAILS(futex((void *)4096, FUTEX_WAKE, 1, NULL, NULL, 0), EFAULT);
    FAILS(futex((void *)(1UL << 60), FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0), EFAULT);
    FAILS(futex(&words[0], FUTEX_WAIT_BITSET, 0, NULL, NULL, 0), EINVAL);
    FAILS(futex(&words[0], FUTEX_WAKE_BITSET, 1, NULL, NULL, 0), EINVAL);
    FAILS(futex(&words[0], FUTEX_WAIT | FUTEX_CLOCK_REALTIME, 0, NULL, NULL, 0), ENOSYS);
    FAILS(futex(&words[0], 77, 0, NULL, NULL, 0), ENOSYS);
    FAILS(futex(&words[0], FUTEX_CMP_REQUEUE, 1, (void *)1, &words[1], 5), EAGAIN);
    FAILS(futex(&words[0], FUTEX_REQUEUE, -1, (void *)1, &words[1], 0), EINVAL);
}

static void deadlines(void)
{
    struct timespec time = {0, 50000000};
    double before = now(CLOCK_MONOTONIC);
    FAILS(futex(&words[0], FUTEX_WAIT, 0, &time, NULL, 0), ETIMEDOUT);
    CHECK(now(CLOCK_MONOTONIC) - before >= 0.049);
    for (int realtime = 0; realtime < 2; realtime++) {
        clock_gettime(realtime ? CLOCK_REALTIME : CLOCK_MONOTONIC, &time);
        time.tv_nsec += 50000000;
        time.tv_sec += time.tv_nsec / 1000000000;
        time.tv_nsec %= 1000000000;
        before = now(CLOCK_MONOTONIC);
        int op = FUTEX_WAIT_BITSET | (realtime ? FUTEX_CLOCK_REALTIME : 0);
        FAILS(futex(&words[0], op, 0, &time, NULL, ~0u), ETIMEDOUT);
        CHECK(now(CLOCK_MONOTONIC) - before >= 0.04);
        time.tv_sec -= 100;
        FAILS(futex(&words[0], op, 0, &time, NULL, ~0u), ETIMEDOUT);
    }
}

static void bits(void)
{
    pthread_t threads[2];
    struct wait list[2] = {
        {.op = FUTEX_WAIT_BITSET_PRIVATE, .word = &words[0], .bits = 1},
        {.op = FUTEX_WAIT_BITSET_PRIVATE, .word = &words[0], .bits = 2},
    };
    start(threads, list, 2);
    CHECK(futex(&words[0], FUTEX_WAKE_BITSET_PRIVATE, 9, NULL, NULL, 4) == 0);
    CHECK(futex(&words[0], FUTEX_WAKE_BITSET_PRIVATE, 9, NULL, NULL, 2) == 1);
    pthread_join(threads[1], NULL);
    CHECK(awake == 1);
    CHECK(futex(&words[0], FUTEX_WAKE_PRIVATE, 9, NULL, NULL, 0) == 1);
    pthread_join(threads[0], NULL);
}

static void requeues(void)
{
    pthread_t threads[4];
    struct wait list[4];
    for (int i = 0; i < 4; i++)
        list[i] = (struct wait){.op = FUTEX_WAIT_PRIVATE, .word = &words[0]};
    start(threads, list, 4);
    long moved = futex(&words[0], FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)2, &words[1], 0);
    CHECK(moved == 3);
    until(1);
    CHECK(futex(&words[1], FUTEX_WAKE_PRIVATE, 9, NULL, NULL, 0) == 2);
    until(3);
    CHECK(futex(&words[0], FUTEX_WAKE_PRIVATE, 9, NULL, NULL, 0) == 1);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
}

static void operations(void)
{
    pthread_t threads[2];
    struct wait list[2] = {{.op = FUTEX_WAIT_PRIVATE, .word = &words[0]}, {.op = FUTEX_WAIT_PRIVATE, .word = &words[1]}};
    start(threads, list, 2);
    words[1] = 5;
    CHECK(futex(&words[0], FUTEX_WAKE_OP_PRIVATE, 1, (void *)1, &words[1], FUTEX_OP(FUTEX_OP_ADD, 3, FUTEX_OP_CMP_GT, 5)) == 1);
    CHECK(words[1] == 8);
    pthread_join(threads[0], NULL);
    CHECK(futex(&words[0], FUTEX_WAKE_OP_PRIVATE, 1, (void *)1, &words[1], FUTEX_OP(FUTEX_OP_SET, -1, FUTEX_OP_CMP_EQ, 8)) == 1);
    CHECK(words[1] == ~0u);
    pthread_join(threads[1], NULL);
    words[1] = 0xf0;
    futex(&words[0], FUTEX_WAKE_OP_PRIVATE, 1, (void *)1, &words[1], FUTEX_OP(FUTEX_OP_ANDN, 0x30, FUTEX_OP_CMP_EQ, 8));
    CHECK(words[1] == 0xc0);
    futex(&words[0], FUTEX_WAKE_OP_PRIVATE, 1, (void *)1, &words[1], FUTEX_OP(FUTEX_OP_XOR, 0xff, FUTEX_OP_CMP_EQ, 8));
    CHECK(words[1] == 0x3f);
    futex(&words[0], FUTEX_WAKE_OP_PRIVATE, 1, (void *)1, &words[1],
          FUTEX_OP((FUTEX_OP_OR | FUTEX_OP_OPARG_SHIFT), 8, FUTEX_OP_CMP_EQ, 8));
    CHECK(words[1] == 0x13f);
    FAILS(futex(&words[0], FUTEX_WAKE_OP, 1, (void *)1, &words[1], FUTEX_OP(7, 8, FUTEX_OP_CMP_EQ, 8)), ENOSYS);
    words[1] = 0;
}

static atomic_int handled;

static void handler(int signum)
{
    handled += signum;
}

static void signalled(void)
{
    struct sigaction action = {.sa_handler = handler};
    sigaction(SIGUSR1, &action, NULL);
    pthread_t thread;
    struct wait wait = {.op = FUTEX_WAIT_PRIVATE, .word = &words[0]};
    start(&thread, &wait, 1);
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, NULL);
    CHECK(wait.result == -1 && wait.error == EINTR);
    CHECK(futex(&words[0], FUTEX_WAKE_PRIVATE, 9, NULL, NULL, 0) == 0); /* nobody waits any more */
    action.sa_flags = SA_RESTART;
    sigaction(SIGUSR1, &action, NULL);
    start(&thread, &wait, 1);
    handled = 0;
    pthread_kill(thread, SIGUSR1);
    while (!handled)
        pause_ms(1);
    until_waiting(getpid(), wait.tid);
    CHECK(awake == 0);
    CHECK(futex(&words[0], FUTEX_WAKE_PRIVATE, 9, NULL, NULL, 0) == 1);
    pthread_join(thread, NULL);
    CHECK(wait.result == 0);
}

static void between_processes(void)
{
    _Atomic uint32_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    NEED(shared != MAP_FAILED);
    pid_t pid = fork();
    if (pid == 0) {
        while (!*shared)
            if (futex((void *)shared, FUTEX_WAIT, 0, NULL, NULL, 0) && errno != EAGAIN)
                _exit(1);
        _exit(5);
    }
    until_waiting(pid, pid);
    *shared = 1;
    CHECK(futex((void *)shared, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) == 0); /* not a word of ours alone */
    CHECK(futex((void *)shared, FUTEX_WAKE, 1, NULL, NULL, 0) == 1);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 5);

    /* The same file at two addresses is the same word. */
    char name[] = "futexXXXXXX";
    int fd = mkstemp(name);
    CHECK(fd >= 0 && unlink(name) == 0 && ftruncate(fd, 8192) == 0);
    void *one = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *two = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4096);
    NEED(one != MAP_FAILED && two != MAP_FAILED);
    pthread_t thread;
    struct wait wait = {.op = FUTEX_WAIT, .word = (void *)((char *)one + 4096 + 8)};
    start(&thread, &wait, 1);
    CHECK(futex(two + 8, FUTEX_WAKE, 1, NULL, NULL, 0) == 1);
    pthread_join(thread, NULL);
    CHECK(wait.result == 0);
}

#ifdef SYS_futex_waitv
static void *wakes_second(void *argument)
{
    (void)argument;
    until_waiting(getpid(), getpid());
    CHECK(futex(&words[1], FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) == 1);
    return NULL;
}

static void many(void)
{
    struct futex_waitv list[3] = {0};
    for (int i = 0; i < 3; i++) {
        list[i].uaddr = (uintptr_t)&words[i];
        list[i].flags = FUTEX_32 | FUTEX_PRIVATE_FLAG;
    }
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    FAILS(syscall(SYS_futex_waitv, list, 3, 0, &time, CLOCK_MONOTONIC), ETIMEDOUT);
    FAILS(syscall(SYS_futex_waitv, list, 0, 0, NULL, CLOCK_MONOTONIC), EINVAL);
    FAILS(syscall(SYS_futex_waitv, list, 129, 0, NULL, CLOCK_MONOTONIC), EINVAL);
    FAILS(syscall(SYS_futex_waitv, list, 3, 1, NULL, CLOCK_MONOTONIC), EINVAL);
    list[2].val = 1;
    FAILS(syscall(SYS_futex_waitv, list, 3, 0, NULL, CLOCK_MONOTONIC), EAGAIN);
    list[2].val = 0;
    pthread_t thread;
    pthread_create(&thread, NULL, wakes_second, NULL);
    CHECK(syscall(SYS_futex_waitv, list, 3, 0, NULL, CLOCK_MONOTONIC) == 1);
    pthread_join(thread, NULL);
}
#endif

int main(void)
{
    plain(0);
    plain(FUTEX_PRIVATE_FLAG);
    refused();
    deadlines();
    bits();
    requeues();
    operations();
    signalled();
    between_processes();
#ifdef SYS_futex_waitv
    many();
#endif
    DONE();
}
