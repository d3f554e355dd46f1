/* Makes each system call with arguments that are right but for one, which takes every odd value of its kind in turn, and
 * says what each call answered: a number or the error. With "user" as its argument it does so as a user
 * without rights, in a directory of root's files. The same program says the same natively and behind the sentry,
 * where Linux's answer depends on the arguments alone. It makes a root directory of its own; natively it is also in
 * namespaces of its own, by alone.c. */
#include "../check.h"
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <limits.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/vfs.h>
#include <time.h>

#define PAGE 4096l
#define EXT4_MAGIC 0xEF53
#define TMPFS_MAGIC 0x01021994
enum { FILE_FD = 100, DIR_FD, PATH_FD, READ_FD, WRITE_FD, SOCKET_FD, PAIR_FD, OTHER_FD, EPOLL_FD, EVENT_FD, TIMER_FD, INOTIFY_FD,
       QUEUE_FD, PID_FD, MEM_FD, SIGNAL_FD, TTY_FD, READONLY_FD, LISTEN_FD };

struct call {
    const char *name;
    int number;
    const char *kinds; /* a letter for each argument: values() */
};

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif
#define C(name, kinds) {#name, SYS_##name, kinds}
#define D(name, what, kinds) {#name "-" #what, SYS_##name, kinds}
static const struct call calls[] = {
#include "calls.h"
};

struct value {
    const char *label;
    long value;
};

static int user; /* all is done by a user without rights, to files that are root's */
static char *good, *edge, *readonly, *gone, *area;

/* Memory at a place of its own, with nothing around it: what runs over it meets a hole. */
static void *page(int place, long length, int prot)
{
    void *wanted = (void *)(0x7000000000 + ((long)place << 20));
    NEED(mmap(wanted, length, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == wanted);
    return wanted;
}

static void at(int fd, int number)
{
    NEED(fd >= 0);
    NEED(dup2(fd, number) == number);
    close(fd);
}

/* The descriptors and files that arguments name. */
static void prepare(void)
{
    int ends[2];
    struct sockaddr_un name = {AF_UNIX, "listener"};
    at(open("file", O_RDWR), FILE_FD);
    at(open("file", O_RDONLY), READONLY_FD);
    at(open("dir", O_RDONLY | O_DIRECTORY), DIR_FD);
    at(open("file", O_PATH), PATH_FD);
    NEED(pipe2(ends, O_NONBLOCK) == 0);
    at(ends[0], READ_FD);
    at(ends[1], WRITE_FD);
    NEED(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    at(ends[0], PAIR_FD);
    at(ends[1], OTHER_FD);
    at(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), SOCKET_FD);
    at(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), LISTEN_FD);
    unlink("listener");
    NEED(bind(LISTEN_FD, (void *)&name, sizeof name) == 0 && listen(LISTEN_FD, 3) == 0);
    at(epoll_create1(0), EPOLL_FD);
    at(eventfd(0, EFD_NONBLOCK), EVENT_FD);
    at(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), TIMER_FD);
    at(inotify_init1(IN_NONBLOCK), INOTIFY_FD);
    struct mq_attr attr = {.mq_maxmsg = 4, .mq_msgsize = 64};
    at(mq_open("/breadth", O_RDWR | O_CREAT | O_NONBLOCK, 0600, &attr), QUEUE_FD);
    at(syscall(SYS_pidfd_open, getpid(), 0), PID_FD);
    at(memfd_create("x", MFD_ALLOW_SEALING), MEM_FD);
    uint64_t set = 1 << 9;
    at(syscall(SYS_signalfd4, -1, &set, 8, O_NONBLOCK), SIGNAL_FD);
    at(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK), TTY_FD);
    good = page(0, 5 * PAGE, PROT_READ | PROT_WRITE);
    edge = page(1, PAGE, PROT_READ | PROT_WRITE);
    memset(edge, 'e', PAGE);
    edge += PAGE - 1;
    readonly = page(2, PAGE, PROT_READ);
    gone = page(3, PAGE, PROT_READ);
    munmap(gone, PAGE);
    area = page(4, 8 * PAGE, PROT_READ | PROT_WRITE);
}

static struct iovec *vectors(int first_bad)
{
    struct iovec *v = (void *)(good + 512);
    v[0] = (struct iovec){good + 1024, 8};
    v[1] = (struct iovec){good + 1040, 8};
    if (first_bad == 1)
        v[0].iov_base = (void *)1;
    if (first_bad == 2)
        v[0].iov_len = -1;
    if (first_bad == 3)
        v[0].iov_len = v[1].iov_len = LONG_MAX;
    if (first_bad == 4)
        v[0].iov_base = (void *)(0xffff8000ul << 32);
    if (first_bad == 5)
        v[0].iov_len = v[1].iov_len = 0;
    return v;
}

static struct msghdr *message(int bad)
{
    struct msghdr *m = (void *)(good + 256);
    memset(m, 0, sizeof *m);
    m->msg_iov = vectors(0);
    m->msg_iovlen = 2;
    if (bad == 1)
        m->msg_iov = (void *)1;
    if (bad == 2)
        m->msg_iovlen = 1025;
    if (bad == 3)
        m->msg_control = (void *)1, m->msg_controllen = 64;
    if (bad == 4)
        m->msg_name = (void *)1, m->msg_namelen = 16;
    if (bad == 5)
        m->msg_control = good + 2048, m->msg_controllen = LONG_MAX;
    if (bad == 6)
        m->msg_name = good + 2048, m->msg_namelen = -1;
    if (bad == 7)
        m->msg_control = good + 2048, m->msg_controllen = 20, *(size_t *)(good + 2048) = 3;
    return m;
}

static struct timespec *moment(long seconds, long nanoseconds, int place)
{
    struct timespec *t = (void *)(good + 3072 + place * 32);
    t->tv_sec = seconds;
    t->tv_nsec = nanoseconds;
    return t;
}

static char *texts;

static const char *text(const char *what)
{
    char *place = texts;
    texts += 64;
    return strcpy(place, what);
}

static int put(struct value *out, int n, const char *label, long value)
{
    out[n] = (struct value){label, value};
    return n + 1;
}

#define P(label, value) n = put(out, n, label, (long)(value))

/* The values of a kind; the first is right. */
static int values(char kind, struct value *out)
{
    static char long_name[400], long_path[2 * PAGE];
    int n = 0;
    switch (kind) {
    case 'f': /* a file to read and write */
    case 'F': /* the same, but no pipe and nothing else that may wait */
        P("file", FILE_FD);
        goto descriptors;
    case 'h': /* a directory */
        P("dir", DIR_FD);
        goto descriptors;
    case 'R':
        P("reader", READ_FD);
        goto descriptors;
    case 'W':
        P("writer", WRITE_FD);
        goto descriptors;
    case 'k':
        P("inet", SOCKET_FD);
        goto descriptors;
    case 'K':
        P("pair", PAIR_FD);
        goto descriptors;
    case 'L':
        P("listener", LISTEN_FD);
        goto descriptors;
    case 'e':
        P("epoll", EPOLL_FD);
        goto descriptors;
    case 't':
        P("timer", TIMER_FD);
        goto descriptors;
    case 'y':
        P("inotify", INOTIFY_FD);
        goto descriptors;
    case 'q':
        P("queue", QUEUE_FD);
        goto descriptors;
    case 'j':
        P("pidfd", PID_FD);
        goto descriptors;
    case 'G':
        P("new", -1);
        P("signal", SIGNAL_FD);
    descriptors:
        P("-1", -1);
        P("999", 999);
        P("max", INT_MAX);
        P("min", INT_MIN);
        P("cwd", AT_FDCWD);
        P("file", FILE_FD);
        P("dir", DIR_FD);
        P("path", PATH_FD);
        P("readonly", READONLY_FD);
        P("high", (1l << 32) | FILE_FD);
        P("reader", READ_FD);
        P("writer", WRITE_FD);
        P("pair", PAIR_FD);
        P("inet", SOCKET_FD);
        P("listener", LISTEN_FD);
        P("epoll", EPOLL_FD);
        P("event", EVENT_FD);
        P("timer", TIMER_FD);
        P("inotify", INOTIFY_FD);
        P("queue", QUEUE_FD);
        P("pidfd", PID_FD);
        P("mem", MEM_FD);
        P("tty", TTY_FD);
        break;
    case 'd': /* where a path begins */
        P("cwd", AT_FDCWD);
        P("-1", -1);
        P("999", 999);
        P("file", FILE_FD);
        P("dir", DIR_FD);
        P("path", PATH_FD);
        P("socket", PAIR_FD);
        P("high", (1l << 32) | DIR_FD);
        break;
    case 's': /* an existing file */
        P("file", text("file"));
        goto paths;
    case 'x': /* a program */
        P("none", text("none"));
        P("file", text("file"));
        P("script", text("script"));
        P("empty", text("empty"));
        P("garbage", text("garbage"));
        P("dir", text("dir"));
        P("long", long_name);
        P("0", 0);
        P("1", 1);
        P("below", text("garbage/x"));
        P("loop", text("loop"));
        memset(long_name, 'l', 300);
        break;
    case 'm': /* an existing directory */
        P("dir", text("dir"));
        goto paths;
    case 'l': /* a symbolic link */
        P("link", text("link"));
        goto paths;
    case 'n': /* something that is not there */
        P("new", text("new"));
    paths:
        memset(long_name, 'l', 300);
        memset(long_path, '/', 2 * PAGE - 1);
        P("0", 0);
        P("1", 1);
        P("kernel", 0xffff8000ul << 32);
        P("edge", edge);
        P("readonly", readonly);
        P("gone", gone);
        P("empty", text(""));
        P("none", text("none"));
        P("below", text("file/x"));
        P("nodir", text("none/x"));
        P("loop", text("loop"));
        P("dangling", text("dangling"));
        P("dir", text("dir"));
        P("file", text("file"));
        P("dot", text("."));
        P("up", text("dir/.."));
        P("root", text("/"));
        P("slash", text("file/"));
        P("dirslash", text("dir/"));
        P("newslash", text("none/"));
        P("full", text("full"));
        P("fifo", text("fifo"));
        P("listener", text("listener"));
        P("link", text("link"));
        P("linkslash", text("link/"));
        P("loopslash", text("dirlink/"));
        P("dirlink", text("dirlink"));
        P("longname", long_name);
        P("longpath", long_path);
        break;
    case 'w': /* memory to be written */
    case 'r': /* memory to be read: zeros */
    case 'o': /* the same, or none */
        if (kind == 'o')
            P("0", 0);
        P("good", good + 2048);
        if (kind != 'o')
            P("0", 0);
        P("1", 1);
        P("odd", good + 2049);
        P("kernel", 0xffff8000ul << 32);
        P("far", 1ul << 63);
        P("-1", -1);
        P("gone", gone);
        P("edge", edge);
        P("readonly", readonly);
        break;
    case 'b': /* memory whose size is another argument */
        P("good", good + 2048);
        P("0", 0);
        P("1", 1);
        P("kernel", 0xffff8000ul << 32);
        P("-1", -1);
        P("gone", gone);
        break;
    case 'z': /* a size */
        P("64", 64);
        P("0", 0);
        P("1", 1);
        P("7", 7);
        P("9", 9);
        P("-1", -1);
        P("int", INT_MAX);
        P("min", INT_MIN);
        P("u32", 0xFFFFFFFFl);
        P("4g", 1l << 32);
        P("max", LONG_MAX);
        P("lmin", LONG_MIN);
        break;
    case 'Z': /* the size of a set of signals */
        P("8", 8);
        P("0", 0);
        P("4", 4);
        P("16", 16);
        P("-1", -1);
        break;
    case 'c': /* a number of things */
        P("2", 2);
        P("0", 0);
        P("1", 1);
        P("-1", -1);
        P("1025", 1025);
        P("int", INT_MAX);
        P("min", INT_MIN);
        P("4g", 1l << 32);
        break;
    case 'i': /* flags */
        P("0", 0);
        for (int bit = 0; bit < 32; bit++) {
            static char names[32][8];
            sprintf(names[bit], "b%d", bit);
            P(names[bit], 1ul << bit);
        }
        P("-1", -1);
        P("3", 3);
        P("5", 5);
        P("6", 6);
        P("7", 7);
        P("high", 1l << 32);
        break;
    case 'E': /* flags of System V's messages, with IPC_NOWAIT */
        P("0", 04000);
        P("except", 04000 | 020000);
        P("noerror", 04000 | 010000);
        P("copy", 04000 | 040000);
        P("other", 04000 | 0100000);
        break;
    case 'I': /* a small number: which, what */
        for (int number = 0; number < 24; number++) {
            static char names[24][8];
            sprintf(names[number], "%d", number);
            P(names[number], number);
        }
        P("-1", -1);
        P("100", 100);
        P("int", INT_MAX);
        P("min", INT_MIN);
        break;
    case 'J': /* a limit that may be set to nothing */
        P("core", RLIMIT_CORE);
        P("locks", RLIMIT_LOCKS);
        P("pending", RLIMIT_SIGPENDING);
        P("nice", RLIMIT_NICE);
        P("rtprio", RLIMIT_RTPRIO);
        P("rttime", RLIMIT_RTTIME);
        P("16", 16);
        P("17", 17);
        P("-1", -1);
        P("int", INT_MAX);
        P("min", INT_MIN);
        break;
    case 'p': /* a place in a file */
        P("0", 0);
        P("-1", -1);
        P("5", 5);
        P("min", LONG_MIN);
        P("max", LONG_MAX);
        P("2g", 1l << 31);
        break;
    case 'T': /* a time */
        P("zero", moment(0, 0, 0));
        P("0", 0);
        P("1", 1);
        P("kernel", 0xffff8000ul << 32);
        P("negative", moment(-1, 0, 1));
        P("nano", moment(0, 1000000000, 2));
        P("minus", moment(0, -1, 3));
        break;
    case 'v':
        P("vectors", vectors(0));
        P("0", 0);
        P("1", 1);
        P("kernel", 0xffff8000ul << 32);
        P("gone", gone);
        break;
    case 'V': /* one that is replaced for each value: see fill() */
        for (int bad = 0; bad < 6; bad++) {
            static const char *names[] = {"right", "base", "length", "sum", "kernel", "nothing"};
            P(names[bad], good + 512);
        }
        P("0", 0);
        P("1", 1);
        break;
    case 'M':
        for (int bad = 0; bad < 8; bad++) {
            static const char *names[] = {"right", "iov", "many", "control", "name", "hugecontrol", "namelen", "cmsg"};
            P(names[bad], good + 256);
        }
        P("0", 0);
        P("1", 1);
        P("gone", gone);
        break;
    case 'u': /* a user or group */
        P("0", 0);
        P("1000", 1000);
        P("-1", -1);
        P("-2", -2);
        P("high", 1l << 32);
        break;
    case 'P': /* a process */
        P("self", getpid());
        P("0", 0);
        P("none", 4000000);
        P("-5", -4000000);
        P("min", INT_MIN);
        P("max", INT_MAX);
        break;
    case 'g': /* a signal */
        P("0", 0);
        P("usr1", SIGUSR1);
        P("kill", 65);
        P("-1", -1);
        P("64", 64);
        P("1000", 1000);
        P("high", 1l << 32);
        break;
    case 'S': /* a signal whose action may be set */
        P("usr1", SIGUSR1);
        P("0", 0);
        P("kill", SIGKILL);
        P("stop", SIGSTOP);
        P("64", 64);
        P("65", 65);
        P("-1", -1);
        break;
    case 'C': /* a clock */
        P("monotonic", CLOCK_MONOTONIC);
        P("realtime", CLOCK_REALTIME);
        P("process", CLOCK_PROCESS_CPUTIME_ID);
        P("thread", CLOCK_THREAD_CPUTIME_ID);
        P("raw", CLOCK_MONOTONIC_RAW);
        P("coarse", CLOCK_REALTIME_COARSE);
        P("mcoarse", CLOCK_MONOTONIC_COARSE);
        P("boot", CLOCK_BOOTTIME);
        P("tai", CLOCK_TAI);
        P("10", 10);
        P("12", 12);
        P("16", 16);
        P("-1", -1);
        P("-2", -2);
        P("-3", -3);
        P("-4", -4);
        P("-22", -22);
        P("max", INT_MAX);
        P("min", INT_MIN);
        break;
    case 'a': /* mapped pages */
        P("area", area);
        P("0", 0);
        P("odd", area + 1);
        P("gone", gone);
        P("kernel", 0xffff8000ul << 32);
        P("-1", -PAGE);
        P("user", 0x7ffffffff000);
        break;
    case 'A': /* their length */
        P("page", PAGE);
        P("0", 0);
        P("1", 1);
        P("-1", -1);
        P("max", LONG_MAX);
        P("lmin", LONG_MIN);
        P("tera", 1l << 47);
        P("past", 64 * PAGE);
        break;
    case 'D': /* where a descriptor goes to */
        P("200", 200);
        P("-1", -1);
        P("file", FILE_FD);
        P("max", INT_MAX);
        P("limit", 1 << 20);
        break;
    case 'H': /* a mode */
        P("0644", 0644);
        P("07777", 07777);
        P("-1", -1);
        P("fifo", S_IFIFO | 0600);
        P("dir", S_IFDIR | 0700);
        P("link", S_IFLNK | 0700);
        P("socket", S_IFSOCK | 0600);
        P("type3", 0030600);
        P("char", S_IFCHR | 0600);
        break;
    case 'N': /* the name of an attribute */
        P("user.a", text("user.a"));
        P("0", 0);
        P("1", 1);
        P("empty", text(""));
        P("user.", text("user."));
        P("plain", text("plain"));
        P("other", text("other.a"));
        P("system", text("system.none"));
        P("none", text("user.none"));
        P("trusted", text("trusted.a"));
        memset(long_name, 'l', 300);
        P("long", long_name);
        break;
    case '0': /* what is always right */
        P("0", 0);
        break;
    case '1':
        P("1", 1);
        break;
    case '2':
        P("mode", 0600);
        break;
    case '4':
        P("4", 4);
        break;
    case '6':
        P("6", 6);
        break;
    case '7':
        P("41", 41);
        break;
    case '9':
        P("tty", TTY_FD);
        break;
    case 'B': /* how memory is mapped */
        P("private", MAP_PRIVATE);
        P("shared", MAP_SHARED);
        P("validate", MAP_SHARED_VALIDATE);
        for (int bit = 4; bit < 32; bit++) {
            static char names[32][8];
            sprintf(names[bit], "b%d", bit);
            P(names[bit], MAP_PRIVATE | 1ul << bit);
        }
        break;
    case 'O': /* flags of open(2) for what is to be made */
        for (int bit = 0; bit < 32; bit++) {
            static char names[32][8];
            sprintf(names[bit], "b%d", bit);
            P(names[bit], O_CREAT | 1ul << bit);
        }
        P("excl", O_CREAT | O_EXCL);
        P("tmp", O_TMPFILE | O_RDWR);
        break;
    case 'Q': /* what terminals are asked */
    case 'U': /* what sockets are asked */
    case 'Y': /* later options of prctl(2) */
        for (int i = 0; i < 60; i++) {
            static char names[60][8];
            int base = kind == 'Q' ? 0x5400 : kind == 'U' ? 0x8900 : 24;
            sprintf(names[i], "%x", base + i);
            P(names[i], base + i);
        }
        break;
    case '3': /* commands of fcntl(2) beyond the usual */
        for (int i = 0; i < 20; i++) {
            static char names[20][8];
            sprintf(names[i], "%d", 1024 + i);
            P(names[i], 1024 + i);
        }
        break;
    case '5':
        P("private", MAP_PRIVATE);
        break;
    default:
        fprintf(stderr, "no kind %c\n", kind);
        exit(2);
    }
    return n;
}

/* What memory holds when one call begins. */
static void fill(char kind, int which)
{
    memset(good, 0, 5 * PAGE);
    texts = good + PAGE;
    vectors(kind == 'V' ? which < 6 ? which : 0 : 0);
    if (kind == 'M')
        message(which < 8 ? which : 0);
    else if (strchr("M", kind) == NULL)
        message(0);
    if (kind == 'V')
        vectors(which < 6 ? which : 0);
}

static void nothing(int number) { (void)number; }

static const char *answer(long result)
{
    static char shown[32];
    if (result == -1)
        return strerrorname_np(errno);
    snprintf(shown, sizeof shown, "%ld", result);
    return shown;
}

static void one(const struct call *call, int odd, int which)
{
    struct value list[64];
    long a[6] = {0};
    const char *label = "";
    fill(call->kinds[odd], which);
    for (int i = 0; call->kinds[i]; i++) {
        values(call->kinds[i], list);
        a[i] = list[i == odd ? which : 0].value;
        if (i == odd)
            label = list[which].label;
    }
    /* A wait without end is cut short, again and again should the first signal come before it. */
    ualarm(200000, 200000);
    long result = syscall(call->number, a[0], a[1], a[2], a[3], a[4], a[5]);
    const char *told = answer(result);
    ualarm(0, 0);
    printf("%s %d=%s %s\n", call->name, odd, label, told);
}

static void files(void)
{
    FILE *file = fopen("file", "w");
    fputs("some text that is long enough to be read", file);
    fclose(file);
    mkdir("dir", 0755);
    mkdir("full", 0755);
    mkdir("full/inner", 0755);
    CHECK(symlink("loop", "loop") == 0 || errno == EEXIST);
    CHECK(symlink("file", "link") == 0 || errno == EEXIST);
    CHECK(symlink("dir", "dirlink") == 0 || errno == EEXIST);
    CHECK(symlink("nowhere", "dangling") == 0 || errno == EEXIST);
    CHECK(mkfifo("fifo", 0600) == 0 || errno == EEXIST);
    close(open("empty", O_CREAT | O_WRONLY, 0755));
    file = fopen("garbage", "w");
    fputs("\177ELFgarbage", file);
    fclose(file);
    file = fopen("script", "w");
    fputs("#!/none/such\n", file);
    fclose(file);
    chmod("garbage", 0755);
    chmod("script", 0755);
}

static void run(const struct call *call)
{
    if (user)
        NEED(setgroups(0, NULL) == 0 && setresgid(1000, 1000, 1000) == 0 && setresuid(1000, 1000, 1000) == 0);
    int count = strlen(call->kinds);
    struct value list[64];
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGALRM, &action, NULL);
    signal(SIGUSR1, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    signal(64, SIG_IGN);
    for (int i = 0; i < count; i++) {
        if (!user && (access("file", F_OK) != 0 || access("dir", F_OK) != 0))
            files();
        prepare();
        texts = good + PAGE;
        int n = values(call->kinds[i], list);
        if (n == 1)
            continue;
        for (int which = 0; which < n; which++) {
            if (!user && access("file", F_OK) != 0)
                files();
            one(call, i, which);
        }
    }
    fflush(stdout);
}

static void drop(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    NEED(syscall(SYS_capget, &head, data) == 0);
    int taken[] = {CAP_SYS_TIME, CAP_SYS_BOOT, CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_PACCT, CAP_SYSLOG, CAP_SYS_PTRACE,
                   CAP_LINUX_IMMUTABLE, CAP_WAKE_ALARM, CAP_BLOCK_SUSPEND, CAP_AUDIT_CONTROL, CAP_PERFMON, CAP_BPF,
                   CAP_SYS_RESOURCE, CAP_IPC_LOCK, CAP_MAC_ADMIN, CAP_MAC_OVERRIDE, CAP_NET_ADMIN, CAP_NET_RAW,
                   CAP_SYS_NICE, CAP_MKNOD, CAP_AUDIT_READ, CAP_AUDIT_WRITE, CAP_CHECKPOINT_RESTORE, CAP_LEASE, CAP_NET_BROADCAST};
    for (unsigned i = 0; i < sizeof taken / sizeof *taken; i++) {
        uint32_t mask = ~(1u << taken[i] % 32);
        data[taken[i] / 32].effective &= mask;
        data[taken[i] / 32].permitted &= mask;
        data[taken[i] / 32].inheritable &= mask;
    }
    NEED(syscall(SYS_capset, &head, data) == 0);
}

int main(int argc, char **argv)
{
    /* Never with the machine's own root directory: "/" is an argument of calls that change modes, and the working directory
     * of files that are made. Natively it is run by alone.c, whose root is an empty tmpfs, without capabilities outside. */
    struct statfs root;
    NEED(statfs("/", &root) == 0);
    if (root.f_type == EXT4_MAGIC || (root.f_type != TMPFS_MAGIC && getenv("BEHIND_THE_SENTRY") == NULL)) {
        fprintf(stderr, "breadth: refuses to run with the machine's own root directory: run it by alone.c\n");
        return 99;
    }
    static char buffer[4096];
    user = argc > 1 && strcmp(argv[1], "user") == 0;
    const char *only = argc > 2 ? argv[2] : NULL;
    struct rlimit few = {4096, 4096}, small = {4 << 20, 4 << 20}, space = {1 << 30, 1 << 30};
    char template[] = "/tmp/breadth-XXXXXX";
    NEED(setrlimit(RLIMIT_NOFILE, &few) == 0);
    /* Natively the machine's memory is at stake: fallocate(2) of gigabytes in a tmpfs or memfd is memory. */
    NEED(setrlimit(RLIMIT_FSIZE, &small) == 0 && setrlimit(RLIMIT_AS, &space) == 0);
    NEED(mkdtemp(template) != NULL);
    /* A root of its own: "/" and "/dev/null" are arguments of calls that change and remove. */
    if (getenv("WHERE_IT_IS") == NULL)
        NEED(mount("none", template, "tmpfs", 0, "mode=755,size=16m") == 0);
    NEED(chdir(template) == 0 && mkdir("dev", 0755) == 0 && mkdir("dev/pts", 0755) == 0 && mkdir("work", 0755) == 0);
    NEED(mount("none", "dev/pts", "devpts", 0, "newinstance,ptmxmode=0666") == 0);
    NEED(symlink("pts/ptmx", "dev/ptmx") == 0);
    NEED(chroot(template) == 0 && chdir("/work") == 0);
    umask(022);
    drop();
    setvbuf(stdout, buffer, _IOLBF, sizeof buffer);
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (only != NULL && strcmp(only, calls[i].name) != 0)
            continue;
        char place[64];
        snprintf(place, sizeof place, "%s", calls[i].name);
        NEED(mkdir(place, 0755) == 0 && chdir(place) == 0);
        files();
        if (user)
            NEED(chmod(".", 01777) == 0 && chmod("file", 0666) == 0 && chmod("full", 0) == 0);
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            setsid();
            run(&calls[i]);
            _exit(0);
        }
        int status;
        NEED(waitpid(pid, &status, 0) == pid);
        if (status != 0)
            printf("%s ended with %#x\n", calls[i].name, status);
        NEED(chdir("/work") == 0);
        mq_unlink("/breadth");
    }
    fflush(stdout);
    DONE();
}
