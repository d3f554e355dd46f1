/* TCP on the loopback interface: connecting, the ends of connections, waiting. */
#include "check.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

static int events(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
    CHECK(poll(&entry, 1, 0) >= 0);
    return entry.revents;
}

/* Wait until it has one of these events. */
static int until(int fd, int wanted)
{
    struct pollfd entry = {.fd = fd, .events = wanted};
    CHECK(poll(&entry, 1, 2000) == 1);
    return entry.revents;
}

static int listener(struct sockaddr_in *address, int backlog)
{
    socklen_t size = sizeof *address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    memset(address, 0, size);
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(fd, (struct sockaddr *)address, size) == 0 && listen(fd, backlog) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)address, &size) == 0 && size == sizeof *address && address->sin_port);
    return fd;
}

static void pair(int fds[2])
{
    struct sockaddr_in address;
    int server = listener(&address, 5);
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    NEED(connect(fds[0], (struct sockaddr *)&address, sizeof address) == 0);
    fds[1] = accept(server, NULL, NULL);
    NEED(fds[1] >= 0);
    close(server);
}

static void connecting(void)
{
    struct sockaddr_in address, found;
    socklen_t size = sizeof found;
    int server = listener(&address, 5);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(events(client) == (POLLOUT | POLLHUP));
    CHECK(events(server) == 0);
    FAILS(getpeername(client, (struct sockaddr *)&found, &size), ENOTCONN);
    char buffer[16];
    FAILS(read(client, buffer, 1), ENOTCONN);
    FAILS(shutdown(client, SHUT_RDWR), ENOTCONN);
    CHECK(read(client, buffer, 1) == 0); /* it did shut down */
    FAILS(send(client, "x", 1, MSG_NOSIGNAL), EPIPE);
    FAILS(accept(client, NULL, NULL), EINVAL);
    FAILS(connect(client, (struct sockaddr *)&address, 8), EINVAL);
    struct sockaddr_in wrong = address;
    wrong.sin_family = AF_UNIX;
    FAILS(connect(client, (struct sockaddr *)&wrong, sizeof wrong), EAFNOSUPPORT);
    FAILS(bind(client, (struct sockaddr *)&wrong, sizeof wrong), EAFNOSUPPORT);
    FAILS(bind(client, (struct sockaddr *)&address, 4), EINVAL);
    wrong.sin_family = AF_INET;
    wrong.sin_addr.s_addr = inet_addr("192.0.2.1");
    FAILS(bind(client, (struct sockaddr *)&wrong, sizeof wrong), EADDRNOTAVAIL);
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    FAILS(connect(client, (struct sockaddr *)&address, sizeof address), EISCONN);
    FAILS(bind(client, (struct sockaddr *)&address, sizeof address), EINVAL);
    FAILS(listen(client, 1), EINVAL);
    until(server, POLLIN);
    size = sizeof found;
    int other = accept4(server, (struct sockaddr *)&found, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    CHECK(other >= 0 && size == sizeof found && found.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    CHECK(fcntl(other, F_GETFL) == (O_RDWR | O_NONBLOCK) && fcntl(other, F_GETFD) == FD_CLOEXEC);
    struct sockaddr_in mine;
    size = sizeof mine;
    CHECK(getsockname(client, (struct sockaddr *)&mine, &size) == 0 && mine.sin_port == found.sin_port);
    size = sizeof found;
    CHECK(getpeername(client, (struct sockaddr *)&found, &size) == 0 && found.sin_port == address.sin_port);
    size = 4;
    memset(&found, 0, sizeof found);
    CHECK(getsockname(client, (struct sockaddr *)&found, &size) == 0 && size == 16 && !found.sin_addr.s_addr);
    FAILS(connect(server, (struct sockaddr *)&address, sizeof address), EISCONN);
    FAILS(read(server, buffer, 1), ENOTCONN);
    int pending;
    FAILS(ioctl(server, FIONREAD, &pending), EINVAL);
    close(client);
    close(other);
    fcntl(server, F_SETFL, O_NONBLOCK);
    FAILS(accept(server, NULL, NULL), EAGAIN);

    /* Without waiting. */
    client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    FAILS(connect(client, (struct sockaddr *)&address, sizeof address), EINPROGRESS);
    CHECK((until(client, POLLOUT) & (POLLERR | POLLHUP)) == 0);
    int error = -1;
    size = sizeof error;
    CHECK(getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0);
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    FAILS(connect(client, (struct sockaddr *)&address, sizeof address), EISCONN);
    close(client);
    close(server);

    /* Nobody listens. */
    client = socket(AF_INET, SOCK_STREAM, 0);
    FAILS(connect(client, (struct sockaddr *)&address, sizeof address), ECONNREFUSED);
    close(client);
    client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    FAILS(connect(client, (struct sockaddr *)&address, sizeof address), EINPROGRESS);
    CHECK(until(client, POLLOUT) == (POLLOUT | POLLERR | POLLHUP));
    size = sizeof error;
    CHECK(getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == ECONNREFUSED);
    CHECK(getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0);
    close(client);

    /* A connection that the client ended before it was accepted. */
    server = listener(&address, 5);
    client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0 && write(client, "bye", 3) == 3);
    close(client);
    until(server, POLLIN);
    other = accept(server, NULL, NULL);
    CHECK(read(other, buffer, 16) == 3 && read(other, buffer, 16) == 0);
    close(other);
    /* One that nobody accepted when the listener ended. */
    client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    close(server);
    until(client, POLLIN);
    FAILS(read(client, buffer, 1), ECONNRESET);
    close(client);
}

static void ending(void)
{
    int fds[2];
    char buffer[32];
    pair(fds);
    CHECK(events(fds[0]) == POLLOUT);
    CHECK(write(fds[0], "hello", 5) == 5);
    CHECK(until(fds[1], POLLIN) & POLLIN);
    int pending = 0;
    CHECK(ioctl(fds[1], FIONREAD, &pending) == 0 && pending == 5);
    CHECK(recv(fds[1], buffer, 32, MSG_PEEK) == 5 && recv(fds[1], buffer, 2, 0) == 2 && recv(fds[1], buffer, 9, 0) == 3);
    FAILS(recv(fds[1], buffer, 9, MSG_DONTWAIT), EAGAIN);
    CHECK(shutdown(fds[0], SHUT_WR) == 0);
    CHECK(until(fds[1], POLLIN | POLLRDHUP) == (POLLIN | POLLRDHUP));
    CHECK(read(fds[1], buffer, 1) == 0 && read(fds[1], buffer, 1) == 0);
    CHECK(write(fds[1], "back", 4) == 4);
    until(fds[0], POLLIN);
    CHECK(read(fds[0], buffer, 9) == 4);
    FAILS(send(fds[0], "x", 1, MSG_NOSIGNAL), EPIPE);
    CHECK(shutdown(fds[1], SHUT_WR) == 0);
    CHECK(until(fds[0], POLLIN | POLLHUP) & POLLHUP);
    CHECK(events(fds[0]) == (POLLIN | POLLOUT | POLLRDHUP | POLLHUP));
    FAILS(shutdown(fds[0], SHUT_WR), ENOTCONN);
    close(fds[0]);
    close(fds[1]);

    /* Data that the peer did not read: a reset. */
    pair(fds);
    CHECK(write(fds[0], "lost", 4) == 4);
    until(fds[1], POLLIN);
    close(fds[1]);
    CHECK(until(fds[0], POLLIN) & (POLLERR | POLLHUP));
    FAILS(read(fds[0], buffer, 1), ECONNRESET);
    CHECK(read(fds[0], buffer, 1) == 0);
    FAILS(send(fds[0], "x", 1, MSG_NOSIGNAL), EPIPE);
    close(fds[0]);

    /* The peer is gone: the first write is taken, the next one not. */
    pair(fds);
    close(fds[1]);
    CHECK(until(fds[0], POLLIN | POLLRDHUP) == (POLLIN | POLLRDHUP));
    CHECK(send(fds[0], "x", 1, MSG_NOSIGNAL) == 1);
    until(fds[0], POLLHUP);
    FAILS(send(fds[0], "x", 1, MSG_NOSIGNAL), EPIPE);
    CHECK(read(fds[0], buffer, 1) == 0);
    close(fds[0]);

    /* Linger with no time is a reset as well. */
    pair(fds);
    struct linger now = {.l_onoff = 1, .l_linger = 0};
    CHECK(setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0);
    CHECK(write(fds[1], "kept", 4) == 4);
    until(fds[0], POLLIN);
    close(fds[1]);
    until(fds[0], POLLERR);
    CHECK(read(fds[0], buffer, 9) == 4);
    FAILS(read(fds[0], buffer, 9), ECONNRESET);
    close(fds[0]);

    /* Reading was shut down. */
    pair(fds);
    CHECK(shutdown(fds[0], SHUT_RD) == 0);
    CHECK(read(fds[0], buffer, 1) == 0);
    CHECK(events(fds[0]) == (POLLIN | POLLOUT | POLLRDHUP));
    CHECK(write(fds[0], "x", 1) == 1);
    close(fds[0]);
    close(fds[1]);
}

static void *reader(void *argument)
{
    int fd = *(int *)argument;
    static char buffer[50000];
    long total = 0;
    ssize_t got;
    while ((got = read(fd, buffer, sizeof buffer)) > 0) {
        for (ssize_t i = 0; i < got; i++)
            if (buffer[i] != (char)((total + i) * 7 >> 3)) {
                CHECK(!"data is as it was sent");
                return NULL;
            }
        total += got;
    }
    return (void *)total;
}

static void *late_writer(void *argument)
{
    int fd = *(int *)argument;
    for (int i = 0; i < 4; i++) {
        usleep(20000);
        CHECK(write(fd, "part", 4) == 4);
    }
    return NULL;
}

static void *late_connect(void *argument)
{
    usleep(50000);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fd, (struct sockaddr *)argument, sizeof(struct sockaddr_in)) == 0);
    return (void *)(long)fd;
}

static void waiting(void)
{
    enum { LARGE = 20000000 };
    int fds[2];
    char buffer[32];
    pthread_t thread;
    void *result;
    pair(fds);
    pthread_create(&thread, NULL, late_writer, &fds[1]);
    CHECK(recv(fds[0], buffer, 16, MSG_WAITALL) == 16 && memcmp(buffer, "partpartpartpart", 16) == 0);
    pthread_join(thread, NULL);
    char *data = malloc(LARGE);
    for (long i = 0; i < LARGE; i++)
        data[i] = (char)(i * 7 >> 3);
    pthread_create(&thread, NULL, reader, &fds[0]);
    CHECK(send(fds[1], data, LARGE, 0) == LARGE);
    shutdown(fds[1], SHUT_WR);
    pthread_join(thread, &result);
    CHECK((long)result == LARGE);
    close(fds[0]);
    close(fds[1]);
    /* The same by write, and a full buffer. */
    pair(fds);
    pthread_create(&thread, NULL, reader, &fds[0]);
    CHECK(write(fds[1], data, LARGE) == LARGE);
    shutdown(fds[1], SHUT_WR);
    pthread_join(thread, &result);
    CHECK((long)result == LARGE);
    struct timeval limit = {.tv_usec = 20000};
    CHECK(setsockopt(fds[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0);
    ssize_t part = write(fds[0], data, LARGE);
    CHECK(part > 10000 && part < LARGE);
    /* The network may take a little more meanwhile. */
    for (int i = 0; i < 100 && write(fds[0], data, LARGE) > 0; i++)
        ;
    CHECK(errno == EAGAIN);
    CHECK((events(fds[0]) & POLLOUT) == 0);
    fcntl(fds[1], F_SETFL, O_NONBLOCK);
    ssize_t got, total = 0;
    while ((got = read(fds[1], data, 100000)) > 0)
        total += got;
    CHECK(total > 10000 && until(fds[0], POLLOUT) & POLLOUT);
    free(data);
    close(fds[0]);
    close(fds[1]);
    struct sockaddr_in address;
    int server = listener(&address, 1);
    pthread_create(&thread, NULL, late_connect, &address);
    int other = accept(server, NULL, NULL);
    CHECK(other >= 0);
    pthread_join(thread, &result);
    close((int)(long)result);
    CHECK(read(other, buffer, 1) == 0);
    close(other);
    CHECK(setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    FAILS(accept(server, NULL, NULL), EAGAIN);
    CHECK(shutdown(server, SHUT_RD) == 0);
    FAILS(accept(server, NULL, NULL), EINVAL);
    close(server);
}

static void binding(void)
{
    struct sockaddr_in address, again;
    int on = 1;
    int server = listener(&address, 1), second = socket(AF_INET, SOCK_STREAM, 0);
    FAILS(bind(second, (struct sockaddr *)&address, sizeof address), EADDRINUSE);
    again = address;
    again.sin_addr.s_addr = htonl(INADDR_ANY);
    FAILS(bind(second, (struct sockaddr *)&again, sizeof again), EADDRINUSE);
    CHECK(setsockopt(second, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
    FAILS(bind(second, (struct sockaddr *)&address, sizeof address), EADDRINUSE);
    again.sin_addr.s_addr = inet_addr("127.0.0.2");
    CHECK(bind(second, (struct sockaddr *)&again, sizeof again) == 0);
    close(second);
    /* Port 0 at connect: a port of one's own. */
    second = socket(AF_INET, SOCK_STREAM, 0);
    again.sin_port = 0;
    CHECK(bind(second, (struct sockaddr *)&again, sizeof again) == 0);
    CHECK(connect(second, (struct sockaddr *)&address, sizeof address) == 0);
    int other = accept(server, NULL, NULL);
    socklen_t size = sizeof again;
    CHECK(getpeername(other, (struct sockaddr *)&again, &size) == 0);
    CHECK(again.sin_addr.s_addr == inet_addr("127.0.0.2"));
    close(other);
    close(second);
    close(server);
    /* Several on one port. */
    struct sockaddr_in any = {.sin_family = AF_INET};
    server = socket(AF_INET, SOCK_STREAM, 0);
    second = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(setsockopt(server, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
    CHECK(setsockopt(second, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
    CHECK(bind(server, (struct sockaddr *)&any, sizeof any) == 0 && listen(server, 1) == 0);
    size = sizeof any;
    CHECK(getsockname(server, (struct sockaddr *)&any, &size) == 0);
    CHECK(bind(second, (struct sockaddr *)&any, sizeof any) == 0 && listen(second, 1) == 0);
    close(server);
    close(second);
    /* Listening without a name takes a port. */
    server = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(listen(server, 1) == 0);
    size = sizeof any;
    CHECK(getsockname(server, (struct sockaddr *)&any, &size) == 0 && any.sin_port != 0);
    close(server);
}

static void both_families(void)
{
    struct sockaddr_in6 any = {.sin6_family = AF_INET6}, found;
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof any;
    int server = socket(AF_INET6, SOCK_STREAM, 0), on = 1;
    if (server < 0)
        return; /* the host may have no IPv6 */
    CHECK(bind(server, (struct sockaddr *)&any, sizeof any) == 0 && listen(server, 5) == 0);
    CHECK(getsockname(server, (struct sockaddr *)&any, &size) == 0 && size == sizeof any);
    four.sin_port = any.sin6_port;
    int client = socket(AF_INET, SOCK_STREAM, 0);
    FAILS(bind(client, (struct sockaddr *)&four, sizeof four), EADDRINUSE);
    CHECK(connect(client, (struct sockaddr *)&four, sizeof four) == 0);
    size = sizeof found;
    int other = accept(server, (struct sockaddr *)&found, &size);
    CHECK(other >= 0 && IN6_IS_ADDR_V4MAPPED(&found.sin6_addr));
    close(other);
    close(client);
    FAILS(setsockopt(server, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on), EINVAL);
    any.sin6_addr = in6addr_loopback;
    client = socket(AF_INET6, SOCK_STREAM, 0);
    if (connect(client, (struct sockaddr *)&any, sizeof any) == 0) {
        size = sizeof found;
        other = accept(server, (struct sockaddr *)&found, &size);
        CHECK(IN6_IS_ADDR_LOOPBACK(&found.sin6_addr));
        close(other);
    } else {
        CHECK(errno == EADDRNOTAVAIL || errno == ENETUNREACH);
    }
    close(client);
    close(server);
    /* One that is for IPv6 alone leaves its port to IPv4; others may have taken that, so try some. */
    int together = 0;
    for (int i = 0; i < 20 && !together; i++) {
        server = socket(AF_INET6, SOCK_STREAM, 0);
        CHECK(setsockopt(server, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) == 0);
        struct sockaddr_in6 only = {.sin6_family = AF_INET6};
        CHECK(bind(server, (struct sockaddr *)&only, sizeof only) == 0 && listen(server, 1) == 0);
        size = sizeof only;
        CHECK(getsockname(server, (struct sockaddr *)&only, &size) == 0);
        four.sin_port = only.sin6_port;
        client = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(client, (struct sockaddr *)&four, sizeof four) == 0) {
            together = 1;
            close(client);
            client = socket(AF_INET, SOCK_STREAM, 0);
            FAILS(connect(client, (struct sockaddr *)&four, sizeof four), ECONNREFUSED);
        }
        close(client);
        close(server);
    }
    CHECK(together);
}

static void full_backlog(void)
{
    struct sockaddr_in address;
    int server = listener(&address, 1), clients[6];
    int connected = 0;
    for (int i = 0; i < 6; i++) {
        clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        FAILS(connect(clients[i], (struct sockaddr *)&address, sizeof address), EINPROGRESS);
        usleep(10000);
        connected += events(clients[i]) == POLLOUT;
    }
    CHECK(connected == 2);
    FAILS(connect(clients[5], (struct sockaddr *)&address, sizeof address), EALREADY);
    FAILS(recv(clients[5], clients, 1, 0), EAGAIN);
    int other = accept(server, NULL, NULL);
    CHECK(other >= 0);
    close(other);
    for (int i = 0; i < 6; i++)
        close(clients[i]);
    close(server);
}

static void options(void)
{
    int fds[2], value, on = 1;
    socklen_t size = sizeof value;
    pair(fds);
    CHECK(getsockopt(fds[0], SOL_SOCKET, SO_TYPE, &value, &size) == 0 && value == SOCK_STREAM && size == 4);
    CHECK(getsockopt(fds[0], SOL_SOCKET, SO_PROTOCOL, &value, &size) == 0 && value == IPPROTO_TCP);
    CHECK(getsockopt(fds[0], SOL_SOCKET, SO_DOMAIN, &value, &size) == 0 && value == AF_INET);
    CHECK(getsockopt(fds[0], SOL_SOCKET, SO_ACCEPTCONN, &value, &size) == 0 && value == 0);
    CHECK(setsockopt(fds[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
    CHECK(getsockopt(fds[0], IPPROTO_TCP, TCP_NODELAY, &value, &size) == 0 && value == 1);
    CHECK(setsockopt(fds[0], SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) == 0);
    CHECK(getsockopt(fds[0], SOL_SOCKET, SO_KEEPALIVE, &value, &size) == 0 && value == 1);
    value = 30;
    CHECK(setsockopt(fds[0], IPPROTO_TCP, TCP_KEEPIDLE, &value, sizeof value) == 0);
    value = 0;
    FAILS(setsockopt(fds[0], IPPROTO_TCP, TCP_KEEPIDLE, &value, sizeof value), EINVAL);
    CHECK(getsockopt(fds[0], IPPROTO_TCP, TCP_KEEPIDLE, &value, &size) == 0 && value == 30);
    value = 10000;
    CHECK(setsockopt(fds[0], SOL_SOCKET, SO_RCVBUF, &value, sizeof value) == 0);
    CHECK(getsockopt(fds[0], SOL_SOCKET, SO_RCVBUF, &value, &size) == 0 && value == 20000);
    struct tcp_info info;
    size = sizeof info;
    CHECK(getsockopt(fds[0], IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && info.tcpi_state == TCP_ESTABLISHED);
    CHECK(size > 100);
    char name[16];
    size = sizeof name;
    CHECK(getsockopt(fds[0], IPPROTO_TCP, TCP_CONGESTION, name, &size) == 0 && size == 16);
    size = sizeof value;
    FAILS(getsockopt(fds[0], IPPROTO_TCP, 9999, &value, &size), ENOPROTOOPT);
    FAILS(setsockopt(fds[0], SOL_SOCKET, 9999, &on, sizeof on), ENOPROTOOPT);
    FAILS(setsockopt(fds[0], SOL_SOCKET, SO_KEEPALIVE, &on, 2), EINVAL);
    FAILS(setsockopt(fds[0], SOL_SOCKET, SO_KEEPALIVE, (void *)1, 4), EFAULT);
    FAILS(setsockopt(fds[0], SOL_SOCKET, SO_TYPE, &on, 4), ENOPROTOOPT);
    size = -1;
    FAILS(getsockopt(fds[0], SOL_SOCKET, SO_TYPE, &value, &size), EINVAL);
    FAILS(getsockopt(0, SOL_SOCKET, SO_TYPE, &value, &size), ENOTSOCK);
    FAILS(getsockopt(999, SOL_SOCKET, SO_TYPE, &value, &size), EBADF);
    size = 1;
    value = 0x1234567;
    CHECK(getsockopt(fds[0], IPPROTO_IP, IP_TTL, &value, &size) == 0 && size == 1 && (value & 255) == 64);
    value = 0;
    FAILS(setsockopt(fds[0], IPPROTO_IP, IP_TTL, &value, sizeof value), EINVAL);
    close(fds[0]);
    close(fds[1]);
    FAILS(socket(AF_INET, 77, 0), EINVAL);
    FAILS(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP), EPROTONOSUPPORT);
    FAILS(socket(9999, SOCK_STREAM, 0), EAFNOSUPPORT);
    FAILS(socket(AF_INET, SOCK_SEQPACKET, 0), ESOCKTNOSUPPORT);
    FAILS(socket(AF_UNIX, SOCK_RDM, 0), ESOCKTNOSUPPORT);
}

static void urgent(void)
{
    int fds[2], mark;
    char buffer[16];
    pair(fds);
    FAILS(recv(fds[1], buffer, 1, MSG_OOB), EINVAL);
    CHECK(send(fds[0], "abc", 3, 0) == 3 && send(fds[0], "d!", 2, MSG_OOB) == 2 && send(fds[0], "ef", 2, 0) == 2);
    struct pollfd entry = {.fd = fds[1], .events = POLLIN | POLLPRI};
    usleep(20000);
    CHECK(poll(&entry, 1, 1000) == 1 && entry.revents == (POLLIN | POLLPRI));
    CHECK(ioctl(fds[1], SIOCATMARK, &mark) == 0 && mark == 0);
    CHECK(recv(fds[1], buffer, 16, 0) == 4 && memcmp(buffer, "abcd", 4) == 0);
    CHECK(ioctl(fds[1], SIOCATMARK, &mark) == 0 && mark == 1);
    CHECK(recv(fds[1], buffer, 16, MSG_OOB) == 1 && buffer[0] == '!');
    FAILS(recv(fds[1], buffer, 16, MSG_OOB), EINVAL);
    CHECK(poll(&entry, 1, 1000) == 1 && entry.revents == POLLIN);
    CHECK(recv(fds[1], buffer, 16, 0) == 2 && memcmp(buffer, "ef", 2) == 0);
    close(fds[0]);
    close(fds[1]);
}

static void unspecified(void)
{
    /* Connecting to nobody ends a connection; the socket can be used anew. */
    struct sockaddr_in address;
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    int server = listener(&address, 5), client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    int other = accept(server, NULL, NULL);
    CHECK(connect(client, &nobody, sizeof nobody) == 0);
    char buffer[1];
    until(other, POLLIN);
    FAILS(read(other, buffer, 1), ECONNRESET);
    close(other);
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    other = accept(server, NULL, NULL);
    CHECK(write(client, "x", 1) == 1 && read(other, buffer, 1) == 1);
    close(other);
    close(client);
    close(server);
}

int main(void)
{
    connecting();
    ending();
    waiting();
    binding();
    both_families();
    full_backlog();
    options();
    unspecified();
    urgent();
    DONE();
}
