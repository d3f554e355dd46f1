"""The memory of one container, bounded: the host's control group bounds the whole sandbox alone, with room for the
sentry itself and for what else the door that it came by counts.

Nobody tells when processes of the host take memory, so they are looked at: the sooner, the nearer they are to the
bound, and once a second while none of them runs. What is over it loses its largest process, as the host's kernel would
have it. Between two looks a container may take more; the sandbox's bound holds at every moment. That one is the last
resort: where the sentry itself runs into it, as it writes into a program's memory, the host's kernel kills the program,
whose memory stays for as long as that write holds it, and then the next process, which is the sandbox's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from signal import SIGKILL
from typing import TYPE_CHECKING

from casemate.sentry.clock import Timer
from casemate.sentry.signals.info import SI_KERNEL, SigInfo
from casemate.sentry.signals.send import send
from casemate.sentry.tasks.task import State

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import ThreadGroup

SHORTEST, LONGEST = 20_000_000, 1_000_000_000
"""Nanoseconds between two looks."""
RATE = 2 << 30
"""Bytes that a container may take in a second, at most: it is looked at before it can have reached its bound."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ANONYMOUS = re.compile(rb"^Pss_Anon:\s+(\d+) kB", re.MULTILINE)


class MemoryWatch:
    """Watches one container.

    Arguments:
        container: its name.
        limit: bytes.
        killed: called when one of its processes was killed.
    """

    def __init__(self, kernel: Kernel, container: str, limit: int, killed: Callable[[], None]) -> None:
        self._kernel = kernel
        self._container = container
        self.limit = limit
        self._killed = killed
        self._timer = Timer(self)

    def start(self) -> None:
        """Look from now on; nothing where it does so already."""
        if self._timer.deadline is None:
            self._again(SHORTEST)

    def stop(self) -> None:
        """No more."""
        self._kernel.clock.disarm(self._timer)

    def _again(self, pause: int) -> None:
        clock = self._kernel.clock
        clock.arm(self._timer, clock.monotonic() + pause)

    def expire(self, timer: Timer) -> None:
        """It is time to look."""
        groups = [
            group for group in self._kernel.groups.values() if group.container == self._container and not group.zombie
        ]
        sizes = {group: self._size(group) for group in groups}
        used = sum(sizes.values())
        if used > self.limit:
            # Processes that have been forked share memory, which was counted for each of them until here.
            used = sum(self._share(group, size) for group, size in sizes.items())
        if used > self.limit:
            largest = max(groups, key=lambda group: sizes[group] + group.oom_score_adj * self.limit // 1000)
            send(largest, SigInfo(SIGKILL, SI_KERNEL), force=True)
            self._killed()
            self._again(SHORTEST * 5)  # it takes a moment until all is given back
            return
        runs = any(task.state is State.RUNNING for group in groups for task in group.tasks.values())
        pause = (self.limit - used) * 1_000_000_000 // RATE if runs else LONGEST
        self._again(min(max(pause, SHORTEST), LONGEST))

    def _read(self, group: ThreadGroup, name: str) -> bytes:
        """A file of the process's of the host; empty where it is gone."""
        task = group.any_task
        if task is None or task.thread is None:
            return b""
        try:
            fd = os.open(f"{task.thread.pid}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._kernel.platform.proc)
        except OSError:
            return b""
        try:
            return os.read(fd, 4096)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def _size(self, group: ThreadGroup) -> int:
        """Bytes of its own memory, with all that it shares with those that it was forked from."""
        words = self._read(group, "statm").split()
        return (int(words[1]) - int(words[2])) * _PAGE if len(words) > 2 else 0

    def _share(self, group: ThreadGroup, size: int) -> int:
        """Bytes of its own memory, with its share of what is shared; ``size`` where the host does not say."""
        found = _ANONYMOUS.search(self._read(group, "smaps_rollup"))
        return int(found[1]) << 10 if found is not None else size
