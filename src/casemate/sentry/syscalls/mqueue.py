"""POSIX message queues, mq_overview(7): mq_open(2), mq_timedsend(2), mq_timedreceive(2), mq_notify(2) and so on."""

from __future__ import annotations

import os
import struct
from errno import EACCES, EAGAIN, EBADF, EBUSY, EEXIST, EINVAL, EMSGSIZE, ENOENT, ENOTSOCK, ETIMEDOUT
from typing import TYPE_CHECKING

from casemate.sentry.abi import s64, u32
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.mqueue import (
    DEFAULT_MESSAGES,
    DEFAULT_SIZE,
    HARD_SIZE,
    MQ_PRIO_MAX,
    MqFile,
    Notification,
    permit,
    queues,
    unlink,
)
from casemate.sentry.net.netlink import NetlinkSocket
from casemate.sentry.syscalls.eventfd import install
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.wait import Block

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD = 0, 1, 2
NAME_MAX = 255
NSIG = 64
COOKIE_SIZE = 32
FAR = 1 << 62


def _name(task: Task, address: int) -> bytes:
    """A queue's name; the C library has taken the slash off."""
    name = task.mem.cstring(address, NAME_MAX + 1)
    if not name:
        raise SysError(ENOENT)
    if b"/" in name or name in (b".", b".."):
        raise SysError(EACCES)
    return name


def _file(task: Task, fd: int, write: bool) -> MqFile:
    file = task.files.get(fd)
    if not isinstance(file, MqFile) or not (file.can_write if write else file.can_read):
        raise SysError(EBADF)
    return file


@syscall("mq_open")
def mq_open(task: Task, name: int, flags: int, mode: int, attributes: int) -> int:
    """mq_open(2)."""
    flags = u32(flags)
    text = _name(task, name)
    if flags & os.O_ACCMODE == os.O_ACCMODE:
        raise SysError(EINVAL)
    messages, size = DEFAULT_MESSAGES, DEFAULT_SIZE
    if attributes:
        _, messages, size, _ = struct.unpack("<4q", task.mem.read(attributes, 32))
    directory = queues(task.group.ns.ipc).directory
    queue = directory.by_name.get(text)
    if queue is None:
        if not flags & os.O_CREAT:
            raise SysError(ENOENT)
        queue = directory.make(task, text, mode & 0o777 & ~task.fs.umask, messages, size)
    else:
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise SysError(EEXIST)
        permit(task, queue, flags)
    file = MqFile(flags & (os.O_ACCMODE | os.O_NONBLOCK), queue)
    return install(task, file, bool(flags & os.O_CLOEXEC))


@syscall("mq_unlink")
def mq_unlink(task: Task, name: int) -> int:
    """mq_unlink(2)."""
    unlink(task, _name(task, name))
    return 0


def _deadline(task: Task, timeout: int) -> int | None:
    """A moment of CLOCK_REALTIME as one of the monotonic clock; None for ever."""
    if not timeout:
        return None
    clock = task.kernel.clock
    return min(task.mem.timespec(timeout) - clock.realtime() + clock.monotonic(), FAR)


@syscall("mq_timedsend")
def mq_timedsend(task: Task, fd: int, text: int, size: int, priority: int, timeout: int) -> int:
    """mq_timedsend(2): ETIMEDOUT at the moment ``timeout`` of CLOCK_REALTIME."""
    deadline = _deadline(task, timeout)
    if u32(priority) >= MQ_PRIO_MAX:
        raise SysError(EINVAL)
    file = _file(task, fd, write=True)
    queue = file.inode
    if size > queue.max_size:
        raise SysError(EMSGSIZE)
    data = task.mem.read(text, size)
    if len(queue.heap) >= queue.max_messages:
        if file.nonblocking:
            raise SysError(EAGAIN)
        if task.timed_out:
            raise SysError(ETIMEDOUT)
        raise Block(queue.space, deadline=deadline)
    queue.send(task, data, u32(priority))
    return 0


@syscall("mq_timedreceive")
def mq_timedreceive(task: Task, fd: int, text: int, size: int, priority: int, timeout: int) -> int:
    """mq_timedreceive(2)."""
    deadline = _deadline(task, timeout)
    file = _file(task, fd, write=False)
    queue = file.inode
    if min(size, HARD_SIZE) < queue.max_size:
        raise SysError(EMSGSIZE)
    if not queue.heap:
        if file.nonblocking:
            raise SysError(EAGAIN)
        if task.timed_out:
            raise SysError(ETIMEDOUT)
        raise Block(queue.arrivals, deadline=deadline)
    rank, data = queue.receive()
    if priority:
        task.mem.put_u32(priority, rank)
    task.mem.write(text, data)
    return len(data)


@syscall("mq_notify")
def mq_notify(task: Task, fd: int, event: int) -> int:
    """mq_notify(2). SIGEV_THREAD names a netlink socket, by which the C library's thread is told."""
    value = signo = how = 0
    socket: NetlinkSocket | None = None
    cookie = b""
    if event:
        value, signo, how = struct.unpack("<Qii", task.mem.read(event, 16))
        if how not in (SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD):
            raise SysError(EINVAL)
        if how == SIGEV_SIGNAL and not 0 <= signo <= NSIG:
            raise SysError(EINVAL)
        if how == SIGEV_THREAD:
            cookie = task.mem.read(value, COOKIE_SIZE)
            found = task.files.get(signo)
            if not isinstance(found, NetlinkSocket):
                raise SysError(ENOTSOCK)
            socket = found
    file = task.files.get(fd)
    if not isinstance(file, MqFile):
        raise SysError(EBADF)
    queue = file.inode
    if queue.notification is not None and queue.notification.group.zombie:
        queue.unregister()
    known = queue.notification
    if not event:
        if known is not None and known.group is task.group:
            queue.unregister()
    elif known is not None:
        raise SysError(EBUSY)
    else:
        queue.notification = Notification(
            task.group, signo if how == SIGEV_SIGNAL else 0, value, socket, cookie
        )
    return 0


@syscall("mq_getsetattr")
def mq_getsetattr(task: Task, fd: int, new: int, old: int) -> int:
    """mq_getsetattr(2): only O_NONBLOCK can be set."""
    flags = s64(task.mem.u64(new)) if new else 0
    if new and flags & ~os.O_NONBLOCK:
        raise SysError(EINVAL)
    file = task.files.get(fd)
    if not isinstance(file, MqFile):
        raise SysError(EBADF)
    queue = file.inode
    before = struct.pack(
        "<8q", file.flags & os.O_NONBLOCK, queue.max_messages, queue.max_size, len(queue.heap), 0, 0, 0, 0
    )
    if new:
        file.flags = file.flags & ~os.O_NONBLOCK | flags
    if old:
        task.mem.write(old, before)
    return 0
