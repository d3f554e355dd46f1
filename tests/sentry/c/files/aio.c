/* io_setup(2), io_submit(2), io_getevents(2), io_destroy(2). */
#include "../check.h"
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>

static aio_context_t context;

static long submit(struct iocb *one) {
    return syscall(SYS_io_submit, context, 1, &one);
}

int main(void) {
    char buf[100] = "asynchronous", in[100] = "";
    struct io_event events[8];
    int fd = open("aio-case", O_RDWR | O_CREAT | O_TRUNC, 0600), told = eventfd(0, 0);
    NEED(fd >= 0 && told >= 0);
    FAILS(syscall(SYS_io_setup, 0, &context), EINVAL);
    NEED(syscall(SYS_io_setup, 8, &context) == 0 && context != 0);
    FAILS(syscall(SYS_io_setup, 8, &context), EINVAL);

    struct iocb write = {.aio_data = 77, .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = fd, .aio_buf = (unsigned long)buf,
                         .aio_nbytes = 12, .aio_flags = IOCB_FLAG_RESFD, .aio_resfd = told};
    CHECK(submit(&write) == 1);
    unsigned long count = 0;
    CHECK(read(told, &count, 8) == 8 && count == 1);
    CHECK(syscall(SYS_io_getevents, context, 1, 8, events, 0) == 1);
    CHECK(events[0].data == 77 && events[0].obj == (unsigned long)&write && events[0].res == 12);

    struct iocb first = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = fd, .aio_buf = (unsigned long)in,
                         .aio_nbytes = 5, .aio_offset = 1};
    struct iocb second = first, *both[2] = {&first, &second};
    second.aio_lio_opcode = IOCB_CMD_FSYNC, second.aio_nbytes = second.aio_buf = second.aio_offset = 0;
    CHECK(syscall(SYS_io_submit, context, 2, both) == 2);
    CHECK(syscall(SYS_io_getevents, context, 2, 8, events, 0) == 2 && memcmp(in, "synch", 5) == 0);

    struct timespec soon = {0, 20000000};
    CHECK(syscall(SYS_io_getevents, context, 1, 8, events, &soon) == 0);
    CHECK(syscall(SYS_io_submit, context, 0, both) == 0);
    first.aio_fildes = 999;
    FAILS(submit(&first), EBADF);
    first.aio_fildes = fd, first.aio_lio_opcode = 99;
    FAILS(submit(&first), EINVAL);
    FAILS(syscall(SYS_io_getevents, context, 2, 1, events, 0), EINVAL);
    FAILS(syscall(SYS_io_getevents, 0, 0, 1, events, 0), EINVAL);
    FAILS(syscall(SYS_io_submit, 4096, 1, both), EINVAL);
    CHECK(syscall(SYS_io_destroy, context) == 0);
    FAILS(syscall(SYS_io_destroy, context), EINVAL);
    unlink("aio-case");
    DONE();
}
