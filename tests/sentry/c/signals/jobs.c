/* Stopping and continuing: what the parent sees, and that what was stopped goes on where it was. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

static volatile sig_atomic_t chld;
static volatile int chld_code, chld_status;

static void on_chld(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)context;
    chld++;
    chld_code = info->si_code;
    chld_status = info->si_status;
}
static void on_cont(int signo) {
    (void)signo;
    _exit(9);
}
static void nap(long us) {
    struct timespec ts = {0, us * 1000}, left;
    while (nanosleep(&ts, &left) == -1)
        ts = left;
}
static void *spin(void *counter) {
    while (counter != NULL)
        ++*(volatile unsigned long *)counter;
    return NULL;
}

static volatile unsigned long *shared;

static void test_blocked(void) {
    int status, fds[2];
    siginfo_t info;
    CHECK(pipe(fds) == 0);
    chld = 0;
    pid_t child = fork();
    if (child == 0) {
        char c;
        signal(SIGCHLD, SIG_DFL);
        close(fds[1]);
        _exit(read(fds[0], &c, 1) == 1 ? c : 99); /* without a handler it is not interrupted */
    }
    close(fds[0]);
    nap(20000);
    CHECK(kill(child, SIGSTOP) == 0);
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK(chld == 1 && chld_code == CLD_STOPPED && chld_status == SIGSTOP);
    CHECK(waitpid(child, &status, WUNTRACED | WNOHANG) == 0); /* told once */
    CHECK(write(fds[1], "A", 1) == 1);
    nap(50000);
    CHECK(waitpid(child, &status, WNOHANG) == 0);
    CHECK(kill(child, SIGCONT) == 0);
    CHECK(waitid(P_PID, (id_t)child, &info, WCONTINUED | WEXITED | WNOWAIT) == 0);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 'A');
    CHECK(chld >= 2); /* the one of the end may have found that of the continuing still pending */
    close(fds[1]);
}

static void test_computing(void) {
    int status;
    *shared = 0;
    pid_t child = fork();
    if (child == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, spin, (void *)(shared + 64));
        spin((void *)shared);
    }
    while (*shared < 1000 || shared[64] < 1000)
        nap(1000);
    CHECK(kill(child, SIGTSTP) == 0);
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTSTP);
    nap(20000);
    unsigned long first = *shared, other = shared[64];
    nap(50000);
    CHECK(*shared == first && shared[64] == other);
    CHECK(kill(child, SIGCONT) == 0);
    CHECK(waitpid(child, &status, WCONTINUED) == child && WIFCONTINUED(status));
    for (int i = 0; i < 2000 && (*shared == first || shared[64] == other); i++)
        nap(1000);
    CHECK(*shared > first && shared[64] > other);
    /* A stopped process dies of SIGKILL, and keeps other signals for later. */
    kill(child, SIGSTOP);
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
    kill(child, SIGTERM);
    nap(20000);
    CHECK(waitpid(child, &status, WNOHANG) == 0);
    kill(child, SIGKILL);
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void test_sleep(void) {
    /* A sleep that is stopped ends at its time all the same. */
    int status;
    struct timespec start, end;
    pid_t child = fork();
    clock_gettime(CLOCK_MONOTONIC, &start);
    if (child == 0) {
        struct timespec ts = {0, 200000000};
        _exit(nanosleep(&ts, NULL) == 0 ? 0 : 1);
    }
    nap(30000);
    kill(child, SIGSTOP);
    nap(30000);
    kill(child, SIGCONT);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    clock_gettime(CLOCK_MONOTONIC, &end);
    double took = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
    CHECK(took >= 0.19);
}

static void test_order(void) {
    int status;
    /* SIGCONT takes stops away, and the other way round. */
    pid_t child = fork();
    if (child == 0) {
        sigset_t set, pending;
        check_failures = 0;
        sigemptyset(&set);
        sigaddset(&set, SIGTSTP);
        sigaddset(&set, SIGCONT);
        sigprocmask(SIG_BLOCK, &set, NULL);
        raise(SIGTSTP);
        sigpending(&pending);
        CHECK(sigismember(&pending, SIGTSTP));
        raise(SIGCONT);
        sigpending(&pending);
        CHECK(!sigismember(&pending, SIGTSTP) && sigismember(&pending, SIGCONT));
        raise(SIGTSTP);
        sigpending(&pending);
        CHECK(sigismember(&pending, SIGTSTP) && !sigismember(&pending, SIGCONT));
        raise(SIGCONT);
        _exit(check_failures);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    /* A handler of SIGCONT runs once continued, also where it is not blocked. */
    child = fork();
    if (child == 0) {
        signal(SIGCONT, on_cont);
        for (;;)
            pause();
    }
    nap(20000);
    kill(child, SIGSTOP);
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
    kill(child, SIGCONT);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 9);
    /* Who stops itself. */
    child = fork();
    if (child == 0) {
        raise(SIGSTOP);
        _exit(4);
    }
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
    kill(child, SIGCONT);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 4);
    /* Ignored stops do nothing; and an orphaned process group is not stopped by the terminal's signals. */
    child = fork();
    if (child == 0) {
        signal(SIGTSTP, SIG_IGN);
        raise(SIGTSTP);
        signal(SIGTTIN, SIG_DFL);
        setsid();
        raise(SIGTTIN);
        _exit(5);
    }
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5);
}

static void test_nocldstop(void) {
    int status;
    struct sigaction sa = {.sa_sigaction = on_chld, .sa_flags = SA_SIGINFO | SA_RESTART | SA_NOCLDSTOP};
    sigaction(SIGCHLD, &sa, NULL);
    chld = 0;
    pid_t child = fork();
    if (child == 0)
        for (;;)
            pause();
    nap(20000);
    kill(child, SIGSTOP);
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
    kill(child, SIGCONT);
    nap(20000);
    CHECK(chld == 0);
    kill(child, SIGTERM);
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    CHECK(chld == 1 && chld_code == CLD_KILLED && chld_status == SIGTERM);
}

int main(void) {
    struct sigaction sa = {.sa_sigaction = on_chld, .sa_flags = SA_SIGINFO | SA_RESTART};
    /* The process group under test has a parent outside, in the same session: it is no orphan. */
    int status;
    pid_t inner = fork();
    if (inner > 0) {
        CHECK(waitpid(inner, &status, 0) == inner && status == 0);
        DONE();
    }
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sigaction(SIGCHLD, &sa, NULL);
    setpgid(0, 0);
    test_blocked();
    test_computing();
    test_sleep();
    test_order();
    test_nocldstop();
    DONE();
}
