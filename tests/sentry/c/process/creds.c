/* User and group ids, capabilities, credentials(7). Each part runs in a child, as root natively too. */
#include "check.h"
#include <grp.h>
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* The C library's functions change all threads; these are the calls themselves. */
#define setuid(u) syscall(SYS_setuid, u)
#define setgid(g) syscall(SYS_setgid, g)
#define setresuid(r, e, s) syscall(SYS_setresuid, r, e, s)
#define setresgid(r, e, s) syscall(SYS_setresgid, r, e, s)
#define setreuid(r, e) syscall(SYS_setreuid, r, e)
#define setregid(r, e) syscall(SYS_setregid, r, e)
#define setgroups(n, g) syscall(SYS_setgroups, (long)(n), g)

static int is(uid_t r, uid_t e, uid_t s)
{
    uid_t a, b, c;
    return getresuid(&a, &b, &c) == 0 && a == r && b == e && c == s && getuid() == r && geteuid() == e;
}

static int isg(gid_t r, gid_t e, gid_t s)
{
    gid_t a, b, c;
    return getresgid(&a, &b, &c) == 0 && a == r && b == e && c == s && getgid() == r && getegid() == e;
}

static int caps(unsigned long long *effective, unsigned long long *permitted)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    int result = syscall(SYS_capget, &header, data);
    *effective = data[0].effective | (unsigned long long)data[1].effective << 32;
    *permitted = data[0].permitted | (unsigned long long)data[1].permitted << 32;
    return result;
}

static void user_ids(void)
{
    FAILS(setuid(-1), EINVAL);
    CHECK(setresuid(-1, 10, -1) == 0 && is(0, 10, 0));
    FAILS(setuid(11), EPERM);
    CHECK(setuid(0) == 0 && is(0, 0, 0));
    CHECK(setresuid(1, 2, 3) == 0 && is(1, 2, 3));
    FAILS(setresuid(4, -1, -1), EPERM);
    CHECK(setresuid(2, 3, 1) == 0 && is(2, 3, 1));
    CHECK(setresuid(-1, -1, -1) == 0 && is(2, 3, 1));
    FAILS(setuid(3), EPERM); /* neither the real nor the saved one */
    CHECK(setuid(1) == 0 && is(2, 1, 1));
    FAILS(setreuid(1, 5), EPERM);
    CHECK(setreuid(1, 2) == 0 && is(1, 2, 2));
    CHECK(setreuid(-1, 1) == 0 && is(1, 1, 2));
    CHECK(setreuid(-1, 2) == 0 && is(1, 2, 2));
    FAILS(syscall(SYS_getresuid, 1, 2, 3), EFAULT);
}

static void group_ids(void)
{
    CHECK(setresgid(5, 6, 7) == 0 && isg(5, 6, 7));
    CHECK(setgid(8) == 0 && isg(8, 8, 8));
    CHECK(setregid(9, 10) == 0 && isg(9, 10, 10));
    CHECK(setresuid(1, 1, 1) == 0);
    FAILS(setgid(11), EPERM);
    CHECK(setgid(9) == 0 && isg(9, 9, 10));
    FAILS(setregid(11, -1), EPERM);
    FAILS(setresgid(-1, 11, -1), EPERM);
    CHECK(setresgid(10, 10, 9) == 0 && isg(10, 10, 9));
    FAILS(setgroups(0, NULL), EPERM);
}

static void groups(void)
{
    gid_t list[70];
    CHECK(setgroups(0, NULL) == 0 && getgroups(0, NULL) == 0);
    gid_t wanted[] = {30, 10, 20};
    CHECK(setgroups(3, wanted) == 0);
    CHECK(getgroups(0, NULL) == 3);
    CHECK(getgroups(70, list) == 3);
    CHECK(list[0] == 10 && list[1] == 20 && list[2] == 30);
    FAILS(getgroups(2, list), EINVAL);
    FAILS(syscall(SYS_getgroups, -1, list), EINVAL);
    FAILS(setgroups(65537, wanted), EINVAL);
    FAILS(syscall(SYS_setgroups, 3, 1), EFAULT);
}

static void fs_ids(void)
{
    CHECK(setfsuid(1000) == 0);
    CHECK(setfsuid(-1) == 1000);
    unsigned long long effective, permitted;
    CHECK(caps(&effective, &permitted) == 0);
    CHECK(!(effective & 1 << CAP_DAC_OVERRIDE) && effective & 1 << CAP_SETUID && permitted & 1 << CAP_DAC_OVERRIDE);
    CHECK(setfsuid(0) == 1000);
    CHECK(caps(&effective, &permitted) == 0 && effective & 1 << CAP_DAC_OVERRIDE);
    CHECK(setfsgid(5) == 0);
    CHECK(setfsgid(-1) == 5);
    CHECK(setresuid(1, 1, 1) == 0);
    CHECK(setfsuid(2) == 1);
    CHECK(setfsuid(-1) == 1);
}

static void capabilities(void)
{
    unsigned long long effective, permitted;
    NEED(caps(&effective, &permitted) == 0 && effective == permitted && permitted & 1 << CAP_SETUID);
    /* Away with the effective ones, and back; with the permitted ones, and not. */
    CHECK(setresuid(-1, 1, -1) == 0);
    CHECK(caps(&effective, &permitted) == 0 && effective == 0 && permitted != 0);
    CHECK(setresuid(-1, 0, -1) == 0);
    CHECK(caps(&effective, &permitted) == 0 && effective == permitted && permitted != 0);
    CHECK(prctl(PR_SET_KEEPCAPS, 1) == 0 && prctl(PR_GET_KEEPCAPS) == 1);
    FAILS(prctl(PR_SET_KEEPCAPS, 2), EINVAL);
    CHECK(setresuid(1, 1, 1) == 0);
    CHECK(caps(&effective, &permitted) == 0 && effective == 0 && permitted != 0);
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    data[0].permitted = 1 << CAP_SETUID | 1 << CAP_NET_BIND_SERVICE;
    data[0].effective = 1 << CAP_NET_BIND_SERVICE;
    data[0].inheritable = 1 << CAP_NET_BIND_SERVICE;
    CHECK(syscall(SYS_capset, &header, data) == 0);
    CHECK(caps(&effective, &permitted) == 0 && effective == 1 << CAP_NET_BIND_SERVICE);
    FAILS(setuid(7), EPERM);
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0) == 0);
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_BIND_SERVICE, 0, 0) == 1);
    FAILS(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SETUID, 0, 0), EPERM);
    FAILS(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 99, 0, 0), EINVAL);
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) == 0);
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_BIND_SERVICE, 0, 0) == 0);
    data[0].permitted |= 1 << CAP_SYS_ADMIN;
    FAILS(syscall(SYS_capset, &header, data), EPERM);
    data[0].permitted = 0;
    data[0].inheritable = 0;
    FAILS(syscall(SYS_capset, &header, data), EPERM); /* effective but not permitted */
    data[0].effective = 0;
    CHECK(syscall(SYS_capset, &header, data) == 0);
    CHECK(caps(&effective, &permitted) == 0 && permitted == 0);
    FAILS(prctl(PR_CAPBSET_DROP, CAP_SETUID), EPERM);
    header.version = 1;
    FAILS(syscall(SYS_capget, &header, data), EINVAL);
    CHECK(header.version == _LINUX_CAPABILITY_VERSION_3);
    header.version = 1;
    CHECK(syscall(SYS_capget, &header, NULL) == 0);
    header.pid = 999999;
    FAILS(syscall(SYS_capget, &header, data), ESRCH);
    header.pid = -1;
    FAILS(syscall(SYS_capget, &header, data), EINVAL);
    header.pid = 1;
    FAILS(syscall(SYS_capset, &header, data), EPERM);
}

static void bounding(void)
{
    CHECK(prctl(PR_CAPBSET_READ, CAP_SETUID) == 1);
    FAILS(prctl(PR_CAPBSET_READ, 99), EINVAL);
    FAILS(prctl(PR_CAPBSET_DROP, 99), EINVAL);
    CHECK(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT) == 0 && prctl(PR_CAPBSET_READ, CAP_SYS_BOOT) == 0);
    CHECK(prctl(PR_GET_SECUREBITS) == 0);
    CHECK(prctl(PR_SET_SECUREBITS, 1 << 2 | 1 << 3) == 0); /* NO_SETUID_FIXUP, locked */
    FAILS(prctl(PR_SET_SECUREBITS, 0), EPERM);
    unsigned long long effective, permitted;
    CHECK(setresuid(1, 1, 1) == 0);
    CHECK(caps(&effective, &permitted) == 0 && effective != 0);
}

static void part(void (*function)(void))
{
    pid_t pid = fork();
    if (pid == 0) {
        function();
        _exit(check_failures ? 1 : 0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

int main(void)
{
    if (geteuid() != 0)
        return 0;
    part(user_ids);
    part(group_ids);
    part(groups);
    part(fs_ids);
    part(capabilities);
    part(bounding);
    DONE();
}
