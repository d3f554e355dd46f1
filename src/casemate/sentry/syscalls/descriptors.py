"""Descriptors: copies of them, their flags, and ioctl(2)."""

from __future__ import annotations

import os
import struct
from errno import EACCES, EAGAIN, EBADF, EINVAL, ENOTTY, EPERM, ESRCH
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32, u32
from casemate.sentry.creds import CAP_LEASE
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls import locks
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.tasks import session
from casemate.sentry.vfs import sigio
from casemate.sentry.vfs.path import owns

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File

# fcntl(2)
F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW = range(8)
F_SETOWN, F_GETOWN, F_SETSIG, F_GETSIG, F_SETOWN_EX, F_GETOWN_EX = 8, 9, 10, 11, 15, 16
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
F_SETLEASE, F_GETLEASE, F_NOTIFY, F_DUPFD_QUERY, F_DUPFD_CLOEXEC = 1024, 1025, 1026, 1027, 1030
F_SETPIPE_SZ, F_GETPIPE_SZ, F_ADD_SEALS, F_GET_SEALS = 1031, 1032, 1033, 1034
F_GET_RW_HINT, F_SET_RW_HINT, F_GET_FILE_RW_HINT, F_SET_FILE_RW_HINT = 1035, 1036, 1037, 1038
F_UNLCK = 2
FD_CLOEXEC = 1
F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP = 0, 1, 2
SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME
_PATH_ALLOWS = frozenset((F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_QUERY))

# ioctl(2)
FIONREAD, FIONBIO, FIOASYNC, FIOCLEX, FIONCLEX, FIOQSIZE, FIGETBSZ = 0x541B, 0x5421, 0x5452, 0x5451, 0x5450, 0x5460, 2


@syscall("dup")
def dup(task: Task, fd: int) -> int:
    """dup(2)."""
    return task.files.dup(fd)


@syscall("dup2")
def dup2(task: Task, old: int, new: int) -> int:
    """dup2(2)."""
    file = task.files.get(old)
    if u32(old) == u32(new):
        return u32(new)
    return _replace(task, file, new, False)


def _replace(task: Task, file: File, new: int, cloexec: bool) -> int:
    new = s32(new)
    file.incref()
    try:
        task.files.replace(task, new, file, cloexec)
    except SysError:
        file.decref()
        raise
    return new


@syscall("dup3")
def dup3(task: Task, old: int, new: int, flags: int) -> int:
    """dup3(2)."""
    flags = u32(flags)
    if flags & ~os.O_CLOEXEC or u32(old) == u32(new):
        raise SysError(EINVAL)
    return _replace(task, task.files.get(old), new, bool(flags & os.O_CLOEXEC))


# fcntl(2).


@syscall("fcntl", Support.PARTIAL, "no leases (EAGAIN) and no F_NOTIFY (EINVAL)")
def fcntl(task: Task, fd: int, command: int, argument: int) -> int:
    """fcntl(2). Leases are refused with EAGAIN, as where a file is open elsewhere."""
    files = task.files
    file = files.get(fd)
    command = u32(command)
    if file.flags & os.O_PATH and command not in _PATH_ALLOWS:
        raise SysError(EBADF)
    if command == F_GETFL:
        return file.flags
    if command == F_SETFL:
        if (file.flags ^ argument) & os.O_ASYNC:
            # Files that cannot tell of events stay without it, as in Linux.
            sigio.switch(task, file, s32(fd), bool(argument & os.O_ASYNC))
        return set_flags(task, file, argument)
    if command == F_GETFD:
        return int(files.cloexec(fd))
    if command == F_SETFD:
        files.set_cloexec(fd, bool(argument & FD_CLOEXEC))
        return 0
    if command in (F_DUPFD, F_DUPFD_CLOEXEC):
        return files.dup(fd, command == F_DUPFD_CLOEXEC, s32(argument))
    handler = _COMMANDS.get(command)
    if handler is None:
        raise SysError(EINVAL)
    return handler(task, file, command, argument)


def set_flags(task: Task, file: File, flags: int) -> int:
    """F_SETFL: what can be changed of the status flags."""
    changed = (file.flags ^ flags) & SETTABLE
    if changed & flags & os.O_NOATIME and file.inode is not None and not owns(task, file.inode):
        raise SysError(EPERM)
    file.flags ^= changed
    return 0


def _owner(task: Task, file: File, command: int, argument: int) -> int:
    if command == F_GETOWN:
        return file.owner
    if command == F_SETOWN:
        return _set_owner(task, file, s32(argument))
    if command == F_SETSIG:
        if not 0 <= s32(argument) <= 64:
            raise SysError(EINVAL)
        file.signal = s32(argument)
        return 0
    if command == F_GETSIG:
        return file.signal
    if command == F_GETOWN_EX:
        kind = F_OWNER_PGRP if file.owner < 0 else F_OWNER_PID
        task.mem.write(argument, struct.pack("<ii", kind, abs(file.owner)))
        return 0
    kind, number = struct.unpack("<ii", task.mem.read(argument, 8))
    if kind not in (F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP):
        raise SysError(EINVAL)
    return _set_owner(task, file, -number if kind == F_OWNER_PGRP else number)


def _set_owner(task: Task, file: File, owner: int) -> int:
    pids = task.group.ns.pid
    if owner > 0 and pids.task(owner) is None:
        raise SysError(ESRCH)
    if owner < 0 and session.find(pids, -owner) is None:
        raise SysError(ESRCH)
    file.owner = owner
    return 0


def _locks(task: Task, file: File, command: int, argument: int) -> int:
    ofd = command in (F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW)
    if command in (F_GETLK, F_OFD_GETLK):
        return locks.get_lock(task, file, argument, ofd)
    return locks.set_lock(task, file, argument, ofd, command in (F_SETLKW, F_OFD_SETLKW))


def _lease(task: Task, file: File, command: int, argument: int) -> int:
    if command == F_GETLEASE:
        return F_UNLCK
    if u32(argument) > F_UNLCK:
        raise SysError(EINVAL)
    if file.inode is not None and file.inode.access()[1] != task.creds.fsuid and not task.creds.capable(CAP_LEASE):
        raise SysError(EACCES)
    if not file.bulk:
        raise SysError(EINVAL)
    raise SysError(EAGAIN)


def _pipe_size(task: Task, file: File, command: int, argument: int) -> int:
    from casemate.sentry.ipc.pipe import pipe_of

    pipe = pipe_of(file)
    return pipe.capacity if command == F_GETPIPE_SZ else pipe.resize(task, u32(argument))


def _seals(task: Task, file: File, command: int, argument: int) -> int:
    if command == F_GET_SEALS:
        return file.seals(task)
    file.add_seals(task, u32(argument))
    return 0


def _hint(task: Task, file: File, command: int, argument: int) -> int:
    if command in (F_GET_RW_HINT, F_GET_FILE_RW_HINT):
        task.mem.put_u64(argument, 0)
    elif task.mem.u64(argument) > 5:
        raise SysError(EINVAL)
    return 0


def _same(task: Task, file: File, command: int, argument: int) -> int:
    return int(task.files.get(argument) is file)


_COMMANDS = {
    F_GETLK: _locks, F_SETLK: _locks, F_SETLKW: _locks, F_OFD_GETLK: _locks, F_OFD_SETLK: _locks, F_OFD_SETLKW: _locks,
    F_GETOWN: _owner, F_SETOWN: _owner, F_GETSIG: _owner, F_SETSIG: _owner, F_GETOWN_EX: _owner, F_SETOWN_EX: _owner,
    F_SETLEASE: _lease, F_GETLEASE: _lease, F_SETPIPE_SZ: _pipe_size, F_GETPIPE_SZ: _pipe_size,
    F_ADD_SEALS: _seals, F_GET_SEALS: _seals, F_DUPFD_QUERY: _same,
    F_GET_RW_HINT: _hint, F_SET_RW_HINT: _hint, F_GET_FILE_RW_HINT: _hint, F_SET_FILE_RW_HINT: _hint,
}  # fmt: skip


# ioctl(2).


@syscall("ioctl")
def ioctl(task: Task, fd: int, command: int, argument: int) -> int:
    """ioctl(2): what all files have; the rest is each file's own."""
    files = task.files
    file = files.get(fd)
    if file.flags & os.O_PATH:
        raise SysError(EBADF)
    command = u32(command)
    if command in (FIOCLEX, FIONCLEX):
        files.set_cloexec(fd, command == FIOCLEX)
        return 0
    if command == FIONBIO:
        file.flags = file.flags | os.O_NONBLOCK if task.mem.u32(argument) else file.flags & ~os.O_NONBLOCK
        return 0
    if command == FIOASYNC:
        if not sigio.switch(task, file, s32(fd), bool(task.mem.u32(argument))):
            raise SysError(ENOTTY)
        return 0
    if file.bulk:
        if command == FIONREAD:
            task.mem.put_u32(argument, max(0, file.stat().size - file.offset))
            return 0
        if command == FIGETBSZ:
            task.mem.put_u32(argument, file.stat().blksize)
            return 0
        if command == FIOQSIZE:
            task.mem.put_u64(argument, file.stat().size)
            return 0
    return file.ioctl(task, command, argument)
