/* /proc/PID, proc_pid(5) and its pages. */
#include "check.h"
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static char buffer[1 << 18];

static ssize_t slurp(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return -1;
    ssize_t have = 0, got;
    while ((got = read(fd, buffer + have, sizeof buffer - 1 - have)) > 0)
        have += got;
    int error = errno;
    close(fd);
    errno = error;
    if (got < 0)
        return -1;
    buffer[have] = 0;
    return have;
}

/* The value of a line of /proc/PID/status. */
static const char *line(const char *name) {
    static char value[256];
    char key[64];
    snprintf(key, sizeof key, "\n%s:\t", name);
    char *at = strstr(buffer, key);
    if (!at)
        return "?";
    at += strlen(key);
    snprintf(value, sizeof value, "%.*s", (int)strcspn(at, "\n"), at);
    return value;
}

static int has_entry(const char *path, const char *name) {
    DIR *dir = opendir(path);
    if (!dir)
        return -1;
    int found = 0;
    for (struct dirent *entry; (entry = readdir(dir));)
        found += !strcmp(entry->d_name, name);
    closedir(dir);
    return found;
}

static const char *link_of(const char *path) {
    static char target[512];
    ssize_t size = readlink(path, target, sizeof target - 1);
    target[size < 0 ? 0 : size] = 0;
    return target;
}

static void self(int argc, char **argv) {
    char number[32], path[64];
    snprintf(number, sizeof number, "%d", getpid());
    CHECK(!strcmp(link_of("/proc/self"), number));
    snprintf(path, sizeof path, "%d/task/%d", getpid(), getpid());
    CHECK(!strcmp(link_of("/proc/thread-self"), path));
    CHECK(has_entry("/proc", number) == 1 && has_entry("/proc", "self") == 1 && has_entry("/proc", "0") == 0);
    ssize_t size = slurp("/proc/self/cmdline");
    CHECK(size > 0 && !strcmp(buffer, argv[0]) && buffer[size - 1] == 0);
    CHECK(slurp("/proc/self/environ") > 0 && memmem(buffer, sizeof buffer, "PATH=", 5));
    CHECK(link_of("/proc/self/exe")[0] == '/');
    struct stat a, b;
    CHECK(stat("/proc/self/exe", &a) == 0 && S_ISREG(a.st_mode));
    CHECK(stat("/proc/self/cwd", &a) == 0 && stat(".", &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev);
    CHECK(stat("/proc/self/root", &a) == 0 && stat("/", &b) == 0 && a.st_ino == b.st_ino);
    char cwd[512];
    CHECK(getcwd(cwd, sizeof cwd) && !strcmp(link_of("/proc/self/cwd"), cwd));
    CHECK(stat("/proc/self", &a) == 0 && S_ISDIR(a.st_mode) && a.st_uid == geteuid());
    CHECK(lstat("/proc/self", &a) == 0 && S_ISLNK(a.st_mode));
    CHECK(stat("/proc/self/stat", &a) == 0 && a.st_size == 0 && (a.st_mode & 07777) == 0444);
    FAILS(open("/proc/self/nothing", O_RDONLY), ENOENT);
    FAILS(open("/proc/99999999", O_RDONLY), ENOENT);
    FAILS(open("/proc/01", O_RDONLY), ENOENT);
    FAILS(open("/proc/new", O_RDWR | O_CREAT, 0600), ENOENT);
    FAILS(mkdir("/proc/new", 0700), ENOENT);
    FAILS(unlink("/proc/uptime"), EPERM);
    FAILS(rmdir("/proc/self/task"), EPERM);
    FAILS(open("/proc/self/fd", O_RDWR), EISDIR);
    FAILS(chmod("/proc/self/stat", 0777), EPERM);
}

static void stats(void) {
    int pid, ppid, pgrp, session, tty, tpgid, threads, fields = 0;
    char comm[64], state;
    long long start;
    CHECK(slurp("/proc/self/stat") > 0);
    CHECK(sscanf(buffer, "%d (%63[^)]) %c %d %d %d %d %d", &pid, comm, &state, &ppid, &pgrp, &session, &tty, &tpgid) == 8);
    CHECK(pid == getpid() && ppid == getppid() && pgrp == getpgrp() && session == getsid(0) && state == 'R');
    for (char *at = strrchr(buffer, ')'); *at; at++)
        fields += *at == ' ';
    CHECK(fields == 50);
    CHECK(sscanf(strrchr(buffer, ')'), ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %d %*d %lld",
                 &threads, &start) == 2);
    CHECK(threads == 1 && start > 0);
    CHECK(slurp("/proc/self/status") > 0);
    char expected[128];
    snprintf(expected, sizeof expected, "%d", getpid());
    CHECK(!strcmp(line("Pid"), expected) && !strcmp(line("Tgid"), expected));
    snprintf(expected, sizeof expected, "%d\t%d\t%d\t%d", getuid(), geteuid(), geteuid(), geteuid());
    CHECK(!strcmp(line("Uid"), expected));
    CHECK(!strcmp(line("State"), "R (running)") && !strcmp(line("Threads"), "1"));
    CHECK(strtoull(line("SigCgt"), NULL, 16) == 0);
    CHECK(strstr(line("VmSize"), " kB") && atoi(line("VmRSS")) > 0);
    CHECK(!strcmp(line("NoNewPrivs"), "0"));
    int size, resident;
    CHECK(slurp("/proc/self/statm") > 0 && sscanf(buffer, "%d %d", &size, &resident) == 2 && size >= resident);
    /* Time that is used shows. */
    struct rusage usage;
    do
        getrusage(RUSAGE_SELF, &usage);
    while (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec < 100000 && !usage.ru_utime.tv_sec);
    unsigned long user, system;
    CHECK(slurp("/proc/self/stat") > 0);
    CHECK(sscanf(strrchr(buffer, ')'), ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) == 2);
    CHECK(user + system >= 5);
}

static void names(void) {
    CHECK(prctl(PR_SET_NAME, "odd (name) x") == 0);
    CHECK(slurp("/proc/self/comm") > 0 && !strcmp(buffer, "odd (name) x\n"));
    CHECK(slurp("/proc/self/stat") > 0 && strstr(buffer, "(odd (name) x) R"));
    int fd = open("/proc/self/comm", O_WRONLY);
    CHECK(fd >= 0 && write(fd, "much too long a name\n", 21) == 21);
    close(fd);
    char name[32];
    CHECK(prctl(PR_GET_NAME, name) == 0 && !strcmp(name, "much too long a"));
}

static void files(void) {
    char path[64], expected[64];
    unlink("./victim");
    int fd = open("./victim", O_RDWR | O_CREAT, 0600);
    NEED(fd >= 0);
    CHECK(write(fd, "content", 7) == 7);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    CHECK(strstr(link_of(path), "/victim") && !strstr(link_of(path), "deleted"));
    struct stat found, itself;
    CHECK(lstat(path, &itself) == 0 && S_ISLNK(itself.st_mode) && (itself.st_mode & 0777) == 0700);
    unlink("./victim");
    CHECK(strstr(link_of(path), "/victim (deleted)"));
    int again = open(path, O_RDONLY);
    char text[64];
    CHECK(again >= 0 && read(again, text, sizeof text) == 7 && !memcmp(text, "content", 7));
    CHECK(stat(path, &found) == 0 && fstat(fd, &itself) == 0 && found.st_ino == itself.st_ino);
    snprintf(path, sizeof path, "/proc/self/fd/%d", again);
    CHECK(lstat(path, &itself) == 0 && (itself.st_mode & 0777) == 0500);
    close(again);
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    CHECK(slurp(path) > 0 && !strncmp(buffer, "pos:\t7\nflags:\t0100002\nmnt_id:\t", 30));
    close(fd);
    FAILS(open(path, O_RDONLY), ENOENT);

    int pipes[2], pair[2];
    CHECK(pipe(pipes) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && fstat(pipes[0], &found) == 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", pipes[0]);
    snprintf(expected, sizeof expected, "pipe:[%lu]", (unsigned long)found.st_ino);
    CHECK(!strcmp(link_of(path), expected));
    CHECK(fstat(pair[0], &found) == 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", pair[0]);
    snprintf(expected, sizeof expected, "socket:[%lu]", (unsigned long)found.st_ino);
    CHECK(!strcmp(link_of(path), expected));
    FAILS(open(path, O_RDWR), ENXIO);
    int event = eventfd(0, 0), epoll = epoll_create1(0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", event);
    CHECK(!strcmp(link_of(path), "anon_inode:[eventfd]"));
    FAILS(open(path, O_RDWR), ENXIO);
    snprintf(path, sizeof path, "/proc/self/fd/%d", epoll);
    CHECK(!strcmp(link_of(path), "anon_inode:[eventpoll]"));
    int low = open("/dev/null", O_RDONLY), null = fcntl(low, F_DUPFD_CLOEXEC, 50), memory = memfd_create("mine", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", null);
    CHECK(!strcmp(link_of(path), "/dev/null"));
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", null);
    CHECK(slurp(path) > 0 && strstr(buffer, "flags:\t02100000\n"));
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory);
    CHECK(!strcmp(link_of(path), "/memfd:mine (deleted)"));
    CHECK(write(memory, "abc", 3) == 3);
    again = open(path, O_RDWR);
    CHECK(again >= 0 && read(again, text, 3) == 3);
    close(again);
    snprintf(expected, sizeof expected, "%d", null);
    CHECK(has_entry("/proc/self/fd", expected) == 1 && has_entry("/proc/self/fdinfo", expected) == 1);
    close(null), close(low);
    CHECK(has_entry("/proc/self/fd", expected) == 0);
    FAILS(readlink("/proc/self/fd/9999", text, sizeof text), ENOENT);
    FAILS(readlink("/proc/self/fd/x", text, sizeof text), ENOENT);
    close(memory), close(event), close(epoll), close(pair[0]), close(pair[1]), close(pipes[0]), close(pipes[1]);
}

static int data_word = 0x1234567;

static void memory(void) {
    char *map = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(map != MAP_FAILED);
    CHECK(mprotect(map + 4096, 4096, PROT_NONE) == 0);
    CHECK(malloc(100) != NULL && sbrk(4096) != (void *)-1);
    CHECK(slurp("/proc/self/maps") > 0);
    char expected[128];
    snprintf(expected, sizeof expected, "%lx-%lx ---p 00000000 00:00 0 \n", (long)map + 4096, (long)map + 8192);
    CHECK(strstr(buffer, expected));
    CHECK(strstr(buffer, "[stack]\n") && strstr(buffer, "[heap]\n") && strstr(buffer, "[vdso]\n"));
    char exe[512];
    snprintf(exe, sizeof exe, "%s\n", link_of("/proc/self/exe"));
    CHECK(strstr(buffer, exe));
    CHECK(slurp("/proc/self/smaps") > 0 && strstr(buffer, "Private_Dirty:") && strstr(buffer, "VmFlags:"));
    int fd = open("/proc/self/mem", O_RDWR), word = 0;
    NEED(fd >= 0);
    CHECK(pread(fd, &word, sizeof word, (long)&data_word) == sizeof word && word == data_word);
    word = 77;
    CHECK(pwrite(fd, &word, sizeof word, (long)&data_word) == sizeof word && data_word == 77);
    CHECK(pread(fd, &word, sizeof word, (long)map + 4096) == sizeof word);
    FAILS(pread(fd, &word, sizeof word, 0), EIO);
    close(fd);
    CHECK(slurp("/proc/self/auxv") > 0);
    munmap(map, 3 * 4096);
}

static pthread_barrier_t barrier;
static pid_t other_tid;

static void *thread(void *unused) {
    other_tid = syscall(SYS_gettid);
    prctl(PR_SET_NAME, "second");
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    return unused;
}

static void threads(void) {
    pthread_t handle;
    char path[128], name[32];
    pthread_barrier_init(&barrier, NULL, 2);
    NEED(pthread_create(&handle, NULL, thread, NULL) == 0);
    pthread_barrier_wait(&barrier);
    snprintf(name, sizeof name, "%d", other_tid);
    CHECK(has_entry("/proc/self/task", name) == 1);
    CHECK(has_entry("/proc", name) == 0);
    snprintf(path, sizeof path, "/proc/self/task/%d/comm", other_tid);
    CHECK(slurp(path) > 0 && !strcmp(buffer, "second\n"));
    snprintf(path, sizeof path, "/proc/%d/status", other_tid);
    CHECK(slurp(path) > 0 && atoi(line("Tgid")) == getpid() && !strcmp(line("Threads"), "2"));
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", other_tid);
    CHECK(slurp(path) > 0 && atoi(buffer) == other_tid);
    struct stat found;
    CHECK(stat("/proc/self/task", &found) == 0 && found.st_nlink == 4);
    pthread_barrier_wait(&barrier);
    pthread_join(handle, NULL);
    for (int i = 0; i < 200 && slurp(path) >= 0; i++)
        usleep(5000);
    FAILS(open(path, O_RDONLY), ENOENT);
}

static void children(void) {
    int pipes[2];
    char path[64], number[32];
    CHECK(pipe(pipes) == 0);
    pid_t child = fork();
    if (child == 0) {
        char one;
        _exit(read(pipes[0], &one, 1) == 1 ? 0 : 1);
    }
    snprintf(path, sizeof path, "/proc/%d/stat", child);
    char state = 0;
    for (int i = 0; i < 200 && state != 'S'; i++) {
        usleep(5000);
        CHECK(slurp(path) > 0 && sscanf(strrchr(buffer, ')'), ") %c", &state) == 1);
    }
    CHECK(state == 'S');
    snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
    snprintf(number, sizeof number, "%d ", child);
    CHECK(slurp(path) > 0 && !strcmp(buffer, number));
    snprintf(path, sizeof path, "/proc/%d/status", child);
    int held = open(path, O_RDONLY);
    CHECK(held >= 0);
    CHECK(write(pipes[1], "x", 1) == 1);
    for (int i = 0; i < 200 && strncmp(line("State"), "Z", 1); i++) {
        usleep(5000);
        CHECK(slurp(path) > 0);
    }
    CHECK(!strcmp(line("State"), "Z (zombie)") && strstr(buffer, "VmSize") == NULL);
    snprintf(path, sizeof path, "/proc/%d/cmdline", child);
    CHECK(slurp(path) == 0);
    snprintf(path, sizeof path, "/proc/%d/exe", child);
    FAILS(readlink(path, number, sizeof number), ENOENT);
    CHECK(waitpid(child, NULL, 0) == child);
    FAILS(read(held, number, sizeof number), ESRCH);
    close(held);
    FAILS(open(path, O_RDONLY), ENOENT);
    snprintf(path, sizeof path, "/proc/%d", child);
    FAILS(access(path, F_OK), ENOENT);
}

static void settings(void) {
    CHECK(slurp("/proc/self/limits") > 0 && strstr(buffer, "Max open files            "));
    CHECK(slurp("/proc/self/oom_score_adj") > 0);
    int fd = open("/proc/self/oom_score_adj", O_RDWR);
    CHECK(fd >= 0 && write(fd, "500", 3) == 3);
    FAILS(write(fd, "2000", 4), EINVAL);
    FAILS(write(fd, "x", 1), EINVAL);
    close(fd);
    CHECK(slurp("/proc/self/oom_score_adj") > 0 && !strcmp(buffer, "500\n"));
    CHECK(slurp("/proc/self/mounts") > 0 && strstr(buffer, " /proc proc "));
    CHECK(slurp("/proc/self/mountinfo") > 0 && strstr(buffer, " - proc "));
    CHECK(slurp("/proc/self/cgroup") > 0);
    CHECK(!strncmp(link_of("/proc/self/ns/mnt"), "mnt:[", 5));
    fd = open("/proc/self/ns/user", O_RDONLY);
    CHECK(fd >= 0);
    close(fd);
}

static void *survivor(void *main_thread) {
    pthread_join(*(pthread_t *)main_thread, NULL);
    char text[64];
    for (int i = 0; i < 200 && (slurp("/proc/self/status") < 0 || line("State")[0] != 'Z'); i++)
        usleep(5000);
    CHECK(!strcmp(line("State"), "Z (zombie)") && !strcmp(line("Threads"), "2"));
    CHECK(slurp("/proc/self/maps") <= 0);
    FAILS(readlink("/proc/self/exe", text, sizeof text), ENOENT);
    CHECK(slurp("/proc/thread-self/maps") > 0 && slurp("/proc/thread-self/status") > 0 && line("State")[0] == 'R');
    CHECK(readlink("/proc/thread-self/exe", text, sizeof text) > 0);
    CHECK(has_entry("/proc/thread-self/fd", "0") == 1);
    _exit(check_failures ? 1 : 0);
}

/* The first thread has ended, another has not. */
static void headless(void) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        static pthread_t own, other;
        own = pthread_self();
        NEED(pthread_create(&other, NULL, survivor, &own) == 0);
        pthread_exit(NULL);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv) {
    self(argc, argv);
    stats();
    names();
    files();
    memory();
    threads();
    children();
    settings();
    headless();
    DONE();
}
