/* sendfile(2), copy_file_range(2), splice(2), tee(2), vmsplice(2). */
#include "../check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

int main(void) {
    char buf[70000], text[] = "0123456789";
    int in = open("copy-in", O_RDWR | O_CREAT | O_TRUNC, 0600), out = open("copy-out", O_RDWR | O_CREAT | O_TRUNC, 0600);
    int p[2], q[2], s[2];
    NEED(in >= 0 && out >= 0 && pipe(p) == 0 && pipe(q) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    NEED(write(in, text, 10) == 10);
    signal(SIGPIPE, SIG_IGN);

    off_t at = 2;
    CHECK(sendfile(out, in, &at, 5) == 5 && at == 7 && lseek(in, 0, SEEK_CUR) == 10);
    CHECK(lseek(in, 1, SEEK_SET) == 1 && sendfile(out, in, 0, 100) == 9 && lseek(in, 0, SEEK_CUR) == 10);
    CHECK(pread(out, buf, 100, 0) == 14 && memcmp(buf, "23456123456789", 14) == 0);
    CHECK(sendfile(out, in, 0, 100) == 0);
    at = 0;
    CHECK(sendfile(s[0], in, &at, 10) == 10 && read(s[1], buf, 100) == 10 && memcmp(buf, text, 10) == 0);
    at = 0;
    CHECK(sendfile(p[1], in, &at, 10) == 10 && read(p[0], buf, 100) == 10 && memcmp(buf, text, 10) == 0);
    at = -1;
    FAILS(sendfile(out, in, &at, 1), EINVAL);
    FAILS(sendfile(out, -1, 0, 1), EBADF);
    FAILS(sendfile(-1, in, 0, 1), EBADF);

    off_t from = 0, to = 5;
    CHECK(ftruncate(out, 0) == 0 && copy_file_range(in, &from, out, &to, 4, 0) == 4 && from == 4 && to == 9);
    CHECK(pread(out, buf, 100, 0) == 9 && memcmp(buf, "\0\0\0\0\0" "0123", 9) == 0);
    FAILS(copy_file_range(in, &from, out, &to, 4, 1), EINVAL);
    from = 0, to = 2;
    FAILS(copy_file_range(in, &from, in, &to, 5, 0), EINVAL);
    from = 0, to = 20;
    CHECK(copy_file_range(in, &from, in, &to, 5, 0) == 5);
    FAILS(copy_file_range(p[0], 0, out, 0, 5, 0), EINVAL);
    CHECK(ftruncate(in, 10) == 0);

    /* splice: one end is a pipe. */
    loff_t where = 3;
    CHECK(splice(in, &where, p[1], 0, 4, 0) == 4 && where == 7 && read(p[0], buf, 100) == 4 && memcmp(buf, "3456", 4) == 0);
    CHECK(write(p[1], "piped", 5) == 5);
    where = 1;
    CHECK(ftruncate(out, 0) == 0 && splice(p[0], 0, out, &where, 100, 0) == 5 && where == 6);
    CHECK(pread(out, buf, 100, 0) == 6 && memcmp(buf, "\0piped", 6) == 0);
    CHECK(write(p[1], "twice", 5) == 5 && tee(p[0], q[1], 100, 0) == 5);
    CHECK(read(p[0], buf, 100) == 5 && read(q[0], buf, 100) == 5 && memcmp(buf, "twice", 5) == 0);
    CHECK(write(p[1], "over", 4) == 4 && splice(p[0], 0, q[1], 0, 2, 0) == 2 && read(q[0], buf, 100) == 2);
    CHECK(read(p[0], buf, 100) == 2 && memcmp(buf, "er", 2) == 0);
    CHECK(write(s[0], "sock", 4) == 4 && splice(s[1], 0, p[1], 0, 100, 0) == 4 && read(p[0], buf, 100) == 4);
    CHECK(write(p[1], "sock", 4) == 4 && splice(p[0], 0, s[0], 0, 100, 0) == 4 && read(s[1], buf, 100) == 4);
    FAILS(splice(p[0], 0, q[1], 0, 1, SPLICE_F_NONBLOCK), EAGAIN);
    FAILS(tee(p[0], q[1], 1, SPLICE_F_NONBLOCK), EAGAIN);
    FAILS(splice(in, 0, out, 0, 1, 0), EINVAL);
    FAILS(splice(p[0], 0, p[1], 0, 1, 0), EINVAL);
    FAILS(splice(p[0], &where, q[1], 0, 1, 0), ESPIPE);
    FAILS(splice(p[0], 0, q[1], 0, 1, 64), EINVAL);
    FAILS(tee(in, q[1], 1, 0), EINVAL);
    CHECK(splice(in, 0, p[1], 0, 0, 0) == 0);

    struct iovec v[2] = {{text, 3}, {text + 5, 2}};
    CHECK(vmsplice(p[1], v, 2, 0) == 5 && read(p[0], buf, 100) == 5 && memcmp(buf, "01256", 5) == 0);
    FAILS(vmsplice(in, v, 2, 0), EBADF);

    /* Full pipes. */
    memset(buf, 'f', sizeof buf);
    CHECK(fcntl(p[1], F_SETFL, O_NONBLOCK) == 0);
    while (write(p[1], buf, 4096) > 0)
        ;
    where = 0;
    FAILS(splice(in, &where, p[1], 0, 4, SPLICE_F_NONBLOCK), EAGAIN);
    close(p[0]);
    FAILS(splice(in, &where, p[1], 0, 4, 0), EPIPE);
    unlink("copy-in"), unlink("copy-out");
    DONE();
}
