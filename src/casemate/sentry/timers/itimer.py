"""The three timers of a process, setitimer(2)."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from casemate.sentry.signals.info import SigInfo
from casemate.sentry.signals.send import send
from casemate.sentry.timers.alarm import CLOCK_MONOTONIC, CpuAlarm, WallAlarm
from casemate.sentry.timers.interval import Interval

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import ThreadGroup

ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF = 0, 1, 2
SIGNALS = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)


class ITimer(Interval):
    """One of them. What the kernel does for the process is no time of the process's: both processor timers run alike.

    Arguments:
        which: ``ITIMER_*``.
    """

    def __init__(self, group: ThreadGroup, which: int) -> None:
        super().__init__()
        self.group = group
        self.signo = SIGNALS[which]
        self.alarm = WallAlarm(group.kernel, CLOCK_MONOTONIC, self) if which == ITIMER_REAL else CpuAlarm(group, self)

    def signal(self) -> SigInfo:
        """The timer's signal."""
        return SigInfo(self.signo)

    def send(self, info: SigInfo) -> bool:
        """To the process."""
        return send(self.group, info, force=True)


class Itimers:
    """Those of one process, made as they are asked for."""

    def __init__(self, group: ThreadGroup) -> None:
        self._group = group
        self._timers: dict[int, ITimer] = {}

    def get(self, which: int) -> ITimer:
        """The timer; ``which`` is one of ``ITIMER_*``."""
        timer = self._timers.get(which)
        if timer is None:
            timer = self._timers[which] = ITimer(self._group, which)
        return timer

    def close(self) -> None:
        """The process ends."""
        for timer in self._timers.values():
            timer.cancel()


def of(group: ThreadGroup) -> Itimers:
    """The timers of a process."""
    signals = group.signals
    if signals.itimers is None:
        signals.itimers = Itimers(group)
    timers: Itimers = signals.itimers
    return timers
