/* mq_overview(7). */
#include "../check.h"
#include <fcntl.h>
#include <mqueue.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

static volatile int told;
static void caught(int signo, siginfo_t *info, void *context) {
    (void)context;
    if (info->si_code == SI_MESGQ && info->si_value.sival_int == 77 && signo == SIGUSR1)
        told++;
}
static void plain(int signo) { (void)signo; }

static volatile int thread_told;
static void in_thread(union sigval value) { thread_told = value.sival_int; }

int main(void) {
    const char *name = "/casemate-case";
    struct mq_attr attr = {.mq_maxmsg = 3, .mq_msgsize = 16}, now;
    char buf[64];
    unsigned rank;
    int status;
    mq_unlink(name);
    FAILS(mq_open(name, O_RDWR), ENOENT);
    FAILS(mq_unlink(name), ENOENT);
    mqd_t q = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attr);
    NEED(q >= 0);
    FAILS(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attr), EEXIST);
    CHECK(mq_getattr(q, &now) == 0 && now.mq_maxmsg == 3 && now.mq_msgsize == 16 && now.mq_curmsgs == 0);
    struct pollfd p = {q, POLLIN | POLLOUT, 0};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLOUT);
    CHECK(mq_send(q, "low", 3, 1) == 0 && mq_send(q, "high", 4, 9) == 0 && mq_send(q, "low2", 4, 1) == 0);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLIN);
    CHECK(mq_getattr(q, &now) == 0 && now.mq_curmsgs == 3);
    FAILS(mq_receive(q, buf, 15, &rank), EMSGSIZE);
    FAILS(mq_send(q, buf, 17, 0), EMSGSIZE);
    FAILS(mq_send(q, buf, 1, 32768), EINVAL);
    struct timespec soon;
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_nsec += 30000000;
    if (soon.tv_nsec >= 1000000000)
        soon.tv_sec++, soon.tv_nsec -= 1000000000;
    FAILS(mq_timedsend(q, "x", 1, 0, &soon), ETIMEDOUT);
    CHECK(mq_receive(q, buf, 64, &rank) == 4 && rank == 9 && !memcmp(buf, "high", 4));
    CHECK(mq_receive(q, buf, 64, &rank) == 3 && rank == 1 && !memcmp(buf, "low", 3));
    CHECK(mq_receive(q, buf, 64, 0) == 4 && !memcmp(buf, "low2", 4));
    FAILS(mq_timedreceive(q, buf, 64, 0, &soon), ETIMEDOUT);
    attr.mq_flags = O_NONBLOCK;
    CHECK(mq_setattr(q, &attr, &now) == 0 && now.mq_flags == 0);
    FAILS(mq_receive(q, buf, 64, 0), EAGAIN);
    attr.mq_flags = 0;
    CHECK(mq_setattr(q, &attr, &now) == 0 && now.mq_flags == O_NONBLOCK);

    /* Across processes. */
    pid_t pid = fork();
    if (pid == 0) {
        mqd_t mine = mq_open(name, O_WRONLY);
        usleep(30000);
        _exit(mine < 0 || mq_send(mine, "child", 5, 0) != 0);
    }
    CHECK(mq_receive(q, buf, 64, 0) == 5 && !memcmp(buf, "child", 5));
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);

    /* Told of a message once. */
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, 0);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value = {.sival_int = 77}};
    CHECK(mq_notify(q, &event) == 0);
    FAILS(mq_notify(q, &event), EBUSY);
    CHECK(mq_send(q, "n", 1, 0) == 0 && told == 1);
    CHECK(mq_send(q, "n", 1, 0) == 0 && told == 1);
    CHECK(mq_notify(q, &event) == 0 && mq_notify(q, 0) == 0);
    CHECK(mq_receive(q, buf, 64, 0) == 1 && mq_receive(q, buf, 64, 0) == 1);
    CHECK(mq_send(q, "n", 1, 0) == 0 && told == 1 && mq_receive(q, buf, 64, 0) == 1);
    event.sigev_signo = 99;
    FAILS(mq_notify(q, &event), EINVAL);

    /* Told in a thread. */
    event = (struct sigevent){.sigev_notify = SIGEV_THREAD, .sigev_notify_function = in_thread, .sigev_value = {.sival_int = 5}};
    CHECK(mq_notify(q, &event) == 0);
    FAILS(mq_notify(q, &event), EBUSY);
    CHECK(mq_send(q, "n", 1, 0) == 0);
    for (int i = 0; i < 500 && !thread_told; i++)
        usleep(10000);
    CHECK(thread_told == 5 && mq_receive(q, buf, 64, 0) == 1);
    CHECK(mq_notify(q, &event) == 0 && mq_notify(q, 0) == 0);

    struct sigaction simple = {.sa_handler = plain};
    sigaction(SIGALRM, &simple, 0);
    ualarm(30000, 0);
    FAILS(mq_receive(q, buf, 64, 0), EINTR);

    mqd_t r = mq_open(name, O_RDONLY);
    CHECK(r >= 0);
    FAILS(mq_send(r, "x", 1, 0), EBADF);
    FAILS(mq_send(0, "x", 1, 0), EBADF);
    mq_close(r);
    attr.mq_maxmsg = 0;
    FAILS(mq_open("/casemate-other", O_RDWR | O_CREAT, 0600, &attr), EINVAL);
    CHECK(mq_unlink(name) == 0);
    FAILS(mq_open(name, O_RDWR), ENOENT);
    CHECK(mq_send(q, "still", 5, 0) == 0 && mq_receive(q, buf, 64, 0) == 5);
    CHECK(mq_close(q) == 0);
    DONE();
}
