/* memfd_create(2), file seals of fcntl(2). */
#include "../check.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

int main(void) {
    char name[300], buf[100], path[64];
    struct stat st;
    int fd = memfd_create("my file", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    NEED(fd >= 0);
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    CHECK(fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == 0 && st.st_nlink == 0);
    sprintf(path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, buf, sizeof buf);
    CHECK(n == 24 && !memcmp(buf, "/memfd:my file (deleted)", 24));
    CHECK(write(fd, "hello", 5) == 5 && pread(fd, buf, 10, 1) == 4 && !memcmp(buf, "ello", 4));
    CHECK(ftruncate(fd, 8192) == 0);
    char *map = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    NEED(map != MAP_FAILED);
    CHECK(!memcmp(map, "hello", 5));
    strcpy(map + 5000, "there");
    CHECK(pread(fd, buf, 6, 5000) == 6 && !strcmp(buf, "there"));
    int again = open(path, O_RDWR);
    CHECK(again >= 0 && pread(again, buf, 5, 0) == 5 && !memcmp(buf, "hello", 5));
    close(again);
    CHECK(fcntl(fd, F_GET_SEALS) == 0);
    FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EBUSY);
    munmap(map, 8192);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    FAILS(ftruncate(fd, 4096), EPERM);
    FAILS(ftruncate(fd, 10000), EPERM);
    FAILS(pwrite(fd, "x", 1, 8192), EPERM);
    CHECK(pwrite(fd, "x", 1, 0) == 1);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0);
    FAILS(pwrite(fd, "x", 1, 0), EPERM);
    CHECK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
    map = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(map != MAP_FAILED && map[1] == 'e');
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL) == 0);
    FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL), EPERM);
    CHECK(fcntl(fd, F_GET_SEALS) == (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
    close(fd);
    NEED((fd = memfd_create("", 0)) >= 0);
    CHECK(fcntl(fd, F_GET_SEALS) == F_SEAL_SEAL);
    FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EPERM);
    close(fd);
    memset(name, 'n', sizeof name);
    name[250] = 0;
    FAILS(memfd_create(name, 0), EINVAL);
    name[249] = 0;
    CHECK((fd = memfd_create(name, 0)) >= 0);
    FAILS(memfd_create("x", 0x100), EINVAL);
    FAILS(syscall(SYS_memfd_create, 8, 0), EFAULT);
    int p[2];
    NEED(pipe(p) == 0);
    FAILS(fcntl(p[1], F_ADD_SEALS, 1), EINVAL);
    DONE();
}
