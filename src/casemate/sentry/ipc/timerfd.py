"""Timers that are read as files, timerfd_create(2)."""

from __future__ import annotations

import os
import time
from errno import EINVAL, ENOTTY
from typing import TYPE_CHECKING

from casemate.sentry.clock import Timer
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.anon import AnonFile
from casemate.sentry.vfs.file import POLLIN

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM = 0, 1, 7, 8, 9
CLOCKS = (CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM)
TFD_IOC_SET_TICKS = 0x40085400
FAR = 1 << 62
"""Later than any clock of ours gets: deadlines are cut to it."""


class TimerFd(AnonFile):
    """One timer.

    A timer with an interval is armed again only when its expirations are read: those in between are counted by
    division then, so that a short interval costs nothing.
    """

    anonymous = "anon_inode:[timerfd]"

    def __init__(self, kernel: Kernel, flags: int, clock: int) -> None:
        super().__init__(kernel, os.O_RDWR | flags)
        self.kernel = kernel
        self.clock = clock
        self.timer = Timer(self)
        self.interval = 0
        """Nanoseconds; 0 for once."""
        self.due = 0
        """The deadline that comes, or came last, monotonic nanoseconds; 0 when not set."""
        self.ticks = 0
        """Expirations not read yet; of an interval just the first."""
        self.expired = False
        """The deadline has passed, and the following ones are not counted yet."""
        self.settings = 0
        """Flags of timerfd_settime(2), for fdinfo."""

    def ahead(self) -> int:
        """What the timer's clock is ahead of the monotonic one, nanoseconds."""
        if self.clock == CLOCK_MONOTONIC:
            return 0
        if self.clock in (CLOCK_REALTIME, CLOCK_REALTIME_ALARM):
            return self.kernel.clock.realtime() - self.kernel.clock.monotonic()
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()

    def set(self, value: int, interval: int, absolute: bool) -> None:
        """Have it expire after (or at, on its clock) ``value`` nanoseconds, then every ``interval``; 0 stops it."""
        clock = self.kernel.clock
        clock.disarm(self.timer)
        self.ticks = 0
        self.expired = False
        self.interval = interval
        self.due = 0
        if value:
            due = value - self.ahead() if absolute else clock.monotonic() + value
            self.due = min(max(due, 1), FAR)
            clock.arm(self.timer, self.due)

    def remaining(self) -> tuple[int, int]:
        """Nanoseconds until it expires next (0 for a stopped one), and its interval."""
        self._forward()
        if not self.due or self.expired:
            return 0, self.interval
        return max(self.due - self.kernel.clock.monotonic(), 1), self.interval

    def expire(self, timer: Timer) -> None:
        """The deadline has come."""
        self.expired = True
        self.ticks += 1
        self.queue.notify(POLLIN)

    def _forward(self) -> None:
        """Count the deadlines of an interval that passed since it expired, and arm the next."""
        if self.expired and self.interval:
            passed = (self.kernel.clock.monotonic() - self.due) // self.interval
            self.ticks += passed
            self.due = min(self.due + (passed + 1) * self.interval, FAR)
            self.expired = False
            self.kernel.clock.arm(self.timer, self.due)

    def read(self, task: Task, size: int) -> bytes:
        if size < 8:
            raise SysError(EINVAL)
        if not self.ticks:
            self.keep(task)
            raise self.wait()
        self._forward()
        ticks = self.ticks
        self.ticks = 0
        return (ticks & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")

    def poll(self, task: Task) -> int:
        return POLLIN if self.ticks else 0

    def ioctl(self, task: Task, command: int, argument: int) -> int:
        if command & 0xFFFF_FFFF != TFD_IOC_SET_TICKS:
            raise SysError(ENOTTY)
        ticks = task.mem.u64(argument)
        if not ticks:
            raise SysError(EINVAL)
        self.ticks = ticks
        self.queue.notify(POLLIN)
        return 0

    def release(self) -> None:
        self.kernel.clock.disarm(self.timer)

    def fdinfo(self) -> bytes:
        value, interval = self.remaining()
        return b"clockid: %d\nticks: %d\nsettime flags: 0%o\nit_value: (%d, %d)\nit_interval: (%d, %d)\n" % (
            self.clock,
            self.ticks,
            self.settings,
            *divmod(value, 1_000_000_000),
            *divmod(interval, 1_000_000_000),
        )
