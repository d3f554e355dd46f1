/* uname(2), sysinfo(2), getrandom(2), membarrier(2), names, and what a sandbox refuses. */
#include "check.h"
#include <linux/membarrier.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>

int main(void)
{
    struct utsname name;
    CHECK(uname(&name) == 0 && strcmp(name.sysname, "Linux") == 0 && strcmp(name.machine, "x86_64") == 0);
    CHECK(strlen(name.release) > 2 && name.release[0] >= '4');
    FAILS(syscall(SYS_uname, 1), EFAULT);
    char host[65];
    CHECK(gethostname(host, sizeof host) == 0 && strcmp(host, name.nodename) == 0);
    FAILS(syscall(SYS_sethostname, "x", 65), EINVAL);
    FAILS(syscall(SYS_sethostname, "x", -1), EINVAL);
    pid_t pid = fork();
    if (pid == 0) {
        if (syscall(SYS_setresuid, 1, 1, 1) == 0) {
            FAILS(sethostname("other", 5), EPERM);
            FAILS(setdomainname("other", 5), EPERM);
            FAILS(syscall(SYS_reboot, 0xfee1dead, 0x28121969, 0x12121212, 0), EPERM);
        }
        DONE();
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);

    if (geteuid() == 0) { /* nothing that is one of its commands */
        FAILS(syscall(SYS_reboot, 1, 2, 3, 0), EINVAL);
        FAILS(syscall(SYS_reboot, 0xfee1dead, 2, 3, 0), EINVAL);
        FAILS(syscall(SYS_reboot, 0xfee1dead, 0x28121969, 0x12121212, 0), EINVAL);
    }

    struct sysinfo info;
    CHECK(sysinfo(&info) == 0 && info.totalram * info.mem_unit > 1 << 20 && info.procs > 0 && info.uptime >= 0);
    FAILS(syscall(SYS_sysinfo, 1), EFAULT);

    unsigned char random[300] = {0};
    int zeros = 0;
    CHECK(getrandom(random, sizeof random, 0) == sizeof random);
    for (unsigned i = 0; i < sizeof random; i++)
        zeros += random[i] == 0;
    CHECK(zeros < 30);
    CHECK(getrandom(random, 0, 0) == 0);
    CHECK(getrandom(random, 10, GRND_NONBLOCK | GRND_RANDOM) == 10);
    FAILS(getrandom(random, 10, 0x100), EINVAL);
    FAILS(syscall(SYS_getrandom, 1, 10, 0), EFAULT);
    size_t large = 3 << 20;
    unsigned char *memory = mmap(NULL, large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(getrandom(memory, large, 0) == (ssize_t)large);

    int commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
    CHECK(commands >= 0);
    FAILS(syscall(SYS_membarrier, 0x40000000, 0, 0), EINVAL);
    FAILS(syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 1, 0), EINVAL);
    if (commands & MEMBARRIER_CMD_PRIVATE_EXPEDITED) {
        FAILS(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0), EPERM);
        CHECK(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0);
        CHECK(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0);
    }
    FAILS(syscall(9999), ENOSYS);
    FAILS(syscall(SYS_afs_syscall), ENOSYS);
    DONE();
}
