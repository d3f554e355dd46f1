"""Threads, conditions and events from ``_thread`` alone.

The standard ``threading`` imports functools and collections. In a guest on an emulated processor that is an eighth of a
second before the agent's first word, for nothing that is used here. These are its simplest parts, with the same names
and meanings; they go together with ``threading`` in one process.
"""

from __future__ import annotations

from _thread import LockType, allocate_lock, start_new_thread
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from typing import Any
else:
    from _collections import deque

Lock = allocate_lock

__all__ = ["Condition", "Event", "Lock", "LockType", "deque", "start"]


_parking = allocate_lock()
_places = 0
_parked: list[_Parked] = []


class _Parked:
    """A thread that waits for something to do."""

    __slots__ = ("lock", "job")

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.lock.acquire()
        self.job: tuple[Callable[..., None], tuple[Any, ...]] | None = None


def start(target: Callable[..., None], *args: Any) -> None:
    """Run ``target(*args)`` on a thread that does not keep the process from ending.

    Raises:
        RuntimeError: there can be no more threads.
    """
    with _parking:
        parked = _parked.pop() if _parked else None
    if parked is None:
        start_new_thread(_run, (target, args))
    else:
        parked.job = target, args
        parked.lock.release()


def park(count: int) -> None:
    """Start so many threads ahead, and from now on keep so many that have nothing to do.

    Raises:
        RuntimeError: there can be no more threads.
    """
    global _places
    with _parking:
        _places = count
        missing = count - len(_parked)
    for _ in range(missing):
        start_new_thread(_wait, ())


def _run(target: Callable[..., None], args: tuple[Any, ...]) -> None:
    target(*args)
    del target, args  # what they hold is not to wait for the next one
    _wait()


def _wait() -> None:
    while True:
        parked = _Parked()
        with _parking:
            if len(_parked) >= _places:
                return
            _parked.append(parked)
        parked.lock.acquire()
        assert parked.job is not None  # or nobody had released it
        target, args = parked.job
        parked.job = None
        target(*args)
        del target, args


class Condition:
    """As :class:`threading.Condition`, on a lock that is given."""

    __slots__ = ("_lock", "_waiters")

    def __init__(self, lock: LockType) -> None:
        self._lock = lock
        self._waiters: deque[LockType] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait to be notified, take the lock again.

        Arguments:
            timeout: seconds; None means for ever.

        Returns:
            False when the time ran out.
        """
        waiter = allocate_lock()
        waiter.acquire()
        self._waiters.append(waiter)
        self._lock.release()
        notified = False
        try:
            notified = waiter.acquire() if timeout is None else waiter.acquire(timeout=max(0.0, timeout))
        finally:
            self._lock.acquire()
            if not notified and waiter in self._waiters:
                self._waiters.remove(waiter)
        return notified

    def notify(self) -> None:
        """Wake one who waits; the lock must be held."""
        if self._waiters:
            self._waiters.popleft().release()

    def notify_all(self) -> None:
        """Wake all who wait; the lock must be held."""
        while self._waiters:
            self._waiters.popleft().release()


class Event:
    """As :class:`threading.Event`, and once set it stays set."""

    __slots__ = ("_lock", "_changed", "_set")

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._changed = Condition(self._lock)
        self._set = False

    def is_set(self) -> bool:
        """Whether :meth:`set` was called."""
        return self._set

    def set(self) -> None:
        """Let everybody go on who waits, and who will wait."""
        with self._lock:
            self._set = True
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for :meth:`set`, at most ``timeout`` seconds. Returns whether it was called."""
        deadline = None if timeout is None else monotonic() + timeout
        with self._lock:
            while not self._set:
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            return self._set
