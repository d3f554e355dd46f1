"""The system calls that a container may use, as data.

The virtual machine is the first wall; this filter is the second, between the container and the guest kernel. The
profile lists what ordinary programs use and nothing that changes the machine itself. Some calls are let through only
together with a capability, because with that capability the kernel's own check is the one that was asked for.

Three answers are given to the rest: calls that exist and are refused fail with ``EPERM``; calls that nobody has
thought about yet fail with ``ENOSYS``, so that programs fall back to older ones; ``clone3`` fails with ``ENOSYS`` as
well, since its flags lie in memory where no filter can see them and the C libraries fall back to ``clone``.

The shape is ``linux.seccomp`` of the OCI runtime specification (config-linux.md, "Seccomp"). Names are libseccomp's.
Profiles that people bring are read by :mod:`casemate.oci.seccomp_file`.
"""

from __future__ import annotations

import errno
from collections.abc import Collection

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
}
"""The native architecture of a machine and the 32-bit one that its kernel also runs."""

ALLOWED: dict[str, str] = {
    "files": """
        access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
        fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl
        fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
        fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr inotify_add_watch
        inotify_init inotify_init1 inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat listxattr llistxattr
        _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat
        oldfstat oldlstat oldstat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead
        readdir readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile sendfile64 setxattr
        splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs tee truncate
        truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev
        """,
    "waiting": """
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
        eventfd2 io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit _newselect
        pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select
        """,
    "memory": """
        brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
        mmap2 mprotect mremap msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease
        remap_file_pages
        """,
    "processes": """
        arch_prctl capget capset execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getegid
        getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid getpriority
        getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid gettid getuid getuid32 ioprio_get
        ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self modify_ldt nice pause
        pidfd_open pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev ptrace restart_syscall rseq
        sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
        sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
        sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address
        setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid
        setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32
        tgkill tkill ugetrlimit vfork wait4 waitid waitpid
        """,
    "signals": """
        rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
        rt_sigtimedwait_time64 rt_tgsigqueueinfo sgetmask sigaction sigaltstack signal signalfd signalfd4 sigpending
        sigprocmask sigreturn sigsuspend ssetmask
        """,
    "time": """
        adjtimex alarm clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
        clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete
        timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
        timerfd_gettime64 timerfd_settime timerfd_settime64 times
        """,
    "synchronization": """
        futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake ipc mq_getsetattr mq_notify mq_open
        mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd
        semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
        """,
    "sockets": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmmsg_time64
        recvmsg sendmmsg sendmsg sendto setsockopt shutdown socketpair
        """,
    "system": "getrandom oldolduname olduname sysinfo uname",
}
"""What every container may call, by purpose."""

WITH_CAPABILITY: dict[str, str] = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
        open_tree perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns syslog umount
        umount2 unshare
        """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_adjtime clock_adjtime64 clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}
"""What a container may call when it was given the capability."""

REFUSED = """
    add_key io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load keyctl nfsservctl
    request_key swapoff swapon sysfs _sysctl uselib userfaultfd ustat vm86 vm86old
    """
"""What no container may call, although a kernel may have it: keys and rings are not divided among namespaces."""

NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} of sched.h."""
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux, 32-bit addresses, the same two with UNAME26 (personality(2)), and the query."""
AF_VSOCK = 40
"""The socket family that leads out of the virtual machine (vsock(7))."""
_FAMILIES = ((0xFFFFFFFF, 41), (0xFFFFFFFE, 42), (0xFFFFFFFC, 44), (0xFFFFFFF0, 48))
"""Masks and values that together are the families 41 to 63. Filters see the 64 bits of the register and the kernel only
takes 32: a plain "is not 40" lets 0x100000028 through, which the kernel takes for 40."""


def profile(capabilities: Collection[str], machine: str = "x86_64") -> dict[str, Any]:
    """Our own profile.

    Arguments:
        capabilities: the container's bounding set, such as ``CAP_SYS_ADMIN``.
        machine: the processor architecture in the kernel's words.

    Returns:
        the ``linux.seccomp`` object. ``socketcall`` is left out on purpose: it would hide the socket family, and
        with it the way round the rule against vsock.
    """
    allowed = {name for group in ALLOWED.values() for name in group.split()}
    gated: set[str] = set()
    for capability, names in WITH_CAPABILITY.items():
        gated.update(names.split())
        if capability in capabilities:
            allowed.update(names.split())
    refused = (gated | set(REFUSED.split())) - allowed - {"clone", "clone3"}
    rules: list[dict[str, Any]] = [
        rule(sorted(allowed), "SCMP_ACT_ALLOW"),
        rule(sorted(refused), "SCMP_ACT_ERRNO", errno.EPERM),
        rule(["socket"], "SCMP_ACT_ALLOW", args=[condition(0, AF_VSOCK, "SCMP_CMP_LT")]),
    ]
    rules += [rule(["socket"], "SCMP_ACT_ALLOW", args=[masked(0, mask, value)]) for mask, value in _FAMILIES]
    rules += [
        rule(["personality"], "SCMP_ACT_ALLOW", args=[condition(0, value, "SCMP_CMP_EQ")]) for value in PERSONALITIES
    ]
    if "clone" not in allowed:
        # The flags are the first argument everywhere but on s390, where the kernel swapped the first two.
        index = 1 if machine == "s390x" else 0
        rules.append(rule(["clone"], "SCMP_ACT_ALLOW", args=[masked(index, NAMESPACE_FLAGS, 0)]))
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": list(ARCHITECTURES.get(machine, ())),
        "syscalls": rules,
    }


def rule(
    names: list[str], action: str, number: int | None = None, args: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """One rule of ``linux.seccomp.syscalls``; ``number`` is the errno that the call fails with."""
    made: dict[str, Any] = {"names": names, "action": action}
    if number is not None:
        made["errnoRet"] = number
    if args:
        made["args"] = args
    return made


def condition(index: int, value: int, op: str) -> dict[str, Any]:
    """One condition on argument ``index`` of a system call."""
    return {"index": index, "value": value, "op": op}


def masked(index: int, mask: int, value: int) -> dict[str, Any]:
    """The condition that argument ``index`` is ``value`` in the bits of ``mask``."""
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
