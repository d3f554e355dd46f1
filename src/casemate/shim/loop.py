"""One thread that does everything: sockets, copying, timers, ended children; and steps that wait for each other.

A shim spends its life waiting. Threads for every stream and request would cost a stack each and locks everywhere, and
``asyncio`` 60 ms and 10 MB (Python 3.11); this module is what of it is needed. Work that takes several turns is a
generator that yields a :class:`Future` and goes on with its value, so whatever stands between two ``yield`` happens at
one stroke, and the order of events is the order of the code::

    def stop(self) -> Steps[int]:
        self.kill()
        return (yield self.ended)

Calls that can only block go to a thread of their own with :meth:`Loop.thread`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, TypeVar

    T = TypeVar("T")
    Steps = Generator["Future", Any, T]

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
HANGUP, ERROR = select.EPOLLHUP, select.EPOLLERR


class Future:
    """A value, or an error, that will be there."""

    __slots__ = ("done", "value", "error", "_then")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._then: list[Callable[[Future], None]] = []

    def set(self, value: Any = None) -> None:
        """Give the value; a second one is ignored."""
        self._finish(value, None)

    def fail(self, error: BaseException) -> None:
        """Give the error instead."""
        self._finish(None, error)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        if self.done:
            return
        self.done, self.value, self.error = True, value, error
        then, self._then = self._then, []
        for callback in then:
            callback(self)

    def then(self, callback: Callable[[Future], None]) -> None:
        """Call ``callback`` with this once it is done: now, if it is."""
        if self.done:
            callback(self)
        else:
            self._then.append(callback)

    def forget(self, callback: Callable[[Future], None]) -> None:
        """Take back a :meth:`then`."""
        if callback in self._then:
            self._then.remove(callback)


class Timer:
    """What :meth:`Loop.later` gives; cancelling it late does nothing."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Have nothing happen at its time."""
        self.callback = None


class Lock:
    """Lets steps through one after the other, in the order of their asking: ``yield lock.take()`` … ``lock.give()``."""

    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._held = False
        self._waiting: list[Future] = []

    def take(self) -> Future:
        """Done when the lock is the caller's."""
        future = Future()
        if self._held:
            self._waiting.append(future)
        else:
            self._held = True
            future.set()
        return future

    def give(self) -> None:
        """Let the next one on."""
        if self._waiting:
            self._waiting.pop(0).set()
        else:
            self._held = False


class Loop:
    """The thread's work. Nothing but :meth:`from_thread` and :meth:`wake` may be used from another thread.

    Arguments:
        complain: told of an error that nobody waits for, one line; the standard error otherwise.
    """

    def __init__(self, complain: Callable[[str], None] | None = None) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._soon: list[Callable[[], None]] = []
        self._threads_done: list[Callable[[], None]] = []
        self._stopped = False
        self.complain = complain or (lambda line: print(line, file=sys.stderr))
        self.on_wake: list[Callable[[], None]] = []
        """Called whenever something was written to :attr:`wake_fd`: by signals, or by :meth:`wake`."""
        reader, self.wake_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake_reader = reader
        self.watch(reader, READ, self._woken)

    # --- descriptors ---

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback`` with what is ready (READ, WRITE, HANGUP, ERROR) of ``fd``, again and again until unwatched.

        Raises:
            OSError: the descriptor cannot be waited for (a plain file: EPERM).
        """
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Watch no more; to be called before the descriptor is closed."""
        if self._watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    # --- time ---

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` after that time."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def soon(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` in this turn or the next, after those that were asked for before."""
        self._soon.append(callback)

    def pause(self, seconds: float) -> Future:
        """A future that is done after that time."""
        future = Future()
        self.later(seconds, future.set)
        return future

    # --- steps ---

    def start(self, steps: Steps[Any]) -> Future:
        """Begin a generator's work now. Its value, or what it raised, is the future's."""
        future = Future()
        self._advance(steps, future, None)
        return future

    def spawn(self, steps: Steps[Any]) -> None:
        """Begin work that nobody waits for; an error in it is told to ``complain``."""

        def judge(done: Future) -> None:
            if done.error is not None:
                self.complain(f"{type(done.error).__name__}: {done.error}")

        self.start(steps).then(judge)

    def _advance(self, steps: Steps[Any], future: Future, previous: Future | None) -> None:
        while True:
            try:
                if previous is not None and previous.error is not None:
                    waiting = steps.throw(previous.error)
                else:
                    waiting = steps.send(None if previous is None else previous.value)
            except StopIteration as stop:
                future.set(stop.value)
                return
            except Exception as error:
                future.fail(error)
                return
            if not waiting.done:
                waiting.then(lambda done: self._advance(steps, future, done))
                return
            previous = waiting  # go on at once, and without one more stack frame

    def bounded(self, future: Future, seconds: float | None) -> Future:
        """A future that has the value of another, or fails with TimeoutError after ``seconds`` (None: never)."""
        if seconds is None:
            return future
        result = Future()

        def late() -> None:
            future.forget(done)
            result.fail(TimeoutError(f"not done within {seconds:g} s"))

        timer = self.later(max(0.0, seconds), late)

        def done(other: Future) -> None:
            timer.cancel()
            result._finish(other.value, other.error)

        future.then(done)
        return result

    # --- threads ---

    def thread(self, function: Callable[[], Any]) -> Future:
        """Call what can only block on a thread of its own; the future has what it returns or raises."""
        from _thread import start_new_thread

        future = Future()

        def work() -> None:
            try:
                value = function()
            except BaseException as error:
                caught = error
                self.from_thread(lambda: future.fail(caught))
            else:
                self.from_thread(lambda: future.set(value))

        start_new_thread(work, ())
        return future

    def from_thread(self, callback: Callable[[], None]) -> None:
        """Have the loop call ``callback``; from any thread."""
        self._threads_done.append(callback)
        self.wake()

    def wake(self) -> None:
        """Have the loop take a turn; from any thread and from signal handlers."""
        with contextlib.suppress(BlockingIOError):  # full: it will wake anyway
            os.write(self.wake_fd, b"\0")

    def _woken(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._wake_reader, 4096)) == 4096:
                pass
        while self._threads_done:
            self._call(self._threads_done.pop(0))
        for callback in self.on_wake:
            self._call(callback)

    # --- the loop ---

    def stop(self) -> None:
        """Have :meth:`run` return after this turn."""
        self._stopped = True

    def run(self) -> None:
        """Work until :meth:`stop`."""
        self._stopped = False
        while not self._stopped:
            self.turn(None)

    def run_until(self, future: Future, seconds: float | None = None) -> Any:
        """Work until a future is done, and return its value or raise its error.

        Raises:
            TimeoutError: it was not done in time.
        """
        future = self.bounded(future, seconds)
        while not future.done:
            self.turn(None)
        if future.error is not None:
            raise future.error
        return future.value

    def turn(self, most: float | None) -> None:
        """Wait for something to do, at most ``most`` seconds, and do it."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        timeout = most
        if self._soon:
            timeout = 0.0
        elif self._timers:
            left = max(0.0, self._timers[0][0] - time.monotonic())
            timeout = left if most is None else min(most, left)
        for fd, events in self._epoll.poll(timeout):
            callback = self._watched.get(fd)  # an earlier callback of this turn may have ended it
            if callback is not None:
                self._call(lambda ready=callback, what=events: ready(what))  # type: ignore[misc]
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            expired = heapq.heappop(self._timers)[2].callback
            if expired is not None:
                self._call(expired)
        soon, self._soon = self._soon, []
        for callback_soon in soon:
            self._call(callback_soon)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:  # one stream's bad luck is no other's
            self.complain(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Give the descriptors back."""
        self._watched.clear()
        self._epoll.close()
        os.close(self._wake_reader)
        os.close(self.wake_fd)
