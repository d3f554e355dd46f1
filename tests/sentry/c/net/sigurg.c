/* Signals of sockets: SIGURG for urgent data, SIGIO where it is asked for. */
#include "check.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>

static volatile sig_atomic_t urgent, ready;

static void on_signal(int signum)
{
    urgent += signum == SIGURG;
    ready += signum == SIGIO;
}

static void wait_for(volatile sig_atomic_t *counter)
{
    for (int i = 0; i < 200 && !*counter; i++)
        usleep(10000);
}

int main(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int server = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    NEED(bind(server, (struct sockaddr *)&address, size) == 0 && listen(server, 1) == 0);
    NEED(getsockname(server, (struct sockaddr *)&address, &size) == 0);
    NEED(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    int other = accept(server, NULL, NULL);
    signal(SIGURG, on_signal);
    signal(SIGIO, on_signal);
    /* Nobody is named: nobody is told. */
    CHECK(send(client, "1", 1, MSG_OOB) == 1);
    usleep(50000);
    CHECK(urgent == 0);
    CHECK(fcntl(other, F_SETOWN, getpid()) == 0 && fcntl(other, F_GETOWN) == getpid());
    CHECK(send(client, "2", 1, MSG_OOB) == 1);
    wait_for(&urgent);
    CHECK(urgent >= 1 && ready == 0);
    CHECK(fcntl(other, F_SETFL, O_ASYNC) == 0);
    CHECK(send(client, "3", 1, 0) == 1);
    wait_for(&ready);
    CHECK(ready >= 1);
    close(client);
    close(other);
    close(server);
    DONE();
}
