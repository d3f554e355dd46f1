/*
 * A QEMU, the original, that can be copied while it has a machine in it, into twins. Loaded by LD_PRELOAD, this waits
 * on a socket, has all threads stand still when it is first asked, and forks.
 *
 * fork(2) copies the memory and one thread. The others are made anew in the copy: each thread stands in a signal
 * handler, whose frame (with all registers and the mask of signals) is on the thread's stack, and with the stack in
 * the copy. A new thread with the old one's thread pointer that jumps into that handler and returns from it goes on
 * where the old one was interrupted. No lock is held by anybody who is not there, because everybody is.
 *
 * A twin has the same open files. Those that matter are replaced: counters (eventfd(2)) by new ones with the same
 * count, and the files that the request names by those that come with it, wherever they are mapped, too. A pipe, a
 * socket, a timer that would be left is an error.
 *
 * The original never runs again. It has what is needed to become somebody else (the capabilities SETUID, SETGID and
 * SYS_ADMIN) and no filter of system calls; a twin gives up the former and installs the latter, which comes with the
 * request, before it has a second thread.
 *
 * Messages of its socket and of a life line are records (SOCK_SEQPACKET):
 *
 *   to the original     'f', with the other end of a new life line
 *   from it             int32: the twin's process id, with its descriptor (pidfd_open(2)); or minus an error number
 *   on the life line    to the twin: struct request and the filter, with a network namespace and what takes the place
 *                       of `target`; from it: 'u' (up) when all its threads run, or 'x' and two int32: an error number
 *                       and the line here where it came up. Later 's' (settle), to the twin, and 's' and int64, from
 *                       it: how many bytes it has given back, or minus an error number. It ends when the line does.
 *
 * Before it is copied for the first time the original puts the guest's memory as it then is into a sealed file, and maps
 * that privately in its place: a page that a twin has written to, and that is again as it was, can then be given back.
 *
 * Nothing here may allocate memory or use stdio while threads stand still: they may hold the locks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/rseq.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <asm/prctl.h>
#include <time.h>
#include <unistd.h>

#ifndef __x86_64__
#error "threads are made anew by code for x86-64"
#endif

enum { MAX_THREADS = 64, MAX_TARGETS = 16, MAX_FILTER = 1024, MAX_MAPPED = 8, STACK = 4096, STILL_SECONDS = 10 };
enum { PAGE = 4096, MAX_PAGES = 1 << 15 };
#define STAND (SIGRTMAX - 3)
#define MAGIC 0x6e697774u

struct request {
    uint32_t magic, uid, gid, targets, filter;
    int32_t target[MAX_TARGETS];
};

struct thread {
    pid_t tid;
    int still;                  /* futex: it stands in the handler */
    unsigned long pointer;      /* the register FS */
    int *number;                /* where it has its thread id, cleared by the kernel when it ends (set_tid_address(2)) */
    void *robust;
    size_t robust_size;
    void *jump[5];
    char stack[STACK] __attribute__((aligned(16)));
};

static struct thread threads[MAX_THREADS];
static int count, going, control = -1;
static int fds[1 + MAX_TARGETS], fd_count, life = -1;
static struct {
    struct request head;
    struct sock_filter filter[MAX_FILTER];
} request;
static char text[65536] __attribute__((aligned(8)));
static int (*next_mask)(int, const sigset_t *, sigset_t *);
static int (*next_madvise)(void *, size_t, int);
static bool born;                /* this is a twin, and its threads run */
static int round_of;            /* futex: which standing still of a twin this is; another number lets go */
static bool merge;              /* QEMU wants equal pages merged (ksm) */
static struct {
    char *begin;                /* the guest's memory, mapped privately */
    const char *file;           /* the same file, only to be read */
    size_t size;
    int pagemap;
} memory = {.pagemap = -1};

/* ---- what QEMU calls */

/* It blocks all signals in most of its threads; ours has to come through. */
int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
    sigset_t copy;
    if (set && how != SIG_UNBLOCK && control >= 0) {
        copy = *set;
        sigdelset(&copy, STAND);
        set = &copy;
    }
    return next_mask(how, set, old);
}

/* It does not want a child of its own to have the guest's memory; a copy has to. And what the guest gives back of its
 * window stays in the file, for QEMU has it punch the hole by fallocate(2), which does nothing here for the sake of the
 * template's file (docs/templates.md). This punches one into what is mapped shared, and refuses anything else. */
int madvise(void *address, size_t length, int advice)
{
    merge = merge || advice == MADV_MERGEABLE;
    if (control >= 0 && advice == MADV_DONTFORK)
        return 0;
    if (control >= 0 && advice == MADV_DONTNEED && !next_madvise(address, length, MADV_REMOVE))
        return 0;
    return next_madvise(address, length, advice);
}

/* What it tells a guest that asks for random numbers (RDRAND, virtio-rng). GnuTLS has a generator of its own, which
 * learns of forks from fork(3) only: all twins would draw the same numbers. */
int gnutls_rnd(int level, void *data, size_t size)
{
    (void)level;
    for (size_t done = 0; done < size;) {
        ssize_t got = getrandom((char *)data + done, size - done, 0);
        if (got < 0 && errno != EINTR)
            return -1;
        if (got > 0)
            done += (size_t)got;
    }
    return 0;
}

/* ---- standing still */

static long futex(int *word, int op, int value, const struct timespec *timeout)
{
    return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

/* Waits until a word is not 0. */
static void await(int *word)
{
    while (!__atomic_load_n(word, __ATOMIC_SEQ_CST))
        futex(word, FUTEX_WAIT, 0, NULL);
}

static void set(int *word, int how_many)
{
    __atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
    futex(word, FUTEX_WAKE, how_many, NULL);
}

static void stand(int signal)
{
    int before = errno;
    pid_t tid = (pid_t)syscall(SYS_gettid);
    for (int i = 0; i < count; i++) {
        struct thread *me = &threads[i];
        if (me->tid != tid || me->still)
            continue;
        if (born) {
            int round = __atomic_load_n(&round_of, __ATOMIC_SEQ_CST);
            set(&me->still, 1);
            while (__atomic_load_n(&round_of, __ATOMIC_SEQ_CST) == round)
                futex(&round_of, FUTEX_WAIT, round, NULL);
            break;
        }
        if (syscall(SYS_arch_prctl, ARCH_GET_FS, &me->pointer) || prctl(PR_GET_TID_ADDRESS, &me->number, 0, 0, 0) ||
            syscall(SYS_get_robust_list, 0, &me->robust, &me->robust_size))
            _exit(70);
        if (__builtin_setjmp(me->jump) == 0) {
            set(&me->still, 1);
            await(&going); /* only in a copy, and there it is another thread that comes out below */
        }
    }
    (void)signal;
    errno = before;
}

/* What one look at a directory of numbers finds: each is given to `use`, until that returns an error. */
static int each_number(const char *path, int (*use)(int))
{
    struct entry {
        uint64_t ino;
        int64_t off;
        unsigned short len;
        unsigned char type;
        char name[];
    };
    char buffer[4096] __attribute__((aligned(8)));
    int error = 0, directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    long size = 0;
    if (directory < 0)
        return -errno;
    while (!error && (size = syscall(SYS_getdents64, directory, buffer, sizeof buffer)) > 0)
        for (long at = 0; !error && at < size;) {
            struct entry *entry = (void *)(buffer + at);
            int number = 0;
            const char *c = entry->name;
            for (; *c >= '0' && *c <= '9'; c++)
                number = number * 10 + (*c - '0');
            if (!*c && number != directory)
                error = use(number);
            at += entry->len;
        }
    if (!error && size < 0)
        error = -errno;
    close(directory);
    return error;
}

static int found;

static int note_thread(int tid)
{
    if (tid == (int)syscall(SYS_gettid))
        return 0;
    for (int i = 0; i < count; i++)
        if (threads[i].tid == tid)
            return 0;
    if (count == MAX_THREADS)
        return -E2BIG;
    threads[count].tid = tid;
    __atomic_store_n(&count, count + 1, __ATOMIC_SEQ_CST);
    found++;
    return 0;
}

/* Has all other threads stand still, and those that they make meanwhile. */
static int still(void)
{
    const struct timespec patience = {.tv_sec = STILL_SECONDS};
    do {
        int begin = count, error;
        found = 0;
        if ((error = each_number("/proc/self/task", note_thread)))
            return error;
        for (int i = begin; i < count; i++)
            if (syscall(SYS_tgkill, getpid(), threads[i].tid, STAND))
                threads[i].tid = 0; /* it has ended meanwhile */
        for (int i = begin; i < count; i++)
            while (threads[i].tid && !__atomic_load_n(&threads[i].still, __ATOMIC_SEQ_CST))
                if (futex(&threads[i].still, FUTEX_WAIT, 0, &patience) && errno == ETIMEDOUT) {
                    if (!syscall(SYS_tgkill, getpid(), threads[i].tid, 0))
                        return -ETIMEDOUT;
                    threads[i].tid = 0;
                }
    } while (found);
    return 0;
}

/* ---- a twin becomes somebody else */

static struct {
    dev_t device;
    ino_t inode;
    int fd;
} replaced[MAX_TARGETS];

/* Reads a small file of /proc into `text`. */
static int read_text(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t size = 0;
    ssize_t got = -1;
    if (fd < 0)
        return -errno;
    while (size < sizeof text - 1 && (got = read(fd, text + size, sizeof text - 1 - size)) > 0)
        size += (size_t)got;
    close(fd);
    text[size] = 0;
    return got < 0 ? -EIO : size == sizeof text - 1 ? -E2BIG : 0;
}

static char *decimal(char *to, int number)
{
    char digits[12];
    int size = 0;
    do
        digits[size++] = (char)('0' + number % 10);
    while (number /= 10);
    while (size)
        *to++ = digits[--size];
    *to = 0;
    return to;
}

static unsigned long long numeral(const char *from, int base, const char **end)
{
    unsigned long long value = 0;
    for (;; from++) {
        int digit = *from >= '0' && *from <= '9' ? *from - '0' : *from >= 'a' && *from <= 'f' ? *from - 'a' + 10 : 99;
        if (digit >= base)
            break;
        value = value * (unsigned)base + (unsigned)digit;
    }
    if (end)
        *end = from;
    return value;
}

static const char *value_of(const char *key)
{
    const char *at = strstr(text, key);
    if (!at)
        return NULL;
    for (at += strlen(key); *at == ' ' || *at == '\t'; at++)
        ;
    return at;
}

/* A counter of its own in the place of one that the original and all other twins have, too. */
static int new_counter(int fd)
{
    char path[64] = "/proc/self/fdinfo/";
    const char *flags, *counter;
    int error, made;
    decimal(path + strlen(path), fd);
    if ((error = read_text(path)))
        return error;
    flags = value_of("flags:");
    counter = value_of("eventfd-count:");
    if (!flags || !counter)
        return -EPROTO;
    unsigned long long value = numeral(counter, 16, NULL);
    int mode = (int)numeral(flags, 8, NULL);
    made = eventfd(0, (mode & O_NONBLOCK ? EFD_NONBLOCK : 0) | EFD_CLOEXEC);
    if (made < 0)
        return -errno;
    if ((value && write(made, &value, sizeof value) != sizeof value) || dup3(made, fd, O_CLOEXEC) < 0)
        return -errno;
    close(made);
    return 0;
}

/* One descriptor of the original's. */
static int replace(int fd)
{
    char path[64] = "/proc/self/fd/", target[64];
    struct stat status;
    for (int i = 0; i < fd_count; i++)
        if (fds[i] == fd)
            return 0;
    if (fd == life || fstat(fd, &status))
        return 0;
    for (unsigned i = 0; i < request.head.targets; i++)
        if (replaced[i].device == status.st_dev && replaced[i].inode == status.st_ino)
            return dup3(replaced[i].fd, fd, O_CLOEXEC) < 0 ? -errno : 0;
    decimal(path + strlen(path), fd);
    ssize_t size = readlink(path, target, sizeof target - 1);
    if (size < 0)
        return -errno;
    target[size] = 0;
    if (!strcmp(target, "anon_inode:[eventfd]"))
        return new_counter(fd);
    /* What a signal descriptor gives depends on who reads it. Anything else of this kind would be shared. */
    if (!strncmp(target, "anon_inode:", 11) && strcmp(target, "anon_inode:[signalfd]"))
        return -EBADF;
    return strncmp(target, "socket:", 7) && strncmp(target, "pipe:", 5) ? 0 : -ENOTCONN;
}

/* One mapping of this process: proc_pid_maps(5). */
struct mapping {
    unsigned long begin, end, offset, major, minor, inode;
    const char *mode, *name;
};

/* Gives each mapping to `use`, until that returns an error. */
static int each_mapping(int (*use)(const struct mapping *))
{
    static char line[4608];
    int error = 0, size = 0, fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    ssize_t got = 0;
    if (fd < 0)
        return -errno;
    while (!error && (got = read(fd, text, sizeof text)) > 0)
        for (ssize_t i = 0; !error && i < got; i++) {
            struct mapping one;
            const char *at = line;
            if (text[i] != '\n') {
                if (size < (int)sizeof line - 1)
                    line[size++] = text[i];
                continue;
            }
            line[size] = 0;
            size = 0;
            one.begin = numeral(at, 16, &at);
            one.end = numeral(at + 1, 16, &at);
            one.mode = at + 1;
            one.offset = numeral(one.mode + 5, 16, &at);
            one.major = numeral(at + 1, 16, &at);
            one.minor = numeral(at + 1, 16, &at);
            one.inode = numeral(at + 1, 10, &one.name);
            while (*one.name == ' ')
                one.name++;
            error = use(&one);
        }
    close(fd);
    return error ? error : got < 0 ? -EIO : 0;
}

static struct {
    unsigned long begin, end, offset;
    int fd, protection;
} mapped[MAX_MAPPED];
static int amount;

static int note_replaced(const struct mapping *one)
{
    unsigned long device = (one->major & 0xfffu) << 8 | (one->minor & 0xffu) | (one->minor & ~0xfful) << 12;
    for (unsigned t = 0; one->inode && one->mode[3] == 's' && t < request.head.targets; t++) {
        if (replaced[t].inode != one->inode || replaced[t].device != device)
            continue;
        if (amount == MAX_MAPPED)
            return -E2BIG;
        mapped[amount].begin = one->begin;
        mapped[amount].end = one->end;
        mapped[amount].offset = one->offset;
        mapped[amount].fd = replaced[t].fd;
        mapped[amount++].protection = (one->mode[0] == 'r' ? PROT_READ : 0) | (one->mode[1] == 'w' ? PROT_WRITE : 0);
    }
    return 0;
}

/* Maps the new files where the old ones are mapped for all who have them. */
static int remap(void)
{
    int error = each_mapping(note_replaced);
    if (error)
        return error;
    for (int i = 0; i < amount; i++)
        if (mmap((void *)mapped[i].begin, mapped[i].end - mapped[i].begin, mapped[i].protection,
                 MAP_SHARED | MAP_FIXED, mapped[i].fd, (off_t)mapped[i].offset) == MAP_FAILED)
            return -errno;
    return 0;
}

static int check(long result, int *where, int line)
{
    *where = line;
    return result < 0 ? -errno : 0;
}
#define TRY(call) if ((error = check((call), where, __LINE__))) return error
#define STEP(call) if ((*where = __LINE__, error = (call))) return error

static int become(int *where)
{
    const struct request *head = &request.head;
    struct sock_fprog program = {.len = (unsigned short)head->filter, .filter = request.filter};
    struct __user_cap_header_struct version = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};
    struct stat status;
    int error;

    close(control);
    TRY(setns(fds[0], CLONE_NEWNET));
    TRY(setsid());
    for (unsigned i = 0; i < head->targets; i++) {
        TRY(fstat(head->target[i], &status));
        replaced[i].device = status.st_dev;
        replaced[i].inode = status.st_ino;
        replaced[i].fd = fds[1 + i];
    }
    STEP(remap());
    STEP(each_number("/proc/self/fd", replace));
    for (int i = 0; i < fd_count; i++)
        close(fds[i]);
    TRY(syscall(SYS_setgroups, 0, NULL));
    TRY(syscall(SYS_setresgid, head->gid, head->gid, head->gid));
    TRY(syscall(SYS_setresuid, head->uid, head->uid, head->uid));
    TRY(syscall(SYS_capset, &version, none));
    if (memory.size) {
        /* Opened by the user that it now is, to whom it shows no physical addresses; who that user is to his own
         * directory of /proc depends on this flag. There is nobody else of that user. */
        TRY(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
        TRY(memory.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
        TRY(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    }
    TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    TRY(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0));
    return 0;
}

/* ---- its threads */

__attribute__((used, noreturn)) static void begin_thread(struct thread *one)
{
    struct rseq *area = (void *)(one->pointer + (unsigned long)__rseq_offset);
    syscall(SYS_set_robust_list, one->robust, one->robust_size);
    if (__rseq_size && syscall(SYS_rseq, area, 32, 0, RSEQ_SIG))
        area->cpu_id = (uint32_t)RSEQ_CPU_ID_REGISTRATION_FAILED;
    await(&going);
    __builtin_longjmp(one->jump, 1);
}

static long make_thread(struct thread *one)
{
    unsigned long flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
                          CLONE_SETTLS | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
    void **stack = (void **)(one->stack + STACK) - 2;
    long result;
    stack[0] = one;
    register void *number __asm__("r10") = one->number;
    register unsigned long pointer __asm__("r8") = one->pointer;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "pop %%rdi\n\t"
                     "and $-16, %%rsp\n\t"
                     "call begin_thread\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "0"(SYS_clone), "D"(flags), "S"(stack), "d"(NULL), "r"(number), "r"(pointer)
                     : "rcx", "r11", "memory");
    return result;
}

/* ---- the guest's memory */

static unsigned char resident[MAX_PAGES];

static int note_memory(const struct mapping *one)
{
    if (strncmp(one->name, "/memfd:casemate-template", 24) || strncmp(one->mode, "rw-p", 4))
        return 0;
    if (memory.size || one->offset)
        return -E2BIG;
    memory.begin = (char *)one->begin;
    memory.size = one->end - one->begin;
    return 0;
}

/* Puts what the file has of the guest's memory, and what was written to it since, into another one; what is neither
 * stays a hole. */
static int fill(int fd)
{
    size_t pages = memory.size / PAGE;
    if (ftruncate(fd, (off_t)memory.size) || mincore(memory.begin, memory.size, resident))
        return -errno;
    for (size_t i = 0, end; i < pages; i = end) {
        for (end = i + 1; end < pages && !(resident[end] & 1) == !(resident[i] & 1); end++)
            ;
        for (size_t at = i; resident[i] & 1 && at < end;) {
            ssize_t put = pwrite(fd, memory.begin + at * PAGE, (end - at) * PAGE, (off_t)(at * PAGE));
            if (put <= 0 || put % PAGE)
                return put < 0 ? -errno : -ENOSPC;
            at += (size_t)put / PAGE;
        }
    }
    return fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) ? -errno : 0;
}

/* Has the guest's memory begin anew as it is now, for all twins. Where it cannot be done they give nothing back. */
static void rebase(void)
{
    int fd = -1, error = each_mapping(note_memory);
    void *file = MAP_FAILED;
    if (error || !memory.size || memory.size / PAGE > MAX_PAGES)
        goto none;
    fd = (int)syscall(SYS_memfd_create, "casemate-original", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || fill(fd))
        goto none;
    file = mmap(NULL, memory.size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (file == MAP_FAILED || mmap(memory.begin, memory.size, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, 0) == MAP_FAILED)
        goto none;
    next_madvise(memory.begin, memory.size, MADV_DONTDUMP);
    if (merge)
        next_madvise(memory.begin, memory.size, MADV_MERGEABLE);
    memory.file = file;
    close(fd);
    return;
none:
    if (file != MAP_FAILED)
        munmap(file, memory.size);
    if (fd >= 0)
        close(fd);
    memory.size = 0;
}

/* Gives back what is again as the original had it, while nobody else runs; how many bytes that are. */
static int64_t give_back(void)
{
    enum { PRESENT = 63, FILE_PAGE = 61 };
    uint64_t *entries = (uint64_t *)(void *)text;
    size_t pages = memory.size / PAGE, most = sizeof text / sizeof *entries;
    off_t where = (off_t)((unsigned long)memory.begin / PAGE * sizeof *entries);
    int64_t given = 0;
    for (size_t i = 0; i < pages;) {
        size_t amount_now = pages - i < most ? pages - i : most;
        ssize_t got = pread(memory.pagemap, entries, amount_now * sizeof *entries,
                            where + (off_t)(i * sizeof *entries));
        if (got < (ssize_t)sizeof *entries)
            return got < 0 ? -errno : -EIO;
        size_t stop = (size_t)got / sizeof *entries;
        for (size_t k = 0, run; k < stop; k += run ? run : 1) {
            for (run = 0; k + run < stop; run++) {
                size_t at = (i + k + run) * PAGE;
                if (!(entries[k + run] >> PRESENT & 1) || entries[k + run] >> FILE_PAGE & 1 ||
                    memcmp(memory.begin + at, memory.file + at, PAGE))
                    break;
            }
            if (run && next_madvise(memory.begin + (i + k) * PAGE, run * PAGE, MADV_DONTNEED))
                return -errno;
            given += (int64_t)(run * PAGE);
        }
        i += stop;
    }
    /* What was looked at for it need not be mapped. */
    next_madvise((void *)(unsigned long)memory.file, memory.size, MADV_DONTNEED);
    return given;
}

static int64_t settle(void)
{
    int64_t result;
    if (!memory.size || memory.pagemap < 0)
        return -EOPNOTSUPP;
    for (int i = 0; i < count; i++)
        threads[i].still = 0;
    __atomic_store_n(&count, 0, __ATOMIC_SEQ_CST);
    result = still();
    if (!result)
        result = give_back();
    __atomic_add_fetch(&round_of, 1, __ATOMIC_SEQ_CST);
    futex(&round_of, FUTEX_WAKE, INT_MAX, NULL);
    return result;
}

/* ---- messages */

/* Takes a record and its descriptors into `fds`; its size, or 0 at the end, or -1 for one that is too long. */
static ssize_t take(int sock, void *into, size_t size)
{
    char space[CMSG_SPACE(sizeof fds)] __attribute__((aligned(8)));
    struct iovec part = {into, size};
    /* CMSG_LEN, for CMSG_SPACE has room for one more on the way to the next multiple of 8. */
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = CMSG_LEN(sizeof fds)};
    ssize_t got = recvmsg(sock, &message, MSG_CMSG_CLOEXEC); /* all signals are blocked: it is not interrupted */
    fd_count = 0;
    if (got <= 0)
        return 0;
    for (struct cmsghdr *one = CMSG_FIRSTHDR(&message); one; one = CMSG_NXTHDR(&message, one))
        if (one->cmsg_level == SOL_SOCKET && one->cmsg_type == SCM_RIGHTS) {
            fd_count = (int)((one->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds, CMSG_DATA(one), (size_t)fd_count * sizeof(int));
        }
    return message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? -1 : got;
}

static bool sane(ssize_t size)
{
    const struct request *head = &request.head;
    return size >= (ssize_t)sizeof *head && head->magic == MAGIC && head->targets <= MAX_TARGETS &&
           (unsigned)fd_count == 1 + head->targets && head->uid && head->gid && head->filter &&
           head->filter <= MAX_FILTER && size == (ssize_t)(sizeof *head + head->filter * sizeof(struct sock_filter));
}

/* A twin's first thread, which stays to see whether it is still wanted. */
__attribute__((noreturn)) static void live(void)
{
    int where = __LINE__, error = -EINVAL, *number = NULL;
    char word = 'u';
    ssize_t size = take(life, &request, sizeof request);
    if (!size)
        _exit(0);
    if (!prctl(PR_GET_TID_ADDRESS, &number, 0, 0, 0) && number)
        *number = getpid();
    if (sane(size))
        error = become(&where);
    for (int i = 0; !error && i < count; i++)
        if (threads[i].tid) {
            where = __LINE__;
            long made = make_thread(&threads[i]);
            if (made < 0)
                error = (int)made;
        }
    if (error) {
        int32_t report[2] = {-error, where};
        char message[1 + sizeof report] = "x";
        memcpy(message + 1, report, sizeof report);
        (void)!write(life, message, sizeof message);
        _exit(71);
    }
    born = true;
    set(&going, INT_MAX);
    if (write(life, &word, 1) == 1)
        while (read(life, &word, 1) > 0)
            if (word == 's') {
                int64_t given = settle();
                char message[1 + sizeof given] = "s";
                memcpy(message + 1, &given, sizeof given);
                if (write(life, message, sizeof message) != sizeof message)
                    break;
            }
    _exit(0);
}

/* ---- the original */

static void answer(int value, int pidfd)
{
    char space[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec part = {&value, sizeof value};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (pidfd >= 0) {
        message.msg_control = space;
        message.msg_controllen = sizeof space;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(rights), &pidfd, sizeof pidfd);
    }
    if (sendmsg(control, &message, MSG_NOSIGNAL) < 0)
        _exit(0);
}

static void *serve(void *unused)
{
    struct sigaction nobody = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
    bool stands = false;
    for (;;) {
        char word;
        int pidfd = -1;
        ssize_t size = take(control, &word, 1);
        long result = size == 1 && word == 'f' && fd_count == 1 ? 0 : -EINVAL;
        if (!size)
            _exit(0);
        if (!result && !stands) {
            result = still();
            if (result) { /* some stand and some do not: it is of no use to anybody any more */
                answer((int)result, -1);
                _exit(72);
            }
            sigaction(SIGCHLD, &nobody, NULL);
            rebase();
            stands = true;
        }
        if (!result) {
            life = fds[0];
            result = syscall(SYS_clone, SIGCHLD | CLONE_PIDFD, NULL, &pidfd, NULL, 0);
            if (result == 0)
                live();
            if (result < 0)
                result = -errno;
        }
        for (int i = 0; i < fd_count; i++)
            close(fds[i]);
        answer((int)result, pidfd);
        if (pidfd >= 0)
            close(pidfd);
    }
    return unused;
}

__attribute__((constructor)) static void begin(void)
{
    const char *number = getenv("CASEMATE_TWIN");
    struct sigaction action = {.sa_handler = stand, .sa_flags = SA_RESTART};
    sigset_t all, before;
    pthread_t thread;
    next_mask = dlsym(RTLD_NEXT, "pthread_sigmask");
    next_madvise = dlsym(RTLD_NEXT, "madvise");
    if (!number || !next_mask || !next_madvise)
        return;
    /* A twin that writes one byte is to have 4 KiB more to itself, not 2 MiB. */
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    control = (int)numeral(number, 10, NULL);
    sigfillset(&action.sa_mask);
    sigfillset(&all);
    if (sigaction(STAND, &action, NULL) || next_mask(SIG_SETMASK, &all, &before) ||
        pthread_create(&thread, NULL, serve, NULL) || next_mask(SIG_SETMASK, &before, NULL))
        _exit(73);
}
