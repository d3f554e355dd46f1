/* What no sane program does: made-up frames, single steps, storms. The kernel has to survive it and say what Linux says. */
#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

static unsigned long state = 88172645463325252UL;
static unsigned long next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

/* Frames of nonsense: the child ends somehow, and soon. */
static void test_frames(void) {
    for (int round = 0; round < 60; round++) {
        unsigned char frame[4096] __attribute__((aligned(64)));
        for (unsigned i = 0; i < sizeof frame / 8; i++)
            ((unsigned long *)frame)[i] = next();
        unsigned long *gregs = (unsigned long *)(frame + 48); /* behind pretcode, flags, link and stack */
        unsigned short *selectors = (unsigned short *)(gregs + 18);
        if (round % 4)
            selectors[0] = 0x33;
        if (round % 3)
            gregs[16] = next() % 3 ? (unsigned long)getpid : next() | 1UL << 62;
        if (round % 5)
            gregs[15] = (unsigned long)frame + 2048;
        if (round % 2)
            gregs[22] = round % 7 ? 0 : (unsigned long)frame + 1024; /* the extended state */
        int status, child = fork();
        if (child == 0) {
            alarm(5);
            __asm__ volatile("mov %0, %%rsp; syscall" ::"r"(frame + 8), "a"((long)SYS_rt_sigreturn));
            _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) != SIGALRM && WTERMSIG(status) != SIGKILL);
    }
}

/* Each instruction traps, those of system calls too. */
static volatile int steps;
static void step(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)context;
    CHECK(info->si_code == TRAP_TRACE || info->si_code == TRAP_BRKPT);
    steps++;
}
static void test_steps(void) {
    struct sigaction sa = {.sa_sigaction = step, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &sa, NULL);
    __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq; nop" ::: "memory", "cc");
    long pid = syscall(SYS_getpid);
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct timespec moment = {0, 1000000};
    nanosleep(&moment, NULL);
    munmap(page, 4096);
    __asm__ volatile("pushfq; andq $~0x100, (%%rsp); popfq" ::: "memory", "cc");
    CHECK(pid == getpid() && page != MAP_FAILED);
    CHECK(steps > 20);
}

/* Alternate stacks where none can be. */
static void nothing(int signo) { (void)signo; }
static void test_stacks(void) {
    unsigned long places[] = {0, 0x1000, 0x7ffffffff000UL, 0xffffffffffff0000UL, 0x8000000000000000UL, ~0UL - 5000};
    for (unsigned i = 0; i < sizeof places / sizeof *places; i++) {
        int status, child = fork();
        if (child == 0) {
            struct sigaction sa = {.sa_handler = nothing, .sa_flags = SA_ONSTACK};
            stack_t stack = {.ss_sp = (void *)places[i], .ss_size = 8192};
            sigaction(SIGUSR1, &sa, NULL);
            syscall(SYS_sigaltstack, &stack, NULL);
            raise(SIGUSR1);
            _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    }
}

/* Stops and continues from several sides; the victim computes and makes calls meanwhile. */
static volatile unsigned long *shared;
static void *work(void *unused) {
    for (;;) {
        ++*shared;
        if (unused != NULL)
            sched_yield();
        if (*shared > 1UL << 62)
            return NULL;
    }
}
static void test_stops(void) {
    pid_t victim = fork(), senders[3];
    int status;
    if (victim == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, work, (void *)shared);
        work(NULL);
        _exit(0);
    }
    for (int i = 0; i < 3; i++) {
        senders[i] = fork();
        if (senders[i] == 0) {
            int signals[] = {SIGSTOP, SIGCONT, SIGTSTP, SIGCONT, SIGURG};
            for (int k = 0; k < 200; k++)
                kill(victim, signals[(k + i) % 5]);
            _exit(0);
        }
    }
    for (int i = 0; i < 3; i++)
        CHECK(waitpid(senders[i], &status, 0) == senders[i] && status == 0);
    kill(victim, SIGCONT);
    unsigned long before = *shared;
    for (int i = 0; i < 3000 && *shared == before; i++)
        usleep(1000);
    CHECK(*shared > before);
    kill(victim, SIGKILL);
    CHECK(waitpid(victim, &status, 0) == victim && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Very many timers, with the shortest intervals; ignored, blocked and handled. */
static volatile int ticks;
static void tick(int signo) {
    (void)signo;
    ticks++;
}
static void test_timers(void) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL};
    struct itimerspec it = {{0, 1}, {0, 1}};
    int signals[] = {SIGRTMIN + 1, SIGRTMIN + 2, SIGRTMIN + 3};
    sigset_t set;
    signal(signals[0], SIG_IGN);
    signal(signals[1], tick);
    sigemptyset(&set);
    sigaddset(&set, signals[2]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    static timer_t timers[2000];
    int made = 0;
    for (; made < 2000; made++) {
        event.sigev_signo = signals[made % 3];
        if (timer_create(CLOCK_MONOTONIC, &event, &timers[made]) != 0)
            break;
        /* Handled ones have to leave time for the program itself. */
        it.it_interval.tv_nsec = made % 3 == 1 ? 20000000 : 1;
        if (made < 30 || made % 3 == 2)
            CHECK(timer_settime(timers[made], 0, &it, NULL) == 0);
    }
    CHECK(made == 2000);
    for (int i = 0; i < 3000 && ticks < 50; i++)
        usleep(1000);
    CHECK(ticks >= 50);
    for (int i = 0; i < made; i++)
        CHECK(timer_delete(timers[i]) == 0);
}

int main(void) {
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    test_frames();
    test_steps();
    test_stacks();
    test_stops();
    test_timers();
    DONE();
}
