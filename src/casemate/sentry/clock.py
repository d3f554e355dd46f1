"""Clocks, and the timers of everything in the sandbox: one heap that the kernel's loop looks at."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import Protocol


class Expiring(Protocol):
    """What a timer belongs to."""

    def expire(self, timer: Timer, /) -> None:
        """The timer's time has come; it is not armed any more."""


class Timer:
    """A moment at which its owner is told. Reusable; it costs nothing while it is not armed."""

    __slots__ = ("_entry", "deadline", "owner")

    def __init__(self, owner: Expiring) -> None:
        self.owner = owner
        self.deadline: int | None = None
        """Monotonic nanoseconds; None while not armed."""
        self._entry = 0


class Clock:
    """The sandbox's time, which is the host's."""

    __slots__ = ("_heap", "_sequence", "armed", "failed")

    def __init__(self) -> None:
        self.armed = False
        """A timer was armed since the kernel's loop has last looked at how long it may wait."""
        self._heap: list[tuple[int, int, Timer]] = []
        self._sequence = 0
        self.failed: Callable[[Expiring], None] | None = None
        """Called, with the exception at hand, for an owner that raised one; without it they come out of :meth:`run`."""

    @property
    def busy(self) -> bool:
        """Whether any timer may be armed."""
        return bool(self._heap)

    def monotonic(self) -> int:
        """Nanoseconds of ``CLOCK_MONOTONIC``."""
        return time.monotonic_ns()

    def realtime(self) -> int:
        """Nanoseconds of ``CLOCK_REALTIME``."""
        return time.time_ns()

    def arm(self, timer: Timer, deadline: int) -> None:
        """Have the timer's owner told at ``deadline`` (monotonic nanoseconds) instead of any earlier one."""
        self._sequence += 1
        self.armed = True
        timer.deadline = deadline
        timer._entry = self._sequence
        heapq.heappush(self._heap, (deadline, self._sequence, timer))
        if len(self._heap) > 64 and self._sequence % 64 == 0:
            self._sweep()

    def disarm(self, timer: Timer) -> None:
        """Forget about it; nothing when it is not armed."""
        timer.deadline = None
        timer._entry = 0

    def next(self) -> int | None:
        """When the next timer is due, in monotonic nanoseconds."""
        heap = self._heap
        while heap and heap[0][2]._entry != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run(self) -> None:
        """Tell the owners of all timers that are due by now."""
        due = self.next()
        if due is None:
            return
        now = self.monotonic()
        # Who arms a timer for a moment that has passed gets its turn the next time, not for ever in this one.
        last = self._sequence
        while due is not None and due <= now and self._heap[0][1] <= last:
            timer = heapq.heappop(self._heap)[2]
            self.disarm(timer)
            try:
                timer.owner.expire(timer)
            except Exception:
                if self.failed is None:
                    raise
                self.failed(timer.owner)
            due = self.next()

    def _sweep(self) -> None:
        """Drop entries of timers that were disarmed or armed anew, so that they cannot pile up."""
        live = [entry for entry in self._heap if entry[2]._entry == entry[1]]
        if len(live) * 2 < len(self._heap):
            heapq.heapify(live)
            self._heap = live
