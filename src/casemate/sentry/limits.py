"""Resource limits of a process, getrlimit(2)."""

from __future__ import annotations

import resource

RLIM_INFINITY = (1 << 64) - 1
RLIM_NLIMITS = 16
NR_OPEN = 1 << 20
"""The most descriptors that a process can be allowed, ``/proc/sys/fs/nr_open``."""

NAMES = (
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
)
"""Of each limit by its number: what ``/proc/PID/limits`` calls it, and its unit."""

_DEFAULTS: dict[int, tuple[int, int]] = {
    resource.RLIMIT_STACK: (8 << 20, RLIM_INFINITY),
    resource.RLIMIT_CORE: (0, RLIM_INFINITY),
    resource.RLIMIT_NPROC: (31000, 31000),
    resource.RLIMIT_NOFILE: (1024, NR_OPEN),
    resource.RLIMIT_MEMLOCK: (8 << 20, 8 << 20),
    resource.RLIMIT_SIGPENDING: (31000, 31000),
    resource.RLIMIT_MSGQUEUE: (819200, 819200),
    resource.RLIMIT_NICE: (0, 0),
    resource.RLIMIT_RTPRIO: (0, 0),
}


class Limits:
    """The limits of one process, each a soft and a hard value; no limit is :data:`RLIM_INFINITY`."""

    __slots__ = ("_values", "sizes")

    def __init__(self, values: dict[int, tuple[int, int]] | None = None) -> None:
        infinite = (RLIM_INFINITY, RLIM_INFINITY)
        given = _DEFAULTS if values is None else {**_DEFAULTS, **values}
        self._values = [given.get(number, infinite) for number in range(RLIM_NLIMITS)]
        self.sizes = self._values[resource.RLIMIT_FSIZE][0] != RLIM_INFINITY
        """Whether files have a limit at all: each write asks."""

    def copy(self) -> Limits:
        """For a child of fork(2)."""
        new = Limits.__new__(Limits)
        new._values = list(self._values)
        new.sizes = self.sizes
        return new

    def get(self, number: int) -> tuple[int, int]:
        """Soft and hard limit. ``number`` is one of ``resource.RLIMIT_*``."""
        return self._values[number]

    def soft(self, number: int) -> int:
        """What is enforced."""
        return self._values[number][0]

    def set(self, number: int, soft: int, hard: int) -> None:
        """Change one, without any check."""
        self._values[number] = (soft, hard)
        self.sizes = self._values[resource.RLIMIT_FSIZE][0] != RLIM_INFINITY
