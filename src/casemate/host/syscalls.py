"""The system calls that Python's standard library does not wrap, as one table over ctypes.

Every function raises ``OSError`` with the call's errno. ctypes is imported by the first call, not by this module: it
costs two milliseconds that many commands never need. The numbers given to ``syscall(2)`` are those of the calls added
since Linux 5.0, which are the same on every architecture; ``pivot_root`` and ``bpf`` are older and have one for each.
"""

from __future__ import annotations

import os
from functools import lru_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# mount(2)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_NOATIME, MS_BIND, MS_MOVE, MS_REC = 32, 1024, 4096, 8192, 16384
MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 18, 1 << 19, 1 << 20
# umount2(2)
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
# unshare(2), setns(2)
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID = 0x04000000, 0x08000000, 0x20000000
# prctl(2)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME = 1, 4, 15
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
# openat2(2)
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 1, 2, 4, 8, 16
# open_tree(2), move_mount(2), mount_setattr(2)
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE, AT_SYMLINK_NOFOLLOW = -100, 0x1000, 0x8000, 0x100
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_SYMLINKS, MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x10, 0x40
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8

_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "s390x": 217, "ppc64le": 203}


@lru_cache(maxsize=1)
def _libc() -> Any:
    import ctypes  # local: see the module's docstring

    libc = ctypes.CDLL(None, use_errno=True)
    pointer, number = ctypes.c_char_p, ctypes.c_ulong
    libc.mount.argtypes = (pointer, pointer, pointer, number, pointer)
    libc.umount2.argtypes = (pointer, ctypes.c_int)
    libc.unshare.argtypes = (ctypes.c_int,)
    libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
    libc.prctl.argtypes = (ctypes.c_int, number, number, number, number)
    libc.syscall.restype = ctypes.c_long
    return libc


def prepare() -> None:
    """Load what the calls need, for who is about to fork and to make them on both sides."""
    _libc()


def _done(result: int, what: str) -> int:
    if result == -1:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} ({what})")
    return result


def _syscall(number: int, what: str, *arguments: Any) -> int:
    import ctypes

    # syscall(2) is variadic: a bare int would be passed as 32 bits with the upper half undefined.
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return _done(int(_libc().syscall(ctypes.c_long(number), *wide)), what)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None) -> None:
    """``mount(2)``; None stands for a null pointer."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _done(_libc().mount(encoded[0], encoded[1], encoded[2], flags, encoded[3]), f"mount on {target}")


def umount2(target: str, flags: int) -> None:
    """``umount2(2)``."""
    _done(_libc().umount2(os.fsencode(target), flags), f"umount {target}")


def unshare(flags: int) -> None:
    """``unshare(2)``: of the calling thread."""
    _done(_libc().unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """``setns(2)``: moves the calling thread into the namespace ``fd`` of ``kind`` (a CLONE_NEW* flag)."""
    _done(_libc().setns(fd, kind), "setns")


def one_arena() -> None:
    """Have the C library keep all of the process's memory in one place, instead of one for each thread that it has:
    ``M_ARENA_MAX`` of :manpage:`mallopt(3)`. For who has many threads that do little."""
    _libc().mallopt(-8, 1)


def prctl(option: int, argument: int = 0) -> int:
    """``prctl(2)`` with one number; the unused arguments are zero, as the kernel demands for some options."""
    return _done(_libc().prctl(option, argument, 0, 0, 0), f"prctl {option}")


def setdomainname(name: str) -> None:
    """``setdomainname(2)``: of the calling thread's UTS namespace."""
    data = os.fsencode(name)
    _done(_libc().setdomainname(data, len(data)), "setdomainname")


def pivot_root(new_root: str, put_old: str) -> None:
    """``pivot_root(2)``. Raises OSError(ENOSYS) on an architecture that is not in the table."""
    number = _PIVOT_ROOT.get(os.uname().machine, -1)
    _syscall(number, f"pivot_root {new_root}", os.fsencode(new_root), os.fsencode(put_old))


def openat2(directory: int, path: str, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """``openat2(2)``, always close-on-exec. Returns the descriptor; ``resolve`` is a set of RESOLVE_* flags."""
    import ctypes

    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, mode, resolve)  # struct open_how, version 0
    return _syscall(_OPENAT2, f"open {path}", directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))


def open_tree(directory: int, path: str, flags: int) -> int:
    """``open_tree(2)``, always close-on-exec: with OPEN_TREE_CLONE a detached copy of the mount at ``path``."""
    return _syscall(_OPEN_TREE, f"open_tree {path}", directory, os.fsencode(path), flags | OPEN_TREE_CLOEXEC)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """``move_mount(2)``: attaches a detached mount."""
    where = to_path or f"descriptor {to_fd}"
    _syscall(_MOVE_MOUNT, f"mount on {where}", from_fd, os.fsencode(from_path), to_fd, os.fsencode(to_path), flags)


def mount_setattr(fd: int, path: str, flags: int, *, set_: int = 0, clear: int = 0, propagation: int = 0) -> None:
    """``mount_setattr(2)``: MOUNT_ATTR_* flags to set and clear, and the propagation (MS_*, 0 leaves it)."""
    import ctypes

    attributes = (ctypes.c_uint64 * 4)(set_, clear, propagation, 0)  # struct mount_attr, version 0
    _syscall(
        _MOUNT_SETATTR, f"mount_setattr {path or fd}", fd, os.fsencode(path), flags,
        ctypes.byref(attributes), ctypes.sizeof(attributes),
    )


def bpf(command: int, attributes: bytes) -> int:
    """``bpf(2)`` with a ``union bpf_attr``; descriptors that it returns are close-on-exec.

    Raises OSError(ENOSYS) on an architecture that is not in the table.
    """
    import ctypes

    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    number = _BPF.get(os.uname().machine, -1)
    return _syscall(number, "bpf", command, ctypes.byref(buffer), len(attributes))
