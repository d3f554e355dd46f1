/* What UNIX sockets carry beside data: descriptors and credentials. */
#include "check.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static ssize_t pass(int socket, const char *data, size_t size, const int *fds, int count)
{
    union {
        char bytes[CMSG_SPACE(300 * sizeof(int))];
        struct cmsghdr header;
    } control;
    struct iovec vector = {(void *)data, size};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (count) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        memset(&control, 0, sizeof control);
        control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
    }
    return sendmsg(socket, &message, 0);
}

static ssize_t take(int socket, char *data, size_t size, int *fds, int room, int *count, int flags, int *result)
{
    union {
        char bytes[CMSG_SPACE(64 * sizeof(int))];
        struct cmsghdr header;
    } control;
    struct iovec vector = {data, size};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(room * sizeof(int))};
    ssize_t got = recvmsg(socket, &message, flags);
    *count = 0;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (got >= 0 && header != NULL && header->cmsg_type == SCM_RIGHTS) {
        *count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(fds, CMSG_DATA(header), *count * sizeof(int));
    }
    *result = message.msg_flags;
    return got;
}

static void rights(int kind)
{
    int pair[2], pipes[2], fds[64], count, flags;
    char buffer[64];
    NEED(socketpair(AF_UNIX, kind, 0, pair) == 0 && pipe(pipes) == 0);
    CHECK(pass(pair[0], "pipe", 4, pipes, 2) == 4);
    close(pipes[0]);
    close(pipes[1]);
    CHECK(take(pair[1], buffer, 64, fds, 2, &count, MSG_CMSG_CLOEXEC, &flags) == 4 && count == 2);
    CHECK((flags & ~MSG_CMSG_CLOEXEC) == 0);
    CHECK(fcntl(fds[0], F_GETFD) == FD_CLOEXEC);
    CHECK(write(fds[1], "through", 7) == 7 && read(fds[0], buffer, 64) == 7);
    /* Too little room: what does not fit is closed. */
    CHECK(pass(pair[0], "four", 4, (int[]){fds[0], fds[0], fds[0], fds[1]}, 4) == 4);
    int more[64];
    CHECK(take(pair[1], buffer, 64, more, 2, &count, 0, &flags) == 4 && count == 2 && flags == MSG_CTRUNC);
    CHECK(fcntl(more[0], F_GETFD) == 0);
    close(more[0]);
    close(more[1]);
    /* Not asked for at all: closed; the reader of the pipe sees its end. */
    int end[2];
    NEED(pipe(end) == 0);
    CHECK(pass(pair[0], "gone", 4, &end[1], 1) == 4);
    close(end[1]);
    CHECK(read(pair[1], buffer, 64) == 4);
    CHECK(read(end[0], buffer, 1) == 0);
    close(end[0]);
    /* Peeking gives copies. */
    CHECK(pass(pair[0], "peek", 4, fds, 1) == 4);
    CHECK(take(pair[1], buffer, 64, more, 2, &count, MSG_PEEK, &flags) == 4 && count == 1);
    close(more[0]);
    CHECK(take(pair[1], buffer, 64, more, 2, &count, 0, &flags) == 4 && count == 1);
    close(more[0]);
    /* What cannot be sent. */
    FAILS(pass(pair[0], "bad", 3, (int[]){12345}, 1), EBADF);
    int many[300];
    for (int i = 0; i < 300; i++)
        many[i] = fds[0];
    FAILS(pass(pair[0], "many", 4, many, 254), EINVAL);
    /* Nobody receives them: closed with the socket. */
    NEED(pipe(end) == 0);
    CHECK(pass(pair[0], "lost", 4, &end[1], 1) == 4);
    close(end[1]);
    close(pair[0]);
    close(pair[1]);
    CHECK(read(end[0], buffer, 1) == 0);
    close(end[0]);
    close(fds[0]);
    close(fds[1]);
}

static void boundaries(void)
{
    /* In a stream a receive stops behind data that came with descriptors. */
    int pair[2], fds[4], count, flags;
    char buffer[64];
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(write(pair[0], "aa", 2) == 2 && pass(pair[0], "bb", 2, pair, 1) == 2 && write(pair[0], "cc", 2) == 2);
    CHECK(take(pair[1], buffer, 64, fds, 4, &count, 0, &flags) == 4 && count == 1);
    CHECK(memcmp(buffer, "aabb", 4) == 0);
    close(fds[0]);
    CHECK(take(pair[1], buffer, 64, fds, 4, &count, 0, &flags) == 2 && count == 0);
    /* A part of the data takes all descriptors along. */
    CHECK(pass(pair[0], "xyz", 3, pair, 2) == 3);
    CHECK(take(pair[1], buffer, 1, fds, 4, &count, 0, &flags) == 1 && count == 2);
    close(fds[0]);
    close(fds[1]);
    CHECK(take(pair[1], buffer, 64, fds, 4, &count, 0, &flags) == 2 && count == 0);
    close(pair[0]);
    close(pair[1]);
}

static void credentials(int kind)
{
    int pair[2], on = 1;
    char buffer[16];
    union {
        char bytes[CMSG_SPACE(sizeof(struct ucred))];
        struct cmsghdr header;
    } control;
    struct iovec vector = {buffer, sizeof buffer};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct ucred who;
    NEED(socketpair(AF_UNIX, kind, 0, pair) == 0);
    CHECK(setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    CHECK(write(pair[0], "x", 1) == 1);
    CHECK(recvmsg(pair[1], &message, 0) == 1 && message.msg_controllen == CMSG_SPACE(sizeof who));
    CHECK(control.header.cmsg_type == SCM_CREDENTIALS && control.header.cmsg_len == CMSG_LEN(sizeof who));
    memcpy(&who, CMSG_DATA(&control.header), sizeof who);
    CHECK(who.pid == getpid() && who.uid == getuid() && who.gid == getgid());
    /* Sent on purpose. */
    vector.iov_len = 1;
    CHECK(sendmsg(pair[0], &message, 0) == 1);
    CHECK(recvmsg(pair[1], &message, 0) == 1 && control.header.cmsg_type == SCM_CREDENTIALS);
    control.header.cmsg_len = CMSG_LEN(4);
    FAILS(sendmsg(pair[0], &message, 0), EINVAL);
    control.header.cmsg_len = 5;
    FAILS(sendmsg(pair[0], &message, 0), EINVAL);
    control.header.cmsg_len = CMSG_LEN(sizeof who);
    control.header.cmsg_type = 99;
    FAILS(sendmsg(pair[0], &message, 0), EINVAL);
    close(pair[0]);
    close(pair[1]);
}

int main(void)
{
    rights(SOCK_STREAM);
    rights(SOCK_DGRAM);
    rights(SOCK_SEQPACKET);
    boundaries();
    credentials(SOCK_STREAM);
    credentials(SOCK_DGRAM);
    DONE();
}
