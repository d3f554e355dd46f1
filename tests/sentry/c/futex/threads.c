/* What the C library makes of futexes: mutexes of all kinds, conditions, barriers, semaphores, joins. */
#include "../check.h"
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define THREADS 6
#define ROUNDS 3000

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static long counter;
static int turn;

static void *counts(void *argument)
{
    (void)argument;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&mutex);
        counter++;
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static void *takes_turns(void *argument)
{
    int mine = (int)(long)argument;
    for (int i = 0; i < 50; i++) {
        pthread_mutex_lock(&mutex);
        while (turn % THREADS != mine)
            pthread_cond_wait(&condition, &mutex);
        turn++;
        pthread_cond_broadcast(&condition);
        pthread_mutex_unlock(&mutex);
    }
    int last = pthread_barrier_wait(&barrier);
    return (void *)(long)(last == PTHREAD_BARRIER_SERIAL_THREAD);
}

static void run(void *(*function)(void *), long *sum)
{
    pthread_t threads[THREADS];
    *sum = 0;
    for (long i = 0; i < THREADS; i++)
        NEED(pthread_create(&threads[i], NULL, function, (void *)i) == 0);
    for (int i = 0; i < THREADS; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0);
        *sum += (long)result;
    }
}

static void plain(void)
{
    long sum;
    run(counts, &sum);
    CHECK(counter == THREADS * ROUNDS);
    NEED(pthread_barrier_init(&barrier, NULL, THREADS) == 0);
    run(takes_turns, &sum);
    CHECK(turn == THREADS * 50 && sum == 1);
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    time.tv_nsec += 20000000;
    if (time.tv_nsec >= 1000000000) {
        time.tv_sec++;
        time.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&mutex);
    CHECK(pthread_cond_timedwait(&condition, &mutex, &time) == ETIMEDOUT);
    pthread_mutex_unlock(&mutex);
}

static void *holds_and_ends(void *argument)
{
    pthread_mutex_lock(argument);
    return NULL;
}

static void robust(void)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    NEED(shared != MAP_FAILED);
    pthread_mutex_init(shared, &attributes);
    pthread_t thread;
    pthread_create(&thread, NULL, holds_and_ends, shared);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(pthread_mutex_lock(shared) == EOWNERDEAD);
    CHECK(pthread_mutex_consistent(shared) == 0);
    CHECK(pthread_mutex_unlock(shared) == 0);
    /* One who waits is woken when the owner is killed. */
    pid_t pid = fork();
    if (pid == 0) {
        pthread_mutex_lock(shared);
        raise(SIGSTOP);
        pause();
    }
    int status;
    CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    pid_t killer = fork();
    if (killer == 0) {
        usleep(50000);
        kill(pid, SIGKILL);
        _exit(0);
    }
    CHECK(pthread_mutex_lock(shared) == EOWNERDEAD);
    CHECK(pthread_mutex_consistent(shared) == 0 && pthread_mutex_unlock(shared) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && waitpid(killer, &status, 0) == killer);
}

static void robust_exec(const char *program)
{
    /* A program that is replaced holds its locks no more than one that ends. */
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    NEED(shared != MAP_FAILED);
    pthread_mutex_init(shared, &attributes);
    int ends[2];
    NEED(pipe(ends) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[0], 0);
        close(ends[1]);
        pthread_mutex_lock(shared);
        execl(program, program, "wait", NULL);
        _exit(1);
    }
    close(ends[0]);
    int result = 0;
    for (int i = 0; i < 500 && (result = pthread_mutex_trylock(shared)) != EOWNERDEAD; i++) {
        if (result == 0)
            pthread_mutex_unlock(shared);
        usleep(10000);
    }
    CHECK(result == EOWNERDEAD);
    CHECK(pthread_mutex_consistent(shared) == 0 && pthread_mutex_unlock(shared) == 0);
    close(ends[1]);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static pthread_mutex_t inheriting;
static long inherited;

static void *counts_inheriting(void *argument)
{
    (void)argument;
    for (int i = 0; i < 300; i++) {
        pthread_mutex_lock(&inheriting);
        inherited++;
        pthread_mutex_unlock(&inheriting);
    }
    return NULL;
}

static void priority(void)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    NEED(pthread_mutex_init(&inheriting, &attributes) == 0);
    long sum;
    pthread_mutex_lock(&inheriting);
    CHECK(pthread_mutex_lock(&inheriting) == EDEADLK);
    pthread_t thread;
    pthread_create(&thread, NULL, counts_inheriting, NULL);
    usleep(30000); /* it waits */
    CHECK(inherited == 0);
    pthread_mutex_unlock(&inheriting);
    pthread_join(thread, NULL);
    run(counts_inheriting, &sum);
    CHECK(inherited == 300 * (THREADS + 1));
    CHECK(pthread_mutex_trylock(&inheriting) == 0 && pthread_mutex_unlock(&inheriting) == 0);
}

static void semaphores(void)
{
    sem_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    NEED(shared != MAP_FAILED && sem_init(shared, 1, 0) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        for (int i = 0; i < 100; i++)
            sem_post(shared);
        _exit(0);
    }
    for (int i = 0; i < 100; i++)
        CHECK(sem_wait(shared) == 0);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static void *reads_robust_list(void *argument)
{
    (void)argument;
    void *head = NULL;
    size_t size = 0;
    CHECK(syscall(SYS_get_robust_list, 0, &head, &size) == 0 && head != NULL && size == 24);
    FAILS(syscall(SYS_set_robust_list, head, 23), EINVAL);
    FAILS(syscall(SYS_get_robust_list, 999999, &head, &size), ESRCH);
    return NULL;
}

static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;

static void *reads_and_writes(void *argument)
{
    for (int i = 0; i < 300; i++) {
        if ((i + (long)argument) % 5 == 0) {
            pthread_rwlock_wrlock(&rwlock);
            counter++;
        } else {
            pthread_rwlock_rdlock(&rwlock);
        }
        pthread_rwlock_unlock(&rwlock);
    }
    return NULL;
}

static void *ends_at_once(void *argument)
{
    return argument;
}

int main(int count, char **arguments)
{
    long sum;
    if (count > 1) {
        char byte;
        return (int)read(0, &byte, 1); /* until the other end is closed */
    }
    robust_exec(arguments[0]);
    plain();
    robust();
    priority();
    semaphores();
    run(reads_robust_list, &sum);
    counter = 0;
    run(reads_and_writes, &sum);
    CHECK(counter == THREADS * 60);
    for (int i = 0; i < 20; i++) {
        run(ends_at_once, &sum);
        CHECK(sum == THREADS * (THREADS - 1) / 2);
    }
    DONE();
}
