"""Clocks and sleeping: clock_gettime(2), nanosleep(2), gettimeofday(2), time(2), adjtimex(2)."""

from __future__ import annotations

import struct
import time as host
from errno import EFAULT, EINTR, EINVAL, EOPNOTSUPP, EPERM

from casemate.sentry.abi import s32, u32
from casemate.sentry.creds import CAP_SYS_TIME
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.tasks.task import Task
from casemate.sentry.timers.alarm import (
    CLOCK_MONOTONIC_COARSE,
    CLOCK_MONOTONIC_RAW,
    CLOCK_REALTIME,
    CLOCK_REALTIME_COARSE,
    CLOCK_THREAD_CPUTIME_ID,
    FAR,
    HOST_CLOCKS,
    SHORTEST_LOOK,
    cpu_clock,
    cpu_time,
)
from casemate.sentry.wait import Block, Restart

TIMER_ABSTIME = 1
COARSE_RESOLUTION = 4_000_000
"""Nanoseconds: a jiffy of the host's kernel."""
STA_UNSYNC, TIME_ERROR = 0x40, 5
TICK_US, TOLERANCE = 10_000, 32_768_000
_TIMEX = struct.Struct("<I4xqqqqi4xqqqqqqqqi4xqqqqqi44x")


@syscall("clock_gettime")
def clock_gettime(task: Task, clock: int, address: int) -> int:
    """clock_gettime(2). Programs mostly ask the host's vdso instead."""
    number = s32(clock)
    at = HOST_CLOCKS.get(number)
    now = cpu_time(cpu_clock(task, number)) if at is None else host.clock_gettime_ns(at)
    task.mem.put_timespec(address, now)
    return 0


@syscall("clock_settime")
def clock_settime(task: Task, clock: int, address: int) -> int:
    """clock_settime(2): the time is the host's, and nobody in a sandbox sets it."""
    if s32(clock) != CLOCK_REALTIME:
        if s32(clock) not in HOST_CLOCKS:
            cpu_clock(task, s32(clock))
            if s32(clock) < 0:
                raise SysError(EPERM)
        raise SysError(EINVAL)
    task.mem.timespec(address)
    raise SysError(EPERM)


@syscall("clock_getres")
def clock_getres(task: Task, clock: int, address: int) -> int:
    """clock_getres(2)."""
    number = s32(clock)
    if number not in HOST_CLOCKS:
        cpu_clock(task, number)
    if address:
        coarse = number in (CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE)
        task.mem.put_timespec(address, COARSE_RESOLUTION if coarse else 1)
    return 0


@syscall("gettimeofday")
def gettimeofday(task: Task, tv: int, tz: int) -> int:
    """gettimeofday(2)."""
    if tv:
        seconds, nanoseconds = divmod(task.kernel.clock.realtime(), 1_000_000_000)
        task.mem.write(tv, struct.pack("<qq", seconds, nanoseconds // 1000))
    if tz:
        task.mem.put_u64(tz, 0)
    return 0


@syscall("settimeofday")
def settimeofday(task: Task, tv: int, tz: int) -> int:
    """settimeofday(2): the time is the host's, and nobody in a sandbox sets it."""
    if tv:
        seconds, microseconds = struct.unpack("<qq", task.mem.read(tv, 16))
        if seconds < 0 or not 0 <= microseconds < 1_000_000:
            raise SysError(EINVAL)
    if tz:
        task.mem.read(tz, 8)
    raise SysError(EPERM)


@syscall("time")
def time(task: Task, address: int) -> int:
    """time(2)."""
    now = task.kernel.clock.realtime() // 1_000_000_000
    if address:
        task.mem.put_u64(address, now)
    return now


# Sleeping.


def _left(task: Task) -> int:
    """A handler ends the sleep: tell how much of it is left."""
    address = task.blocked["rem"]
    if address:
        try:
            task.mem.put_timespec(address, max(0, task.blocked["deadline"] - task.kernel.clock.monotonic()))
        except SysError:
            return -EFAULT
    return -EINTR


def _sleep(task: Task, request: int, remaining: int) -> int:
    notes = task.blocked
    if "deadline" not in notes:
        duration = task.mem.timespec(request)
        notes["deadline"] = task.kernel.clock.monotonic() + min(duration, FAR)
        notes["rem"] = remaining
        notes["eintr"] = _left
    deadline: int = notes["deadline"]
    if task.timed_out or deadline <= task.kernel.clock.monotonic():
        return 0
    raise Block(deadline=deadline, restart=Restart.NOHAND)


@syscall("nanosleep")
def nanosleep(task: Task, request: int, remaining: int) -> int:
    """nanosleep(2)."""
    return _sleep(task, request, remaining)


@syscall("clock_nanosleep")
def clock_nanosleep(task: Task, clock: int, flags: int, request: int, remaining: int) -> int:
    """clock_nanosleep(2). A setting of the host's clock is noticed when the sleep ends, not before."""
    number = s32(clock)
    if number not in HOST_CLOCKS:
        return _sleep_cpu(task, number, u32(flags), request)
    if number in (CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE):
        raise SysError(EOPNOTSUPP)
    if not u32(flags) & TIMER_ABSTIME:
        return _sleep(task, request, remaining)
    notes = task.blocked
    if "until" not in notes:
        notes["until"] = task.mem.timespec(request)
    left = notes["until"] - host.clock_gettime_ns(HOST_CLOCKS[number])
    if left <= 0:
        return 0
    raise Block(deadline=task.kernel.clock.monotonic() + min(left, FAR), restart=Restart.NOHAND)


def _sleep_cpu(task: Task, clock: int, flags: int, request: int) -> int:
    """Until a process or another thread has run so long: looked at now and then, as timers do."""
    if clock == CLOCK_THREAD_CPUTIME_ID:
        raise SysError(EOPNOTSUPP)
    of = cpu_clock(task, clock)
    if of is task:
        raise SysError(EINVAL)
    notes = task.blocked
    now = cpu_time(of)
    if "until" not in notes:
        notes["until"] = task.mem.timespec(request) + (0 if flags & TIMER_ABSTIME else now)
    left = notes["until"] - now
    if left <= 0:
        return 0
    pause = max(left // max(1, len(task.group.tasks)), SHORTEST_LOOK)
    raise Block(deadline=task.kernel.clock.monotonic() + min(pause, FAR), restart=Restart.NOHAND)


# Discipline.


def _adjust(task: Task, address: int) -> int:
    data = task.mem.read(address, _TIMEX.size)
    modes = int.from_bytes(data[:4], "little")
    if modes and (modes != 0xA001 or not task.creds.capable(CAP_SYS_TIME)):  # ADJ_OFFSET_SS_READ only reads
        raise SysError(EPERM)
    seconds, nanoseconds = divmod(task.kernel.clock.realtime(), 1_000_000_000)
    fields = [modes, 0, 0, 16_000_000, 16_000_000, STA_UNSYNC, 2, 1, TOLERANCE]
    fields += [seconds, nanoseconds // 1000, TICK_US, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    task.mem.write(address, _TIMEX.pack(*fields))
    return TIME_ERROR


@syscall("adjtimex", Support.PARTIAL, "tells only: the clock is the host's")
def adjtimex(task: Task, address: int) -> int:
    """adjtimex(2)."""
    return _adjust(task, address)


@syscall("clock_adjtime", Support.PARTIAL, "tells only: the clock is the host's")
def clock_adjtime(task: Task, clock: int, address: int) -> int:
    """clock_adjtime(2)."""
    task.mem.read(address, _TIMEX.size)
    if s32(clock) != CLOCK_REALTIME:
        if s32(clock) >= 0 and s32(clock) not in HOST_CLOCKS:
            cpu_clock(task, s32(clock))
        raise SysError(EOPNOTSUPP)
    return _adjust(task, address)
