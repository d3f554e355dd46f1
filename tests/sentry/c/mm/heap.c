/* brk that is called often, and what happens between its calls: whoever looks at the heap sees it as it is, and what
 * bars its growth does so from the next call on. Nothing here asks where the heap ends unless it says so: that is a look
 * at it, too. */
#include "check.h"
#include "faults.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define PAGE 4096UL
#define RW (PROT_READ | PROT_WRITE)
#define PLAIN (MAP_PRIVATE | MAP_ANONYMOUS)

static char *brk_to(char *end) {
    return (char *)syscall(SYS_brk, end);
}

static char *start; /* a page's beginning, from which on the heap is ours */
static char *end;

static unsigned long seed = 7;

static unsigned long random_number(unsigned long below) {
    seed = seed * 6364136223846793005UL + 1442695040888963407UL;
    return (seed >> 33) % below;
}

static char *top(char *of) {
    return (char *)(((unsigned long)of + PAGE - 1) & -PAGE);
}

/* New pages are empty, and are written to. */
static void go_to(char *wanted) {
    NEED(brk_to(wanted) == wanted);
    for (char *at = top(end); at < top(wanted); at += PAGE) {
        NEED(*at == 0);
        *at = (char)((unsigned long)at >> 12 | 1);
    }
    end = wanted;
}

/* Grow and shrink, so that the last of it is a way down and up again. */
static void go_around(int rounds) {
    for (int i = 0; i < rounds; i++)
        go_to(start + PAGE + random_number(90 * PAGE));
    go_to(start + 40 * PAGE);
    go_to(start + 20 * PAGE);
    go_to(start + 60 * PAGE);
    go_to(start + 100);
    go_to(start + 30 * PAGE);
}

static unsigned long listed_end(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    NEED(maps != NULL);
    static char line[512];
    unsigned long low, high, found = 0;
    while (fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx", &low, &high) == 2 && low <= (unsigned long)start && (unsigned long)start < high)
            found = high;
    fclose(maps);
    return found;
}

static void looks(void) {
    int ends[2];
    NEED(pipe(ends) == 0);
    for (int i = 0; i < 40; i++) {
        go_around(12);
        char *last = top(end) - PAGE;
        switch (i % 8) {
        case 0: /* the host's kernel fills and reads what has just come */
            NEED(write(ends[1], "abc", 3) == 3 && read(ends[0], last + PAGE - 3, 3) == 3);
            NEED(!memcmp(last + PAGE - 3, "abc", 3));
            NEED(write(ends[1], last + PAGE - 3, 3) == 3 && read(ends[0], last, PAGE) == 3);
            break;
        case 1: /* and does not what has just gone */
            go_to(start + 10 * PAGE);
            NEED(write(ends[1], "abc", 3) == 3);
            FAILS(read(ends[0], start + 12 * PAGE, 3), EFAULT);
            FAILS(write(ends[1], start + 10 * PAGE, 1), EFAULT);
            close(ends[0]), close(ends[1]);
            NEED(pipe(ends) == 0);
            break;
        case 2:
            NEED(brk_to(NULL) == end);
            NEED(brk_to(start - PAGE * 4000) == end && brk_to((char *)-1) == end);
            break;
        case 3:
            NEED(listed_end() == (unsigned long)top(end));
            break;
        case 4: { /* a child has the same, and its own from then on */
            pid_t child = fork();
            NEED(child >= 0);
            if (child == 0) {
                CHECK(*last != 0 && faults(top(end), 0));
                go_around(5);
                CHECK(brk_to(NULL) == end);
                _exit(check_failures != 0);
            }
            int status;
            NEED(waitpid(child, &status, 0) == child && status == 0);
            NEED(*last != 0 && brk_to(NULL) == end);
            break;
        }
        case 5: /* no place that it has is given to others, nor is one kept that it has not */
            FAILS((long)mmap(last, PAGE, RW, PLAIN | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
            NEED(mmap(top(end), PAGE, RW, PLAIN | MAP_FIXED_NOREPLACE, -1, 0) == top(end));
            NEED(brk_to(end + 2 * PAGE) == end);
            NEED(munmap(top(end), PAGE) == 0);
            break;
        case 6: { /* what another process reads */
            pid_t parent = getpid(), child = fork();
            NEED(child >= 0);
            if (child == 0) {
                char byte = 0;
                struct iovec to = {&byte, 1}, from = {last, 1};
                CHECK(process_vm_readv(parent, &to, 1, &from, 1, 0) == 1 && byte == *last);
                from.iov_base = top(end);
                CHECK(process_vm_readv(parent, &to, 1, &from, 1, 0) == -1 && errno == EFAULT);
                _exit(check_failures != 0);
            }
            int status;
            NEED(waitpid(child, &status, 0) == child && status == 0);
            break;
        }
        case 7: {
            struct rlimit old, none = {1 << 20, 0};
            NEED(getrlimit(RLIMIT_DATA, &old) == 0);
            none.rlim_max = old.rlim_max;
            NEED(prlimit(0, RLIMIT_DATA, &none, NULL) == 0);
            NEED(brk_to(end + (1 << 20)) == end);
            NEED(setrlimit(RLIMIT_DATA, &old) == 0);
            go_to(end + (1 << 20));
            break;
        }
        }
    }
    close(ends[0]), close(ends[1]);
}

static atomic_int over, ticks;

static void tick(int number) {
    (void)number;
    ticks++;
}

/* Signals of the program's own, at any moment; and a stop now and then. */
static void signals(void) {
    struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
    NEED(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval often = {{0, 700}, {0, 700}}, never = {{0, 0}, {0, 0}};
    NEED(setitimer(ITIMER_REAL, &often, NULL) == 0);
    while (ticks < 200)
        go_around(3);
    NEED(setitimer(ITIMER_REAL, &never, NULL) == 0);
    NEED(brk_to(NULL) == end);
}

/* Others of the same memory map and unmap meanwhile, and look at the heap. */
static void *others(void *argument) {
    (void)argument;
    while (!over) {
        char *at = mmap(NULL, 3 * PAGE, RW, PLAIN, -1, 0);
        CHECK(at != MAP_FAILED && *at == 0);
        *at = 1;
        CHECK(munmap(at, 3 * PAGE) == 0);
        CHECK(brk_to(NULL) >= start);
        CHECK(*(volatile char *)start != 0);
    }
    return NULL;
}

static void threads(void) {
    pthread_t thread;
    go_to(start + 5 * PAGE);
    NEED(pthread_create(&thread, NULL, others, NULL) == 0);
    for (int i = 0; i < 300; i++)
        go_around(3);
    over = 1;
    pthread_join(thread, NULL);
    NEED(brk_to(NULL) == end);
}

/* Both have the heap in turn. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static void *in_turn(void *argument) {
    for (int i = 0; i < 150; i++) {
        pthread_mutex_lock(&turn);
        go_around(argument == NULL ? 4 : 1);
        pthread_mutex_unlock(&turn);
    }
    return NULL;
}

static void turns(void) {
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, in_turn, NULL) == 0);
    in_turn(&thread);
    pthread_join(thread, NULL);
    NEED(brk_to(NULL) == end);
}

/* Many processes at once, more than have leave at a time. */
static void crowd(void) {
    for (int i = 0; i < 24; i++) {
        pid_t child = fork();
        NEED(child >= 0);
        if (child == 0) {
            go_around(60);
            CHECK(brk_to(NULL) == end);
            _exit(check_failures != 0);
        }
    }
    int status;
    while (wait(&status) > 0)
        CHECK(status == 0);
}

/* What follows is done by a child each, for the heap is another one afterwards. */

/* A filter of its own holds from the next call on. */
static void filter(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_brk, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    NEED(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
    FAILS((long)brk_to(start + 35 * PAGE), EXDEV);
    CHECK(faults(start + 34 * PAGE, 0));
}

static void holes(void) {
    go_to(start + 50 * PAGE);
    NEED(munmap(start + 20 * PAGE, PAGE) == 0 && mprotect(start + 30 * PAGE, PAGE, PROT_READ) == 0);
    for (int to = 60; to > 40; to--)
        go_to(start + to * PAGE + 5);
    go_to(start + 25 * PAGE);
    NEED(faults(start + 20 * PAGE, 0));
    go_to(start + 10 * PAGE);
    go_to(start + 50 * PAGE);
    for (int at = 11; at < 50; at++)
        NEED(start[at * PAGE] != 0);
}

static void locked(void) {
    unsigned char there[4] = {0};
    NEED(mlockall(MCL_FUTURE) == 0);
    NEED(brk_to(start + 34 * PAGE) == start + 34 * PAGE);
    NEED(mincore(start + 30 * PAGE, 4 * PAGE, there) == 0 && (there[0] & there[1] & there[2] & there[3] & 1));
    NEED(munlockall() == 0);
}

static void by_a_child(void (*what)(void)) {
    pid_t child = fork();
    NEED(child >= 0);
    if (child == 0) {
        go_around(9);
        what();
        _exit(check_failures != 0);
    }
    int status;
    NEED(waitpid(child, &status, 0) == child && status == 0);
}

int main(void) {
    struct sigaction action = {.sa_handler = jump, .sa_flags = SA_NODEFER};
    NEED(sigaction(SIGSEGV, &action, NULL) == 0);
    /* What the C library needs it has by now, and gives nothing back. */
    NEED(mallopt(M_TRIM_THRESHOLD, 1 << 30) == 1);
    free(malloc(1 << 16));
    end = brk_to(NULL);
    start = top(end);
    go_to(start + 100);
    looks();
    signals();
    threads();
    turns();
    crowd();
    by_a_child(filter);
    by_a_child(holes);
    by_a_child(locked);
    DONE();
}
