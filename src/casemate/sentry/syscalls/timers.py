"""Timers that send signals: alarm(2), setitimer(2), timer_create(2)."""

from __future__ import annotations

import struct
from errno import EINVAL, EOPNOTSUPP, EPERM

from casemate.sentry.abi import s32, u32
from casemate.sentry.creds import CAP_WAKE_ALARM
from casemate.sentry.errno import SysError
from casemate.sentry.signals.state import NSIG
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.tasks.task import Task, ThreadGroup
from casemate.sentry.timers import itimer, posix
from casemate.sentry.timers.alarm import (
    CLOCK_BOOTTIME_ALARM,
    CLOCK_MONOTONIC_COARSE,
    CLOCK_MONOTONIC_RAW,
    CLOCK_REALTIME_ALARM,
    CLOCK_REALTIME_COARSE,
)
from casemate.sentry.timers.posix import SIGEV_NONE, SIGEV_SIGNAL, SIGEV_THREAD, SIGEV_THREAD_ID

SECOND = 1_000_000_000
TIMER_ABSTIME = 1
SIGALRM = 14
_TIMES = struct.Struct("<qqqq")
_EVENT = struct.Struct("<Qiii")


# Of the process: setitimer(2).


def _which(word: int) -> int:
    which = s32(word)
    if which not in (itimer.ITIMER_REAL, itimer.ITIMER_VIRTUAL, itimer.ITIMER_PROF):
        raise SysError(EINVAL)
    return which


def _put_itimerval(task: Task, address: int, state: tuple[int, int]) -> None:
    left, interval = state
    if left:
        left = max(left, 1000)  # never zero for a running timer
    task.mem.write(
        address,
        _TIMES.pack(interval // SECOND, interval % SECOND // 1000, left // SECOND, left % SECOND // 1000),
    )


@syscall("getitimer")
def getitimer(task: Task, which: int, address: int) -> int:
    """getitimer(2)."""
    timer = itimer.of(task.group).get(_which(which))
    _put_itimerval(task, address, timer.left())
    return 0


@syscall("setitimer")
def setitimer(task: Task, which: int, new: int, old: int) -> int:
    """setitimer(2)."""
    value = interval = 0
    if new:  # Linux takes a null pointer for zeros
        words = _TIMES.unpack(task.mem.read(new, _TIMES.size))
        if min(words) < 0 or words[1] >= 1_000_000 or words[3] >= 1_000_000:
            raise SysError(EINVAL)
        interval = words[0] * SECOND + words[1] * 1000
        value = words[2] * SECOND + words[3] * 1000
    timer = itimer.of(task.group).get(_which(which))
    before = timer.left()
    timer.arm(value, interval)
    if old:
        _put_itimerval(task, old, before)
    return 0


@syscall("alarm")
def alarm(task: Task, seconds: int) -> int:
    """alarm(2)."""
    timer = itimer.of(task.group).get(itimer.ITIMER_REAL)
    left, _ = timer.left()
    timer.arm(u32(seconds) * SECOND, 0)
    # Rounded to the nearest second, but never to none.
    return max(1, (left + SECOND // 2) // SECOND) if left else 0


# The process's own: timer_create(2).


def _receiver(task: Task, notify: int, signo: int, tid: int) -> Task | ThreadGroup:
    """Who gets the signal, struct sigevent. Raises SysError(EINVAL)."""
    receiver: Task | ThreadGroup = task.group
    if notify == SIGEV_SIGNAL | SIGEV_THREAD_ID:
        thread = task.group.tasks.get(tid)
        if thread is None:
            raise SysError(EINVAL)
        receiver = thread
    elif notify not in (SIGEV_SIGNAL, SIGEV_THREAD, SIGEV_NONE):
        raise SysError(EINVAL)
    if notify != SIGEV_NONE and not 1 <= signo <= NSIG:
        raise SysError(EINVAL)
    return receiver


@syscall("timer_create")
def timer_create(task: Task, clock: int, event: int, address: int) -> int:
    """timer_create(2)."""
    number = s32(clock)
    if number in (CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE):
        raise SysError(EOPNOTSUPP)
    if number in (CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM) and not task.creds.capable(CAP_WAKE_ALARM):
        raise SysError(EPERM)
    value: int | None = None
    signo, notify, tid = SIGALRM, SIGEV_SIGNAL, 0
    if event:
        value, signo, notify, tid = _EVENT.unpack(task.mem.read(event, _EVENT.size))
    receiver = _receiver(task, notify, signo, tid)
    timers = posix.of(task.group)
    timer = timers.create(task, number, notify, receiver, signo, value)
    try:
        task.mem.put_u32(address, timer.number)
    except SysError:
        timers.delete(timer.number)
        raise
    return 0


def _put_itimerspec(task: Task, address: int, state: tuple[int, int]) -> None:
    left, interval = state
    task.mem.write(address, _TIMES.pack(*divmod(interval, SECOND), *divmod(left, SECOND)))


@syscall("timer_settime")
def timer_settime(task: Task, number: int, flags: int, new: int, old: int) -> int:
    """timer_settime(2)."""
    if not new:
        raise SysError(EINVAL)
    interval, value = task.mem.timespec(new), task.mem.timespec(new + 16)
    timer = posix.of(task.group).get(s32(number))
    before = timer.left()
    timer.arm(value, interval, bool(u32(flags) & TIMER_ABSTIME))
    if old:
        _put_itimerspec(task, old, before)
    return 0


@syscall("timer_gettime")
def timer_gettime(task: Task, number: int, address: int) -> int:
    """timer_gettime(2)."""
    _put_itimerspec(task, address, posix.of(task.group).get(s32(number)).left())
    return 0


@syscall("timer_getoverrun")
def timer_getoverrun(task: Task, number: int) -> int:
    """timer_getoverrun(2)."""
    return posix.of(task.group).get(s32(number)).last_overrun


@syscall("timer_delete")
def timer_delete(task: Task, number: int) -> int:
    """timer_delete(2)."""
    posix.of(task.group).delete(s32(number))
    return 0
