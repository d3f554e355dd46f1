/* prctl(2), arch_prctl(2), personality(2). */
#include "check.h"
#include <asm/prctl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

int main(void)
{
    char name[17] = "";
    CHECK(prctl(PR_SET_NAME, "a name that is too long") == 0);
    CHECK(prctl(PR_GET_NAME, name) == 0 && strcmp(name, "a name that is ") == 0);
    /* A name at the very end of what can be read. */
    char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    strcpy(page + 4096 - 4, "end");
    CHECK(prctl(PR_SET_NAME, page + 4096 - 4) == 0);
    CHECK(prctl(PR_GET_NAME, name) == 0 && strcmp(name, "end") == 0);
    FAILS(prctl(PR_SET_NAME, 1), EFAULT);
    FAILS(prctl(PR_GET_NAME, 1), EFAULT);
    FAILS(prctl(9999), EINVAL);

    int value = -1;
    CHECK(prctl(PR_GET_PDEATHSIG, &value) == 0 && value == 0);
    CHECK(prctl(PR_SET_PDEATHSIG, SIGTERM) == 0 && prctl(PR_GET_PDEATHSIG, &value) == 0 && value == SIGTERM);
    FAILS(prctl(PR_SET_PDEATHSIG, 65), EINVAL);
    pid_t pid = fork();
    if (pid == 0) { /* not inherited */
        CHECK(prctl(PR_GET_PDEATHSIG, &value) == 0 && value == 0);
        DONE();
    }
    CHECK(waitpid(pid, &value, 0) == pid && value == 0);

    CHECK(prctl(PR_GET_DUMPABLE) == 1);
    CHECK(prctl(PR_SET_DUMPABLE, 0) == 0 && prctl(PR_GET_DUMPABLE) == 0);
    CHECK(prctl(PR_SET_DUMPABLE, 1) == 0);
    FAILS(prctl(PR_SET_DUMPABLE, 2), EINVAL);
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0 && prctl(PR_GET_CHILD_SUBREAPER, &value) == 0 && value == 1);
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 0) == 0 && prctl(PR_GET_CHILD_SUBREAPER, &value) == 0 && value == 0);
    CHECK(prctl(PR_SET_TIMERSLACK, 1234) == 0 && prctl(PR_GET_TIMERSLACK) == 1234);
    CHECK(prctl(PR_SET_TIMERSLACK, 0) == 0 && prctl(PR_GET_TIMERSLACK) == 50000);
    CHECK(prctl(PR_GET_TIMING) == 0);
    CHECK(prctl(PR_GET_SECCOMP) == 0);
    CHECK(prctl(PR_GET_TSC, &value) == 0 && value == PR_TSC_ENABLE);
    CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0 && prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1);
    CHECK(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_DEFAULT);

    CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0);
    FAILS(prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0), EINVAL);
    FAILS(prctl(PR_SET_NO_NEW_PRIVS, 1, 1, 0, 0), EINVAL);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);

    unsigned long base = 0;
    CHECK(syscall(SYS_arch_prctl, ARCH_GET_FS, &base) == 0 && base != 0);
    unsigned long mine = base;
    CHECK(syscall(SYS_arch_prctl, ARCH_SET_GS, 0x1234000) == 0);
    CHECK(syscall(SYS_arch_prctl, ARCH_GET_GS, &base) == 0 && base == 0x1234000);
    CHECK(syscall(SYS_arch_prctl, ARCH_SET_FS, mine) == 0);
    FAILS(syscall(SYS_arch_prctl, ARCH_SET_FS, -1L), EPERM);
    FAILS(syscall(SYS_arch_prctl, ARCH_GET_FS, 1), EFAULT);
    FAILS(syscall(SYS_arch_prctl, 0x1234, 0), EINVAL);
    static unsigned long cell = 77;
    unsigned long got;
    CHECK(syscall(SYS_arch_prctl, ARCH_SET_GS, &cell) == 0);
    __asm__ volatile("movq %%gs:0, %0" : "=r"(got));
    CHECK(got == 77);

    int persona = personality(0xFFFFFFFF);
    CHECK(persona >= 0);
    CHECK(personality(persona | ADDR_NO_RANDOMIZE) == persona);
    CHECK(personality(0xFFFFFFFF) == (persona | ADDR_NO_RANDOMIZE));
    DONE();
}
