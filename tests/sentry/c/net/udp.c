/* UDP on the loopback interface. */
#include "check.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>

static int bound(struct sockaddr_in *address)
{
    socklen_t size = sizeof *address;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    memset(address, 0, size);
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(fd, (struct sockaddr *)address, size) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)address, &size) == 0 && address->sin_port);
    return fd;
}

static void plain(void)
{
    struct sockaddr_in one_name, two_name, from;
    socklen_t size = sizeof from;
    char buffer[16];
    int one = bound(&one_name), two = bound(&two_name);
    FAILS(send(one, "x", 1, 0), EDESTADDRREQ);
    FAILS(listen(one, 1), EOPNOTSUPP);
    FAILS(accept(one, NULL, NULL), EOPNOTSUPP);
    FAILS(shutdown(one, SHUT_RD), ENOTCONN);
    FAILS(bind(one, (struct sockaddr *)&two_name, sizeof two_name), EINVAL);
    FAILS(sendto(one, "x", 1, 0, (struct sockaddr *)&two_name, 4), EINVAL);
    CHECK(sendto(one, "hello there", 11, 0, (struct sockaddr *)&two_name, sizeof two_name) == 11);
    int pending = 0;
    CHECK(ioctl(two, FIONREAD, &pending) == 0 && pending == 11);
    CHECK(recvfrom(two, buffer, 16, MSG_PEEK, NULL, NULL) == 11);
    CHECK(recvfrom(two, buffer, 5, MSG_TRUNC, (struct sockaddr *)&from, &size) == 11);
    CHECK(size == sizeof from && from.sin_port == one_name.sin_port && from.sin_addr.s_addr == one_name.sin_addr.s_addr);
    FAILS(recv(two, buffer, 1, MSG_DONTWAIT), EAGAIN);
    CHECK(sendto(one, "", 0, 0, (struct sockaddr *)&two_name, sizeof two_name) == 0);
    CHECK(recv(two, buffer, 1, 0) == 0);
    struct timeval limit = {.tv_usec = 20000};
    CHECK(setsockopt(two, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    FAILS(recv(two, buffer, 1, 0), EAGAIN);
    char *large = calloc(1, 70000);
    FAILS(sendto(one, large, 65508, 0, (struct sockaddr *)&two_name, sizeof two_name), EMSGSIZE);
    CHECK(sendto(one, large, 65507, 0, (struct sockaddr *)&two_name, sizeof two_name) == 65507);
    CHECK(recv(two, large, 70000, 0) == 65507);
    free(large);
    close(one);
    close(two);
}

static void connected(void)
{
    struct sockaddr_in one_name, two_name, three_name, found;
    socklen_t size = sizeof found;
    char buffer[16];
    int one = bound(&one_name), two = bound(&two_name), three = bound(&three_name);
    CHECK(connect(one, (struct sockaddr *)&two_name, sizeof two_name) == 0);
    CHECK(getpeername(one, (struct sockaddr *)&found, &size) == 0 && found.sin_port == two_name.sin_port);
    CHECK(write(one, "hello", 5) == 5 && read(two, buffer, 16) == 5);
    /* From others it receives nothing. */
    CHECK(sendto(three, "no", 2, 0, (struct sockaddr *)&one_name, sizeof one_name) == 2);
    FAILS(recv(one, buffer, 16, MSG_DONTWAIT), EAGAIN);
    CHECK(sendto(two, "yes", 3, 0, (struct sockaddr *)&one_name, sizeof one_name) == 3);
    CHECK(recv(one, buffer, 16, 0) == 3);
    /* It can send to others. */
    CHECK(sendto(one, "third", 5, 0, (struct sockaddr *)&three_name, sizeof three_name) == 5);
    CHECK(recv(three, buffer, 16, 0) == 5);
    /* The peer is gone: the next call says so, once. */
    close(two);
    CHECK(write(one, "x", 1) == 1);
    struct pollfd entry = {.fd = one, .events = POLLIN};
    CHECK(poll(&entry, 1, 1000) == 1 && (entry.revents & POLLERR));
    FAILS(read(one, buffer, 16), ECONNREFUSED);
    FAILS(recv(one, buffer, 16, MSG_DONTWAIT), EAGAIN);
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    CHECK(connect(one, &nobody, sizeof nobody) == 0);
    FAILS(getpeername(one, (struct sockaddr *)&found, &size), ENOTCONN);
    FAILS(send(one, "x", 1, 0), EDESTADDRREQ);
    close(one);
    close(three);
    /* Connecting takes a port. */
    one = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(connect(one, (struct sockaddr *)&one_name, sizeof one_name) == 0);
    size = sizeof found;
    CHECK(getsockname(one, (struct sockaddr *)&found, &size) == 0 && found.sin_port);
    CHECK(found.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    /* And lets it go again. */
    CHECK(connect(one, &nobody, sizeof nobody) == 0);
    size = sizeof found;
    CHECK(getsockname(one, (struct sockaddr *)&found, &size) == 0 && !found.sin_port && !found.sin_addr.s_addr);
    close(one);
    /* What was given stays. */
    one = bound(&one_name);
    CHECK(connect(one, (struct sockaddr *)&three_name, sizeof three_name) == 0);
    CHECK(connect(one, &nobody, sizeof nobody) == 0);
    size = sizeof found;
    CHECK(getsockname(one, (struct sockaddr *)&found, &size) == 0 && found.sin_addr.s_addr == one_name.sin_addr.s_addr);
    close(one);
    /* An IPv6 socket goes from one family to the other, as getaddrinfo(3) does. */
    one = socket(AF_INET6, SOCK_DGRAM, 0);
    if (one >= 0) {
        struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(9), .sin6_addr = in6addr_loopback};
        if (connect(one, (struct sockaddr *)&six, sizeof six) == 0) {
            CHECK(connect(one, &nobody, sizeof nobody) == 0);
            inet_pton(AF_INET6, "::ffff:127.0.0.1", &six.sin6_addr);
            CHECK(connect(one, (struct sockaddr *)&six, sizeof six) == 0);
        }
        close(one);
    }
}

static void sharing(void)
{
    struct sockaddr_in name;
    int on = 1;
    int one = bound(&name), two = socket(AF_INET, SOCK_DGRAM, 0);
    FAILS(bind(two, (struct sockaddr *)&name, sizeof name), EADDRINUSE);
    CHECK(setsockopt(one, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
    FAILS(bind(two, (struct sockaddr *)&name, sizeof name), EADDRINUSE);
    CHECK(setsockopt(two, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
    CHECK(bind(two, (struct sockaddr *)&name, sizeof name) == 0);
    close(one);
    close(two);
    struct sockaddr_in everybody = {.sin_family = AF_INET, .sin_port = htons(9)};
    everybody.sin_addr.s_addr = htonl(INADDR_BROADCAST);
    one = socket(AF_INET, SOCK_DGRAM, 0);
    FAILS(sendto(one, "x", 1, 0, (struct sockaddr *)&everybody, sizeof everybody), EACCES);
    close(one);
}

static void controls(void)
{
    struct sockaddr_in one_name, two_name;
    int one = bound(&one_name), two = bound(&two_name), on = 1;
    char buffer[16];
    union {
        char bytes[256];
        struct cmsghdr header;
    } control;
    struct iovec vector = {buffer, sizeof buffer};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    CHECK(setsockopt(two, IPPROTO_IP, IP_PKTINFO, &on, sizeof on) == 0);
    CHECK(setsockopt(two, IPPROTO_IP, IP_RECVTTL, &on, sizeof on) == 0);
    CHECK(setsockopt(two, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on) == 0);
    CHECK(sendto(one, "x", 1, 0, (struct sockaddr *)&two_name, sizeof two_name) == 1);
    CHECK(recvmsg(two, &message, 0) == 1 && message.msg_flags == 0);
    int seen = 0;
    for (struct cmsghdr *each = CMSG_FIRSTHDR(&message); each != NULL; each = CMSG_NXTHDR(&message, each)) {
        if (each->cmsg_level == IPPROTO_IP && each->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(each), sizeof info);
            CHECK(info.ipi_ifindex == 1 && info.ipi_addr.s_addr == htonl(INADDR_LOOPBACK));
            seen |= 1;
        } else if (each->cmsg_level == IPPROTO_IP && each->cmsg_type == IP_TTL) {
            int ttl;
            memcpy(&ttl, CMSG_DATA(each), sizeof ttl);
            CHECK(ttl == 64);
            seen |= 2;
        } else if (each->cmsg_level == SOL_SOCKET && each->cmsg_type == SO_TIMESTAMP) {
            struct timeval time, now;
            memcpy(&time, CMSG_DATA(each), sizeof time);
            gettimeofday(&now, NULL);
            CHECK(now.tv_sec - time.tv_sec <= 2);
            seen |= 4;
        }
    }
    CHECK(seen == 7);
    /* No room for any. */
    CHECK(sendto(one, "x", 1, 0, (struct sockaddr *)&two_name, sizeof two_name) == 1);
    message.msg_controllen = 8;
    CHECK(recvmsg(two, &message, 0) == 1 && (message.msg_flags & MSG_CTRUNC) && message.msg_controllen == 0);
    close(one);
    close(two);
}

int main(void)
{
    plain();
    connected();
    sharing();
    controls();
    DONE();
}
