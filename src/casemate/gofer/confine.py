"""What a gofer is shut into: namespaces with nothing but its trees, few capabilities, few system calls.

Its root directory is an empty, read-only tmpfs. The trees are mounts that are attached nowhere (open_tree(2)), so
``..`` leads nowhere but to their own top; a read-only one is a read-only mount. The working directory is such a mount
of ``/proc/self/fd``: links there lead to the files that it has descriptors of, for the calls that want a path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct

from casemate.host import syscalls
from casemate.sentry.platform import filter as seccomp
from casemate.sentry.syscalls.numbers import NUMBERS

CLONE_NEWUSER = 0x10000000
PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
CAPABILITY_VERSION_3 = 0x20080522
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_SETFCAP = 0, 1, 2, 3, 4, 31
CAP_MKNOD = 27
READING = 1 << CAP_DAC_READ_SEARCH
WRITING = READING | 1 << CAP_CHOWN | 1 << CAP_DAC_OVERRIDE | 1 << CAP_FOWNER | 1 << CAP_FSETID | 1 << CAP_SETFCAP
"""Capabilities that are kept: permissions are the sentry's affair, and files get whatever owner applications say."""

_READS = (
    "recvfrom sendto sendmsg openat close newfstatat fstat dup readlink readlinkat getdents64 fstatfs fcntl lseek "
    "getxattr lgetxattr listxattr llistxattr "
    # Python itself.
    "mmap munmap mremap brk madvise futex rt_sigreturn rt_sigprocmask exit_group exit restart_syscall read write"
)
_WRITES = (
    "mkdirat mknodat symlinkat linkat renameat renameat2 unlinkat rmdir unlink truncate ftruncate chmod fchmodat chown "
    "fchownat utimensat setxattr removexattr syncfs mkdir mknod symlink link rename"
)
ALLOWED = [NUMBERS[name] for name in _READS.split()]
ALLOWED_WRITING = [*ALLOWED, *(NUMBERS[name] for name in _WRITES.split())]
"""All system calls that it makes; any other one kills it, and that ends the sandbox."""


_NOT_FILES = (
    "proc sysfs devtmpfs devpts cgroup cgroup2 bpf debugfs tracefs securityfs configfs fusectl pstore efivarfs mqueue "
    "binfmt_misc autofs selinuxfs smackfs rpc_pipefs nsfs resctrl"
)
NOT_FILES = frozenset(_NOT_FILES.split())
"""File systems that are not files but the host's kernel. The sandbox has its own of some of them."""


_NAMESPACES = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS


class Place:
    """A directory that is to be served.

    Arguments:
        path: where it is.
        read_only: nothing in it is changed.
    """

    __slots__ = ("path", "read_only")

    def __init__(self, path: str, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only


def confine(keep: list[int], places: list[Place], root: str | None) -> tuple[list[int], frozenset[int]]:
    """Shut this process in, for good.

    Arguments:
        keep: descriptors that are kept; all others from 3 on are closed, and 0 to 2 lead to ``/dev/null``.
        places: the trees.
        root: None for trees as they are now; else the directory below which they are and in which mounts may be made
            later. With ``/`` no namespace is made.

    Returns ``O_PATH`` descriptors of the trees, and devices that are not to be served. The working directory is then
    the one of this process' descriptors, so that the relative path ``"7"`` is what descriptor 7 is. Raises OSError.
    """
    name = ctypes.create_string_buffer(b"casemate-gofer")
    syscalls.prctl(syscalls.PR_SET_NAME, ctypes.addressof(name))
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0)
    _close_others(keep, hard)
    hidden = frozenset(device for _, device in _host_kernel())
    trees = _namespaces(places) if root is None else _follow(places, root)
    _drop(all(place.read_only for place in places), devices=root not in (None, "/"))
    return trees, hidden


def _close_others(keep: list[int], hard: int) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        if fd not in keep:
            os.dup2(null, fd)
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = max(low, fd + 1)
    os.closerange(low, min(hard, 1 << 30))


def _namespaces(places: list[Place]) -> list[int]:
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(_NAMESPACES if uid == 0 else _NAMESPACES | CLONE_NEWUSER)
    if uid != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE, None)
    own = syscalls.open_tree(syscalls.AT_FDCWD, "/proc/self/fd", syscalls.OPEN_TREE_CLONE)
    for point in reversed([point for point, _ in _host_kernel()]):
        with contextlib.suppress(OSError):  # in use below another one, or not ours to unmount: the server hides it
            syscalls.umount2(point, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    trees = [_detached(place) for place in places]
    nothing = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("none", "/proc", "tmpfs", nothing, "size=4k,nr_inodes=2,mode=0555")
    os.chdir("/proc")
    try:
        syscalls.pivot_root(".", ".")
        syscalls.umount2(".", syscalls.MNT_DETACH)
    except OSError:
        # The root of the initial ramdisk cannot be pivoted away from, pivot_root(2) "NOTES".
        syscalls.mount(".", "/", None, syscalls.MS_MOVE, None)
        os.chroot(".")
    os.fchdir(own)
    os.close(own)
    return trees


def _host_kernel() -> list[tuple[str, int]]:
    """Where the file systems of :data:`NOT_FILES` are mounted, and their devices; proc_pid_mountinfo(5)."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            before, _, after = line.partition(b" - ")
            fields = before.split()
            if after.split()[0].decode() in NOT_FILES:
                major, minor = fields[2].split(b":")
                point = fields[4].decode("unicode_escape").encode("latin-1")
                found.append((os.fsdecode(point), os.makedev(int(major), int(minor))))
    return found


def _detached(place: Place) -> int:
    """A copy of the tree's mounts that is attached nowhere."""
    deep = syscalls.AT_RECURSIVE
    tree = syscalls.open_tree(syscalls.AT_FDCWD, place.path, syscalls.OPEN_TREE_CLONE | deep)
    attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    if place.read_only:
        attributes |= syscalls.MOUNT_ATTR_RDONLY
    syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH | deep, set_=attributes)
    return tree


def _follow(places: list[Place], root: str) -> list[int]:
    """Into a mount namespace that begins at the root directory, and to which mounts that are made later below mounts of
    the caller's that are shared come too (mount_namespaces(7)).

    A root directory alone would not do: ``..`` from a descriptor that the sentry is handed leads above it.
    """
    if root == "/":
        own = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        own = syscalls.open_tree(syscalls.AT_FDCWD, "/proc/self/fd", syscalls.OPEN_TREE_CLONE)
        syscalls.unshare(_NAMESPACES)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE, None)
        syscalls.mount(root, root, None, syscalls.MS_BIND | syscalls.MS_REC, None)
        os.chdir(root)
        syscalls.pivot_root(".", ".")
        syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
    trees = [os.open(place.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for place in places]
    os.fchdir(own)
    os.close(own)
    return trees


def _drop(reading: bool, devices: bool) -> None:
    """Give up capabilities, and then all system calls but those of the list."""
    keep = READING if reading else WRITING | devices << CAP_MKNOD
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(64):
        if not keep >> number & 1:
            with contextlib.suppress(OSError):  # unknown to this kernel, or not ours to drop
                syscalls.prctl(PR_CAPBSET_DROP, number)
    with contextlib.suppress(OSError):
        syscalls.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("<II", CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    if libc.capget(header, data) < 0:
        raise OSError(ctypes.get_errno(), "capget")
    permitted = struct.unpack_from("<I", data.raw, 4)[0] & keep
    if libc.capset(header, struct.pack("<6I", permitted, permitted, 0, 0, 0, 0)) < 0:
        raise OSError(ctypes.get_errno(), "capset")
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(_program(ALLOWED if reading else ALLOWED_WRITING))


def _program(allowed: list[int]) -> bytes:
    """A filter that lets these system calls through and kills the process for any other, seccomp(2)."""
    load, jump_equal, answer = 0x20, 0x15, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    code = [(load, 0, 0, 4), (jump_equal, 1, 0, seccomp.AUDIT_ARCH_X86_64), (answer, 0, 0, kill), (load, 0, 0, 0)]
    for number in allowed:
        code += [(jump_equal, 0, 1, number), (answer, 0, 0, allow)]
    code.append((answer, 0, 0, kill))
    return b"".join(struct.pack("<HBBI", *one) for one in code)


def last_words(fd: int, error: BaseException) -> None:
    """Say why it ends, in one line."""
    text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):
        os.write(fd, text.replace("\n", " ").encode(errors="replace")[:4000] + b"\n")
