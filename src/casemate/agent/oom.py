"""Want of memory in a container: told when it happens, and ended where the kernel would not end it.

The kernel kills when nothing can be freed. A container that has filled its memory with data of its processes can still
have the pages of their programs freed, which it needs again at once. Then nothing moves for minutes: every step waits
for a page that was there a moment ago, and the kernel sees no want. So pressure is watched too (PSI, the kernel's
Documentation/accounting/psi.rst): a container that stands still for want of memory, with next to nothing left that
could be freed, has its biggest process killed.
"""

from __future__ import annotations

import errno
import os
import select
from _signal import pidfd_send_signal  # type: ignore[import-not-found]  # signal imports enum
from time import monotonic

from casemate.agent.cgroup import Cgroup
from casemate.agent.system import SIGKILL, log, read_text
from casemate.protocol import threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

TRIGGER = "full 1000000 2000000"
"""Microseconds of standing still within a window of so many; the kernel tells of it once in a window at most."""
FIRST = 2.0
"""Seconds before pressure is watched too: for that the kernel starts a thread, which the shortest containers can do
without."""
IN_A_ROW = 3
LAPSE = 6.0
"""Seconds after which the next word on standing still is not in a row with the last one."""
LEFT = 16
"""Less than this part of the limit being free or freeable is next to nothing."""


_lock = threads.Lock()
_last_common = -LAPSE


def _common_turn(now: float) -> bool:
    """Whether it is time to kill for a want that all containers have together: each one's watch sees it, and who is
    killed takes a moment to end."""
    global _last_common
    with _lock:
        if now - _last_common < LAPSE:
            return False
        _last_common = now
        return True


class Watch:
    """Watches a container's control group until :meth:`close`.

    Arguments:
        cgroup: of a container that has been made.
        told: called, on the watch's thread, each time that processes were killed for want of memory.
        all_groups: of all containers, for a want that is not this one's alone.
    """

    def __init__(
        self, cgroup: Cgroup, told: Callable[[], None], all_groups: Callable[[], list[Cgroup]] | None = None
    ) -> None:
        self._cgroup = cgroup
        self._told = told
        self._all_groups = all_groups or (lambda: [cgroup])
        self._alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._lock = threads.Lock()
        self._open = True
        self._seen = 0
        self._row = 0
        self._last = 0.0
        cgroup.alarm = self._ring
        threads.start(self._run)

    def close(self) -> None:
        """End the watch; may be called more than once."""
        with self._lock:
            if self._open:
                os.eventfd_write(self._stop, 1)

    def _ring(self) -> None:
        with self._lock:
            if self._open:
                os.eventfd_write(self._alarm, 1)

    def _run(self) -> None:
        opened = [self._stop, self._alarm]
        try:
            poller = select.poll()
            poller.register(self._stop, select.POLLIN)
            poller.register(self._alarm, select.POLLIN)
            events = self._register(poller, opened, "memory.events", os.O_RDONLY, "")
            pressure: int | None = None
            begins = monotonic() + FIRST
            while True:
                left = None if pressure is not None else max(0.0, begins - monotonic()) * 1000
                ready = [fd for fd, _ in poller.poll(left)]
                if pressure is None and monotonic() >= begins and self._stop not in ready:
                    pressure = self._register(poller, opened, "memory.pressure", os.O_RDWR, TRIGGER)
                if self._stop in ready:
                    return
                if self._alarm in ready:
                    os.eventfd_read(self._alarm)
                if events in ready:
                    os.pread(events, 4096, 0)  # or it would be told again at once
                if pressure in ready:
                    self._pressed()
                self._count()
        except OSError as error:
            if error.errno != errno.ENODEV:  # the group has gone with its container
                log(f"the memory of a container is not watched: {error}")
        finally:
            with self._lock:
                self._open = False
            for fd in opened:
                os.close(fd)

    def _register(self, poller: select.poll, opened: list[int], name: str, flags: int, text: str) -> int:
        """Have changes of a file of the group told; -1 where the kernel has none."""
        try:
            fd = os.open(f"{self._cgroup.path}/{name}", flags | os.O_CLOEXEC)
        except FileNotFoundError:
            return -1
        opened.append(fd)
        if text:
            os.write(fd, text.encode())
        poller.register(fd, select.POLLPRI)
        return fd

    def _count(self) -> None:
        kills = self._cgroup.oom_kills()
        if kills > self._seen:
            self._seen = kills
            self._row = 0
            self._told()

    def _pressed(self) -> None:
        """The container stood still; is that for want of memory that nothing but an end of a process can give?"""
        now = monotonic()
        self._row = self._row + 1 if now - self._last < LAPSE else 1
        self._last = now
        alone = self._cgroup.full(LEFT)
        if not alone and not self._cgroup.crowded(LEFT):
            self._row = 0
        if self._row >= IN_A_ROW:
            self._row = 0
            if alone:
                self._kill([self._cgroup])
            elif _common_turn(now):
                self._kill(self._all_groups())

    def _kill(self, groups: list[Cgroup]) -> None:
        """Kill the process of these groups that the kernel would kill (proc_pid_oom_score(5))."""
        score, pid, group = 0, 0, self._cgroup
        for one in groups:
            for candidate in one.pids():
                word = read_text(f"/proc/{candidate}/oom_score", 32).strip()
                if word.isdigit() and int(word) > score:
                    score, pid, group = int(word), candidate, one
        if score == 0:
            return  # all of them are exempt, or gone
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # The number may have been given to another process since; the descriptor stays with the one it is of.
            if group.holds(pid):
                group.own_kills += 1
                pidfd_send_signal(process, SIGKILL)
                log(f"process {pid} killed: a container stood still for want of memory")
                if group.alarm is not None and group is not self._cgroup:
                    group.alarm()
        except ProcessLookupError:
            return
        finally:
            os.close(process)
