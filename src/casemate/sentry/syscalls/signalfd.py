"""signalfd(2), signalfd4(2)."""

from __future__ import annotations

import os
from errno import EINVAL
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32, u32
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.signalfd import SignalFd
from casemate.sentry.signals.state import KILL_OR_STOP
from casemate.sentry.syscalls.eventfd import install
from casemate.sentry.syscalls.table import syscall

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task


@syscall("signalfd")
def signalfd(task: Task, fd: int, mask: int, size: int) -> int:
    """signalfd(2) without flags."""
    return signalfd4(task, fd, mask, size, 0)


@syscall("signalfd4")
def signalfd4(task: Task, fd: int, mask: int, size: int, flags: int) -> int:
    """signalfd(2): SFD_CLOEXEC, SFD_NONBLOCK; a descriptor that is no signalfd, other flags: EINVAL."""
    flags = u32(flags)
    if size != 8 or flags & ~(os.O_CLOEXEC | os.O_NONBLOCK):
        raise SysError(EINVAL)
    signals = task.mem.u64(mask) & ~KILL_OR_STOP
    if s32(fd) == -1:
        file = SignalFd(task, flags & os.O_NONBLOCK, signals)
        return install(task, file, bool(flags & os.O_CLOEXEC))
    known = task.files.opened(fd)
    if not isinstance(known, SignalFd):
        raise SysError(EINVAL)
    known.mask = signals
    known.queue.notify()
    return s32(fd)
