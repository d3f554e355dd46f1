"""Children: starting them, and the one place that waits for them.

Process 1 inherits every orphan of the guest and must take its status, or the process table fills. A wait for "any
child" would take the statuses that others wait for; so one thread owns all waits and hands each status to whoever
watches that process. A container's first process becomes a child of ours only when the runtime that made it exits, and
may end before its number is known: while a start is under way, statuses that nobody watches are kept.
"""

from __future__ import annotations

import os
import select
from time import sleep

from casemate.agent.system import ADDR_NO_RANDOMIZE, SIGINT, SIGKILL, SIGPIPE, SIGXFSZ, log, personality
from casemate.protocol import threads
from casemate.protocol.threads import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_UNCLAIMED = 4096
AGAIN = 0.1
"""Seconds after which an exit that could not be handled, for want of a thread, is handled again."""
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class Exit:
    """How a process ended: ``status`` (0..255) or ``signal``, the other is None."""

    __slots__ = ("status", "signal")

    def __init__(self, status: int | None, signal: int | None) -> None:
        self.status = status
        self.signal = signal


class Reaper:
    """Waits for all children; :meth:`run` is its thread's body."""

    def __init__(self) -> None:
        self._lock = threads.Lock()
        self._born = threads.Condition(self._lock)
        self._births = 0
        self._watched: dict[int, Callable[[Exit], None]] = {}
        self._unclaimed: dict[int, Exit] = {}
        self._starting = 0
        self._late: deque[tuple[Callable[[Exit], None], Exit]] = deque()
        self._more_late = threads.Condition(self._lock)

    def run(self) -> None:
        """Take the status of every child that ends, for ever."""
        threads.start(self._again)  # now, while there are threads to be had
        while True:
            with self._lock:
                births = self._births
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                with self._lock:
                    while births == self._births:
                        self._born.wait()
                continue
            if found is not None:
                self._take(found.si_pid)

    def _take(self, pid: int) -> None:
        # Under the lock: until here the number cannot be given to another process, so a signal that is sent under the
        # lock to a watched process reaches that process.
        with self._lock:
            try:
                _, code = os.waitpid(pid, 0)
            except ChildProcessError:  # a program that could not be started: the C library took its status itself
                return
            end = Exit(None, os.WTERMSIG(code)) if os.WIFSIGNALED(code) else Exit(os.WEXITSTATUS(code), None)
            callback = self._watched.pop(pid, None)
            if callback is None and self._starting:
                self._unclaimed[pid] = end
                while len(self._unclaimed) > MAX_UNCLAIMED:
                    del self._unclaimed[next(iter(self._unclaimed))]
        if callback is not None:
            self._tell(callback, end)

    def _again(self) -> None:
        while True:
            with self._lock:
                while not self._late:
                    self._more_late.wait()
                callback, end = self._late.popleft()
            sleep(AGAIN)
            self._tell(callback, end)

    def _tell(self, callback: Callable[[Exit], None], end: Exit) -> None:
        try:
            callback(end)
        except (RuntimeError, MemoryError):  # there can be no more threads for the moment; an end must not get lost
            with self._lock:
                self._late.append((callback, end))
                self._more_late.notify()
        except Exception as error:  # one watcher's trouble must not leave the others without their statuses
            log(f"an exit could not be handled: {type(error).__name__}: {error}")

    def __enter__(self) -> None:
        """A start is under way: statuses that nobody watches yet are kept until it is over."""
        with self._lock:
            self._starting += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._starting -= 1
            if not self._starting:
                self._unclaimed.clear()

    def watch(self, pid: int, callback: Callable[[Exit], None]) -> None:
        """Have ``callback`` called once when ``pid`` ends, at once when it has ended. It must not wait for anything;
        where it raises RuntimeError, for no thread could be started, it is called again after a while."""
        with self._lock:
            end = self._unclaimed.pop(pid, None)
            if end is None:
                self._watched[pid] = callback
                self._births += 1
                self._born.notify()
        if end is not None:
            self._tell(callback, end)

    def watches(self, pid: int) -> bool:
        """Whether a process is watched and its status was not taken yet."""
        with self._lock:
            return pid in self._watched

    def signal(self, pid: int, number: int) -> bool:
        """Send a signal to a watched process; False when it has ended.

        Raises:
            OSError: the signal was refused.
        """
        with self._lock:
            if pid not in self._watched:
                return False
            os.kill(pid, number)
            return True

    def run_program(
        self, arguments: list[str], stdio: Sequence[int], timeout: float, *, steady: bool = False
    ) -> Exit | None:
        """Run a program to its end.

        Arguments:
            arguments: the program, looked for in the PATH, and its arguments.
            stdio: descriptors that become its first ones, three or more. None but the first three may have a number
                that one of them gets.
            timeout: seconds; then it is killed.
            steady: its addresses are the same each time.

        Returns:
            how it ended, None when it was killed for the time it took.

        Raises:
            OSError: it could not be started.
        """
        ended = threads.Event()
        ends: list[Exit] = []

        def over(end: Exit) -> None:
            ends.append(end)
            ended.set()

        with self:
            before = personality(ADDR_NO_RANDOMIZE) if steady else 0
            try:
                pid = os.posix_spawnp(
                    arguments[0], arguments, ENVIRONMENT,
                    file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)],
                    setsigmask=[],
                    setsigdef=[SIGPIPE, SIGXFSZ, SIGINT],
                )  # fmt: skip
            finally:
                if steady:
                    personality(before)
            self.watch(pid, over)
        if ended.wait(timeout):
            return ends[0]
        self.signal(pid, SIGKILL)
        ended.wait()
        return None


def wait_readable(fd: int, timeout: float) -> bool:
    """Whether a descriptor becomes readable within ``timeout`` seconds."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(timeout * 1000))
