/* seccomp(2): filters that an application puts on itself. Each part runs in a child. */
#include "check.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)
#define COUNT(code) (sizeof(code) / sizeof *(code))

static int filter(struct sock_filter *code, unsigned short count, unsigned flags)
{
    struct sock_fprog program = {count, code};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static void deny(int number, unsigned action)
{
    struct sock_filter code[] = {LOAD(nr), IF(number, 0, 1), RETURN(action), RETURN(SECCOMP_RET_ALLOW)};
    NEED(filter(code, COUNT(code), 0) == 0);
}

static void errnos(void)
{
    struct sock_filter code[] = {LOAD(nr), IF(SYS_getppid, 0, 1), RETURN(SECCOMP_RET_ERRNO | 77),
                                 RETURN(SECCOMP_RET_ALLOW)};
    NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    NEED(filter(code, COUNT(code), 0) == 0);
    CHECK(prctl(PR_GET_SECCOMP) == SECCOMP_MODE_FILTER);
    FAILS(syscall(SYS_getppid), 77);
    CHECK(getpid() > 0);
    /* A second one, by an argument; the strictest counts. */
    struct sock_filter by_argument[] = {
        LOAD(arch),   IF(AUDIT_ARCH_X86_64, 1, 0), RETURN(SECCOMP_RET_KILL),        LOAD(nr),
        IF(SYS_getpgid, 0, 3), LOAD(args[0]),      IF(5, 0, 1), RETURN(SECCOMP_RET_ERRNO | 78),
        RETURN(SECCOMP_RET_ALLOW)};
    NEED(filter(by_argument, COUNT(by_argument), 0) == 0);
    FAILS(syscall(SYS_getpgid, 5), 78);
    CHECK(syscall(SYS_getpgid, 0) > 0);
    FAILS(syscall(SYS_getppid), 77);
    deny(SYS_uname, SECCOMP_RET_TRACE);
    struct utsname name;
    FAILS(uname(&name), ENOSYS);
    pid_t pid = fork();
    if (pid == 0) {
        FAILS(syscall(SYS_getppid), 77);
        _exit(check_failures ? 1 : 0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    FAILS(syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, NULL), EINVAL);
}

static volatile sig_atomic_t trapped;
static siginfo_t told;

static void on_sys(int signum, siginfo_t *info, void *context)
{
    (void)signum, (void)context;
    trapped++;
    told = *info;
}

static void trap(void)
{
    struct sigaction action = {.sa_sigaction = on_sys, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    deny(SYS_getsid, SECCOMP_RET_TRAP | 9);
    CHECK(syscall(SYS_getsid, 0) == SYS_getsid);
    CHECK(trapped == 1 && told.si_code == 1 && told.si_syscall == SYS_getsid && told.si_arch == AUDIT_ARCH_X86_64);
    CHECK(told.si_errno == 9);
}

static void killed(void)
{
    deny(SYS_getsid, SECCOMP_RET_KILL_PROCESS);
    syscall(SYS_getsid, 0);
}

static void *gets_sid(void *argument)
{
    syscall(SYS_getsid, 0);
    return argument;
}

static void thread_killed(void)
{
    deny(SYS_getsid, SECCOMP_RET_KILL_THREAD);
    pthread_t thread;
    pthread_create(&thread, NULL, gets_sid, NULL);
    pthread_join(thread, NULL);
    _exit(5);
}

static void *checks(void *argument)
{
    sleep(1);
    FAILS(syscall(SYS_getppid), 5);
    return argument;
}

static void all_threads(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, checks, NULL);
    struct sock_filter code[] = {LOAD(nr), IF(SYS_getppid, 0, 1), RETURN(SECCOMP_RET_ERRNO | 5),
                                 RETURN(SECCOMP_RET_ALLOW)};
    CHECK(filter(code, COUNT(code), SECCOMP_FILTER_FLAG_TSYNC) == 0);
    pthread_join(thread, NULL);
}

static void strict(void)
{
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
    if (write(1, "", 0) == 0)
        syscall(SYS_exit, 6);
}

static void strict_killed(void)
{
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
    syscall(SYS_getpid);
}

static void errors(void)
{
    struct sock_filter good[] = {RETURN(SECCOMP_RET_ALLOW)};
    struct sock_filter unknown[] = {BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 0), RETURN(SECCOMP_RET_ALLOW)};
    struct sock_filter outside[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 64), RETURN(SECCOMP_RET_ALLOW)};
    struct sock_filter endless[] = {LOAD(nr)};
    struct sock_filter far[] = {BPF_STMT(BPF_JMP | BPF_JA, 5), RETURN(SECCOMP_RET_ALLOW)};
    struct sock_filter zero[] = {BPF_STMT(BPF_ALU | BPF_DIV | BPF_K, 0), RETURN(SECCOMP_RET_ALLOW)};
    struct sock_filter unwritten[] = {BPF_STMT(BPF_LD | BPF_MEM, 3), RETURN(SECCOMP_RET_ALLOW)};
    FAILS(filter(unknown, 2, 0), EINVAL);
    FAILS(filter(outside, 2, 0), EINVAL);
    FAILS(filter(endless, 1, 0), EINVAL);
    FAILS(filter(far, 2, 0), EINVAL);
    FAILS(filter(zero, 2, 0), EINVAL);
    FAILS(filter(unwritten, 2, 0), EINVAL);
    FAILS(filter(good, 0, 0), EINVAL);
    FAILS(filter(good, 1, 0x8000), EINVAL);
    FAILS(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, 1), EFAULT);
    FAILS(syscall(SYS_seccomp, 99, 0, NULL), EINVAL);
    FAILS(syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 1, NULL), EINVAL);
    unsigned action = SECCOMP_RET_ERRNO;
    CHECK(syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0);
    action = 0x12340000;
    FAILS(syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action), EOPNOTSUPP);
    syscall(SYS_setresuid, 1, 1, 1);
    FAILS(filter(good, 1, 0), EACCES);
}

/* Arithmetic, scratch memory, all jumps: the answer is in the error number. */
static void arithmetic(void)
{
    struct sock_filter code[] = {
        LOAD(nr),
        IF(SYS_getpgid, 1, 0),
        RETURN(SECCOMP_RET_ALLOW),
        LOAD(args[0]),                               /* 100 */
        BPF_STMT(BPF_ST, 2),
        BPF_STMT(BPF_ALU | BPF_ADD | BPF_K, 50),     /* 150 */
        BPF_STMT(BPF_MISC | BPF_TAX, 0),
        BPF_STMT(BPF_LD | BPF_MEM, 2),               /* 100 */
        BPF_STMT(BPF_ALU | BPF_MUL | BPF_X, 0),      /* 15000 */
        BPF_STMT(BPF_ALU | BPF_DIV | BPF_K, 7),      /* 2142 */
        BPF_STMT(BPF_ALU | BPF_XOR | BPF_K, 0xFF),   /* 2209 */
        BPF_STMT(BPF_ALU | BPF_SUB | BPF_K, 2300),   /* below zero */
        BPF_STMT(BPF_ALU | BPF_NEG, 0),              /* 91 */
        BPF_STMT(BPF_ALU | BPF_LSH | BPF_K, 3),      /* 728 */
        BPF_STMT(BPF_ALU | BPF_RSH | BPF_K, 2),      /* 182 */
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xF7),   /* 182 */
        BPF_STMT(BPF_ALU | BPF_OR | BPF_K, 1),       /* 183 */
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 182, 0, 4),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_X, 0, 0, 3),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 1, 0, 2),
        BPF_STMT(BPF_ALU | BPF_OR | BPF_K, SECCOMP_RET_ERRNO),
        BPF_STMT(BPF_RET | BPF_A, 0),
        RETURN(SECCOMP_RET_ERRNO | 1),
    };
    NEED(filter(code, COUNT(code), 0) == 0);
    FAILS(syscall(SYS_getpgid, 100), 183);
}

static int part(void (*function)(void))
{
    pid_t pid = fork();
    if (pid == 0) {
        function();
        _exit(check_failures ? 1 : 0);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

int main(void)
{
    alarm(60);
    if (geteuid() != 0)
        return 0;
    CHECK(part(errnos) == 0);
    CHECK(part(trap) == 0);
    int status = part(killed);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
    status = part(thread_killed);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
    CHECK(part(all_threads) == 0);
    status = part(strict);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 6);
    status = part(strict_killed);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK(part(errors) == 0);
    CHECK(part(arithmetic) == 0);
    DONE();
}
