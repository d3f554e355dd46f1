/* eventfd(2). */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

static int fd;

static void *later(void *arg) {
    (void)arg;
    usleep(50000);
    uint64_t one = 1;
    return (void *)(long)write(fd, &one, 8);
}

int main(void) {
    uint64_t value;
    NEED((fd = eventfd(3, 0)) >= 0);
    CHECK(read(fd, &value, 8) == 8 && value == 3);
    FAILS(read(fd, &value, 7), EINVAL);
    FAILS(write(fd, &value, 7), EINVAL);
    value = UINT64_MAX;
    FAILS(write(fd, &value, 8), EINVAL);
    pthread_t t;
    pthread_create(&t, 0, later, 0);
    CHECK(read(fd, &value, 8) == 8 && value == 1);
    pthread_join(t, 0);
    CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    FAILS(read(fd, &value, 8), EAGAIN);
    struct pollfd p = {fd, POLLIN | POLLOUT, 0};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLOUT);
    value = UINT64_MAX - 1;
    CHECK(write(fd, &value, 8) == 8);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLIN);
    value = 1;
    FAILS(write(fd, &value, 8), EAGAIN);
    CHECK(read(fd, &value, 8) == 8 && value == UINT64_MAX - 1);
    CHECK(lseek(fd, 5, SEEK_SET) == 0);
    close(fd);
    NEED((fd = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC)) >= 0);
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    CHECK(read(fd, &value, 8) == 8 && value == 1 && read(fd, &value, 8) == 8 && value == 1);
    FAILS(read(fd, &value, 8), EAGAIN);
    char name[64], link[64] = {0};
    sprintf(name, "/proc/self/fd/%d", fd);
    CHECK(readlink(name, link, 60) > 0 && !strcmp(link, "anon_inode:[eventfd]"));
    close(fd);
    FAILS(eventfd(0, 4), EINVAL);
    NEED((fd = syscall(SYS_eventfd, 7)) >= 0);
    CHECK(read(fd, &value, 8) == 8 && value == 7);
    DONE();
}
