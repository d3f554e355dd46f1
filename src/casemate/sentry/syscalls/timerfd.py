"""timerfd_create(2), timerfd_settime(2), timerfd_gettime(2)."""

from __future__ import annotations

import os
from errno import EINVAL, EPERM
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32, u32
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.timerfd import CLOCK_BOOTTIME_ALARM, CLOCK_REALTIME_ALARM, CLOCKS, TimerFd
from casemate.sentry.syscalls.eventfd import install
from casemate.sentry.syscalls.table import Support, syscall

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

TFD_TIMER_ABSTIME = 1
TFD_TIMER_CANCEL_ON_SET = 2
CAP_WAKE_ALARM = 35


def _timer(task: Task, fd: int) -> TimerFd:
    file = task.files.opened(fd)
    if not isinstance(file, TimerFd):
        raise SysError(EINVAL)
    return file


def _store(task: Task, address: int, state: tuple[int, int]) -> None:
    value, interval = state
    task.mem.put_timespec(address, interval)
    task.mem.put_timespec(address + 16, value)


@syscall("timerfd_create")
def timerfd_create(task: Task, clock: int, flags: int) -> int:
    """timerfd_create(2): TFD_CLOEXEC, TFD_NONBLOCK. EINVAL for other flags and clocks, EPERM for alarms."""
    clock, flags = s32(clock), u32(flags)
    if flags & ~(os.O_CLOEXEC | os.O_NONBLOCK) or clock not in CLOCKS:
        raise SysError(EINVAL)
    if clock in (CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM) and not task.creds.capable(CAP_WAKE_ALARM):
        raise SysError(EPERM)
    file = TimerFd(task.kernel, flags & os.O_NONBLOCK, clock)
    return install(task, file, bool(flags & os.O_CLOEXEC))


@syscall("timerfd_settime", Support.PARTIAL, "TFD_TIMER_CANCEL_ON_SET never cancels: nobody sets the clock here")
def timerfd_settime(task: Task, fd: int, flags: int, new: int, old: int) -> int:
    """timerfd_settime(2). The clock is never set under a timer here: TFD_TIMER_CANCEL_ON_SET cancels nothing."""
    flags = u32(flags)
    mem = task.mem
    interval, value = mem.timespec(new), mem.timespec(new + 16)
    if flags & ~(TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET):
        raise SysError(EINVAL)
    timer = _timer(task, fd)
    before = timer.remaining()
    timer.set(value, interval, bool(flags & TFD_TIMER_ABSTIME))
    timer.settings = flags
    if old:
        _store(task, old, before)
    return 0


@syscall("timerfd_gettime")
def timerfd_gettime(task: Task, fd: int, current: int) -> int:
    """timerfd_gettime(2)."""
    _store(task, current, _timer(task, fd).remaining())
    return 0
