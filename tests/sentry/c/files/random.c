/* One file in a random order of reads, writes, mappings, truncations and holes, against a copy in memory. */
#include "../check.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { MOST = 200000, STEPS = 4000 };
static char model[MOST], buf[MOST];
static size_t size;
static unsigned long state;

static unsigned number(unsigned below) {
    state = state * 6364136223846793005ul + 1442695040888963407ul;
    return (state >> 33) % below;
}

static void same(int fd, int step, const char *what) {
    struct stat st;
    NEED(fstat(fd, &st) == 0 && (size_t)st.st_size == size);
    memset(buf, 'z', sizeof buf);
    ssize_t got = pread(fd, buf, MOST, 0);
    if (got != (ssize_t)size || memcmp(buf, model, size)) {
        size_t at = 0;
        while (at < size && buf[at] == model[at])
            at++;
        fprintf(stderr, "step %d, %s: %zd bytes of %zu, other at %zu\n", step, what, got, size, at);
        exit(1);
    }
}

static void grown(size_t end) {
    if (end > size) {
        memset(model + size, 0, end - size);
        size = end;
    }
}

static void run(const char *path, unsigned long seed) {
    state = seed, size = 0;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    NEED(fd >= 0);
    for (int step = 0; step < STEPS; step++) {
        unsigned at = number(number(2) ? 20000 : MOST - 1), length = number(number(2) ? 5000 : MOST - at) + 1;
        if (at + length > MOST)
            length = MOST - at;
        const char *what = "";
        switch (number(9)) {
        case 0:
        case 1:
            what = "pwrite";
            memset(buf, 'a' + step % 26, length);
            NEED(pwrite(fd, buf, length, at) == (ssize_t)length);
            grown(at + length);
            memset(model + at, 'a' + step % 26, length);
            break;
        case 2:
            what = "lseek and write";
            memset(buf, 'A' + step % 26, length);
            NEED(lseek(fd, at, SEEK_SET) == at && write(fd, buf, length) == (ssize_t)length);
            NEED(lseek(fd, 0, SEEK_CUR) == at + length);
            grown(at + length);
            memset(model + at, 'A' + step % 26, length);
            break;
        case 3: {
            what = "pread";
            ssize_t got = pread(fd, buf, length, at), wanted = at >= size ? 0 : size - at < length ? size - at : length;
            NEED(got == wanted && memcmp(buf, model + at, got) == 0);
            break;
        }
        case 4:
            what = "ftruncate";
            NEED(ftruncate(fd, at) == 0);
            grown(at);
            size = at;
            break;
        case 5:
        case 6: {
            what = "a mapping";
            if (!size)
                break;
            at %= size;
            if (at + length > size)
                length = size - at;
            size_t start = at / 4096 * 4096;
            char *map = mmap(0, at + length - start, PROT_READ | PROT_WRITE, MAP_SHARED, fd, start);
            NEED(map != MAP_FAILED && memcmp(map + at - start, model + at, length) == 0);
            memset(map + at - start, '0' + step % 10, length);
            memset(model + at, '0' + step % 10, length);
            NEED(munmap(map, at + length - start) == 0);
            break;
        }
        case 7:
            what = "a hole";
            if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length) == 0) {
                if (at < size)
                    memset(model + at, 0, at + length > size ? size - at : length);
            } else {
                NEED(errno == EOPNOTSUPP);
            }
            break;
        case 8:
            what = "opening again";
            close(fd);
            fd = open(path, O_RDWR);
            NEED(fd >= 0);
            break;
        }
        if (step % 20 == 0 || step == STEPS - 1)
            same(fd, step, what);
    }
    close(fd);
}

int main(void) {
    for (unsigned long seed = 1; seed <= 2; seed++)
        run("random-case", seed);
    CHECK(unlink("random-case") == 0);
    DONE();
}
