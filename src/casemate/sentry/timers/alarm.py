"""Alarms: moments of any clock at which somebody is told, also of clocks that only run while a program does."""

from __future__ import annotations

import time
from errno import EINVAL
from typing import TYPE_CHECKING, Protocol

from casemate.sentry.clock import Timer
from casemate.sentry.errno import SysError
from casemate.sentry.tasks import usage

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task, ThreadGroup

CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID = 0, 1, 2, 3
CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME = 4, 5, 6, 7
CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM, CLOCK_TAI = 8, 9, 11
CPUCLOCK_SCHED, CPUCLOCK_PERTHREAD, CLOCKFD = 2, 4, 3
HOST_CLOCKS = {
    CLOCK_REALTIME: CLOCK_REALTIME,
    CLOCK_MONOTONIC: CLOCK_MONOTONIC,
    CLOCK_MONOTONIC_RAW: CLOCK_MONOTONIC_RAW,
    CLOCK_REALTIME_COARSE: CLOCK_REALTIME_COARSE,
    CLOCK_MONOTONIC_COARSE: CLOCK_MONOTONIC_COARSE,
    CLOCK_BOOTTIME: CLOCK_BOOTTIME,
    # What differs is that these wake a sleeping machine.
    CLOCK_REALTIME_ALARM: CLOCK_REALTIME,
    CLOCK_BOOTTIME_ALARM: CLOCK_BOOTTIME,
    CLOCK_TAI: CLOCK_TAI,
}
"""Clocks that are the same for all, and the host's clock for each."""
FAR = 1 << 62
"""Later than any clock of ours gets: deadlines are cut to it, so that sums fit."""
SHORTEST_LOOK, LONGEST_LOOK = 1_000_000, 64_000_000
"""How often a processor clock is looked at, at least and at most; nanoseconds."""


class Ringing(Protocol):
    """Whom an alarm tells."""

    def ring(self) -> None:
        """The moment has come; the alarm is not set any more."""


class Alarm(Protocol):
    """One moment of one clock."""

    owner: Ringing

    def now(self) -> int:
        """What the clock shows, nanoseconds."""

    def set(self, at: int) -> None:
        """Ring when the clock shows ``at``, instead of any other moment."""

    def cancel(self) -> None:
        """Do not ring."""


class WallAlarm:
    """Of a clock that runs by itself. It is not noticed when somebody sets the host's clock meanwhile.

    Arguments:
        clock: one of :data:`HOST_CLOCKS`.
    """

    __slots__ = ("_clock", "_kernel", "_timer", "owner")

    def __init__(self, kernel: Kernel, clock: int, owner: Ringing) -> None:
        self._kernel = kernel
        self._clock = HOST_CLOCKS[clock]
        self._timer = Timer(self)
        self.owner = owner

    def now(self) -> int:
        """What the clock shows, nanoseconds."""
        return time.clock_gettime_ns(self._clock)

    def set(self, at: int) -> None:
        """Ring when the clock shows ``at``."""
        if self._clock != CLOCK_MONOTONIC:
            at += time.monotonic_ns() - self.now()
        self._kernel.clock.arm(self._timer, min(at, FAR))

    def cancel(self) -> None:
        """Do not ring."""
        self._kernel.clock.disarm(self._timer)

    def expire(self, timer: Timer) -> None:
        """The kernel's timer has come."""
        self.owner.ring()


class CpuAlarm:
    """Of the time that a process or a thread has run. Nothing tells of that but looking, so it is looked at when it
    could be at the earliest, and ever more seldom while the program does not run.

    Arguments:
        of: the process or thread whose clock it is.
    """

    __slots__ = ("_at", "_kernel", "_last", "_pause", "_timer", "of", "owner")

    def __init__(self, of: ThreadGroup | Task, owner: Ringing) -> None:
        self._kernel = of.kernel
        self.of = of
        self.owner = owner
        self._timer = Timer(self)
        self._at = 0
        self._last = 0
        self._pause = SHORTEST_LOOK

    def now(self) -> int:
        """How long it has run, nanoseconds."""
        return cpu_time(self.of)

    def set(self, at: int) -> None:
        """Ring when it has run for ``at``."""
        self._at = at
        self._last = -1
        self._pause = SHORTEST_LOOK
        self._look()

    def cancel(self) -> None:
        """Do not ring."""
        self._kernel.clock.disarm(self._timer)

    def _look(self) -> None:
        now = self.now()
        self._pause = min(2 * self._pause, LONGEST_LOOK) if now == self._last else SHORTEST_LOOK
        self._last = now
        # Threads that run at the same time make the clock run faster.
        left = (self._at - now) // max(1, len(getattr(self.of, "tasks", ())))
        self._kernel.clock.arm(self._timer, time.monotonic_ns() + max(min(left, FAR), self._pause))

    def expire(self, timer: Timer) -> None:
        """Time to look."""
        if self.now() >= self._at:
            self.owner.ring()
        else:
            self._look()


def cpu_time(of: ThreadGroup | Task) -> int:
    """How long a process or thread has run, nanoseconds."""
    from casemate.sentry.tasks.task import Task

    return usage.thread_time(of) if isinstance(of, Task) else usage.process_time(of)


def cpu_clock(task: Task, clock: int) -> ThreadGroup | Task:
    """Whose processor time a clock is, clock_getcpuclockid(3).

    Arguments:
        clock: signed; negative ones carry a number of a process, or of a thread of one's own process.

    Raises SysError(EINVAL) when it is no processor clock, or of nobody.
    """
    if clock == CLOCK_PROCESS_CPUTIME_ID:
        return task.group
    if clock == CLOCK_THREAD_CPUTIME_ID:
        return task
    if clock >= 0 or clock & CLOCKFD == CLOCKFD:
        raise SysError(EINVAL)
    number = ~(clock >> 3)
    if clock & CPUCLOCK_PERTHREAD:
        thread = task.group.tasks.get(number) if number else task
        if thread is None:
            raise SysError(EINVAL)
        return thread
    group = task.group.ns.pid.group(number) if number else task.group
    if group is None:
        raise SysError(EINVAL)
    return group


def make_alarm(task: Task, clock: int, owner: Ringing) -> Alarm:
    """An alarm of any clock. Raises SysError(EINVAL) for a clock that is not there."""
    if clock in HOST_CLOCKS:
        return WallAlarm(task.kernel, clock, owner)
    return CpuAlarm(cpu_clock(task, clock), owner)
