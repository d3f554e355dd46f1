/* Handlers: what they get, what is blocked while they run, how they nest and come back; sigaction(2). */
#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>

static volatile sig_atomic_t count, order[8];
static siginfo_t seen;
static volatile int blocked_inside, blocked_other;

static void plain(int signo) {
    CHECK(signo == SIGUSR1);
    count++;
}

static void told(int signo, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    sigset_t mask;
    count++;
    seen = *info;
    CHECK(signo == info->si_signo);
    sigprocmask(SIG_SETMASK, NULL, &mask);
    blocked_inside = sigismember(&mask, signo);
    blocked_other = sigismember(&mask, SIGHUP);
    CHECK(uc->uc_mcontext.gregs[REG_RIP] != 0);
    CHECK(uc->uc_mcontext.gregs[REG_CSGSFS] != 0);
    CHECK(!sigismember(&uc->uc_sigmask, signo));
}

static void nested(int signo) {
    order[count++] = signo;
    if (signo == SIGUSR1) {
        raise(SIGUSR2);
        order[count++] = -signo;
    }
}

static void change_mask(int signo, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    (void)signo;
    (void)info;
    sigaddset(&uc->uc_sigmask, SIGWINCH);
}

static void set(int signo, void (*handler)(int), int flags) {
    struct sigaction sa = {.sa_handler = handler, .sa_flags = flags};
    CHECK(sigaction(signo, &sa, NULL) == 0);
}

static void set_info(int signo, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO};
    sigaddset(&sa.sa_mask, SIGHUP);
    CHECK(sigaction(signo, &sa, NULL) == 0);
}

static void test_plain(void) {
    count = 0;
    set(SIGUSR1, plain, 0);
    CHECK(kill(getpid(), SIGUSR1) == 0);
    CHECK(count == 1);
    CHECK(raise(SIGUSR1) == 0);
    CHECK(count == 2);
}

static void test_info(void) {
    set_info(SIGUSR1, told, 0);
    count = 0;
    kill(getpid(), SIGUSR1);
    CHECK(count == 1 && seen.si_code == SI_USER && seen.si_pid == getpid() && seen.si_uid == getuid());
    CHECK(blocked_inside == 1 && blocked_other == 1);
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1);
    CHECK(count == 2 && seen.si_code == SI_TKILL && seen.si_pid == getpid());
    union sigval value = {.sival_ptr = (void *)0x123456789abcdefL};
    CHECK(sigqueue(getpid(), SIGUSR1, value) == 0);
    CHECK(count == 3 && seen.si_code == SI_QUEUE && seen.si_value.sival_ptr == value.sival_ptr);
    set_info(SIGUSR1, told, SA_NODEFER);
    raise(SIGUSR1);
    CHECK(count == 4 && blocked_inside == 0 && blocked_other == 1);
    sigset_t mask;
    sigprocmask(SIG_SETMASK, NULL, &mask);
    CHECK(!sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGHUP));
}

static void test_nested(void) {
    count = 0;
    set(SIGUSR1, nested, 0);
    set(SIGUSR2, nested, 0);
    raise(SIGUSR1);
    CHECK(count == 3 && order[0] == SIGUSR1 && order[1] == SIGUSR2 && order[2] == -SIGUSR1);
    /* Two at once: both frames are there before either handler runs, so the higher one is on top. */
    sigset_t both, old;
    sigemptyset(&both);
    sigaddset(&both, SIGRTMIN);
    sigaddset(&both, SIGRTMIN + 1);
    set(SIGRTMIN, nested, 0);
    set(SIGRTMIN + 1, nested, 0);
    sigprocmask(SIG_BLOCK, &both, &old);
    count = 0;
    raise(SIGRTMIN + 1);
    raise(SIGRTMIN);
    CHECK(count == 0);
    sigprocmask(SIG_SETMASK, &old, NULL);
    CHECK(count == 2 && order[0] == SIGRTMIN + 1 && order[1] == SIGRTMIN);
}

static void test_reset(void) {
    struct sigaction old;
    count = 0;
    set(SIGUSR1, plain, SA_RESETHAND);
    raise(SIGUSR1);
    CHECK(count == 1);
    sigaction(SIGUSR1, NULL, &old);
    CHECK(old.sa_handler == SIG_DFL);
}

static void test_mask_from_frame(void) {
    sigset_t mask;
    set_info(SIGUSR1, change_mask, 0);
    raise(SIGUSR1);
    sigprocmask(SIG_SETMASK, NULL, &mask);
    CHECK(sigismember(&mask, SIGWINCH));
    sigemptyset(&mask);
    sigprocmask(SIG_SETMASK, &mask, NULL);
}

static void test_pending(void) {
    sigset_t set1, old, pending;
    sigemptyset(&set1);
    sigaddset(&set1, SIGUSR1);
    sigaddset(&set1, SIGRTMIN + 3);
    sigprocmask(SIG_BLOCK, &set1, &old);
    set(SIGUSR1, plain, 0);
    set_info(SIGRTMIN + 3, told, 0);
    count = 0;
    for (int i = 0; i < 3; i++) {
        kill(getpid(), SIGUSR1);
        sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = i});
    }
    CHECK(sigpending(&pending) == 0);
    CHECK(sigismember(&pending, SIGUSR1) && sigismember(&pending, SIGRTMIN + 3) && !sigismember(&pending, SIGUSR2));
    CHECK(count == 0);
    sigprocmask(SIG_SETMASK, &old, NULL);
    CHECK(count == 4); /* one ordinary, three that queue */
    CHECK(sigpending(&pending) == 0 && !sigismember(&pending, SIGUSR1));
    /* Ignoring takes away what is pending. */
    sigprocmask(SIG_BLOCK, &set1, NULL);
    raise(SIGUSR1);
    set(SIGUSR1, SIG_IGN, 0);
    CHECK(sigpending(&pending) == 0 && !sigismember(&pending, SIGUSR1));
    set(SIGUSR1, SIG_DFL, 0);
    sigprocmask(SIG_SETMASK, &old, NULL);
}

static void test_errors(void) {
    struct sigaction sa = {.sa_handler = SIG_IGN}, old;
    FAILS(sigaction(SIGKILL, &sa, NULL), EINVAL);
    FAILS(sigaction(SIGSTOP, &sa, NULL), EINVAL);
    FAILS(syscall(SYS_rt_sigaction, 65, NULL, NULL, 8), EINVAL);
    FAILS(syscall(SYS_rt_sigaction, 0, NULL, NULL, 8), EINVAL);
    FAILS(syscall(SYS_rt_sigaction, SIGUSR1, NULL, NULL, 4), EINVAL);
    FAILS(syscall(SYS_rt_sigaction, SIGUSR1, 1, NULL, 8), EFAULT);
    FAILS(syscall(SYS_rt_sigaction, SIGUSR1, NULL, 1, 8), EFAULT);
    CHECK(sigaction(SIGKILL, NULL, &old) == 0);
    FAILS(syscall(SYS_rt_sigprocmask, 7, &sa, NULL, 8), EINVAL);
    FAILS(syscall(SYS_rt_sigprocmask, 0, 1, NULL, 8), EFAULT);
    FAILS(syscall(SYS_rt_sigprocmask, 0, NULL, NULL, 16), EINVAL);
    FAILS(kill(getpid(), 65), EINVAL);
    FAILS(kill(getpid(), -1), EINVAL);
    FAILS(kill(999999, 0), ESRCH);
    FAILS(kill(-999999, SIGTERM), ESRCH);
    FAILS(syscall(SYS_tgkill, getpid(), 999999, 0), ESRCH);
    FAILS(syscall(SYS_tgkill, 0, getpid(), 0), EINVAL);
    FAILS(syscall(SYS_tkill, -1, 0), EINVAL);
    CHECK(kill(getpid(), 0) == 0);
    CHECK(syscall(SYS_tkill, syscall(SYS_gettid), 0) == 0);
    FAILS(syscall(SYS_rt_sigpending, 1, 8), EFAULT);
    siginfo_t info = {.si_code = SI_USER};
    int child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    FAILS(syscall(SYS_rt_sigqueueinfo, child, SIGTERM, &info), EPERM);
    info.si_code = SI_QUEUE;
    CHECK(syscall(SYS_rt_sigqueueinfo, child, SIGTERM, &info) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

/* KILL and STOP cannot be blocked. */
static void test_unblockable(void) {
    sigset_t all, now;
    sigfillset(&all);
    CHECK(sigprocmask(SIG_SETMASK, &all, NULL) == 0);
    CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0);
    CHECK(!sigismember(&now, SIGKILL) && !sigismember(&now, SIGSTOP) && sigismember(&now, SIGTERM));
    sigemptyset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
}

/* Dispositions across fork and exec; what is pending does not go to the child. */
static void test_fork(void) {
    sigset_t usr, old, pending;
    sigemptyset(&usr);
    sigaddset(&usr, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr, &old);
    raise(SIGUSR1);
    int child = fork();
    if (child == 0) {
        sigpending(&pending);
        _exit(sigismember(&pending, SIGUSR1) ? 1 : 0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    set(SIGUSR1, SIG_IGN, 0);
    sigprocmask(SIG_SETMASK, &old, NULL);
    set(SIGUSR1, SIG_DFL, 0);
}

static void test_default(void) {
    int fatal[] = {SIGHUP, SIGTERM, SIGUSR1, SIGALRM, SIGRTMIN, SIGPIPE};
    for (unsigned i = 0; i < sizeof fatal / sizeof *fatal; i++) {
        int status, child = fork();
        if (child == 0) {
            signal(fatal[i], SIG_DFL);
            raise(fatal[i]);
            _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == fatal[i]);
    }
    int nothing[] = {SIGCHLD, SIGURG, SIGWINCH, SIGCONT};
    for (unsigned i = 0; i < sizeof nothing / sizeof *nothing; i++)
        CHECK(raise(nothing[i]) == 0);
}

int main(void) {
    test_plain();
    test_info();
    test_nested();
    test_reset();
    test_mask_from_frame();
    test_pending();
    test_errors();
    test_unblockable();
    test_fork();
    test_default();
    DONE();
}
