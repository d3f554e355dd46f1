/* Sockets that threads share: closing and ending them while others wait. */
#include "check.h"

#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>

static int pair[2];

static void *waiting_reader(void *argument)
{
    char buffer[16];
    (void)argument;
    ssize_t got = recv(pair[0], buffer, sizeof buffer, 0);
    return (void *)(long)got;
}

static void number_reused(void)
{
    /* A call goes on with the file that it began with, even if the number means something else by then. */
    pthread_t thread;
    void *result;
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    int other[2], keep = dup(pair[0]);
    pthread_create(&thread, NULL, waiting_reader, NULL);
    usleep(100000);
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, other) == 0);
    CHECK(write(other[1], "not for it", 10) == 10);
    CHECK(dup2(other[0], pair[0]) == pair[0]);
    CHECK(write(pair[1], "right", 5) == 5);
    pthread_join(thread, &result);
    CHECK((long)result == 5);
    char buffer[16];
    CHECK(recv(pair[0], buffer, sizeof buffer, MSG_DONTWAIT) == 10);
    close(keep);
    close(pair[0]);
    close(pair[1]);
    close(other[0]);
    close(other[1]);
}

static void shut_down(void)
{
    pthread_t thread;
    void *result;
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    pthread_create(&thread, NULL, waiting_reader, NULL);
    usleep(50000);
    CHECK(shutdown(pair[0], SHUT_RDWR) == 0);
    pthread_join(thread, &result);
    CHECK((long)result == 0);
    close(pair[0]);
    close(pair[1]);
}

static int server;

static void *waiting_accept(void *argument)
{
    (void)argument;
    int fd = accept(server, NULL, NULL);
    return (void *)(long)(fd < 0 ? -errno : fd);
}

static void several_accept(void)
{
    enum { COUNT = 4 };
    pthread_t threads[COUNT];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    server = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(server, (struct sockaddr *)&address, size) == 0 && listen(server, 5) == 0);
    CHECK(getsockname(server, (struct sockaddr *)&address, &size) == 0);
    for (int i = 0; i < COUNT; i++)
        pthread_create(&threads[i], NULL, waiting_accept, NULL);
    usleep(50000);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    usleep(50000);
    /* One got it; the others are told that nothing comes any more. */
    CHECK(shutdown(server, SHUT_RDWR) == 0);
    int accepted = 0, ended = 0;
    for (int i = 0; i < COUNT; i++) {
        void *result;
        pthread_join(threads[i], &result);
        accepted += (long)result > 0;
        ended += (long)result == -EINVAL;
    }
    CHECK(accepted == 1 && ended == COUNT - 1);
    close(client);
    close(server);
}

static void shared_ports(void)
{
    /* Two listeners on one port both get connections. */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int servers[2], on = 1, got[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        servers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        CHECK(setsockopt(servers[i], SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
        CHECK(bind(servers[i], (struct sockaddr *)&address, sizeof address) == 0 && listen(servers[i], 100) == 0);
        CHECK(getsockname(servers[i], (struct sockaddr *)&address, &size) == 0);
    }
    for (int i = 0; i < 64; i++) {
        int client = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
        close(client);
    }
    usleep(20000);
    for (int i = 0; i < 2; i++) {
        int fd;
        while ((fd = accept(servers[i], NULL, NULL)) >= 0) {
            got[i]++;
            close(fd);
        }
        close(servers[i]);
    }
    CHECK(got[0] > 5 && got[1] > 5 && got[0] + got[1] == 64);
}

int main(void)
{
    number_reused();
    shut_down();
    several_accept();
    shared_ports();
    DONE();
}
