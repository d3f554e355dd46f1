/* Exceptions of the processor as signals: which, with what, and what happens where nobody handles them. */
#include "check.h"
#include <fenv.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>

static sigjmp_buf back;
static siginfo_t seen;
static unsigned long rip;

static void catch (int signo, siginfo_t *info, void *context) {
    (void)signo;
    seen = *info;
    rip = (unsigned long)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    siglongjmp(back, 1);
}

#define CAUGHT(statement) \
    do { \
        memset(&seen, 0, sizeof seen); \
        if (sigsetjmp(back, 1) == 0) { \
            statement; \
        } \
    } while (0)

static int ends_by(void (*what)(void)) {
    int status, child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        what();
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

static int *volatile null;
static void null_write(void) { *(volatile int *)null = 1; }
static void null_ignored(void) {
    signal(SIGSEGV, SIG_IGN);
    null_write();
}
static void null_blocked(void) {
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_SETMASK, &set, NULL);
    null_write();
}
static void divide(void) {
    volatile int zero = 0, one = 1;
    signal(SIGFPE, SIG_DFL);
    one /= zero;
}
static void undefined(void) {
    signal(SIGILL, SIG_DFL);
    __asm__ volatile("ud2");
}
static void breakpoint(void) {
    signal(SIGTRAP, SIG_DFL);
    __asm__ volatile("int3");
}
static void bad_handler_stack(void) {
    /* No stack for the handler: SIGSEGV, whose handler has none either. */
    struct sigaction sa = {.sa_sigaction = catch, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &sa, NULL);
    sigaction(SIGUSR1, &sa, NULL);
    long pid = getpid();
    __asm__ volatile("mov $16, %%rsp; syscall; ud2" ::"a"(62L), "D"(pid), "S"((long)SIGUSR1));
}
static void bad_sigreturn(void) {
    __asm__ volatile("mov $16, %%rsp; syscall" ::"a"((long)SYS_rt_sigreturn));
}
static void no_restorer(void) {
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        unsigned long mask;
    } action = {catch, SA_SIGINFO, NULL, 0};
    syscall(SYS_rt_sigaction, SIGUSR1, &action, NULL, 8);
    raise(SIGUSR1);
}
static void aborts(void) { abort(); }
static void twice(int signo) {
    (void)signo;
    null_write();
}
static void fault_in_handler(void) {
    signal(SIGSEGV, twice);
    null_write();
}

int main(void) {
    struct sigaction sa = {.sa_sigaction = catch, .sa_flags = SA_SIGINFO};
    int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (int i = 0; i < 5; i++)
        sigaction(signals[i], &sa, NULL);

    CAUGHT(*(volatile int *)0x1234 = 1);
    CHECK(seen.si_signo == SIGSEGV && seen.si_code == SEGV_MAPERR && seen.si_addr == (void *)0x1234);
    char *page = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CAUGHT(page[77] = 1);
    CHECK(seen.si_signo == SIGSEGV && seen.si_code == SEGV_ACCERR && seen.si_addr == page + 77);
    mprotect(page, 4096, PROT_NONE);
    CAUGHT((void)*(volatile char *)(page + 5));
    CHECK(seen.si_signo == SIGSEGV && seen.si_code == SEGV_ACCERR && seen.si_addr == page + 5);
    CAUGHT((void)*(volatile char *)0x8000000000000000UL);
    CHECK(seen.si_signo == SIGSEGV && seen.si_code == SI_KERNEL && seen.si_addr == NULL);
    CAUGHT(((void (*)(void))(page + 4096))());
    CHECK(seen.si_signo == SIGSEGV && seen.si_code == SEGV_ACCERR && seen.si_addr == page + 4096);
    CHECK(rip == (unsigned long)page + 4096);
    volatile int zero = 0, one = 1;
    CAUGHT(one /= zero);
    CHECK(seen.si_signo == SIGFPE && seen.si_code == FPE_INTDIV && (unsigned long)seen.si_addr == rip);
    volatile double fzero = 0, fone = 1;
    feenableexcept(FE_DIVBYZERO);
    CAUGHT(fone /= fzero);
    CHECK(seen.si_signo == SIGFPE && seen.si_code == FPE_FLTDIV);
    fedisableexcept(FE_ALL_EXCEPT);
    CAUGHT(__asm__ volatile("ud2"));
    CHECK(seen.si_signo == SIGILL && seen.si_code == ILL_ILLOPN && (unsigned long)seen.si_addr == rip);
    CAUGHT(__asm__ volatile("int3"));
    CHECK(seen.si_signo == SIGTRAP && seen.si_code == SI_KERNEL);
    CAUGHT(__asm__ volatile("hlt"));
    CHECK(seen.si_signo == SIGSEGV && seen.si_code == SI_KERNEL);
    /* Behind the end of a file. */
    FILE *file = tmpfile();
    NEED(file != NULL);
    char *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
    CHECK(mapped != MAP_FAILED);
    CAUGHT(mapped[3] = 1);
    CHECK(seen.si_signo == SIGBUS && seen.si_code == BUS_ADRERR && seen.si_addr == mapped + 3);

    CHECK(ends_by(null_write) == SIGSEGV);
    CHECK(ends_by(null_ignored) == SIGSEGV);
    CHECK(ends_by(null_blocked) == SIGSEGV);
    CHECK(ends_by(divide) == SIGFPE);
    CHECK(ends_by(undefined) == SIGILL);
    CHECK(ends_by(breakpoint) == SIGTRAP);
    CHECK(ends_by(bad_handler_stack) == SIGSEGV);
    CHECK(ends_by(bad_sigreturn) == SIGSEGV);
    CHECK(ends_by(no_restorer) == SIGSEGV);
    CHECK(ends_by(aborts) == SIGABRT);
    CHECK(ends_by(fault_in_handler) == SIGSEGV);
    DONE();
}
