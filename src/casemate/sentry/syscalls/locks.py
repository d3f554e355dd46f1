"""Locks: those of fcntl(2), and flock(2)."""

from __future__ import annotations

import os
import struct
from errno import EBADF, EINVAL, EOVERFLOW, EWOULDBLOCK
from typing import TYPE_CHECKING, Any

from casemate.sentry.abi import u32
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.vfs.locks import END, F_RDLCK, F_UNLCK, F_WRLCK, locks_of, wait_range
from casemate.sentry.wait import Block

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File

_FLOCK = struct.Struct("<hhxxxxqqixxxx")
LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN, LOCK_MAND = 1, 2, 4, 8, 32


def _range(task: Task, file: File, address: int) -> tuple[int, int, int, int]:
    """A ``struct flock``: kind, first byte, byte behind the last, pid. Raises SysError: EINVAL, EOVERFLOW."""
    kind, whence, start, length, pid = _FLOCK.unpack(task.mem.read(address, _FLOCK.size))
    if kind not in (F_RDLCK, F_WRLCK, F_UNLCK):
        raise SysError(EINVAL)
    if whence == os.SEEK_CUR:
        start += file.offset
    elif whence == os.SEEK_END:
        start += file.stat().size
    elif whence != os.SEEK_SET:
        raise SysError(EINVAL)
    if start >= END:
        raise SysError(EOVERFLOW)
    if length == 0:
        end = END
    elif length > 0:
        end = start + length
        if end > END:
            raise SysError(EOVERFLOW)
    else:
        start, end = start + length, start
    if start < 0:
        raise SysError(EINVAL)
    return kind, start, end, pid


def _owner(task: Task, file: File, ofd: bool) -> Any:
    return file if ofd else task.files


def get_lock(task: Task, file: File, address: int, ofd: bool) -> int:
    """F_GETLK, F_OFD_GETLK: which lock would be in the way."""
    if file.inode is None:
        raise SysError(EBADF)
    kind, start, end, pid = _range(task, file, address)
    if ofd and pid:
        raise SysError(EINVAL)
    blocker = None
    if kind != F_UNLCK:
        blocker = locks_of(task.kernel, file.inode).conflict(_owner(task, file, ofd), start, end, kind == F_WRLCK)
    if blocker is None:
        task.mem.write(address, struct.pack("<h", F_UNLCK))
        return 0
    length = 0 if blocker.end == END else blocker.end - blocker.start
    found = F_WRLCK if blocker.exclusive else F_RDLCK
    holder = blocker.key if blocker.key < 0 else task.group.ns.pid.shown(blocker.key)
    task.mem.write(address, _FLOCK.pack(found, os.SEEK_SET, blocker.start, length, holder))
    return 0


def set_lock(task: Task, file: File, address: int, ofd: bool, wait: bool) -> int:
    """F_SETLK, F_SETLKW and their F_OFD_*."""
    if file.inode is None:
        raise SysError(EBADF)
    kind, start, end, pid = _range(task, file, address)
    if ofd and pid:
        raise SysError(EINVAL)
    if (kind == F_RDLCK and not file.can_read) or (kind == F_WRLCK and not file.can_write):
        raise SysError(EBADF)
    locks = locks_of(task.kernel, file.inode)
    owner = _owner(task, file, ofd)
    if kind != F_UNLCK:
        wait_range(task, locks, owner, start, end, kind == F_WRLCK, wait)
    locks.put(owner, start, end, kind, -1 if ofd else task.group.ns.pid.key(task.pid))
    return 0


@syscall("flock")
def flock(task: Task, fd: int, operation: int) -> int:
    """flock(2)."""
    operation = u32(operation)
    if operation & LOCK_MAND:
        return 0  # Linux has no mandatory locks any more, and ignores those who ask
    what = operation & ~LOCK_NB
    if what not in (LOCK_SH, LOCK_EX, LOCK_UN):
        raise SysError(EINVAL)
    file = task.files.opened(fd)
    if file.inode is None:
        raise SysError(EBADF)
    locks = locks_of(task.kernel, file.inode)
    if what == LOCK_UN:
        locks.unlock_whole(file)
        return 0
    if not locks.lock_whole(file, what == LOCK_EX, task.group.ns.pid.key(task.pid)):
        # One that is held already is given back while a stronger one is waited for, flock(2).
        locks.unlock_whole(file)
        if operation & LOCK_NB:
            raise SysError(EWOULDBLOCK)
        raise Block(locks.queue)
    return 0
