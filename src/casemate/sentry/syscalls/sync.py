"""Places in files, and what files hold going to where it lasts: lseek(2), fsync(2), posix_fadvise(2)."""

from __future__ import annotations

import os
import stat
from errno import EBADF, EINVAL, ESPIPE
from typing import TYPE_CHECKING

from casemate.sentry.abi import s64
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.readwrite import readable
from casemate.sentry.syscalls.table import Support, syscall

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SEEK_HOLE = 4


@syscall("lseek")
def lseek(task: Task, fd: int, offset: int, whence: int) -> int:
    """lseek(2)."""
    file = task.files.get(fd)
    if file.flags & os.O_PATH:
        raise SysError(EBADF)
    whence &= 0xFFFF_FFFF
    if whence > SEEK_HOLE:
        raise SysError(EINVAL)
    return file.seek(task, s64(offset), whence)


def _sync(task: Task, fd: int, data_only: bool) -> int:
    file = task.files.get(fd)
    if file.flags & os.O_PATH:
        raise SysError(EBADF)
    file.sync(task, data_only)
    return 0


@syscall("fsync")
def fsync(task: Task, fd: int) -> int:
    """fsync(2)."""
    return _sync(task, fd, False)


@syscall("fdatasync")
def fdatasync(task: Task, fd: int) -> int:
    """fdatasync(2)."""
    return _sync(task, fd, True)


@syscall("sync_file_range")
def sync_file_range(task: Task, fd: int, offset: int, size: int, flags: int) -> int:
    """sync_file_range(2): as fdatasync(2)."""
    if offset >> 63 or size >> 63 or (offset + size) >> 63 or flags & 0xFFFF_FFFF & ~7:
        raise SysError(EINVAL)
    file = task.files.get(fd)
    if file.flags & os.O_PATH:
        raise SysError(EBADF)
    if file.inode is None or file.inode.kind not in (stat.S_IFREG, stat.S_IFBLK, stat.S_IFDIR):
        raise SysError(ESPIPE)
    return _sync(task, fd, True)


@syscall("sync")
def sync(task: Task) -> int:
    """sync(2)."""
    for fs in {mount.fs for mount in task.kernel.mounts.all()}:
        fs.sync()
    return 0


@syscall("syncfs")
def syncfs(task: Task, fd: int) -> int:
    """syncfs(2)."""
    file = task.files.get(fd)
    if file.flags & os.O_PATH:
        raise SysError(EBADF)
    if file.inode is not None:
        file.inode.fs.sync()
    return 0


@syscall("fadvise64", Support.PARTIAL, "advice is checked, and not followed")
def fadvise64(task: Task, fd: int, offset: int, size: int, advice: int) -> int:
    """posix_fadvise(2)."""
    file = task.files.get(fd)
    if file.flags & os.O_PATH:
        raise SysError(EBADF)
    if file.inode is not None and file.inode.kind == stat.S_IFIFO:
        raise SysError(ESPIPE)
    if s64(size) < 0 or advice & 0xFFFF_FFFF > 5:
        raise SysError(EINVAL)
    return 0


@syscall("readahead", Support.PARTIAL, "nothing is read ahead")
def readahead(task: Task, fd: int, offset: int, size: int) -> int:
    """readahead(2)."""
    file = readable(task, fd)
    if not file.bulk or size >> 63:
        raise SysError(EINVAL)
    return 0
