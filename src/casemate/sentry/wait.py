"""Waiting: queues that tell of events, and how a system call says that it has to wait.

A handler that cannot go on raises :class:`Block`. The task is then parked until one of the queues is notified, the
deadline passes or a signal comes; unless a signal ends it, the handler is *called again from its start* with the same
arguments. What it must keep between these calls it puts into ``task.blocked``, a dictionary that is emptied when the
call ends: a waiting task is plain data.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar, Protocol


class Waiter(Protocol):
    """Who is told of events: a parked task's entry, an epoll item, …"""

    def wake(self, mask: int, /) -> None:
        """Something happened; ``mask`` has the ``POLL*`` bits, poll(2)."""


class WaitQueue:
    """Those who wait for one object. Entries are told in the order they came."""

    __slots__ = ("_waiters",)
    failed: ClassVar[Callable[[Waiter], None] | None] = None
    """The kernel's: called, with the exception at hand, for one that raised it when it was told."""

    def __init__(self) -> None:
        self._waiters: dict[Waiter, None] = {}

    def add(self, waiter: Waiter) -> None:
        """Tell this one from now on."""
        self._waiters[waiter] = None

    def remove(self, waiter: Waiter) -> None:
        """No more; nothing when it is not there."""
        self._waiters.pop(waiter, None)

    def notify(self, mask: int = 0xFFFF) -> None:
        """Tell all. Who is told may add and remove entries."""
        if self._waiters:
            for waiter in tuple(self._waiters):
                try:
                    waiter.wake(mask)
                except Exception:
                    # Whoever brings the news has nothing to do with it, nor have the others that wait.
                    self.remove(waiter)
                    if WaitQueue.failed is None:
                        raise
                    WaitQueue.failed(waiter)

    def __len__(self) -> int:
        return len(self._waiters)


class Restart(Enum):
    """What becomes of a call that a signal interrupts, signal(7)."""

    SYS = "ERESTARTSYS"
    """Made again after the handler where that has ``SA_RESTART``, else ``EINTR``."""
    NOINTR = "ERESTARTNOINTR"
    """Always made again."""
    NOHAND = "ERESTARTNOHAND"
    """``EINTR`` after any handler; made again when none ran."""
    KILL = "killable"
    """Only what ends the task ends the call, as vfork(2)'s wait; handlers run when it is over."""


class Passed(Exception):
    """Raised by a handler: the host is to make the call as the thread stands at it, and the application gets what comes
    of that. To be raised only where :meth:`casemate.sentry.kernel.Kernel.passes` says so.

    Arguments:
        expected: what is to come of it, where that is not certain (:class:`casemate.sentry.platform.base.Expected`).
    """

    def __init__(self, expected: Any = None) -> None:
        super().__init__()
        self.expected = expected


class Block(Exception):
    """Raised by a handler: the call waits.

    Arguments:
        queues: any of these being notified makes the handler run again.
        deadline: monotonic nanoseconds (``kernel.clock.monotonic()``) at which it runs again with
            ``task.timed_out`` true; None for never. Note an absolute deadline in ``task.blocked`` at the first call.
        restart: what a signal does to the call.
        partial: what the call has done so far (bytes written, say): a signal that would end it with ``EINTR`` or
            have it made again ends it with this result instead. 0 for nothing yet.
    """

    def __init__(
        self,
        *queues: WaitQueue,
        deadline: int | None = None,
        restart: Restart = Restart.SYS,
        partial: int = 0,
    ) -> None:
        super().__init__()
        self.queues = queues
        self.deadline = deadline
        self.restart = restart
        self.partial = partial
        """What the call has done already (bytes): when positive, a signal makes it return that."""
