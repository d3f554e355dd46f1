/* execve(2), execveat(2): what is kept and what is reset, scripts, errors. */
#include "check.h"
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

extern char **environ;
static char self[4096];

static void put(const char *path, const char *text, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0700);
    NEED(fd >= 0);
    NEED(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    NEED(chmod(path, mode) == 0);
}

/* Run in a child; gives the wait status. */
static int run(char *const argv[], char *const envp[], const char *path)
{
    pid_t pid = fork();
    if (pid == 0) {
        execve(path, argv, envp);
        _exit(100 + (errno & 127) % 100);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

static int exits(const char *mode)
{
    char *argv[] = {self, (char *)mode, NULL};
    int status = run(argv, environ, self);
    if (!(WIFEXITED(status) && WEXITSTATUS(status) == 0))
        fprintf(stderr, "mode %s: status %x\n", mode, status);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* What the new program finds. */
static int child_args(int argc, char **argv)
{
    CHECK(argc == 5);
    CHECK(strcmp(argv[2], "") == 0);
    CHECK(strcmp(argv[3], "two words") == 0);
    CHECK(strlen(argv[4]) == 100000);
    CHECK(argv[5] == NULL);
    CHECK(environ[0] && strcmp(environ[0], "ONE=1") == 0);
    CHECK(environ[1] && strcmp(environ[1], "EMPTY=") == 0);
    CHECK(environ[2] == NULL);
    CHECK(getauxval(AT_PAGESZ) == 4096);
    CHECK(getauxval(AT_CLKTCK) == 100);
    CHECK(getauxval(AT_RANDOM) != 0);
    CHECK(getauxval(AT_SECURE) == 0);
    CHECK(getauxval(AT_UID) == getuid() && getauxval(AT_EGID) == getegid());
    CHECK(getauxval(AT_ENTRY) != 0 && getauxval(AT_PHDR) != 0 && getauxval(AT_PHNUM) > 0);
    CHECK(getauxval(AT_SYSINFO_EHDR) != 0);
    CHECK(strcmp((char *)getauxval(AT_PLATFORM), "x86_64") == 0);
    CHECK(strcmp((char *)getauxval(AT_EXECFN), self) == 0);
    char buffer[200000];
    int fd = open("/proc/self/cmdline", O_RDONLY);
    ssize_t size = 0, got;
    while ((got = read(fd, buffer + size, sizeof buffer - size)) > 0)
        size += got;
    CHECK(size == (ssize_t)(strlen(argv[0]) + 1 + strlen(argv[1]) + 1 + 1 + 10 + 100001));
    CHECK(memcmp(buffer, argv[0], strlen(argv[0]) + 1) == 0);
    close(fd);
    fd = open("/proc/self/environ", O_RDONLY);
    size = read(fd, buffer, sizeof buffer);
    CHECK(size == 13 && memcmp(buffer, "ONE=1\0EMPTY=\0", 13) == 0);
    DONE();
}

static void handler(int signum) { (void)signum; }

static int child_reset(void)
{
    struct sigaction action;
    CHECK(sigaction(SIGUSR1, NULL, &action) == 0 && action.sa_handler == SIG_DFL);
    CHECK(sigaction(SIGUSR2, NULL, &action) == 0 && action.sa_handler == SIG_IGN);
    sigset_t set;
    CHECK(sigprocmask(SIG_BLOCK, NULL, &set) == 0);
    CHECK(sigismember(&set, SIGTERM) && !sigismember(&set, SIGHUP));
    CHECK(sigpending(&set) == 0 && sigismember(&set, SIGTERM));
    stack_t stack;
    CHECK(sigaltstack(NULL, &stack) == 0 && stack.ss_flags == SS_DISABLE);
    FAILS(fcntl(77, F_GETFD), EBADF);
    CHECK(fcntl(78, F_GETFD) == 0);
    char name[17] = "";
    CHECK(prctl(PR_GET_NAME, name) == 0);
    char *base = strrchr(self, '/') + 1;
    CHECK(strncmp(name, base, 15) == 0);
    CHECK(prctl(PR_GET_DUMPABLE) == 1);
    int signum = -1;
    CHECK(prctl(PR_GET_PDEATHSIG, &signum) == 0 && signum == SIGUSR1);
    CHECK(prctl(PR_GET_KEEPCAPS) == 0);
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == 500);
    CHECK(getpid() == atoi(getenv("PID")));
    CHECK(umask(0) == 031);
    char cwd[100];
    CHECK(getcwd(cwd, sizeof cwd) && strcmp(cwd, "/") == 0);
    DONE();
}

static int before_reset(void)
{
    signal(SIGUSR1, handler);
    signal(SIGUSR2, SIG_IGN);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_SETMASK, &set, NULL);
    raise(SIGTERM);
    static char alternate[65536];
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    CHECK(sigaltstack(&stack, NULL) == 0);
    int fd = open("/", O_RDONLY);
    CHECK(dup3(fd, 77, O_CLOEXEC) == 77);
    CHECK(dup2(fd, 78) == 78);
    close(fd);
    prctl(PR_SET_NAME, "other name");
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_PDEATHSIG, SIGUSR1);
    prctl(PR_SET_KEEPCAPS, 1);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = 500;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    char pid[20];
    snprintf(pid, sizeof pid, "%d", getpid());
    setenv("PID", pid, 1);
    umask(031);
    CHECK(chdir("/") == 0);
    execl(self, self, "reset", NULL);
    return 99;
}

static void *executes(void *argument)
{
    (void)argument;
    execl(self, self, "from-thread", NULL);
    return NULL;
}

static void *sleeps(void *argument)
{
    for (;;)
        pause();
    return argument;
}

static void *spins(void *argument)
{
    for (volatile int i = 0;; i++)
        ;
    return argument;
}

/* A thread that is not the first one runs a program: the process keeps its number, the others are gone. */
static int before_thread(void)
{
    char pid[20];
    snprintf(pid, sizeof pid, "%d", getpid());
    setenv("PID", pid, 1);
    pthread_t thread;
    pthread_create(&thread, NULL, sleeps, NULL);
    pthread_create(&thread, NULL, spins, NULL);
    usleep(10000);
    pthread_create(&thread, NULL, executes, NULL);
    pthread_join(thread, NULL);
    return 98;
}

static int child_thread(void)
{
    CHECK(getpid() == atoi(getenv("PID")));
    CHECK(syscall(SYS_gettid) == getpid());
    char path[100];
    snprintf(path, sizeof path, "/proc/self/task/%d", getpid());
    struct stat status;
    CHECK(stat(path, &status) == 0);
    int tasks = 0;
    DIR *directory = opendir("/proc/self/task");
    while (readdir(directory))
        tasks++;
    CHECK(tasks == 3); /* itself and two dots */
    DONE();
}

static void errors(void)
{
    char *argv[] = {"x", NULL};
    FAILS(execve("/nowhere/at/all", argv, environ), ENOENT);
    FAILS(execve("", argv, environ), ENOENT);
    FAILS(execve("/", argv, environ), EACCES);
    FAILS(execve("/dev/null", argv, environ), EACCES);
    FAILS(execve("/etc/passwd/x", argv, environ), ENOTDIR);
    FAILS(syscall(SYS_execve, 1, argv, environ), EFAULT);
    FAILS(syscall(SYS_execve, self, 1, environ), EFAULT);
    FAILS(syscall(SYS_execve, self, argv, 8), EFAULT);
    char *bad[] = {(char *)16, NULL};
    FAILS(execve(self, bad, environ), EFAULT);
    put("plain", "no program\n", 0755);
    FAILS(execve("./plain", argv, environ), ENOEXEC);
    put("closed", "#!/bin/sh\n", 0644);
    FAILS(execve("./closed", argv, environ), EACCES);
    put("lost", "#!/nowhere/sh\n", 0755);
    FAILS(execve("./lost", argv, environ), ENOENT);
    put("none", "#!\n", 0755);
    FAILS(execve("./none", argv, environ), ENOEXEC);
    put("loop", "#!./loop\n", 0755);
    FAILS(execve("./loop", argv, environ), ELOOP);
    put("short", "\177ELF", 0755);
    FAILS(execve("./short", argv, environ), ENOEXEC);
    char *large = malloc(200000);
    memset(large, 'a', 199999);
    large[199999] = 0;
    char *too_long[] = {"x", large, NULL};
    FAILS(execve(self, too_long, environ), E2BIG);
    large[100000] = 0;
    char *many[101];
    for (int i = 0; i < 100; i++)
        many[i] = large;
    many[100] = NULL;
    struct rlimit limit = {1 << 20, RLIM_INFINITY}, old;
    getrlimit(RLIMIT_STACK, &old);
    limit.rlim_max = old.rlim_max;
    setrlimit(RLIMIT_STACK, &limit);
    FAILS(execve(self, many, environ), E2BIG);
    setrlimit(RLIMIT_STACK, &old);
    free(large);
    FAILS(execveat(-1, "x", argv, environ, 0), EBADF);
    FAILS(execveat(AT_FDCWD, self, argv, environ, 1), EINVAL);
    FAILS(execveat(AT_FDCWD, "", argv, environ, 0), ENOENT);
    CHECK(symlink(self, "link") == 0);
    FAILS(execveat(AT_FDCWD, "link", argv, environ, AT_SYMLINK_NOFOLLOW), ELOOP);
}

static void scripts(void)
{
    put("script", "#! /bin/sh -e\n[ \"$0\" = ./script ] && [ \"$1\" = one ] && [ $# = 2 ] && [ \"$2\" = 'a b' ] || exit 3\nexit 42\n", 0755);
    char *argv[] = {"ignored", "one", "a b", NULL};
    int status = run(argv, environ, "./script");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    /* An interpreter that is a script itself, and an argument with spaces in one piece. */
    put("first", "#!./second  an argument \n", 0755);
    put("second", "#!/bin/sh\n[ \"$1\" = 'an argument' ] && [ \"$2\" = ./first ] || exit 4\nexit 43\n", 0755);
    char *argv2[] = {"x", NULL};
    status = run(argv2, environ, "./first");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 43);
    put("unended", "#!/bin/true", 0755);
    status = run(argv2, environ, "./unended");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void by_descriptor(void)
{
    int fd = open(self, O_PATH | O_CLOEXEC);
    NEED(fd >= 0);
    pid_t pid = fork();
    if (pid == 0) {
        char *argv[] = {self, "nothing", NULL};
        syscall(SYS_execveat, fd, "", argv, environ, AT_EMPTY_PATH);
        _exit(99);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    pid = fork();
    if (pid == 0) {
        char *argv[] = {"x", NULL};
        int script = open("script", O_RDONLY | O_CLOEXEC);
        syscall(SYS_execveat, script, "", argv, environ, AT_EMPTY_PATH);
        _exit(errno == ENOENT ? 5 : 6);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 5);
    close(fd);
}

/* The parent of vfork(2) goes on only when the child runs its program, and sees the child's writes. */
static void with_vfork(void)
{
    static volatile int written;
    pid_t pid = vfork();
    if (pid == 0) {
        written = 7;
        execl(self, self, "nothing", NULL);
        _exit(1);
    }
    CHECK(written == 7);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    pid = vfork();
    if (pid == 0)
        _exit(9);
    CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 9);
}

static void set_id(void)
{
    if (geteuid() != 0)
        return;
    char command[9000];
    snprintf(command, sizeof command, "cp %s setid && chown 1234:2345 setid && chmod 6755 setid", self);
    NEED(system(command) == 0);
    char *argv[] = {"setid", "ids", NULL};
    int status = run(argv, environ, "./setid");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        char *argv2[] = {"setid", "plain-ids", NULL};
        execve("./setid", argv2, environ);
        _exit(99);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static int child_ids(int set)
{
    uid_t r, e, s;
    gid_t gr, ge, gs;
    CHECK(getresuid(&r, &e, &s) == 0 && getresgid(&gr, &ge, &gs) == 0);
    CHECK(r == 0 && gr == 0);
    CHECK(e == (set ? 1234 : 0) && s == e);
    CHECK(ge == (set ? 2345 : 0) && gs == ge);
    CHECK(getauxval(AT_SECURE) == (unsigned)set);
    DONE();
}

int main(int argc, char **argv)
{
    ssize_t size = readlink("/proc/self/exe", self, sizeof self - 1);
    NEED(size > 0);
    self[size] = 0;
    const char *mode = argc > 1 ? argv[1] : "";
    if (!strcmp(mode, "args"))
        return child_args(argc, argv);
    if (!strcmp(mode, "before-reset"))
        return before_reset();
    if (!strcmp(mode, "reset"))
        return child_reset();
    if (!strcmp(mode, "before-thread"))
        return before_thread();
    if (!strcmp(mode, "from-thread"))
        return child_thread();
    if (!strcmp(mode, "ids"))
        return child_ids(1);
    if (!strcmp(mode, "plain-ids"))
        return child_ids(0);
    if (!strcmp(mode, "nothing"))
        return 0;
    char *large = malloc(100001);
    memset(large, 'y', 100000);
    large[100000] = 0;
    char *args[] = {self, "args", "", "two words", large, NULL};
    char *env[] = {"ONE=1", "EMPTY=", NULL};
    CHECK(run(args, env, self) == 0);
    CHECK(exits("before-reset") == 0);
    CHECK(exits("before-thread") == 0);
    errors();
    scripts();
    by_descriptor();
    with_vfork();
    set_id();
    DONE();
}
