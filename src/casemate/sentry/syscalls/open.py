"""Opening and closing files."""

from __future__ import annotations

import os
import struct
from errno import E2BIG, EINVAL
from typing import TYPE_CHECKING

from casemate.sentry.abi import AT_FDCWD, u32
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.vfs.opening import O_TMPFILE, VALID, open_at
from casemate.sentry.vfs.path import RESOLVE_BENEATH, RESOLVE_IN_ROOT

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

_RESOLVE_ALL = 0x3F
CLOSE_RANGE_UNSHARE, CLOSE_RANGE_CLOEXEC = 2, 4


def _open(task: Task, dirfd: int, path: bytes, flags: int, mode: int, restrict: int = 0) -> int:
    if flags & (os.O_CREAT | os.O_DIRECTORY) == os.O_CREAT | os.O_DIRECTORY and not flags & os.O_PATH:
        raise SysError(EINVAL)
    files = task.files
    files.reserve()
    file = open_at(task, dirfd, path, flags, mode, restrict)
    try:
        return files.install(file, bool(flags & os.O_CLOEXEC))
    except SysError:
        file.decref()
        raise


@syscall("open")
def open_(task: Task, path: int, flags: int, mode: int) -> int:
    """open(2)."""
    return _open(task, AT_FDCWD, task.mem.path(path), flags & VALID, mode & 0o7777)


@syscall("openat")
def openat(task: Task, dirfd: int, path: int, flags: int, mode: int) -> int:
    """openat(2)."""
    return _open(task, dirfd, task.mm.path(path), flags & VALID, mode & 0o7777)


@syscall("creat")
def creat(task: Task, path: int, mode: int) -> int:
    """creat(2)."""
    flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    return _open(task, AT_FDCWD, task.mem.path(path), flags, mode & 0o7777)


@syscall("openat2")
def openat2(task: Task, dirfd: int, path: int, how: int, size: int) -> int:
    """openat2(2)."""
    if size < 24:
        raise SysError(EINVAL)
    if size > 4096:
        raise SysError(E2BIG)
    data = task.mem.read(how, size)
    if any(data[24:]):
        raise SysError(E2BIG)
    flags, mode, restrict = struct.unpack("<QQQ", data[:24])
    # Unlike open(2) it refuses what it does not know.
    if flags & ~VALID or restrict & ~_RESOLVE_ALL or mode & ~0o7777:
        raise SysError(EINVAL)
    if mode and not (flags & os.O_CREAT or flags & O_TMPFILE):
        raise SysError(EINVAL)
    if flags & os.O_PATH and flags & ~(os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC):
        raise SysError(EINVAL)
    if restrict & RESOLVE_BENEATH and restrict & RESOLVE_IN_ROOT:
        raise SysError(EINVAL)
    return _open(task, dirfd, task.mem.path(path), flags, mode, restrict)


@syscall("close")
def close(task: Task, fd: int) -> int:
    """close(2)."""
    task.files.close(task, fd)
    return 0


@syscall("close_range")
def close_range(task: Task, first: int, last: int, flags: int) -> int:
    """close_range(2)."""
    first, last, flags = u32(first), u32(last), u32(flags)
    if flags & ~(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) or first > last:
        raise SysError(EINVAL)
    files = task.files
    if flags & CLOSE_RANGE_UNSHARE and files.refs > 1:
        task.files = files.fork(task.group.limits)
        files.decref(task)
        files = task.files
    for fd in [fd for fd in files if first <= fd <= last]:
        if flags & CLOSE_RANGE_CLOEXEC:
            files.set_cloexec(fd, True)
        else:
            files.close(task, fd)
    return 0
