"""The sentry's own confinement: an ordinary user without privileges, in empty namespaces, behind a list of calls.

What an application would gain by taking the sentry over is what is left here: memory, a few descriptors, and the
system calls of :data:`ALLOWED`.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import resource
import signal
import struct
import sys

from casemate import bundle, late
from casemate.host import syscalls
from casemate.programs import settle
from casemate.sentry.platform import filter as seccomp
from casemate.sentry.syscalls.numbers import NUMBERS

_NOT_NEEDED = "foreground machine main pod sandbox service settings usage"
NOT_NEEDED = frozenset(f"casemate.sentry.{name}" for name in _NOT_NEEDED.split())
"""Modules of the keeper's side, and programs: whoever needs one has it by now."""
_FROM_FILES = (
    "encodings.utf_8 encodings.ascii encodings.latin_1 socket "
    "_json array ctypes fcntl math mmap resource select struct termios"
)
FROM_FILES = _FROM_FILES.split()
"""What is needed beside them. Parts of the standard library that are in C are in no bundle."""
MAX_FILES = 1 << 20
"""Descriptors of one sentry, where the host allows as many: each open file of the sandbox is one."""
CLONE_NEWCGROUP = 0x02000000
CLONE_THREAD = 0x10000
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_FSMOUNT_CLOEXEC = 1
_MOUNT_ATTRS = 1 | 2 | 4 | 8  # read-only is not among them: RDONLY=1 NOSUID=2 NODEV=4 NOEXEC=8

_ALLOWED = (
    # Applications: their threads, memory and ends.
    "ptrace wait4 kill sched_setaffinity "
    # Data: of descriptors that the sentry has.
    "read write pread64 pwrite64 pwritev2 readv writev lseek close fstat newfstatat ftruncate fallocate fsync "
    "fdatasync dup fcntl ioctl memfd_create pipe2 eventfd2 "
    # The gofer, and the host's side.
    "sendmsg recvmsg sendto recvfrom "
    # Waiting.
    "epoll_wait epoll_ctl poll futex clock_gettime clock_nanosleep restart_syscall "
    # Python itself.
    "mmap munmap mprotect mremap madvise brk rt_sigaction rt_sigprocmask rt_sigreturn getpid gettid getrandom "
    "set_robust_list rseq exit exit_group openat sysinfo clone"
)
ALLOWED = _ALLOWED.split()
"""Every system call that the sentry itself makes once it serves. ``openat`` is for ``/proc/PID/mem`` and
``maps`` (its root directory is empty), ``clone`` for threads only."""
_SOCKETS = "epoll_create1 socket connect bind listen accept4 shutdown getsockopt setsockopt getsockname getpeername"
SOCKETS = _SOCKETS.split()
"""Those that it makes too where applications have the sockets of a network namespace of the host's."""


def load_all() -> None:
    """Import every module that may be needed: afterwards there are no files to import from, and no ``/proc`` of the
    host's either. A module that wants something of it has a function ``before_isolation``.

    Where there is a bundle (:mod:`casemate.bundle`), modules still come out of that, in memory, when they are needed.
    """
    names = [name for name in (*bundle.below("casemate.sentry"), *bundle.below("casemate.gofer"))
             if name not in NOT_NEEDED and not name.endswith("__main__")]  # fmt: skip
    bundled = bundle.use()
    if bundled is not None and bundled.calls and bundled.fresh(names):
        names = bundled.hooks
    for name in (*names, *FROM_FILES):
        loaded = sys.modules.get(name) or importlib.import_module(name)
        if (hook := getattr(loaded, "before_isolation", None)) is not None:
            hook()
    if bundled is not None and not bundled.stale:
        bundled.sealed = True  # what is seldom used may still come, out of memory
        return
    late.now()
    if bundled is not None:
        sys.meta_path.remove(bundled)  # nothing of another version may come out of it


def own_proc() -> int:
    """A descriptor of a procfs that shows the sentry's own processes and nothing else of the host.

    Where the kernel is too old for that (before 5.8), the host's ``/proc``.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fs = libc.syscall(_FSOPEN, b"proc", 1)
    if fs >= 0:
        try:
            for key, value in ((b"hidepid", b"invisible"), (b"subset", b"pid")):
                if libc.syscall(_FSCONFIG, fs, _FSCONFIG_SET_STRING, key, value, 0) < 0:
                    break
            else:
                if libc.syscall(_FSCONFIG, fs, _FSCONFIG_CMD_CREATE, None, None, 0) >= 0:
                    fd: int = libc.syscall(_FSMOUNT, fs, _FSMOUNT_CLOEXEC, _MOUNT_ATTRS & ~1)
                    if fd >= 0:
                        return fd
        finally:
            os.close(fs)
    return os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def enter(uid: int, gid: int, *, host_network: bool = False) -> int:
    """Give up everything. To be called once, with all modules loaded, while there is one thread.

    Arguments:
        uid, gid: who to be from now on; not root.
        host_network: keep the host's network namespace.

    Returns:
        A descriptor of a ``/proc`` for the platform.

    Raises:
        OSError: a step was refused; nothing may run then.
    """
    parent = os.getppid()
    hard = MAX_FILES
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    proc = own_proc()
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | CLONE_NEWCGROUP
    if not host_network:
        flags |= syscalls.CLONE_NEWNET
    syscalls.unshare(flags)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE, None)
    # A root directory with nothing in it, that nobody can put anything into.
    nothing = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("none", "/tmp", "tmpfs", nothing, "size=4k,nr_inodes=2,mode=0555")
    os.chdir("/tmp")
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    # The change of user has cleared it: with whoever started it, it ends.
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("whoever started the sentry has ended")
    return proc


def program(allowed: list[int]) -> bytes:
    """The filter: calls of the list, ``clone`` for threads only, ENOSYS for the rest.

    ENOSYS, not death: the C library tries new calls first (clone3) and goes on with old ones.
    """
    load, jump_equal, jump_set, answer = 0x20, 0x15, 0x45, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.ENOSYS
    code: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),
        (jump_equal, 1, 0, seccomp.AUDIT_ARCH_X86_64),
        (answer, 0, 0, refuse),
        (load, 0, 0, 0),
    ]
    for number in sorted(allowed):
        if number == NUMBERS["clone"]:
            code += [
                (jump_equal, 0, 4, number),
                (load, 0, 0, 16),  # the first argument's low half
                (jump_set, 0, 1, CLONE_THREAD),
                (answer, 0, 0, allow),
                (answer, 0, 0, refuse),
            ]
        else:
            code += [(jump_equal, 0, 1, number), (answer, 0, 0, allow)]
    code.append((answer, 0, 0, refuse))
    return b"".join(struct.pack("<HBBI", *one) for one in code)


def confine(host_network: bool = False) -> None:
    """Enter the filter, for good. After the platform has made its mold, which must not inherit it.

    Arguments:
        host_network: sockets of the host's are made.
    """
    settle()
    seccomp.install(program([NUMBERS[name] for name in (*ALLOWED, *(SOCKETS if host_network else ()))]))
