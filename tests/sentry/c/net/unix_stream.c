/* UNIX stream sockets: names, connections, their ends, waiting. */
#include "check.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>

static socklen_t path_name(struct sockaddr_un *address, const char *path)
{
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    strcpy(address->sun_path, path);
    return offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1;
}

static int events(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
    CHECK(poll(&entry, 1, 0) >= 0);
    return entry.revents;
}

static void pairs(void)
{
    int fds[2];
    char buffer[64];
    struct stat status;
    FAILS(socketpair(AF_INET, SOCK_STREAM, 0, fds), EOPNOTSUPP);
    FAILS(socketpair(AF_UNIX, SOCK_STREAM, 77, fds), EPROTONOSUPPORT);
    FAILS(socketpair(AF_UNIX, 77, 0, fds), EINVAL);
    FAILS(syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, 1L), EFAULT);
    NEED(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
    CHECK(fcntl(fds[0], F_GETFD) == FD_CLOEXEC && fcntl(fds[1], F_GETFL) == (O_RDWR | O_NONBLOCK));
    CHECK(fstat(fds[0], &status) == 0 && S_ISSOCK(status.st_mode) && (status.st_mode & 0777) == 0777);
    FAILS(lseek(fds[0], 0, SEEK_SET), ESPIPE);
    FAILS(pread(fds[0], buffer, 1, 0), ESPIPE);
    FAILS(read(fds[0], buffer, 1), EAGAIN);
    CHECK(events(fds[0]) == POLLOUT);
    CHECK(write(fds[1], "hello", 5) == 5 && write(fds[1], "world", 5) == 5);
    CHECK(events(fds[0]) == (POLLIN | POLLOUT));
    int pending = 0;
    CHECK(ioctl(fds[0], FIONREAD, &pending) == 0 && pending == 10);
    CHECK(recv(fds[0], buffer, 7, MSG_PEEK) == 7 && memcmp(buffer, "hellowo", 7) == 0);
    CHECK(read(fds[0], buffer, 3) == 3 && memcmp(buffer, "hel", 3) == 0);
    CHECK(read(fds[0], buffer, sizeof buffer) == 7 && memcmp(buffer, "loworld", 7) == 0);
    FAILS(recv(fds[0], buffer, 1, MSG_DONTWAIT), EAGAIN);
    CHECK(write(fds[0], "", 0) == 0);
    FAILS(read(fds[1], buffer, 1), EAGAIN);
    CHECK(shutdown(fds[1], SHUT_WR) == 0);
    CHECK(events(fds[0]) == (POLLIN | POLLOUT | POLLRDHUP));
    CHECK(read(fds[0], buffer, 1) == 0);
    CHECK(write(fds[0], "back", 4) == 4 && read(fds[1], buffer, 10) == 4);
    FAILS(send(fds[1], "x", 1, MSG_NOSIGNAL), EPIPE);
    FAILS(shutdown(fds[0], 3), EINVAL);
    CHECK(close(fds[1]) == 0);
    CHECK(events(fds[0]) == (POLLIN | POLLOUT | POLLRDHUP | POLLHUP));
    FAILS(send(fds[0], "x", 1, MSG_NOSIGNAL), EPIPE);
    CHECK(read(fds[0], buffer, 1) == 0);
    close(fds[0]);

    /* What the peer did not read is told as a reset. */
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    CHECK(write(fds[0], "lost", 4) == 4);
    close(fds[1]);
    CHECK(events(fds[0]) & POLLERR);
    FAILS(read(fds[0], buffer, 1), ECONNRESET);
    CHECK(read(fds[0], buffer, 1) == 0);
    close(fds[0]);
}

static volatile sig_atomic_t pipes;

static void on_pipe(int signum)
{
    pipes += signum == SIGPIPE;
}

static void broken(void)
{
    int fds[2];
    signal(SIGPIPE, on_pipe);
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    close(fds[1]);
    FAILS(write(fds[0], "x", 1), EPIPE);
    CHECK(pipes == 1);
    FAILS(send(fds[0], "x", 1, MSG_NOSIGNAL), EPIPE);
    CHECK(pipes == 1);
    close(fds[0]);
    signal(SIGPIPE, SIG_DFL);
}

static void names(void)
{
    struct sockaddr_un address, found;
    socklen_t size = path_name(&address, "socket"), length;
    struct stat status;
    int server = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), other;
    NEED(server >= 0 && client >= 0);
    CHECK(events(client) == (POLLOUT | POLLHUP));
    unlink("socket");
    FAILS(connect(client, (struct sockaddr *)&address, size), ENOENT);
    FAILS(listen(server, 1), EINVAL);
    umask(022);
    CHECK(bind(server, (struct sockaddr *)&address, size) == 0);
    CHECK(lstat("socket", &status) == 0 && S_ISSOCK(status.st_mode) && (status.st_mode & 0777) == 0755);
    FAILS(open("socket", O_RDWR), ENXIO);
    FAILS(bind(server, (struct sockaddr *)&address, size), EADDRINUSE);
    struct sockaddr_un second;
    FAILS(bind(server, (struct sockaddr *)&second, path_name(&second, "second")), EINVAL);
    FAILS(lstat("second", &status), ENOENT);
    FAILS(bind(client, (struct sockaddr *)&address, size), EADDRINUSE);
    FAILS(connect(client, (struct sockaddr *)&address, size), ECONNREFUSED);
    length = sizeof found;
    memset(&found, 1, sizeof found);
    CHECK(getsockname(server, (struct sockaddr *)&found, &length) == 0 && length == size);
    CHECK(strcmp(found.sun_path, "socket") == 0);
    CHECK(listen(server, 1) == 0);
    FAILS(accept4(server, NULL, NULL, 1), EINVAL);
    FAILS(connect(client, (struct sockaddr *)&address, 1), EINVAL);
    FAILS(connect(client, (struct sockaddr *)&address, 200), EINVAL);
    FAILS(syscall(SYS_connect, client, 1L, 20), EFAULT);
    CHECK(connect(client, (struct sockaddr *)&address, size) == 0);
    FAILS(connect(client, (struct sockaddr *)&address, size), EISCONN);
    CHECK(events(server) == POLLIN);
    CHECK(write(client, "early", 5) == 5);
    length = sizeof found;
    other = accept(server, (struct sockaddr *)&found, &length);
    CHECK(other >= 0 && length == 2 && found.sun_family == AF_UNIX);
    char buffer[10];
    CHECK(read(other, buffer, 10) == 5);
    length = sizeof found;
    CHECK(getpeername(client, (struct sockaddr *)&found, &length) == 0 && strcmp(found.sun_path, "socket") == 0);
    length = sizeof found;
    CHECK(getsockname(other, (struct sockaddr *)&found, &length) == 0 && strcmp(found.sun_path, "socket") == 0);
    struct ucred who;
    length = sizeof who;
    CHECK(getsockopt(client, SOL_SOCKET, SO_PEERCRED, &who, &length) == 0 && who.pid == getpid());
    CHECK(who.uid == geteuid() && who.gid == getegid() && length == sizeof who);
    close(client);
    close(other);

    /* A full backlog: two wait to be accepted, the third would wait for room. */
    int clients[3];
    for (int i = 0; i < 3; i++)
        clients[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK(connect(clients[0], (struct sockaddr *)&address, size) == 0);
    CHECK(connect(clients[1], (struct sockaddr *)&address, size) == 0);
    FAILS(connect(clients[2], (struct sockaddr *)&address, size), EAGAIN);
    other = accept(server, NULL, NULL);
    CHECK(connect(clients[2], (struct sockaddr *)&address, size) == 0);
    close(other);
    close(server);
    FAILS(read(clients[1], buffer, 1), ECONNRESET);
    CHECK(read(clients[0], buffer, 1) == 0);
    for (int i = 0; i < 3; i++)
        close(clients[i]);

    /* The name stays in the file system when nobody is there any more. */
    client = socket(AF_UNIX, SOCK_STREAM, 0);
    FAILS(connect(client, (struct sockaddr *)&address, size), ECONNREFUSED);
    CHECK(unlink("socket") == 0);
    close(client);

    /* Kinds do not mix. */
    server = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    CHECK(bind(server, (struct sockaddr *)&address, size) == 0 && listen(server, 1) == 0);
    client = socket(AF_UNIX, SOCK_STREAM, 0);
    FAILS(connect(client, (struct sockaddr *)&address, size), EPROTOTYPE);
    close(client);
    close(server);
    unlink("socket");
}

static void abstract_names(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX}, found;
    memcpy(address.sun_path, "\0case\0net", 9);
    socklen_t size = offsetof(struct sockaddr_un, sun_path) + 9, length = sizeof found;
    int one = socket(AF_UNIX, SOCK_STREAM, 0), two = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(one, (struct sockaddr *)&address, size) == 0);
    FAILS(bind(two, (struct sockaddr *)&address, size), EADDRINUSE);
    CHECK(getsockname(one, (struct sockaddr *)&found, &length) == 0 && length == size);
    CHECK(memcmp(&found, &address, size) == 0);
    CHECK(listen(one, 5) == 0 && connect(two, (struct sockaddr *)&address, size) == 0);
    close(one);
    one = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(one, (struct sockaddr *)&address, size) == 0);
    close(one);
    close(two);
    /* Autobind: an abstract name of five digits. */
    one = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(one, (struct sockaddr *)&address, 2) == 0);
    length = sizeof found;
    CHECK(getsockname(one, (struct sockaddr *)&found, &length) == 0 && length == 8 && found.sun_path[0] == 0);
    close(one);
    /* What is not bound. */
    one = socket(AF_UNIX, SOCK_STREAM, 0);
    length = sizeof found;
    CHECK(getsockname(one, (struct sockaddr *)&found, &length) == 0 && length == 2);
    length = sizeof found;
    FAILS(getpeername(one, (struct sockaddr *)&found, &length), ENOTCONN);
    char buffer[1];
    FAILS(read(one, buffer, 1), EINVAL);
    FAILS(send(one, "x", 1, MSG_NOSIGNAL), ENOTCONN);
    FAILS(accept(one, NULL, NULL), EINVAL);
    CHECK(shutdown(one, SHUT_RDWR) == 0);
    close(one);
}

static void *late_writer(void *argument)
{
    int fd = *(int *)argument;
    usleep(50000);
    CHECK(write(fd, "first", 5) == 5);
    usleep(50000);
    CHECK(write(fd, "second", 6) == 6);
    return NULL;
}

static void *reader(void *argument)
{
    int fd = *(int *)argument;
    static char buffer[100000];
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

static void waiting(void)
{
    int fds[2];
    char buffer[20];
    pthread_t thread;
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    pthread_create(&thread, NULL, late_writer, &fds[1]);
    CHECK(recv(fds[0], buffer, 11, MSG_WAITALL) == 11 && memcmp(buffer, "firstsecond", 11) == 0);
    pthread_join(thread, NULL);
    /* Time limits. */
    struct timeval limit = {.tv_usec = 30000};
    CHECK(setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    FAILS(read(fds[0], buffer, 1), EAGAIN);
    limit.tv_usec = 1000000;
    FAILS(setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), EDOM);
    /* More than any buffer holds goes through in one write. */
    enum { LARGE = 3000000 };
    char *data = malloc(LARGE);
    for (long i = 0; i < LARGE; i++)
        data[i] = (char)(i * 7 >> 3);
    limit.tv_usec = 0;
    setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    pthread_create(&thread, NULL, reader, &fds[0]);
    CHECK(write(fds[1], data, LARGE) == LARGE);
    shutdown(fds[1], SHUT_WR);
    void *total;
    pthread_join(thread, &total);
    CHECK((long)total == LARGE);
    /* A full buffer. */
    limit.tv_usec = 20000;
    CHECK(setsockopt(fds[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0);
    ssize_t part = write(fds[0], data, LARGE);
    CHECK(part > 10000 && part < LARGE);
    FAILS(write(fds[0], data, 1), EAGAIN);
    CHECK((events(fds[0]) & POLLOUT) == 0);
    free(data);
    close(fds[0]);
    close(fds[1]);
}

static void between_processes(void)
{
    int fds[2];
    char buffer[100];
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    pid_t child = fork();
    if (child == 0) {
        close(fds[0]);
        ssize_t got;
        while ((got = read(fds[1], buffer, sizeof buffer)) > 0)
            if (write(fds[1], buffer, got) != got)
                _exit(1);
        _exit(7);
    }
    close(fds[1]);
    for (int i = 0; i < 50; i++) {
        CHECK(write(fds[0], "ping", 4) == 4);
        CHECK(recv(fds[0], buffer, 4, MSG_WAITALL) == 4);
    }
    shutdown(fds[0], SHUT_WR);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
    close(fds[0]);
}

int main(void)
{
    pairs();
    broken();
    names();
    abstract_names();
    waiting();
    between_processes();
    DONE();
}
