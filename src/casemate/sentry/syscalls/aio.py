"""Asynchronous input and output, io_submit(2) and its family.

What can be done at once is done within io_submit(2), as Linux does for files whose data is in memory: only its result
is told later. A context is a page that the application can read, and the mapping is what keeps it.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from errno import EAGAIN, EBADF, EINVAL, ENOMEM
from typing import TYPE_CHECKING

from casemate.sentry.abi import PAGE_SIZE, s64, u32
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.anon import AnonFile
from casemate.sentry.ipc.eventfd import EventFd
from casemate.sentry.syscalls import readwrite, sync, vectors
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.wait import Block, Restart

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

MAX_EVENTS = 65536
"""``/proc/sys/fs/aio-max-nr``."""
_IOCB = struct.Struct("<QIIHhIQQqQII")
_EVENT = struct.Struct("<QQqq")
PREAD, PWRITE, FSYNC, FDSYNC, POLL, NOOP, PREADV, PWRITEV = 0, 1, 2, 3, 5, 6, 7, 8
IOCB_FLAG_RESFD = 1
PROT_READ, MAP_PRIVATE = 1, 2


class AioContext(AnonFile):
    """A context: results that wait to be fetched.

    Arguments:
        size: how many requests it was made for.
    """

    anonymous = "/[aio] (deleted)"

    def __init__(self, kernel: Kernel, size: int) -> None:
        super().__init__(kernel, os.O_RDONLY)
        self.size = size
        self.events: deque[bytes] = deque()
        self._page = os.memfd_create("aio", os.MFD_CLOEXEC)
        # Without the ring's magic number in it, the C library fetches results by the system call only.
        os.ftruncate(self._page, PAGE_SIZE)

    def host_fd(self, shared: bool, writable: bool) -> int:
        return self._page

    def release(self) -> None:
        os.close(self._page)


def _context(task: Task, number: int) -> AioContext:
    """The context of a number, which is its page's address. Raises SysError(EINVAL)."""
    vma = task.mm.regions.find(number)
    if vma is None or vma.start != number or not isinstance(vma.file, AioContext):
        raise SysError(EINVAL)
    return vma.file


@syscall("io_setup")
def io_setup(task: Task, count: int, address: int) -> int:
    """io_setup(2)."""
    count = u32(count)
    if task.mem.u64(address) or not count or count > 1 << 28:
        raise SysError(EINVAL)
    if count > MAX_EVENTS:
        raise SysError(EAGAIN)
    assert task.thread is not None
    context = AioContext(task.kernel, count)
    try:
        number = task.mm.map(task.thread, 0, PAGE_SIZE, PROT_READ, MAP_PRIVATE, context, name=b"/[aio] (deleted)")
    except SysError:
        raise SysError(ENOMEM) from None
    finally:
        context.decref()
    task.mem.put_u64(address, number)
    return 0


@syscall("io_destroy")
def io_destroy(task: Task, number: int) -> int:
    """io_destroy(2)."""
    context = _context(task, number)
    assert task.thread is not None
    context.queue.notify()
    task.mm.unmap(task.thread, number, PAGE_SIZE)
    return 0


@syscall("io_submit", Support.PARTIAL, "requests are done at once, also those that make it wait; no IOCB_CMD_POLL")
def io_submit(task: Task, number: int, count: int, pointers: int) -> int:
    """io_submit(2)."""
    context = _context(task, number)
    total = s64(count)
    if total < 0:
        raise SysError(EINVAL)
    done = 0
    for index in range(min(total, context.size)):
        if len(context.events) >= context.size:
            if not done:
                raise SysError(EAGAIN)
            break
        try:
            _submit(task, context, task.mem.u64(pointers + 8 * index))
        except SysError:
            if done:
                break
            raise
        done += 1
    return done


def _submit(task: Task, context: AioContext, address: int) -> None:
    """Do one request, and note its result. Raises SysError for one that is not even to be tried."""
    data, _, rw_flags, code, _, fd, buffer, size, offset, reserved, flags, event_fd = _IOCB.unpack(
        task.mem.read(address, _IOCB.size)
    )
    if reserved or flags & ~IOCB_FLAG_RESFD or s64(size) < 0 or rw_flags:
        raise SysError(EINVAL)
    task.files.get(fd)
    told = task.files.get(event_fd) if flags & IOCB_FLAG_RESFD else None
    if told is not None and not isinstance(told, EventFd):
        raise SysError(EINVAL)
    try:
        result = _do(task, code, fd, buffer, size, offset & (1 << 64) - 1)
    except SysError as error:
        # What Linux finds out before it queues a request, io_submit(2) itself fails with.
        if error.errno in (EBADF, EINVAL):
            raise
        result = -error.errno
    except Block:
        result = -EAGAIN
    task.mem.write(address + 8, bytes(4))  # the kernel's own word of it
    context.events.append(_EVENT.pack(data, address, result, 0))
    context.queue.notify()
    if told is not None:
        told.write(task, (1).to_bytes(8, "little"))


def _do(task: Task, code: int, fd: int, buffer: int, size: int, offset: int) -> int:
    if code == PREAD:
        return readwrite.pread64(task, fd, buffer, size, offset)
    if code == PWRITE:
        return readwrite.pwrite64(task, fd, buffer, size, offset)
    if code == PREADV:
        return vectors.preadv(task, fd, buffer, size, offset)
    if code == PWRITEV:
        return vectors.pwritev(task, fd, buffer, size, offset)
    if code == FSYNC:
        return sync.fsync(task, fd)
    if code == FDSYNC:
        return sync.fdatasync(task, fd)
    raise SysError(EINVAL)


@syscall("io_cancel")
def io_cancel(task: Task, number: int, iocb: int, result: int) -> int:
    """io_cancel(2): nothing is ever under way that could be cancelled."""
    task.mem.read(iocb, _IOCB.size)
    _context(task, number)
    raise SysError(EINVAL)


@syscall("io_getevents")
def io_getevents(task: Task, number: int, least: int, most: int, events: int, timeout: int) -> int:
    """io_getevents(2)."""
    span = task.mem.timespec(timeout) if timeout else 0
    context = _context(task, number)
    least, most = s64(least), s64(most)
    if least < 0 or most < 0 or least > most:
        raise SysError(EINVAL)
    if len(context.events) < least and not task.timed_out:
        deadline: int | None = task.blocked.get("deadline")
        if timeout and deadline is None:
            deadline = task.kernel.clock.monotonic() + span
            task.blocked["deadline"] = deadline
        if deadline is None or deadline > task.kernel.clock.monotonic():
            raise Block(context.queue, deadline=deadline, restart=Restart.NOHAND)
    count = min(most, len(context.events))
    task.mem.write(events, b"".join(context.events[index] for index in range(count)))
    for _ in range(count):
        context.events.popleft()
    return count
