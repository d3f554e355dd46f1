"""The timers that a process makes, timer_create(2)."""

from __future__ import annotations

import resource
import struct
from errno import EAGAIN, EINVAL
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.signals.info import SigInfo
from casemate.sentry.signals.send import send
from casemate.sentry.timers.alarm import make_alarm
from casemate.sentry.timers.interval import Interval

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task, ThreadGroup

SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID = 0, 1, 2, 4
DELAYTIMER_MAX = 0x7FFF_FFFF
_OVERRUN = struct.Struct("<i")


class PosixTimer(Interval):
    """One timer.

    Arguments:
        number: what the process calls it by.
        clock: as of timer_create(2).
        notify: ``SIGEV_NONE`` for no signal.
        receiver: the process, or one thread.
        signo, value: the signal, and what it carries.
    """

    def __init__(
        self,
        task: Task,
        number: int,
        clock: int,
        notify: int,
        receiver: Task | ThreadGroup,
        signo: int,
        value: int,
    ) -> None:
        super().__init__()
        self.number = number
        self.clock = clock
        self.notify = notify
        self.receiver = receiver
        self.signo = signo
        self.value = value
        self.last_overrun = 0
        """For timer_getoverrun(2): of the signal that was delivered last."""
        self.alarm = make_alarm(task, clock, self)

    def arm(self, value: int, interval: int, absolute: bool = False) -> None:
        """Also forgets overruns."""
        self.overrun = self.last_overrun = 0
        super().arm(value, interval, absolute)
        if self.notify == SIGEV_NONE:
            # There is nothing to tell: what is left is calculated when asked for.
            self.alarm.cancel()

    def armed(self) -> bool:
        """Whether it has yet to expire."""
        return super().armed() and self.notify != SIGEV_NONE

    def signal(self) -> SigInfo:
        """The timer's signal."""
        return SigInfo.timer(self.signo, self.number, 0, self.value)

    def send(self, info: SigInfo) -> bool:
        """To the process, or the thread."""
        return send(self.receiver, info, force=True)

    def taken(self, info: SigInfo) -> None:
        """Count what passed while the signal was queued, and tell it with the signal."""
        if info is self.sent:
            super().taken(info)
            self.last_overrun = min(self.overrun, DELAYTIMER_MAX)
            info.body = info.body[:4] + _OVERRUN.pack(self.last_overrun) + info.body[8:]


class Timers:
    """Those of one process."""

    def __init__(self) -> None:
        self.timers: dict[int, PosixTimer] = {}
        self._next = 0

    def create(
        self, task: Task, clock: int, notify: int, receiver: Task | ThreadGroup, signo: int, value: int | None
    ) -> PosixTimer:
        """Make one; ``value`` None for its number.

        Raises SysError: EAGAIN when there are too many, EINVAL for a clock that is not there.
        """
        if len(self.timers) >= task.group.limits.soft(resource.RLIMIT_SIGPENDING):
            raise SysError(EAGAIN)
        number = self._next
        timer = PosixTimer(task, number, clock, notify, receiver, signo, number if value is None else value)
        self._next = (number + 1) & 0x7FFF_FFFF
        while self._next in self.timers:
            self._next = (self._next + 1) & 0x7FFF_FFFF
        self.timers[number] = timer
        return timer

    def get(self, number: int) -> PosixTimer:
        """The timer. Raises SysError(EINVAL)."""
        timer = self.timers.get(number)
        if timer is None:
            raise SysError(EINVAL)
        return timer

    def delete(self, number: int) -> None:
        """timer_delete(2). Raises SysError(EINVAL)."""
        self.get(number).cancel()
        del self.timers[number]

    def close(self) -> None:
        """The process ends, or runs another program."""
        for timer in self.timers.values():
            timer.cancel()
        self.timers.clear()


def of(group: ThreadGroup) -> Timers:
    """The timers of a process."""
    signals = group.signals
    if signals.timers is None:
        signals.timers = Timers()
    timers: Timers = signals.timers
    return timers
