/* mmap of plain memory without a place, and brk, which the host may make by itself: where memory is given, that it is
 * empty, that everybody has the same idea of where it is, and what becomes of places that nobody was given. */
#include "check.h"
#include "faults.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define PAGE 4096UL
#define RW (PROT_READ | PROT_WRITE)
#define PLAIN (MAP_PRIVATE | MAP_ANONYMOUS)

/* Without the C library, whose own idea of the heap's end must not be in the way. */
static char *brk_to(char *end) {
    return (char *)syscall(SYS_brk, end);
}

/* Whether /proc/self/maps has the whole range with these rights. */
static int listed(char *start, size_t size, const char *rights) {
    FILE *maps = fopen("/proc/self/maps", "r");
    NEED(maps != NULL);
    char line[512];
    unsigned long at = (unsigned long)start, end = at + size, low, high;
    char shown[8];
    while (at < end && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %4s", &low, &high, shown) == 3 && low <= at && at < high && !strncmp(shown, rights, 3))
            at = high;
    fclose(maps);
    return at >= end;
}

static unsigned long seed = 1;

static unsigned long random_number(unsigned long below) {
    seed = seed * 6364136223846793005UL + 1442695040888963407UL;
    return (seed >> 33) % below;
}

/* Memory of many sizes is taken and given back in any order; no two have the same, and all of it is empty. */
static void places(void) {
    enum { SLOTS = 60 };
    static struct {
        char *at;
        size_t size;
        int rights;
    } slots[SLOTS];
    static const int rights[] = {RW, RW, RW, PROT_READ, PROT_NONE};
    static const int more[] = {0, 0, MAP_NORESERVE, MAP_STACK, MAP_POPULATE, MAP_32BIT};
    for (int step = 0; step < 1500; step++) {
        int slot = (int)random_number(SLOTS);
        if (slots[slot].at) {
            char *at = slots[slot].at;
            size_t size = slots[slot].size;
            if (slots[slot].rights == RW)
                CHECK(at[0] == (char)slot && at[size - 1] == (char)slot);
            /* Sometimes in two parts. */
            size_t first = step % 4 ? size : (size / PAGE / 2) * PAGE;
            if (first)
                CHECK(munmap(at, first) == 0);
            if (first < size)
                CHECK(munmap(at + first, size - first) == 0);
            CHECK(faults(at, 0));
            slots[slot].at = NULL;
            continue;
        }
        size_t size = (1 + random_number(40)) * PAGE;
        if (step % 50 == 0)
            size += (1 + random_number(3)) << 20; /* around the size of a huge page */
        int prot = rights[random_number(5)];
        size_t asked = size - random_number(PAGE);
        char *at = mmap(NULL, asked, prot, PLAIN | more[random_number(6)], -1, 0);
        NEED(at != MAP_FAILED && (unsigned long)at % PAGE == 0);
        if (step % 100 < 3)
            CHECK(listed(at, size, prot == RW ? "rw-" : prot ? "r--" : "---"));
        if (prot == PROT_NONE)
            CHECK(faults(at, 0));
        else
            CHECK(at[0] == 0 && at[size - 1] == 0 && at[size / 2] == 0);
        CHECK(prot == RW || faults(at + size - 1, 1));
        if (prot == RW)
            at[0] = at[size - 1] = (char)slot;
        slots[slot].at = at;
        slots[slot].size = size;
        slots[slot].rights = prot;
        if (step % 300 == 7) {
            pid_t child = fork();
            NEED(child >= 0);
            if (child == 0) {
                char *mine = mmap(NULL, size, RW, PLAIN, -1, 0);
                for (int i = 0; i < SLOTS; i++)
                    if (slots[i].at)
                        CHECK(mine + size <= slots[i].at || slots[i].at + slots[i].size <= mine);
                CHECK(mine[size - 1] == 0 && listed(mine, size, "rw-"));
                _exit(check_failures != 0);
            }
            int status;
            CHECK(waitpid(child, &status, 0) == child && status == 0);
        }
    }
    for (int i = 0; i < SLOTS; i++)
        if (slots[i].at)
            CHECK(munmap(slots[i].at, slots[i].size) == 0);
}

/* What lies above all that was given so far is free, and can be had by who names it. */
static void above(void) {
    char *first = mmap(NULL, PAGE, RW, PLAIN, -1, 0);
    NEED(first != MAP_FAILED);
    FILE *maps = fopen("/proc/self/maps", "r");
    NEED(maps != NULL);
    char line[512], before[512] = "";
    unsigned long low, high, end = 0, room = 0;
    int plain = 0;
    while (fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx", &low, &high) == 2) {
            if (end > (unsigned long)first && low - end > 64 * PAGE && !room) {
                room = end; /* the first gap above */
                plain = strstr(before, "[v") == NULL;
            }
            if (high > end)
                end = high;
            memcpy(before, line, sizeof line);
        }
    fclose(maps);
    NEED(room != 0);
    char *at = (char *)room + 16 * PAGE;
    CHECK(faults(at, 0));
    CHECK(mprotect(at, PAGE, PROT_READ) == -1 && errno == ENOMEM);
    FAILS(madvise(at, PAGE, MADV_DONTNEED), ENOMEM);
    unsigned char vector[1];
    FAILS(mincore(at, PAGE, vector), ENOMEM);
    FAILS(mlock(at, PAGE), ENOMEM);
    CHECK(munmap(at, PAGE) == 0);
    pid_t child = fork();
    NEED(child >= 0);
    if (child == 0) {
        /* A hint, which is taken where there is room. */
        CHECK(mmap(at, PAGE, RW, PLAIN, -1, 0) == at && at[5] == 0);
        at[5] = 1;
        char *next = mmap(NULL, PAGE, RW, PLAIN, -1, 0);
        CHECK(next != MAP_FAILED && next != at && next[5] == 0 && listed(next, PAGE, "rw-"));
        _exit(check_failures != 0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    child = fork();
    NEED(child >= 0);
    if (child == 0) {
        char *moved = mremap(first, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at);
        CHECK(moved == at && at[0] == 0 && faults(first, 0));
        char *next = mmap(NULL, PAGE, RW, PLAIN, -1, 0);
        CHECK(next != MAP_FAILED && next != at && next[5] == 0);
        /* What begins below and ends there is unmapped together. */
        if (plain) /* the vdso cannot be cut */
            CHECK(munmap((char *)room - PAGE, 18 * PAGE) == 0 && faults(at, 0));
        _exit(check_failures != 0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(mmap(at, 2 * PAGE, RW, PLAIN | MAP_FIXED, -1, 0) == at && at[0] == 0 && at[2 * PAGE - 1] == 0);
    CHECK(listed(at, 2 * PAGE, "rw-"));
    for (int i = 0; i < 20; i++) {
        char *next = mmap(NULL, PAGE, RW, PLAIN, -1, 0);
        NEED(next != MAP_FAILED);
        CHECK(next[0] == 0 && listed(next, PAGE, "rw-"));
        next[0] = 1;
    }
}

static void limits(void) {
    struct rlimit old, none = {1 << 20, RLIM_INFINITY};
    NEED(getrlimit(RLIMIT_DATA, &old) == 0);
    none.rlim_max = old.rlim_max;
    char *end = brk_to(NULL);
    NEED(setrlimit(RLIMIT_DATA, &none) == 0);
    CHECK(mmap(NULL, 1 << 21, RW, PLAIN, -1, 0) == MAP_FAILED && errno == ENOMEM);
    CHECK(mmap(NULL, (1 << 21) - PAGE, RW, PLAIN, -1, 0) == MAP_FAILED && errno == ENOMEM);
    CHECK(brk_to(end + (1 << 21)) == end && brk_to(NULL) == end);
    NEED(setrlimit(RLIMIT_DATA, &old) == 0);
    FAILS((long)mmap(NULL, 0, RW, PLAIN, -1, 0), EINVAL);
    FAILS((long)mmap(NULL, PAGE, RW, PLAIN, -1, 1), EINVAL);
    FAILS((long)mmap(NULL, -PAGE, RW, PLAIN, -1, 0), ENOMEM);
    /* The descriptor means nothing, nor do the high halves of flags. */
    char *at = mmap(NULL, PAGE, RW, PLAIN, 12345, 0);
    CHECK(at != MAP_FAILED && at[0] == 0 && munmap(at, PAGE) == 0);
}

static void heap(void) {
    char *start = brk_to(NULL), *end = start;
    NEED(start == brk_to(NULL));
    for (int step = 0; step < 600; step++) {
        char *wanted = start + random_number(60 * PAGE);
        NEED(brk_to(wanted) == wanted && brk_to(NULL) == wanted);
        char *old_top = (char *)(((unsigned long)end + PAGE - 1) & -PAGE);
        char *top = (char *)(((unsigned long)wanted + PAGE - 1) & -PAGE);
        for (char *at = old_top; at < top; at += PAGE) {
            CHECK(*at == 0);
            *at = 1;
        }
        if (step % 20 == 0) {
            CHECK(faults(top, 0));
            if (top > start + PAGE)
                CHECK(listed(top - PAGE, PAGE, "rw-"));
        }
        end = wanted;
        if (step % 100 == 9) {
            pid_t child = fork();
            NEED(child >= 0);
            if (child == 0) {
                CHECK(brk_to(NULL) == end && brk_to(end + 5 * PAGE) == end + 5 * PAGE);
                CHECK(top[0] == 0 && brk_to(start) == start && (top == start || faults(top - PAGE, 0)));
                _exit(check_failures != 0);
            }
            int status;
            CHECK(waitpid(child, &status, 0) == child && status == 0);
        }
    }
    CHECK(brk_to(start) == start);
    CHECK(brk_to(start - PAGE * 1000) == start && brk_to((char *)-1) == start);
    /* Something in the way. */
    char *page = (char *)(((unsigned long)start + PAGE - 1) & -PAGE);
    char *wall = mmap(page + 16 * PAGE, PAGE, RW, PLAIN | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(wall == page + 16 * PAGE);
    *wall = 7;
    CHECK(brk_to(page + 16 * PAGE) == start && brk_to(page + 15 * PAGE) == page + 15 * PAGE && *wall == 7);
    /* Holes, other rights and other memory in the heap. */
    page[14 * PAGE] = 1;
    CHECK(munmap(page + 5 * PAGE, PAGE) == 0 && faults(page + 5 * PAGE, 0) && page[14 * PAGE] == 1);
    CHECK(mprotect(page + 7 * PAGE, PAGE, PROT_READ) == 0 && faults(page + 7 * PAGE, 1));
    CHECK(brk_to(page + 10 * PAGE) == page + 10 * PAGE && faults(page + 10 * PAGE, 0));
    CHECK(brk_to(page + 12 * PAGE) == page + 12 * PAGE && page[11 * PAGE] == 0);
    CHECK(mmap(page + 11 * PAGE, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page + 11 * PAGE);
    CHECK(brk_to(page + 9 * PAGE) == page + 9 * PAGE && faults(page + 11 * PAGE, 0) && faults(page + 9 * PAGE, 0));
    CHECK(brk_to(page + 13 * PAGE) == page + 13 * PAGE && page[9 * PAGE] == 0 && page[11 * PAGE] == 0);
    CHECK(munmap(wall, PAGE) == 0);
    CHECK(brk_to(page + 20 * PAGE) == page + 20 * PAGE && page[19 * PAGE] == 0 && *wall == 0);
    CHECK(brk_to(start) == start);
}

static atomic_int over;

static void *take(void *argument) {
    uintptr_t mine = (uintptr_t)argument;
    char *had[16] = {0};
    for (unsigned i = 0; i < 600; i++) {
        unsigned slot = i * 7 % 16;
        size_t size = (1 + i % 13) * PAGE;
        if (had[slot]) {
            NEED(*had[slot] == (char)mine);
            NEED(munmap(had[slot], PAGE) == 0);
        }
        char *at = mmap(NULL, size, RW, PLAIN, -1, 0);
        NEED(at != MAP_FAILED);
        NEED(at[0] == 0 && at[size - 1] == 0);
        at[0] = at[size - 1] = (char)mine;
        if (size > PAGE)
            NEED(munmap(at + PAGE, size - PAGE) == 0);
        had[slot] = at;
        if (i % 50 == 0)
            for (volatile int spin = 0; spin < 30000; spin++)
                ;
    }
    for (int slot = 0; slot < 16; slot++)
        if (had[slot])
            NEED(*had[slot] == (char)mine && munmap(had[slot], PAGE) == 0);
    return NULL;
}

static void *storm(void *argument) {
    while (!atomic_load(&over)) {
        pthread_kill(*(pthread_t *)argument, SIGUSR1);
        for (volatile int wait = 0; wait < 2000; wait++)
            ;
    }
    return NULL;
}

static void nothing(int number) {
    (void)number;
}

static void threads(void) {
    pthread_t some[4], storming, self = pthread_self();
    NEED(pthread_create(&storming, NULL, storm, &self) == 0);
    for (uintptr_t i = 0; i < 4; i++)
        NEED(pthread_create(&some[i], NULL, take, (void *)(i + 1)) == 0);
    char *start = brk_to(NULL);
    for (int i = 0; i < 200; i++) {
        char *end = start + (1 + i % 9) * PAGE;
        NEED(brk_to(end) == end);
        NEED(end[-1] == 0);
        end[-1] = 1;
        NEED(brk_to(start) == start);
    }
    for (int i = 0; i < 4; i++)
        NEED(pthread_join(some[i], NULL) == 0);
    take((void *)9);
    atomic_store(&over, 1);
    NEED(pthread_join(storming, NULL) == 0);
}

int main(void) {
    struct sigaction fault = {.sa_handler = jump}, idle = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    NEED(sigaction(SIGSEGV, &fault, NULL) == 0 && sigaction(SIGUSR1, &idle, NULL) == 0);
    setvbuf(stderr, NULL, _IONBF, 0);
    heap();
    places();
    limits();
    threads();
    above();
    DONE();
}
