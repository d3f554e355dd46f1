"""Timers that send signals, on a clock that the tests turn."""

from __future__ import annotations

from casemate.sentry.signals.info import SigInfo
from casemate.sentry.timers.alarm import Ringing
from casemate.sentry.timers.interval import PAUSE, Interval

MS = 1_000_000


class Turned:
    """A clock."""

    def __init__(self, owner: Ringing) -> None:
        self.owner = owner
        self.time = 100 * MS
        self.at: int | None = None

    def now(self) -> int:
        return self.time

    def set(self, at: int) -> None:
        self.at = at

    def cancel(self) -> None:
        self.at = None

    def turn(self, by: int) -> None:
        """Let time pass in small steps, as the kernel's loop would."""
        end = self.time + by
        while self.at is not None and self.at <= end:
            self.time = max(self.time, self.at)
            self.at = None
            self.owner.ring()
        self.time = end


class Timer(Interval):
    """One whose signals go into a list."""

    def __init__(self, heard: bool = True) -> None:
        super().__init__()
        self.clock = Turned(self)
        self.alarm = self.clock
        self.heard = heard
        self.queue: list[SigInfo] = []
        self.tries = 0
        self.at_once = False

    def signal(self) -> SigInfo:
        return SigInfo(14)

    def send(self, info: SigInfo) -> bool:
        self.tries += 1
        if self.heard:
            self.queue.append(info)
            if self.at_once:
                self.take()
        return self.heard

    def take(self) -> None:
        self.taken(self.queue.pop(0))


def test_once() -> None:
    timer = Timer()
    timer.arm(5 * MS, 0)
    assert timer.left() == (5 * MS, 0)
    timer.clock.turn(2 * MS)
    assert timer.left() == (3 * MS, 0) and not timer.queue
    timer.clock.turn(10 * MS)
    assert len(timer.queue) == 1 and timer.left() == (0, 0)
    timer.take()
    timer.clock.turn(100 * MS)
    assert not timer.queue and timer.overrun == 0


def test_no_second_signal_before_the_first_is_taken() -> None:
    timer = Timer()
    timer.arm(5 * MS, 10 * MS)
    timer.clock.turn(38 * MS)  # at 5, 15, 25, 35
    assert len(timer.queue) == 1
    assert timer.left() == (7 * MS, 10 * MS)
    timer.take()
    assert timer.overrun == 3
    timer.clock.turn(7 * MS)
    assert len(timer.queue) == 1
    timer.take()
    assert timer.overrun == 0


def test_stopping_forgets_a_signal_on_its_way() -> None:
    timer = Timer()
    timer.arm(5 * MS, 5 * MS)
    timer.clock.turn(6 * MS)
    timer.arm(0, 0)
    assert timer.left() == (0, 0)
    timer.take()
    timer.clock.turn(100 * MS)
    assert not timer.queue and timer.clock.at is None


def test_at_a_moment() -> None:
    timer = Timer()
    timer.arm(130 * MS, 0, absolute=True)
    timer.clock.turn(29 * MS)
    assert not timer.queue
    timer.clock.turn(1 * MS)
    assert len(timer.queue) == 1
    timer.take()
    timer.arm(1, 0, absolute=True)  # long ago
    timer.clock.turn(0)
    assert len(timer.queue) == 1


def test_signals_that_nobody_wants_cost_little() -> None:
    timer = Timer(heard=False)
    timer.arm(1, 1)  # a nanosecond
    timer.clock.turn(100 * PAUSE)
    assert 50 <= timer.tries <= 101
    timer.heard = True
    timer.clock.turn(2 * PAUSE)
    assert len(timer.queue) == 1


def test_signals_that_are_taken_while_they_are_sent() -> None:
    timer = Timer()
    timer.at_once = True
    timer.arm(5 * MS, 5 * MS)
    timer.clock.turn(52 * MS)
    assert timer.tries == 10 and timer.left() == (3 * MS, 5 * MS)


def test_discarded_signals_do_not_stop_it() -> None:
    timer = Timer()
    timer.arm(5 * MS, 5 * MS)
    timer.clock.turn(5 * MS)
    timer.dropped(timer.queue.pop())
    timer.clock.turn(10 * MS)
    assert len(timer.queue) == 1
