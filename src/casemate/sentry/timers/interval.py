"""What timers that send signals have in common: a moment, an interval, and one signal at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.sentry.timers.alarm import FAR

if TYPE_CHECKING:
    from casemate.sentry.signals.info import SigInfo
    from casemate.sentry.timers.alarm import Alarm

PAUSE = 1_000_000
"""The least time between looks of a timer whose signals nobody takes (they are ignored); nanoseconds."""


class Interval:
    """A timer. Subclasses give it an :attr:`alarm`, say what its :meth:`signal` is, and :meth:`send` that.

    With an interval it goes on when its signal is taken from the queue, and what passed meanwhile is counted as
    overruns: so even the shortest interval costs no more than handlers can run.
    """

    alarm: Alarm

    def __init__(self) -> None:
        self.interval = 0
        """Nanoseconds; 0 for a timer that expires once."""
        self.at = 0
        """The moment that comes, or came last, on its clock; 0 while not armed."""
        self.overrun = 0
        """Expirations since the last signal was sent until it was taken, without the one that sent it."""
        self.sent: SigInfo | None = None
        """Its signal, while that is queued."""

    def signal(self) -> SigInfo:
        """The signal of one expiration."""
        raise NotImplementedError

    def send(self, info: SigInfo) -> bool:
        """Send it; whether it was queued."""
        raise NotImplementedError

    def arm(self, value: int, interval: int, absolute: bool = False) -> None:
        """Expire after (at) ``value`` nanoseconds, then each ``interval``; a value of 0 stops the timer."""
        self.alarm.cancel()
        # A signal on its way is delivered, but the timer does not go on from it.
        self.sent = None
        self.interval = min(interval, FAR)
        self.at = 0
        if value:
            self.at = max(1, min(value, FAR) + (0 if absolute else self.alarm.now()))
            self.alarm.set(self.at)

    def left(self) -> tuple[int, int]:
        """Nanoseconds until it expires (0 when it does not), and the interval."""
        if not self.at:
            return 0, self.interval
        now = self.alarm.now()
        if now < self.at:
            return self.at - now, self.interval
        if not self.interval:
            return (1 if self.sent is None and self.armed() else 0), 0
        return self.interval - (now - self.at) % self.interval, self.interval

    def armed(self) -> bool:
        """Whether it has yet to expire."""
        return self.at > 0

    def cancel(self) -> None:
        """Stop for good."""
        self.alarm.cancel()
        self.sent = None
        self.at = 0

    def ring(self) -> None:
        """The moment has come."""
        info = self.signal()
        info.source = self
        if not self.interval:
            self.at = 0
        # The receiver may take it before send() returns.
        self.sent = info
        if not self.send(info) and self.sent is info:
            self.sent = None
            self._forward(PAUSE)

    def _forward(self, pause: int = 0) -> int:
        """Go on to the next moment that lies ahead; gives how many were left out."""
        if not self.at or not self.interval:
            return 0
        now = self.alarm.now() + pause
        missed = max(0, (now - self.at) // self.interval)
        self.at += (missed + 1) * self.interval
        self.alarm.set(self.at)
        return missed

    def taken(self, info: SigInfo) -> None:
        """Its signal is about to be delivered."""
        if info is self.sent:
            self.sent = None
            self.overrun = self._forward()

    def dropped(self, info: SigInfo) -> None:
        """Its signal was discarded."""
        if info is self.sent:
            self.sent = None
            self._forward(PAUSE)
