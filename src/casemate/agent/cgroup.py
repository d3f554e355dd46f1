"""A container's control group (cgroup v2): limits, freezing, killing and figures, by its files."""

from __future__ import annotations

import os
import select
from time import monotonic

from casemate.agent.system import read_text, read_whole, write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ROOT = "/sys/fs/cgroup"
PARENT = "casemate"
MAX_PIDS = 8192
MAX_GROUPS = 1024
MAX_DEVICES = 256
RESERVE = 16 << 20
"""Bytes of the guest's free memory that containers do not get, so that it is they who run out."""
LEAST = 8 << 20
MEMORY_STAT = ("anon", "file", "kernel", "shmem", "pgfault", "pgmajfault", "inactive_file")
"""What is told of memory.stat."""


def enable(root: str = ROOT) -> None:
    """Let control groups below the root have all the controllers that the kernel has.

    Raises:
        OSError: it was refused.
    """
    controllers = read_text(f"{root}/cgroup.controllers").split()
    os.makedirs(f"{root}/{PARENT}", exist_ok=True)
    for path in (root, f"{root}/{PARENT}"):
        write_text(f"{path}/cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))


def _keyed(text: str) -> dict[str, int]:
    table = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            table[key] = int(value)
    return table


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdigit() else None


def capacity(root: str, pids: int) -> int:
    """How many bytes all containers together can have now: what they have that cannot be freed, and what is available,
    less a reserve. Their common group is bound to a little more than that, so that they can take nothing of the rest,
    whatever their own bounds come to together.

    Arguments:
        pids: how many processes and threads all containers together can have; their group is bound to that too.
    """
    available = 0
    for line in read_text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    path = f"{root}/{PARENT}"
    used, current = _fixed(path)
    most = max(used + available - RESERVE, LEAST)
    for name, bound in (("memory.max", max(most + RESERVE // 4, current)), ("pids.max", pids)):
        try:
            write_text(f"{path}/{name}", str(bound))
        except FileNotFoundError:
            continue  # a kernel that does not count this
    return most


def _fixed(path: str) -> tuple[int, int]:
    """How many bytes of a group's memory cannot be freed, and how many it has."""
    current = _number(read_text(f"{path}/memory.current")) or 0
    stat = _keyed(read_text(f"{path}/memory.stat"))
    return current - stat.get("file", 0) + stat.get("shmem", 0) - stat.get("slab_reclaimable", 0), current


def _full(path: str, part: int) -> bool:
    limit = _number(read_text(f"{path}/memory.max"))
    return limit is not None and limit - _fixed(path)[0] < limit // part


class Cgroup:
    """One container's group, by its identifier; it need not exist."""

    def __init__(self, identifier: str, root: str = ROOT) -> None:
        self.relative = f"/{PARENT}/{identifier}"
        self.path = root + self.relative
        self.own_kills = 0
        """How many processes the agent killed for want of memory, which the kernel does not count."""
        self.alarm: Callable[[], None] | None = None
        """Tells whoever watches the group that :attr:`own_kills` has changed."""

    def _read(self, name: str) -> str:
        return read_text(f"{self.path}/{name}")

    def write(self, name: str, value: str) -> None:
        """Set a file of the group. Raises OSError."""
        write_text(f"{self.path}/{name}", value)

    def oom_kills(self) -> int:
        """How many processes of the group were killed for want of memory."""
        return _keyed(self._read("memory.events")).get("oom_kill", 0) + self.own_kills

    def full(self, part: int) -> bool:
        """Whether less than one ``part``-th of the memory limit is free or holds what can be read again."""
        return _full(self.path, part)

    def crowded(self, part: int) -> bool:
        """As :meth:`full`, of what all containers have together."""
        return _full(os.path.dirname(self.path), part)

    def holds(self, pid: int) -> bool:
        """Whether a process is in the group or below it."""
        for line in read_text(f"/proc/{pid}/cgroup").splitlines():
            if line.startswith("0::"):
                return f"{line[3:]}/".startswith(f"{self.relative}/")
        return False

    def pids(self) -> list[int]:
        """The processes in the group and below it, in the guest's numbers, at most 8192."""
        found: list[int] = []
        todo, seen = [self.path], 0
        while todo and seen < MAX_GROUPS:
            path = todo.pop()
            seen += 1
            found += [int(word) for word in read_whole(f"{path}/cgroup.procs", 1 << 20).split() if word.isdigit()]
            try:
                todo += [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
            except OSError:
                continue
        return sorted(found)[:MAX_PIDS]

    def kill(self) -> None:
        """Kill every process in the group and below. Raises OSError."""
        self.write("cgroup.kill", "1")

    def freeze(self, frozen: bool, timeout: float = 10.0) -> bool:
        """Stop or continue all processes.

        Returns:
            whether it came to that within ``timeout`` seconds.

        Raises:
            OSError: it was refused.
        """
        fd = os.open(f"{self.path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            poller = select.poll()
            poller.register(fd, select.POLLPRI)
            self.write("cgroup.freeze", "1" if frozen else "0")
            deadline = monotonic() + timeout
            while True:
                state = _keyed(os.pread(fd, 4096, 0).decode()).get("frozen", 0)
                if state == int(frozen):
                    return True
                left = deadline - monotonic()
                if left <= 0:
                    return False
                poller.poll(left * 1000)
        finally:
            os.close(fd)

    def stats(self) -> dict[str, Any]:
        """The figures of the group; None for what the kernel does not count."""
        cpu = _keyed(self._read("cpu.stat"))
        memory = _keyed(self._read("memory.stat"))
        return {
            "memory": {
                "current": _number(self._read("memory.current")),
                "max": _number(self._read("memory.max")),
                "peak": _number(self._read("memory.peak")),
                "oom_kills": self.oom_kills(),
                "stat": {key: memory.get(key) for key in MEMORY_STAT},
            },
            "cpu": {
                "usage_us": cpu.get("usage_usec", 0),
                "user_us": cpu.get("user_usec", 0),
                "system_us": cpu.get("system_usec", 0),
                "nr_periods": cpu.get("nr_periods", 0),
                "nr_throttled": cpu.get("nr_throttled", 0),
                "throttled_us": cpu.get("throttled_usec", 0),
            },
            "pids": {"current": _number(self._read("pids.current")), "max": _number(self._read("pids.max"))},
            "io": _devices(self._read("io.stat")),
            "processes": self.pids(),
        }


def _devices(text: str) -> list[dict[str, int]]:
    """io.stat: a line for each block device, ``MAJOR:MINOR rbytes=1 wbytes=2 rios=3 wios=4 …``."""
    found = []
    for line in text.splitlines()[:MAX_DEVICES]:
        device, *words = line.split()
        major, _, minor = device.partition(":")
        figures = dict(word.split("=", 1) for word in words if "=" in word)
        if major.isdigit() and minor.isdigit():
            entry = {"major": int(major), "minor": int(minor)}
            for key in ("rbytes", "wbytes", "rios", "wios"):
                value = figures.get(key, "")
                entry[key] = int(value) if value.isdigit() else 0
            found.append(entry)
    return found
