/* A storm of signals over every call that waits: no wake-up is lost, no call comes back with a result that is none of its
 * own, and which calls begin anew after a handler with SA_RESTART and which never do is as signal(7) says. */
#include "../check.h"
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

enum { SIGNALS = 60, GUARD = 60 };

static atomic_int handled, over;
static pid_t caller;
static int one, two, number, word;
static char data[1 << 16];
static mqd_t queue;
static aio_context_t context;
static pid_t child;
static char name[64];

static void handler(int signum)
{
    (void)signum;
    atomic_fetch_add(&handled, 1);
}

static void ends(void)
{
    int pair[2];
    NEED(pipe(pair) == 0);
    one = pair[0];
    two = pair[1];
}

static void full_pipe(void)
{
    ends();
    fcntl(two, F_SETFL, O_NONBLOCK);
    while (write(two, data, sizeof data) > 0)
        ;
    fcntl(two, F_SETFL, 0);
}

static void write_one(void) { CHECK(write(two, "x", 1) == 1); }
static void drain(void)
{
    fcntl(one, F_SETFL, O_NONBLOCK);
    while (read(one, data, sizeof data) > 0)
        ;
}

static long do_read(void) { return read(one, data, 10); }
static long do_readv(void) { return readv(one, &(struct iovec){data, 10}, 1); }
static long do_write(void) { return write(two, data, 10); }
static long do_writev(void) { return writev(two, &(struct iovec){data, 10}, 1); }
static long do_poll(void) { return poll(&(struct pollfd){one, POLLIN, 0}, 1, -1); }
static long do_ppoll(void) { return ppoll(&(struct pollfd){one, POLLIN, 0}, 1, NULL, NULL); }
static long do_select(void)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(one, &set);
    return select(one + 1, &set, NULL, NULL, NULL);
}
static long do_pselect(void)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(one, &set);
    return pselect(one + 1, &set, NULL, NULL, NULL, NULL);
}

static void polled(void)
{
    ends();
    number = epoll_create1(0);
    CHECK(epoll_ctl(number, EPOLL_CTL_ADD, one, &(struct epoll_event){EPOLLIN, {0}}) == 0);
}
static long do_epoll(void)
{
    struct epoll_event event;
    return epoll_wait(number, &event, 1, -1);
}

static void waits_word(void) { word = 0; }
static long do_futex(void) { return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0); }
static void wake(void)
{
    while (!atomic_load(&over)) {
        syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        sched_yield();
    }
}

static void nothing(void) {}
static long do_pause(void) { return pause(); }
static long do_nanosleep(void) { return nanosleep(&(struct timespec){1000, 0}, NULL); }
static long do_clock_nanosleep(void)
{
    int error = clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){1000, 0}, NULL);
    errno = error;
    return error ? -1 : 0;
}
static long do_sigsuspend(void)
{
    sigset_t none;
    sigemptyset(&none);
    return sigsuspend(&none);
}
static long do_sigtimedwait(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    return sigtimedwait(&set, NULL, &(struct timespec){1000, 0});
}
static void send_usr2(void) { CHECK(syscall(SYS_tgkill, getpid(), caller, SIGUSR2) == 0); }

static void with_child(void)
{
    ends();
    child = fork();
    if (child == 0) {
        close(two);
        _exit(read(one, data, 1) == 0 ? 5 : 6);
    }
}
static long do_wait4(void)
{
    int status;
    long found = wait4(child, &status, 0, NULL);
    CHECK(found == -1 || (found == child && WEXITSTATUS(status) == 5));
    return found;
}
static long do_waitid(void)
{
    siginfo_t info;
    return waitid(P_PID, child, &info, WEXITED);
}
static void end_child(void) { close(two); }

static void pair_of_sockets(void)
{
    int pair[2];
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    one = pair[0];
    two = pair[1];
}
static void full_sockets(void)
{
    pair_of_sockets();
    while (send(two, data, sizeof data, MSG_DONTWAIT) > 0)
        ;
}
static long do_recv(void) { return recv(one, data, 10, 0); }
static long do_recvmsg(void) { return recvmsg(one, &(struct msghdr){.msg_iov = &(struct iovec){data, 10}, .msg_iovlen = 1}, 0); }
static long do_send(void) { return send(two, data, 10, 0); }
static long do_sendmsg(void) { return sendmsg(two, &(struct msghdr){.msg_iov = &(struct iovec){data, 10}, .msg_iovlen = 1}, 0); }

static struct sockaddr_un address;
static void listening(void)
{
    address = (struct sockaddr_un){AF_UNIX, ""};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", name);
    one = socket(AF_UNIX, SOCK_STREAM, 0);
    two = socket(AF_UNIX, SOCK_STREAM, 0);
    unlink(address.sun_path);
    NEED(bind(one, (void *)&address, sizeof address) == 0 && listen(one, 0) == 0);
}
static long do_accept(void) { return accept4(one, NULL, NULL, 0); }
static void connects(void) { CHECK(connect(two, (void *)&address, sizeof address) == 0); }
static void crowded(void)
{
    listening();
    number = socket(AF_UNIX, SOCK_STREAM, 0);
    NEED(connect(number, (void *)&address, sizeof address) == 0); /* the one there is room for */
}
static long do_connect(void) { return connect(two, (void *)&address, sizeof address); }
static void accepts(void) { CHECK(accept(one, NULL, NULL) >= 0); }

static void locked_file(void)
{
    snprintf(data, 200, "%s/file", name);
    one = open(data, O_RDWR | O_CREAT, 0600);
    two = open(data, O_RDWR);
    NEED(flock(one, LOCK_EX) == 0);
    number = fcntl(one, F_OFD_SETLK, &(struct flock){.l_type = F_WRLCK});
}
static long do_flock(void) { return flock(two, LOCK_EX); }
static long do_setlkw(void) { return fcntl(two, F_OFD_SETLKW, &(struct flock){.l_type = F_WRLCK}); }
static void unlocks(void)
{
    CHECK(flock(one, LOCK_UN) == 0 && fcntl(one, F_OFD_SETLK, &(struct flock){.l_type = F_UNLCK}) == 0);
}

static void semaphore(void) { NEED((number = semget(IPC_PRIVATE, 1, 0600)) >= 0); }
static long do_semop(void) { return semop(number, &(struct sembuf){0, -1, 0}, 1); }
static void ups(void) { CHECK(semop(number, &(struct sembuf){0, 1, 0}, 1) == 0); }
static void drop_semaphore(void) { semctl(number, 0, IPC_RMID); }

static struct { long kind; char text[8]; } message = {1, "text"};
static void messages(void) { NEED((number = msgget(IPC_PRIVATE, 0600)) >= 0); }
static void full_messages(void)
{
    struct msqid_ds limits;
    messages();
    msgctl(number, IPC_STAT, &limits);
    limits.msg_qbytes = 64;
    CHECK(msgctl(number, IPC_SET, &limits) == 0);
    while (msgsnd(number, &message, 8, IPC_NOWAIT) == 0)
        ;
}
static long do_msgrcv(void) { return msgrcv(number, &message, 8, 0, 0); }
static long do_msgsnd(void) { return msgsnd(number, &message, 8, 0); }
static void sends_message(void) { CHECK(msgsnd(number, &message, 8, 0) == 0); }
static void takes_message(void) { CHECK(msgrcv(number, &message, 8, 0, 0) == 8); }
static void drop_messages(void) { msgctl(number, IPC_RMID, NULL); }

static void a_queue(void)
{
    struct mq_attr attributes = {.mq_maxmsg = 1, .mq_msgsize = 8};
    mq_unlink("/storms");
    queue = mq_open("/storms", O_RDWR | O_CREAT, 0600, &attributes);
    NEED(queue != (mqd_t)-1);
}
static void full_queue(void)
{
    a_queue();
    CHECK(mq_send(queue, "text", 4, 0) == 0);
}
static long do_mq_receive(void) { return mq_receive(queue, data, 8, NULL); }
static long do_mq_send(void) { return mq_send(queue, "text", 4, 0); }
static void sends_queue(void) { CHECK(mq_send(queue, "text", 4, 0) == 0); }
static void takes_queue(void) { CHECK(mq_receive(queue, data + 8, 8, NULL) == 4); }
static void drop_queue(void)
{
    mq_close(queue);
    mq_unlink("/storms");
}

static void a_fifo(void)
{
    snprintf(data, 200, "%s/fifo", name);
    unlink(data);
    NEED(mkfifo(data, 0600) == 0);
}
static long do_open(void) { return open(data, O_RDONLY); }
static void opens(void) { CHECK((number = open(data, O_WRONLY)) >= 0); }

static void an_eventfd(void) { one = two = eventfd(0, 0); }
static void adds(void) { CHECK(write(two, &(long){1}, 8) == 8); }
static void a_timer(void) { one = timerfd_create(CLOCK_MONOTONIC, 0); }
static void arms(void) { CHECK(timerfd_settime(one, 0, &(struct itimerspec){{0, 0}, {0, 1}}, NULL) == 0); }
static void a_signalfd(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    one = signalfd(-1, &set, 0);
}
static void a_watch(void)
{
    one = inotify_init1(0);
    CHECK(inotify_add_watch(one, name, IN_CREATE) > 0);
}
static void creates(void)
{
    char path[100];
    snprintf(path, sizeof path, "%s/new", name);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    unlink(path);
}
static long do_read_large(void) { return read(one, data, 4096); }

static void an_aio(void)
{
    ends();
    context = 0;
    NEED(syscall(SYS_io_setup, 4, &context) == 0);
}
static long do_io_getevents(void)
{
    struct io_event event;
    return syscall(SYS_io_getevents, context, 1, 1, &event, NULL);
}
static void submits(void)
{
    struct iocb block = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_buf = (long)data, .aio_nbytes = 8}, *list = &block;
    snprintf(data, 200, "%s/aio", name);
    block.aio_fildes = number = open(data, O_RDWR | O_CREAT, 0600);
    CHECK(syscall(SYS_io_submit, context, 1, &list) == 1);
}
static void drop_aio(void) { syscall(SYS_io_destroy, context); }

static void to_a_pipe(void)
{
    ends();
    int second[2];
    NEED(pipe(second) == 0);
    number = second[1];
}
static long do_splice(void) { return splice(one, NULL, number, NULL, 10, 0); }
static long do_tee(void) { return tee(one, number, 10, 0); }
static long do_vmsplice(void) { return vmsplice(two, &(struct iovec){data, 10}, 1, 0); }

static void a_terminal(void)
{
    two = posix_openpt(O_RDWR | O_NOCTTY);
    NEED(two >= 0 && grantpt(two) == 0 && unlockpt(two) == 0);
    one = open(ptsname(two), O_RDWR | O_NOCTTY);
    NEED(one >= 0);
}
static void types(void) { CHECK(write(two, "line\n", 5) == 5); }

enum { RESTARTS = 1, NEVER, FLAG };
/* RESTARTS: after a handler with SA_RESTART it begins anew. NEVER: EINTR all the same. FLAG: so, and nothing else ends it. */
static const struct waits {
    const char *name;
    void (*before)(void);
    long (*call)(void);
    void (*event)(void);
    int kind;
    void (*after)(void);
} all[] = {
    {"read", ends, do_read, write_one, RESTARTS, NULL},
    {"readv", ends, do_readv, write_one, RESTARTS, NULL},
    {"write", full_pipe, do_write, drain, RESTARTS, NULL},
    {"writev", full_pipe, do_writev, drain, RESTARTS, NULL},
    {"poll", ends, do_poll, write_one, NEVER, NULL},
    {"ppoll", ends, do_ppoll, write_one, NEVER, NULL},
    {"select", ends, do_select, write_one, NEVER, NULL},
    {"pselect6", ends, do_pselect, write_one, NEVER, NULL},
    {"epoll_wait", polled, do_epoll, write_one, NEVER, NULL},
    {"futex", waits_word, do_futex, wake, RESTARTS, NULL},
    {"pause", nothing, do_pause, nothing, FLAG, NULL},
    {"rt_sigsuspend", nothing, do_sigsuspend, nothing, FLAG, NULL},
    {"nanosleep", nothing, do_nanosleep, nothing, FLAG, NULL},
    {"clock_nanosleep", nothing, do_clock_nanosleep, nothing, FLAG, NULL},
    {"rt_sigtimedwait", nothing, do_sigtimedwait, send_usr2, NEVER, NULL},
    {"wait4", with_child, do_wait4, end_child, RESTARTS, NULL},
    {"waitid", with_child, do_waitid, end_child, RESTARTS, NULL},
    {"recvfrom", pair_of_sockets, do_recv, write_one, RESTARTS, NULL},
    {"recvmsg", pair_of_sockets, do_recvmsg, write_one, RESTARTS, NULL},
    {"sendto", full_sockets, do_send, drain, RESTARTS, NULL},
    {"sendmsg", full_sockets, do_sendmsg, drain, RESTARTS, NULL},
    {"accept4", listening, do_accept, connects, RESTARTS, NULL},
    {"connect", crowded, do_connect, accepts, RESTARTS, NULL},
    {"flock", locked_file, do_flock, unlocks, RESTARTS, NULL},
    {"fcntl", locked_file, do_setlkw, unlocks, RESTARTS, NULL},
    {"semop", semaphore, do_semop, ups, NEVER, drop_semaphore},
    {"msgrcv", messages, do_msgrcv, sends_message, NEVER, drop_messages},
    {"msgsnd", full_messages, do_msgsnd, takes_message, NEVER, drop_messages},
    {"mq_timedreceive", a_queue, do_mq_receive, sends_queue, RESTARTS, drop_queue},
    {"mq_timedsend", full_queue, do_mq_send, takes_queue, RESTARTS, drop_queue},
    {"open", a_fifo, do_open, opens, RESTARTS, NULL},
    {"read of an eventfd", an_eventfd, do_read, adds, RESTARTS, NULL},
    {"read of a timerfd", a_timer, do_read, arms, RESTARTS, NULL},
    {"read of a signalfd", a_signalfd, do_read_large, send_usr2, RESTARTS, NULL},
    {"read of an inotify", a_watch, do_read_large, creates, RESTARTS, NULL},
    {"read of a terminal", a_terminal, do_read, types, RESTARTS, NULL},
    {"io_getevents", an_aio, do_io_getevents, submits, NEVER, drop_aio},
    {"splice", to_a_pipe, do_splice, write_one, RESTARTS, NULL},
    {"tee", to_a_pipe, do_tee, write_one, RESTARTS, NULL},
    {"vmsplice", full_pipe, do_vmsplice, drain, RESTARTS, NULL},
};

/* The caller is the first thread: wait until it sleeps in its call. */
static void until_it_waits(void)
{
    for (;;) {
        char text[512] = "", *state;
        int fd = open("/proc/self/stat", O_RDONLY);
        CHECK(read(fd, text, sizeof text - 1) > 0);
        close(fd);
        state = strrchr(text, ')');
        if (state != NULL && state[2] == 'S')
            return;
        sched_yield();
    }
}

static void *storm(void *argument)
{
    const struct waits *waits = argument;
    /* Each signal once the one before was handled: the call is interrupted again and again, or not yet begun. */
    for (int i = 0; i < SIGNALS; i++) {
        if (i % 10 == 0)
            until_it_waits();
        int before = atomic_load(&handled);
        syscall(SYS_tgkill, getpid(), caller, SIGUSR1);
        while (atomic_load(&handled) == before)
            sched_yield();
    }
    if (waits->kind == FLAG)
        atomic_store(&over, 1);
    else
        waits->event();
    while (!atomic_load(&over) || (waits->kind == FLAG && atomic_load(&handled) < 2 * SIGNALS)) {
        syscall(SYS_tgkill, getpid(), caller, SIGUSR1);
        sched_yield();
    }
    return NULL;
}

static void weather(const struct waits *waits, int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    int interrupted = 0, failures = check_failures;
    long result;
    pthread_t thread;
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    one = two = number = -1;
    handled = over = 0;
    waits->before();
    NEED(pthread_create(&thread, NULL, storm, (void *)waits) == 0);
    do {
        errno = 0;
        result = waits->call();
        if (result == -1 && errno == EINTR)
            interrupted++;
        else if (waits->kind == FLAG)
            break;
    } while (result == -1 && errno == EINTR && !(waits->kind == FLAG && atomic_load(&over)));
    if (waits->kind == FLAG)
        CHECK(result == -1 && errno == EINTR);
    else
        CHECK(result >= 0);
    if (waits->kind == RESTARTS && flags)
        CHECK(interrupted == 0);
    else
        CHECK(interrupted > 0);
    atomic_store(&over, 1);
    while (waits->kind == FLAG && atomic_load(&handled) < 2 * SIGNALS)
        sched_yield();
    pthread_join(thread, NULL);
    if (waits->after != NULL)
        waits->after();
    close(one);
    close(two);
    if (number > 2)
        close(number);
    if (check_failures != failures)
        fprintf(stderr, "%s, handler %s: %ld, interrupted %d times\n", waits->name,
                flags ? "with SA_RESTART" : "without it", result, interrupted);
}

int main(int argc, char **argv)
{
    char template[] = "storms-XXXXXX";
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    caller = gettid();
    NEED(mkdtemp(template) != NULL);
    strcpy(name, template);
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        if (argc > 1 && strcmp(argv[1], all[i].name) != 0)
            continue;
        alarm(GUARD); /* ends it where it would hang */
        weather(&all[i], 0);
        weather(&all[i], SA_RESTART);
    }
    alarm(0);
    DONE();
}
