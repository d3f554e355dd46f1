"""Changing what files are: modes, owners, times, sizes."""

from __future__ import annotations

import os
import resource
import signal
import stat
import time
from errno import EACCES, EBADF, EFBIG, EINVAL, EISDIR, ENODEV, EOPNOTSUPP, EPERM, ESPIPE
from typing import TYPE_CHECKING

from casemate.sentry.abi import AT_FDCWD, s32, s64, u32
from casemate.sentry.creds import CAP_CHOWN, CAP_FSETID
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.vfs import notify, target
from casemate.sentry.vfs.inode import Attributes
from casemate.sentry.vfs.opening import not_running
from casemate.sentry.vfs.path import MAY_WRITE, may, owns, permit
from casemate.sentry.vfs.target import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, Target

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

UTIME_NOW, UTIME_OMIT = 0x3FFF_FFFF, 0x3FFF_FFFE
KEEP = 0xFFFF_FFFF
"""An id of -1: it stays, chown(2)."""


def _changed(found: Target, mask: int = notify.IN_ATTRIB) -> int:
    if notify.watching and found.dentry is not None:
        notify.happened(found.dentry, mask)
    return 0


# Modes.


def _chmod(task: Task, found: Target, mode: int) -> int:
    found.changeable()
    inode = found.inode
    if not owns(task, inode):
        raise SysError(EPERM)
    mode &= 0o7777
    now, _, gid = inode.access()
    if stat.S_ISLNK(now):
        raise SysError(EOPNOTSUPP)
    if mode & stat.S_ISGID and not task.creds.in_group(gid) and not task.creds.capable(CAP_FSETID):
        mode &= ~stat.S_ISGID
    inode.setattr(task, Attributes(mode=mode))
    return _changed(found)


@syscall("chmod")
def chmod(task: Task, path: int, mode: int) -> int:
    """chmod(2)."""
    return _chmod(task, target.of_path(task, path), mode)


@syscall("fchmod")
def fchmod(task: Task, fd: int, mode: int) -> int:
    """fchmod(2)."""
    return _chmod(task, target.of_fd(task, fd, False), mode)


@syscall("fchmodat")
def fchmodat(task: Task, dirfd: int, path: int, mode: int) -> int:
    """fchmodat(2), as the kernel has it: without flags."""
    return _chmod(task, target.at(task, dirfd, path, 0, 0), mode)


@syscall("fchmodat2")
def fchmodat2(task: Task, dirfd: int, path: int, mode: int, flags: int) -> int:
    """fchmodat(2) with flags, which Linux has as a call of its own since 6.6."""
    return _chmod(task, target.at(task, dirfd, path, flags, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH), mode)


# Owners.


def _chown(task: Task, found: Target, uid: int, gid: int) -> int:
    found.changeable()
    inode = found.inode
    uid, gid = u32(uid), u32(gid)
    mode, now_uid, now_gid = inode.access()
    creds = task.creds
    if not creds.capable(CAP_CHOWN):
        mine = creds.fsuid == now_uid
        if uid != KEEP and not (mine and uid == now_uid):
            raise SysError(EPERM)
        if gid != KEEP and not (mine and (gid == now_gid or creds.in_group(gid))):
            raise SysError(EPERM)
    change = Attributes(uid=None if uid == KEEP else uid, gid=None if gid == KEEP else gid)
    if not stat.S_ISDIR(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
        bits = mode & 0o7777 & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            bits &= ~stat.S_ISGID
        change.mode = bits
    inode.setattr(task, change)
    return _changed(found)


@syscall("chown")
def chown(task: Task, path: int, uid: int, gid: int) -> int:
    """chown(2)."""
    return _chown(task, target.of_path(task, path), uid, gid)


@syscall("lchown")
def lchown(task: Task, path: int, uid: int, gid: int) -> int:
    """lchown(2)."""
    return _chown(task, target.of_path(task, path, False), uid, gid)


@syscall("fchown")
def fchown(task: Task, fd: int, uid: int, gid: int) -> int:
    """fchown(2)."""
    return _chown(task, target.of_fd(task, fd, False), uid, gid)


@syscall("fchownat")
def fchownat(task: Task, dirfd: int, path: int, uid: int, gid: int, flags: int) -> int:
    """fchownat(2)."""
    return _chown(task, target.at(task, dirfd, path, flags, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH), uid, gid)


# Times.


def _utime(task: Task, found: Target, atime: int | None, mtime: int | None, now: bool) -> int:
    """Set times.

    Arguments:
        atime, mtime: nanoseconds; None for what stays.
        now: both are the present: then being able to write the file is enough.
    """
    found.changeable()
    inode = found.inode
    if not owns(task, inode):
        if not now:
            raise SysError(EPERM)
        if not permit(task.creds, inode, MAY_WRITE):
            raise SysError(EACCES)
    inode.setattr(task, Attributes(atime=atime, mtime=mtime))
    return _changed(found)


def _moments(task: Task, address: int) -> tuple[int | None, int | None, bool]:
    """Two ``struct timespec`` of utimensat(2)."""
    import struct

    now = time.time_ns()
    if not address:
        return now, now, True
    words = struct.unpack("<qqqq", task.mem.read(address, 32))
    moments: list[int | None] = []
    for seconds, nanoseconds in (words[:2], words[2:]):
        if nanoseconds == UTIME_NOW:
            moments.append(now)
        elif nanoseconds == UTIME_OMIT:
            moments.append(None)
        elif 0 <= nanoseconds < 1_000_000_000:
            moments.append(seconds * 1_000_000_000 + nanoseconds)
        else:
            raise SysError(EINVAL)
    return moments[0], moments[1], words[1] == words[3] == UTIME_NOW


@syscall("utimensat")
def utimensat(task: Task, dirfd: int, path: int, times: int, flags: int) -> int:
    """utimensat(2); without a path, futimens(3)."""
    atime, mtime, now = _moments(task, times)
    if atime is None and mtime is None:
        return 0
    if not path and u32(dirfd) != u32(AT_FDCWD):
        if flags & 0xFFFF_FFFF:
            raise SysError(EINVAL)
        found = target.of_fd(task, dirfd, False)
    else:
        found = target.at(task, dirfd, path, flags, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)
    return _utime(task, found, atime, mtime, now)


def _microseconds(task: Task, address: int) -> tuple[int, int, bool]:
    """Two ``struct timeval``, utimes(2)."""
    import struct

    if not address:
        now = time.time_ns()
        return now, now, True
    words = struct.unpack("<qqqq", task.mem.read(address, 32))
    if not (0 <= words[1] < 1_000_000 and 0 <= words[3] < 1_000_000):
        raise SysError(EINVAL)
    return words[0] * 1_000_000_000 + words[1] * 1000, words[2] * 1_000_000_000 + words[3] * 1000, False


@syscall("utimes")
def utimes(task: Task, path: int, times: int) -> int:
    """utimes(2)."""
    return _utime(task, target.of_path(task, path), *_microseconds(task, times))


@syscall("futimesat")
def futimesat(task: Task, dirfd: int, path: int, times: int) -> int:
    """futimesat(2); without a path the descriptor's own file."""
    found = target.at(task, dirfd, path, 0, 0) if path or s32(dirfd) == AT_FDCWD else target.of_fd(task, dirfd, False)
    return _utime(task, found, *_microseconds(task, times))


@syscall("utime")
def utime(task: Task, path: int, times: int) -> int:
    """utime(2)."""
    found = target.of_path(task, path)
    if not times:
        now = time.time_ns()
        return _utime(task, found, now, now, True)
    return _utime(
        task, found, s64(task.mem.u64(times)) * 1_000_000_000, s64(task.mem.u64(times + 8)) * 1_000_000_000, False
    )


# Sizes.


def _limited(task: Task, size: int) -> None:
    if size > task.group.limits.soft(resource.RLIMIT_FSIZE):
        from casemate.sentry.signals.send import send_signal

        send_signal(task, signal.SIGXFSZ)
        raise SysError(EFBIG)


@syscall("truncate")
def truncate(task: Task, path: int, size: int) -> int:
    """truncate(2)."""
    if s64(size) < 0:
        raise SysError(EINVAL)
    found = target.of_path(task, path)
    inode = found.inode
    if inode.kind == stat.S_IFDIR:
        raise SysError(EISDIR)
    if inode.kind != stat.S_IFREG:
        raise SysError(EINVAL)
    found.changeable()
    may(task, inode, MAY_WRITE)
    not_running(task, inode)
    _limited(task, size)
    mode = inode.access()[0]
    change = Attributes(size=size)
    if mode & 0o6000 and not task.creds.capable(CAP_FSETID):
        change.mode = mode & 0o1777 | (mode & stat.S_ISGID if not mode & stat.S_IXGRP else 0)
    inode.setattr(task, change)
    return _changed(found, notify.IN_MODIFY)


@syscall("ftruncate")
def ftruncate(task: Task, fd: int, size: int) -> int:
    """ftruncate(2)."""
    if s64(size) < 0:
        raise SysError(EINVAL)
    file = task.files.get(fd)
    if file.flags & os.O_PATH:
        raise SysError(EBADF)
    if not file.can_write:
        raise SysError(EINVAL)
    _limited(task, size)
    file.truncate(task, size)
    if notify.watching:
        notify.on_file(file, notify.IN_MODIFY)
    return 0


@syscall("fallocate")
def fallocate(task: Task, fd: int, mode: int, offset: int, size: int) -> int:
    """fallocate(2)."""
    file = task.files.opened(fd)
    offset, size = s64(offset), s64(size)
    if offset < 0 or size <= 0:
        raise SysError(EINVAL)
    if not file.can_write:
        raise SysError(EBADF)
    if file.inode is not None and not file.bulk:
        if file.inode.kind == stat.S_IFIFO:
            raise SysError(ESPIPE)
        raise SysError(EISDIR if file.inode.kind == stat.S_IFDIR else ENODEV)
    if offset + size >= 1 << 63:
        raise SysError(EFBIG)
    if not mode & 0xFFFF_FFFF:
        _limited(task, offset + size)
    file.allocate(task, u32(mode), offset, size)
    if notify.watching:
        notify.on_file(file, notify.IN_MODIFY)
    return 0
