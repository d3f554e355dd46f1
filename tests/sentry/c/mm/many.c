/* As many mappings as the host has room for, where the kernel of the sandbox counts fewer: pages that were writable once
 * are mappings of their own there. What is refused then has not happened. */
#include <stdint.h>
#include <sys/mman.h>

#include "check.h"

#define PAGE 4096L
#define PAGES 140000L

static char *area;

static int taken(long page) {
    char *at = mmap(area + page * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (at == MAP_FAILED)
        return errno == EEXIST;
    munmap(at, PAGE);
    return 0;
}

/* What /proc/self/maps says of a page; a space where nothing is mapped. */
static char right(long page) {
    char line[512], rights[5], found = ' ';
    unsigned long start, end, here = (unsigned long)area + page * PAGE;
    FILE *maps = fopen("/proc/self/maps", "r");
    NEED(maps != NULL);
    while (fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %4s", &start, &end, rights) == 3 && start <= here && here < end)
            found = rights[1];
    fclose(maps);
    return found;
}

int main(void) {
    area = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(area != MAP_FAILED);
    long page = 1, refused = -1;
    for (; page < PAGES; page += 2) {
        if (mprotect(area + page * PAGE, PAGE, PROT_READ | PROT_WRITE) != 0) {
            refused = page;
            break;
        }
        area[page * PAGE] = 1; /* or the host forgets that it was writable */
        NEED(madvise(area + page * PAGE, PAGE, MADV_DONTNEED) == 0);
        if (mprotect(area + page * PAGE, PAGE, PROT_NONE) != 0)
            break;
    }
    CHECK(refused > 0 && errno == ENOMEM);
    CHECK(right(refused) == '-');
    FAILS(munmap(area + (refused + 3) * PAGE, PAGE), ENOMEM);
    CHECK(taken(refused + 3) && right(refused + 3) == '-');
    /* With room again all is well. */
    CHECK(munmap(area, refused * PAGE) == 0 && !taken(refused - 1) && taken(refused + 3));
    CHECK(munmap(area + (refused + 3) * PAGE, PAGE) == 0 && !taken(refused + 3));
    CHECK(mprotect(area + (refused + 5) * PAGE, PAGE, PROT_READ | PROT_WRITE) == 0 && right(refused + 5) == 'w');
    area[(refused + 5) * PAGE] = 1;
    /* More than there is memory: refused as a whole. */
    long size = 1L << 44;
    char *huge = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(huge != MAP_FAILED);
    area = huge;
    FAILS(mprotect(huge, size, PROT_READ | PROT_WRITE), ENOMEM);
    CHECK(right(1) == '-');
    DONE();
}
