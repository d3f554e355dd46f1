/* Alternate stacks, sigaltstack(2). */
#include "check.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif
#define SIZE (64 * 1024)

static char *stack;
static volatile int on_it, status_inside, eperm_inside;
static sigjmp_buf back;

static void where(int signo) {
    char here;
    stack_t now, other = {.ss_sp = stack, .ss_size = SIZE / 2};
    (void)signo;
    on_it = &here >= stack && &here < stack + SIZE;
    sigaltstack(NULL, &now);
    status_inside = now.ss_flags;
    eperm_inside = sigaltstack(&other, NULL) == -1 ? errno : 0;
}

static void overflowed(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)context;
    CHECK(info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR);
    siglongjmp(back, 1);
}

static int recurse(int depth) {
    volatile char room[4096];
    room[0] = (char)depth;
    if (depth == 0)
        return 0;
    return recurse(depth - 1) + room[0] + room[4095];
}

static void *in_thread(void *unused) {
    stack_t now;
    (void)unused;
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_flags == SS_DISABLE);
    return NULL;
}

int main(void) {
    stack_t none, set, now;
    struct sigaction sa = {.sa_handler = where, .sa_flags = SA_ONSTACK};
    stack = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(sigaltstack(NULL, &none) == 0 && none.ss_flags == SS_DISABLE && none.ss_sp == NULL);
    sigaction(SIGUSR1, &sa, NULL);
    on_it = -1;
    raise(SIGUSR1);
    CHECK(on_it == 0);
    set = (stack_t){.ss_sp = stack, .ss_size = SIZE};
    CHECK(sigaltstack(&set, NULL) == 0);
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_sp == stack && now.ss_size == SIZE && now.ss_flags == 0);
    raise(SIGUSR1);
    CHECK(on_it == 1 && status_inside == SS_ONSTACK && eperm_inside == EPERM);
    sa.sa_flags = 0;
    sigaction(SIGUSR1, &sa, NULL);
    raise(SIGUSR1);
    CHECK(on_it == 0 && status_inside == 0);

    /* The thread does not have it. */
    pthread_t thread;
    CHECK(sigaltstack(&set, NULL) == 0);
    pthread_create(&thread, NULL, in_thread, NULL);
    pthread_join(thread, NULL);

    /* Disarmed while the handler runs. */
    set.ss_flags = SS_AUTODISARM;
    CHECK(sigaltstack(&set, NULL) == 0);
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_flags == (int)SS_AUTODISARM);
    sa.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR1, &sa, NULL);
    raise(SIGUSR1);
    CHECK(on_it == 1 && status_inside == SS_DISABLE && eperm_inside == 0);
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_flags == (int)SS_AUTODISARM && now.ss_sp == stack);

    /* Errors. */
    set.ss_flags = 0;
    set.ss_size = 1000;
    FAILS(sigaltstack(&set, NULL), ENOMEM);
    set.ss_flags = 0x40;
    set.ss_size = SIZE;
    FAILS(sigaltstack(&set, NULL), EINVAL);
    FAILS(sigaltstack((void *)1, NULL), EFAULT);

    /* A stack that overflows can be told from its other. */
    set.ss_flags = 0;
    CHECK(sigaltstack(&set, NULL) == 0);
    struct sigaction segv = {.sa_sigaction = overflowed, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGSEGV, &segv, NULL);
    volatile int came = 0;
    if (sigsetjmp(back, 1) == 0)
        recurse(1 << 20);
    else
        came = 1;
    CHECK(came == 1);
    set.ss_flags = SS_DISABLE;
    CHECK(sigaltstack(&set, NULL) == 0);
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_flags == SS_DISABLE);
    DONE();
}
