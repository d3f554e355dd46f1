/* UNIX datagrams and sequenced packets. */
#include "check.h"

#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

static int events(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
    CHECK(poll(&entry, 1, 0) >= 0);
    return entry.revents;
}

static socklen_t name(struct sockaddr_un *address, const char *text)
{
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    strcpy(address->sun_path + 1, text);
    return offsetof(struct sockaddr_un, sun_path) + 1 + strlen(text);
}

static void datagrams(void)
{
    struct sockaddr_un one_name, two_name, from;
    socklen_t one_size = name(&one_name, "case-one"), two_size = name(&two_name, "case-two"), size = sizeof from;
    char buffer[16];
    int one = socket(AF_UNIX, SOCK_DGRAM, 0), two = socket(AF_UNIX, SOCK_DGRAM, 0), three;
    NEED(one >= 0 && two >= 0);
    FAILS(listen(one, 1), EOPNOTSUPP);
    FAILS(accept(one, NULL, NULL), EOPNOTSUPP);
    FAILS(send(one, "x", 1, 0), ENOTCONN);
    FAILS(sendto(one, "x", 1, 0, (struct sockaddr *)&two_name, two_size), ECONNREFUSED);
    CHECK(bind(one, (struct sockaddr *)&one_name, one_size) == 0 && bind(two, (struct sockaddr *)&two_name, two_size) == 0);
    CHECK(sendto(one, "hello there", 11, 0, (struct sockaddr *)&two_name, two_size) == 11);
    CHECK(sendto(one, "", 0, 0, (struct sockaddr *)&two_name, two_size) == 0);
    int pending = 0;
    CHECK(ioctl(two, FIONREAD, &pending) == 0 && pending == 11);
    CHECK(recvfrom(two, buffer, 5, MSG_PEEK | MSG_TRUNC, NULL, NULL) == 11);
    CHECK(recvfrom(two, buffer, 5, 0, (struct sockaddr *)&from, &size) == 5 && memcmp(buffer, "hello", 5) == 0);
    CHECK(size == one_size && memcmp(&from, &one_name, size) == 0);
    CHECK(recv(two, buffer, 5, MSG_DONTWAIT) == 0);
    FAILS(recv(two, buffer, 5, MSG_DONTWAIT), EAGAIN);
    /* Connected: others may not send to it. */
    CHECK(connect(two, (struct sockaddr *)&one_name, one_size) == 0);
    CHECK(send(two, "back", 4, 0) == 4 && read(one, buffer, 16) == 4);
    three = socket(AF_UNIX, SOCK_DGRAM, 0);
    FAILS(sendto(three, "x", 1, 0, (struct sockaddr *)&two_name, two_size), EPERM);
    FAILS(connect(three, (struct sockaddr *)&two_name, two_size), EPERM);
    CHECK(connect(three, (struct sockaddr *)&one_name, one_size) == 0);
    /* A queue of eleven is full for whom it is not connected to. */
    int sent = 0;
    while (sent < 100 && send(three, "x", 1, MSG_DONTWAIT) == 1)
        sent++;
    CHECK(errno == EAGAIN && sent == 11);
    CHECK((events(three) & POLLOUT) == 0);
    CHECK(read(one, buffer, 16) == 1);
    CHECK(events(three) & POLLOUT);
    CHECK(send(three, "x", 1, MSG_DONTWAIT) == 1);
    close(one);
    FAILS(send(three, "x", 1, 0), ECONNREFUSED);
    FAILS(send(three, "x", 1, 0), ENOTCONN);
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    CHECK(connect(two, &nobody, sizeof nobody) == 0);
    FAILS(send(two, "x", 1, 0), ENOTCONN);
    size_t large = 300000;
    char *data = calloc(1, large);
    FAILS(sendto(three, data, large, 0, (struct sockaddr *)&two_name, two_size), EMSGSIZE);
    free(data);
    close(two);
    close(three);
}

static void packets(void)
{
    int pair[2];
    char buffer[16];
    NEED(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    CHECK(write(pair[0], "one", 3) == 3 && write(pair[0], "three", 5) == 5);
    struct iovec vector = {buffer, 2};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    CHECK(recvmsg(pair[1], &message, 0) == 2 && (message.msg_flags & MSG_TRUNC));
    CHECK(read(pair[1], buffer, 16) == 5 && memcmp(buffer, "three", 5) == 0);
    CHECK(send(pair[0], "", 0, 0) == 0);
    CHECK(events(pair[1]) == (POLLIN | POLLOUT));
    CHECK(recv(pair[1], buffer, 16, MSG_DONTWAIT) == 0);
    FAILS(recv(pair[1], buffer, 16, MSG_DONTWAIT), EAGAIN);
    close(pair[0]);
    CHECK(read(pair[1], buffer, 16) == 0);
    FAILS(send(pair[1], "x", 1, MSG_NOSIGNAL), EPIPE);
    close(pair[1]);
}

static void vectors(void)
{
    int pair[2];
    char buffer[4][8];
    struct iovec in[2] = {{"he", 2}, {"llo", 3}}, out[4];
    struct mmsghdr messages[4];
    NEED(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < 3; i++) {
        messages[i].msg_hdr.msg_iov = in;
        messages[i].msg_hdr.msg_iovlen = 2;
    }
    CHECK(sendmmsg(pair[0], messages, 3, 0) == 3 && messages[2].msg_len == 5);
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < 4; i++) {
        out[i] = (struct iovec){buffer[i], 8};
        messages[i].msg_hdr.msg_iov = &out[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    CHECK(recvmmsg(pair[1], messages, 4, MSG_WAITFORONE, NULL) == 3 && messages[2].msg_len == 5);
    CHECK(memcmp(buffer[2], "hello", 5) == 0);
    FAILS(recvmmsg(pair[1], messages, 4, MSG_DONTWAIT, NULL), EAGAIN);
    struct timespec limit = {.tv_nsec = 2000000000};
    FAILS(recvmmsg(pair[1], messages, 4, 0, &limit), EINVAL);
    struct msghdr message = {.msg_iov = in, .msg_iovlen = 1025};
    FAILS(sendmsg(pair[0], &message, 0), EMSGSIZE);
    message.msg_iov = (struct iovec *)1;
    message.msg_iovlen = 1;
    FAILS(sendmsg(pair[0], &message, 0), EFAULT);
    FAILS(sendmsg(pair[0], (struct msghdr *)1, 0), EFAULT);
    close(pair[0]);
    close(pair[1]);
}

int main(void)
{
    datagrams();
    packets();
    vectors();
    DONE();
}
