"""epoll_create(2), epoll_ctl(2), epoll_wait(2) and their relatives."""

from __future__ import annotations

import os
import struct
from errno import EFAULT, EINVAL, EPERM
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32, u32
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.epoll import Epoll
from casemate.sentry.mm.memory import TASK_SIZE
from casemate.sentry.syscalls.eventfd import install
from casemate.sentry.syscalls.poll import deadline_after, temporary_mask
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.wait import Block, Restart

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

EPOLL_CTL_ADD = 1
EPOLL_CTL_DEL = 2
EPOLL_CTL_MOD = 3
EVENT_SIZE = 12
"""``struct epoll_event``, which is packed on x86-64."""
MAX_EVENTS = 0x7FFF_FFFF // EVENT_SIZE
BATCH = 65536
"""The most events that one call reports here, however many it asks for."""


def _epoll(task: Task, fd: int) -> Epoll:
    file = task.files.opened(fd)
    if not isinstance(file, Epoll):
        raise SysError(EINVAL)
    return file


@syscall("epoll_create")
def epoll_create(task: Task, size: int) -> int:
    """epoll_create(2): ``size`` only has to be positive."""
    if s32(size) <= 0:
        raise SysError(EINVAL)
    return install(task, Epoll(task.kernel), cloexec=False)


@syscall("epoll_create1")
def epoll_create1(task: Task, flags: int) -> int:
    """epoll_create1(2): EPOLL_CLOEXEC. EINVAL for other flags."""
    flags = u32(flags)
    if flags & ~os.O_CLOEXEC:
        raise SysError(EINVAL)
    return install(task, Epoll(task.kernel), cloexec=bool(flags))


@syscall("epoll_ctl")
def epoll_ctl(task: Task, epfd: int, op: int, fd: int, event: int) -> int:
    """epoll_ctl(2)."""
    op = s32(op)
    events, data = 0, b""
    if op != EPOLL_CTL_DEL:
        events, data = struct.unpack("<I8s", task.mem.read(event, EVENT_SIZE))
    owner = task.files.opened(epfd)
    file = task.files.opened(fd)
    if not file.pollable:
        raise SysError(EPERM)
    if not isinstance(owner, Epoll) or owner is file:
        raise SysError(EINVAL)
    fd = s32(fd)
    if op == EPOLL_CTL_ADD:
        owner.add(task, fd, file, events, data)
    elif op == EPOLL_CTL_MOD:
        owner.modify(task, fd, file, events, data)
    elif op == EPOLL_CTL_DEL:
        owner.delete(fd, file)
    else:
        raise SysError(EINVAL)
    return 0


def _wait(task: Task, epfd: int, address: int, count: int, timeout: int | None) -> int:
    count = s32(count)
    if not 0 < count <= MAX_EVENTS:
        raise SysError(EINVAL)
    if address + count * EVENT_SIZE > TASK_SIZE:
        raise SysError(EFAULT)
    epoll = _epoll(task, epfd)
    if epoll.ready:
        events = epoll.collect(task, min(count, BATCH))
        if events:
            task.mem.write(address, b"".join(events))
            return len(events)
    if timeout == 0 or task.timed_out:
        return 0
    deadline = deadline_after(task, timeout)
    task.blocked["deadline"] = deadline
    raise Block(epoll.queue, deadline=deadline, restart=Restart.NOHAND)


def _milliseconds(timeout: int) -> int | None:
    value = s32(timeout)
    return None if value < 0 else value * 1_000_000


@syscall("epoll_wait")
def epoll_wait(task: Task, epfd: int, events: int, count: int, timeout: int) -> int:
    """epoll_wait(2): ``timeout`` in milliseconds, negative for ever."""
    return _wait(task, epfd, events, count, _milliseconds(timeout))


@syscall("epoll_pwait")
def epoll_pwait(task: Task, epfd: int, events: int, count: int, timeout: int, mask: int, size: int) -> int:
    """epoll_pwait(2): epoll_wait(2) with a signal mask of its own."""
    return _pwait(task, epfd, events, count, _milliseconds(timeout), mask, size)


@syscall("epoll_pwait2")
def epoll_pwait2(task: Task, epfd: int, events: int, count: int, timeout: int, mask: int, size: int) -> int:
    """epoll_pwait2(2): the timeout is a ``struct timespec``, none for ever."""
    span = task.mem.timespec(timeout) if timeout else None
    return _pwait(task, epfd, events, count, span, mask, size)


def _pwait(task: Task, epfd: int, events: int, count: int, timeout: int | None, mask: int, size: int) -> int:
    with temporary_mask(task, mask, size):
        return _wait(task, epfd, events, count, timeout)
