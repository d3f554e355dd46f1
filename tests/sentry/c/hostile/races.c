/* What a call's arguments point to is rewritten, unmapped or closed by another thread while the call is served. Each call
 * has to act on what it has read once: what it was allowed and what it does are the same. */
#include "../check.h"
#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

enum { TIMES = 300, WORDS = 8 };

static atomic_int over;
static volatile long shared[WORDS] __attribute__((aligned(64)));
static long first[WORDS], second[WORDS];
static int words;
static char buffer[256];
static pthread_t racer;

static void *rewrites(void *unused)
{
    while (!atomic_load(&over)) {
        for (int i = 0; i < words; i++)
            shared[i] = first[i];
        for (int i = 0; i < words; i++)
            shared[i] = second[i];
    }
    return unused;
}

static void begin(const void *one, const void *other, int size)
{
    memset(first, 0, sizeof first);
    memset(second, 0, sizeof second);
    memcpy(first, one, size);
    memcpy(second, other, size);
    words = (size + 7) / 8;
    memcpy((void *)shared, one, size);
    over = 0;
    NEED(pthread_create(&racer, NULL, rewrites, NULL) == 0);
}

static void end(void)
{
    atomic_store(&over, 1);
    pthread_join(racer, NULL);
}

#define MAKE(call) \
    errno = 0; \
    long result = (call); \
    int error = result == -1 ? errno : 0

static void buffers(int fd)
{
    struct iovec right = {buffer, 8}, wrong = {(void *)8, 3};
    begin(&right, &wrong, sizeof right);
    for (int i = 0; i < TIMES; i++) {
        {
            MAKE(syscall(SYS_pwritev, fd, shared, 1, 0, 0));
            CHECK(result == 8 || result == 3 || error == EFAULT);
        }
        {
            MAKE(syscall(SYS_preadv, fd, shared, 1, 0, 0));
            CHECK(result == 8 || result == 3 || error == EFAULT);
        }
        MAKE(syscall(SYS_process_vm_readv, getpid(), shared, 1, &(struct iovec){buffer + 64, 8}, 1, 0));
        CHECK(result == 8 || result == 3 || error == EFAULT);
    }
    end();
}

static void paths(void)
{
    struct stat outside, got;
    struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_BENEATH};
    NEED(mkdir("inside", 0700) == 0 && close(open("outside", O_CREAT | O_WRONLY, 0600)) == 0);
    NEED(close(open("inside/f", O_CREAT | O_WRONLY, 0600)) == 0 && stat("outside", &outside) == 0);
    NEED(symlink("../outside", "inside/link") == 0);
    int dir = open("inside", O_RDONLY | O_DIRECTORY);
    begin("f\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "../outside\0\0\0\0\0", 16);
    for (int i = 0; i < TIMES; i++) {
        MAKE(syscall(SYS_openat2, dir, shared, &how, sizeof how));
        CHECK(result >= 0 || error == EXDEV || error == ENOENT);
        if (result >= 0) {
            CHECK(fstat(result, &got) == 0 && got.st_ino != outside.st_ino);
            close(result);
        }
    }
    end();
    struct open_how safe = {.flags = O_RDONLY, .resolve = RESOLVE_NO_SYMLINKS}, odd = {.flags = O_RDONLY, .resolve = 1 << 20};
    begin(&safe, &odd, sizeof safe);
    for (int i = 0; i < TIMES; i++) {
        MAKE(syscall(SYS_openat2, dir, "link", shared, sizeof safe));
        CHECK(error == ELOOP || error == EINVAL);
    }
    end();
    close(dir);
}

static void limits(void)
{
    struct rlimit low = {5, 8}, high = {10, 20}, now;
    begin(&low, &high, sizeof low);
    for (int i = 0; i < TIMES; i++) {
        MAKE(setrlimit(RLIMIT_CORE, (void *)shared));
        /* A limit that was lowered is raised again only with CAP_SYS_RESOURCE. */
        CHECK(result == 0 || error == EINVAL || error == EPERM);
        CHECK(getrlimit(RLIMIT_CORE, &now) == 0 && (now.rlim_cur <= now.rlim_max));
    }
    end();
}

static void times(void)
{
    struct timespec right = {0, 1000}, wrong = {0, 2000000000};
    begin(&right, &wrong, sizeof right);
    for (int i = 0; i < TIMES; i++) {
        MAKE(nanosleep((void *)shared, NULL));
        CHECK(result == 0 || error == EINVAL);
    }
    end();
}

static void handler(int number) { (void)number; }

static void actions(void)
{
    struct { long handler, flags, restorer, mask; } one = {(long)handler, SA_RESTART, 0, 1}, other = {(long)SIG_IGN, SA_NODEFER, 0, 2}, old;
    begin(&one, &other, sizeof one);
    for (int i = 0; i < TIMES; i++) {
        CHECK(syscall(SYS_rt_sigaction, SIGUSR1, shared, &old, 8) == 0);
        CHECK(old.handler == 0 || old.handler == (long)handler || old.handler == (long)SIG_IGN);
        CHECK(old.flags == 0 || old.flags == SA_RESTART || old.flags == SA_NODEFER);
    }
    end();
    signal(SIGUSR1, SIG_DFL);
}

static void connections(void)
{
    struct sockaddr_un one = {AF_UNIX, "one"}, other = {AF_UNIX, "other"};
    int a = socket(AF_UNIX, SOCK_STREAM, 0), b = socket(AF_UNIX, SOCK_STREAM, 0);
    NEED(bind(a, (void *)&one, sizeof one) == 0 && bind(b, (void *)&other, sizeof other) == 0);
    NEED(listen(a, 400) == 0 && listen(b, 400) == 0);
    begin(&one, &other, 16);
    for (int i = 0; i < TIMES; i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        struct sockaddr_un peer;
        socklen_t size = sizeof peer;
        MAKE(connect(fd, (void *)shared, 16));
        CHECK(result == 0 || error == ENOENT);
        if (result == 0)
            CHECK(getpeername(fd, (void *)&peer, &size) == 0 && (!strcmp(peer.sun_path, "one") || !strcmp(peer.sun_path, "other")));
        close(fd);
    }
    end();
    close(a);
    close(b);
}

static void descriptors(int fd)
{
    struct { struct cmsghdr head; int fd, pad; } one = {{20, SOL_SOCKET, SCM_RIGHTS}, fd, 0},
        other = {{24, SOL_SOCKET, SCM_RIGHTS}, 999, 999};
    struct msghdr message = {.msg_iov = &(struct iovec){buffer, 1}, .msg_iovlen = 1, .msg_control = (void *)shared,
                             .msg_controllen = sizeof one};
    char room[64];
    struct stat sent, got;
    int pair[2];
    NEED(fstat(fd, &sent) == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    begin(&one, &other, sizeof one);
    for (int i = 0; i < TIMES; i++) {
        MAKE(sendmsg(pair[0], &message, MSG_DONTWAIT));
        CHECK(result == 1 || error == EBADF || error == EINVAL);
        if (result != 1)
            continue;
        struct msghdr back = {.msg_iov = &(struct iovec){buffer, 1}, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
        CHECK(recvmsg(pair[1], &back, MSG_DONTWAIT) == 1);
        struct cmsghdr *head = CMSG_FIRSTHDR(&back);
        if (head != NULL)
            for (unsigned at = 0; at < (head->cmsg_len - sizeof *head) / 4; at++) {
                int came = ((int *)CMSG_DATA(head))[at];
                CHECK(fstat(came, &got) == 0 && (got.st_ino == sent.st_ino || got.st_ino != 0));
                close(came);
            }
    }
    end();
    close(pair[0]);
    close(pair[1]);
}

static void others(int fd)
{
    struct pollfd one = {fd, POLLIN, 0}, other = {999, POLLOUT, 0};
    begin(&one, &other, sizeof one);
    for (int i = 0; i < TIMES; i++) {
        MAKE(poll((void *)shared, 1, 0));
        CHECK(result == 0 || (result == 1 && error == 0));
    }
    end();
    int set = semget(IPC_PRIVATE, 1, 0600);
    struct sembuf up = {0, 1, 0}, far = {60000, 1, 0};
    begin(&up, &far, sizeof up);
    for (int i = 0; i < TIMES; i++) {
        MAKE(semop(set, (void *)shared, 1));
        CHECK(result == 0 || error == EFBIG);
    }
    end();
    CHECK(semctl(set, 0, GETVAL) <= TIMES && semctl(set, 0, IPC_RMID) == 0);
    off_t zero = 0, below = -5;
    int to = open("copy", O_CREAT | O_RDWR, 0600);
    begin(&zero, &below, sizeof zero);
    for (int i = 0; i < TIMES; i++) {
        MAKE(sendfile(to, fd, (off_t *)shared, 4));
        CHECK((result >= 0 && result <= 4) || error == EINVAL);
    }
    end();
    close(to);
}

/* In a child, what cannot be taken back. */
static void rights(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct now[2], less[2], broken[2];
    NEED(syscall(SYS_capget, &head, now) == 0);
    memcpy(less, now, sizeof now);
    memcpy(broken, now, sizeof now);
    less[0].permitted &= ~(1u << CAP_CHOWN);
    less[0].effective &= ~(1u << CAP_CHOWN);
    broken[0].permitted &= ~(1u << CAP_CHOWN); /* it would be effective without being permitted */
    begin(less, broken, sizeof less);
    for (int i = 0; i < TIMES; i++) {
        MAKE(syscall(SYS_capset, &head, shared));
        CHECK(result == 0 || error == EPERM);
        CHECK(syscall(SYS_capget, &head, now) == 0 && (now[0].effective & ~now[0].permitted) == 0);
    }
    end();
}

static void filters(void)
{
    struct sock_filter right = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW), wrong = BPF_JUMP(BPF_JMP | BPF_JA, 200, 0, 0);
    struct sock_fprog program = {1, (void *)shared};
    NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    begin(&right, &wrong, sizeof right);
    for (int i = 0; i < TIMES; i++) {
        MAKE(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
        CHECK(result == 0 || error == EINVAL);
        CHECK(syscall(SYS_getpid) == getpid());
    }
    end();
}

static void in_child(void (*run)(void))
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        check_failures = 0;
        run();
        _exit(check_failures != 0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

/* The memory itself comes and goes. */
static char *page;

static void *unmaps(void *unused)
{
    while (!atomic_load(&over)) {
        munmap(page, 4096);
        mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        mprotect(page, 4096, PROT_NONE);
        mprotect(page, 4096, PROT_READ);
        mprotect(page, 4096, PROT_READ | PROT_WRITE);
    }
    return unused;
}

static void memory(int fd)
{
    int pair[2], set = epoll_create1(0), dir = open(".", O_RDONLY | O_DIRECTORY);
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(page != MAP_FAILED && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    NEED(epoll_ctl(set, EPOLL_CTL_ADD, pair[0], &(struct epoll_event){EPOLLOUT, {0}}) == 0);
    over = 0;
    NEED(pthread_create(&racer, NULL, unmaps, NULL) == 0);
    for (int i = 0; i < TIMES; i++) {
#define TOUCHES(call) \
    do { \
        MAKE(call); \
        CHECK(result >= 0 || error == EFAULT); \
    } while (0)
        TOUCHES(syscall(SYS_pread64, fd, page, 40, 0));
        TOUCHES(syscall(SYS_pwrite64, fd, page, 40, 0));
        TOUCHES(syscall(SYS_fstat, fd, page));
        TOUCHES(syscall(SYS_getcwd, page, 4096));
        TOUCHES(syscall(SYS_uname, page));
        TOUCHES(syscall(SYS_getrandom, page, 4096, 0));
        TOUCHES(syscall(SYS_clock_gettime, CLOCK_REALTIME, page));
        TOUCHES(syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, page, 8));
        TOUCHES(syscall(SYS_epoll_wait, set, page, 10, 0));
        TOUCHES(syscall(SYS_getrusage, RUSAGE_SELF, page));
        TOUCHES(syscall(SYS_sendto, pair[0], page, 1, MSG_DONTWAIT, NULL, 0));
        TOUCHES(syscall(SYS_lseek, dir, 0, SEEK_SET));
        TOUCHES(syscall(SYS_getdents64, dir, page, 4096));
        TOUCHES(syscall(SYS_poll, NULL, 0, 0));
        MAKE(syscall(SYS_recvfrom, pair[1], page, 1, MSG_DONTWAIT, NULL, NULL));
        CHECK(result >= 0 || error == EFAULT || error == EAGAIN);
    }
    end();
    munmap(page, 4096);
    close(set);
    close(dir);
    close(pair[0]);
    close(pair[1]);
}

/* The descriptor is now a file, now a pipe, now nothing. */
static int changing, file, ends[2];

static void *changes(void *unused)
{
    while (!atomic_load(&over)) {
        dup2(file, changing);
        dup2(ends[0], changing);
        close(changing);
    }
    return unused;
}

static void closing(int fd)
{
    NEED(pipe2(ends, O_NONBLOCK) == 0);
    file = fd;
    changing = 77;
    over = 0;
    NEED(pthread_create(&racer, NULL, changes, NULL) == 0);
    for (int i = 0; i < TIMES; i++) {
        struct stat got;
        MAKE(read(changing, buffer, 8));
        CHECK(result >= 0 || error == EBADF || error == EAGAIN);
        CHECK(fstat(changing, &got) == 0 || errno == EBADF);
        CHECK(lseek(changing, 0, SEEK_SET) == 0 || errno == EBADF || errno == ESPIPE);
        CHECK(poll(&(struct pollfd){changing, POLLIN, 0}, 1, 0) >= 0);
        void *mapped = mmap(NULL, 4096, PROT_READ, MAP_SHARED, changing, 0);
        CHECK(mapped != MAP_FAILED || errno == EBADF || errno == ENODEV);
        if (mapped != MAP_FAILED)
            munmap(mapped, 4096);
        int copy = dup(changing);
        CHECK(copy >= 0 || errno == EBADF);
        if (copy >= 0)
            close(copy);
    }
    end();
    close(changing);
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    char template[] = "races-XXXXXX";
    NEED(mkdtemp(template) != NULL && chdir(template) == 0);
    int fd = open("data", O_CREAT | O_RDWR, 0600);
    NEED(fd >= 0 && write(fd, buffer, sizeof buffer) == sizeof buffer);
    buffers(fd);
    paths();
    limits();
    times();
    actions();
    connections();
    descriptors(fd);
    others(fd);
    in_child(rights);
    in_child(filters);
    memory(fd);
    closing(fd);
    DONE();
}
