"""/sys/fs/cgroup, cgroups(7): the one control group that a sandbox sees itself in, to be read only.

What bounds a sandbox is set from outside of it; programs that size themselves by it (memory.max, cpu.max) find it here.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from casemate.sentry.tasks import usage
from casemate.sentry.vfs.inode import Inode
from casemate.sentry.vfs.proc.machine import cpu_list
from casemate.sentry.vfs.proc.memory import resident
from casemate.sentry.vfs.proc.view import View
from casemate.sentry.vfs.synthetic import Directory, SyntheticFs, Tree, build

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task, ThreadGroup

CGROUP2_SUPER_MAGIC = 0x63677270
PERIOD = 100000
"""Microseconds, of ``cpu.max`` where nobody says another."""


class Bounds:
    """What bounds a container, as it is told of it: the ``linux.resources`` of its specification."""

    __slots__ = ("memory", "period", "pids", "quota", "shares")

    def __init__(self) -> None:
        self.memory = 0
        """Bytes; 0 for no bound, as in all of these."""
        self.pids = 0
        self.quota = 0
        """Microseconds of processor time in each :attr:`period`."""
        self.period = PERIOD
        self.shares = 0

    def take(self, resources: dict[str, Any]) -> None:
        """Take what the object says; the rest stays."""
        for name, room, key in (
            ("memory", "memory", "limit"), ("pids", "pids", "limit"), ("quota", "cpu", "quota"),
            ("period", "cpu", "period"), ("shares", "cpu", "shares"),
        ):  # fmt: skip
            found = resources.get(room)
            value = found.get(key) if isinstance(found, dict) else None
            if type(value) is int:
                setattr(self, name, max(0, value))
        self.period = self.period or PERIOD


def note(kernel: Kernel, container: str, resources: dict[str, Any]) -> None:
    """A container is made, or other bounds are set for it.

    Arguments:
        container: its name.
        resources: ``linux.resources`` of a specification; what is no such object counts as nothing.
    """
    bounds: dict[str, Bounds] = kernel.subsystems.setdefault("bounds", {})
    bounds.setdefault(container, Bounds()).take(resources)
    _told(kernel)


def note_machine(kernel: Kernel, memory: int) -> None:
    """How much memory the whole sandbox may have, bytes."""
    kernel.subsystems["machine_memory"] = memory
    _told(kernel)


def forget(kernel: Kernel, container: str) -> None:
    """A container is removed."""
    kernel.subsystems.get("bounds", {}).pop(container, None)
    _told(kernel)


def _told(kernel: Kernel) -> None:
    """What is said of the machine's memory: the sandbox's bound, or with several containers the largest of theirs; none
    if one of them has none."""
    machine: int = kernel.subsystems.get("machine_memory", 0)
    found = [one.memory or machine for one in kernel.subsystems.get("bounds", {}).values()] or [machine]
    largest = max(found) if all(found) else 0
    kernel.subsystems["memory_limit"] = min(largest, machine) if largest and machine else largest


def _of(task: Task) -> Bounds:
    bounds: Bounds | None = task.kernel.subsystems.get("bounds", {}).get(task.group.container)
    return bounds if bounds is not None else Bounds()


def _memory_max(task: Task) -> bytes:
    bound = _of(task).memory
    return b"%d\n" % bound if bound else b"max\n"


def _cpu_max(task: Task) -> bytes:
    bounds = _of(task)
    return b"%s %d\n" % (b"%d" % bounds.quota if bounds.quota else b"max", bounds.period)


def _cpu_weight(task: Task) -> bytes:
    shares = _of(task).shares
    return b"%d\n" % (1 + (max(2, min(shares, 262144)) - 2) * 9999 // 262142 if shares else 100)


def _pids_max(task: Task) -> bytes:
    return b"%d\n" % (_of(task).pids or task.kernel.max_tasks)


def _groups(task: Task) -> list[ThreadGroup]:
    """The processes of the container that asks."""
    own = task.group.container
    return [group for group in task.kernel.groups.values() if group.container == own and not group.zombie]


def _tids(task: Task) -> list[int]:
    return sorted(tid for group in _groups(task) for tid in group.tasks)


def _pids_current(task: Task) -> bytes:
    return b"%d\n" % len(_tids(task))


def _procs(task: Task) -> bytes:
    return b"".join(b"%d\n" % group.pid for group in sorted(_groups(task), key=attrgetter("pid")))


def _threads(task: Task) -> bytes:
    return b"".join(b"%d\n" % tid for tid in _tids(task))


def _resident(task: Task) -> tuple[int, int]:
    """Bytes that all processes have in memory: their own, and files."""
    own = files = 0
    for group in _groups(task):
        pages, shared = resident(View(group))
        own += (pages - shared) * 4096
        files += shared * 4096
    return own, files


def _memory_current(task: Task) -> bytes:
    return b"%d\n" % sum(_resident(task))


def _memory_stat(task: Task) -> bytes:
    own, files = _resident(task)
    rows = {"anon": own, "file": files, "kernel": 0, "shmem": 0, "file_mapped": files, "inactive_file": 0}
    return "".join(f"{name} {value}\n" for name, value in rows.items()).encode()


def _cpu_stat(task: Task) -> bytes:
    used = sum(usage.process_time(group) for group in _groups(task)) // 1000
    rows = {"usage_usec": used, "user_usec": used, "system_usec": 0, "nr_periods": 0, "nr_throttled": 0}
    return "".join(f"{name} {value}\n" for name, value in rows.items()).encode()


def _tree() -> Tree:
    return {
        "cgroup.controllers": b"cpuset cpu memory pids",
        "cgroup.events": b"populated 1\nfrozen 0",
        "cgroup.procs": _procs,
        "cgroup.threads": _threads,
        "cgroup.type": b"domain",
        "cgroup.subtree_control": lambda task: b"",
        "cpu.max": _cpu_max,
        "cpu.stat": _cpu_stat,
        "cpu.weight": _cpu_weight,
        "cpuset.cpus.effective": cpu_list(),
        "cpuset.cpus": b"",
        "cpuset.mems.effective": 0,
        "memory.current": _memory_current,
        "memory.events": b"low 0\nhigh 0\nmax 0\noom 0\noom_kill 0",
        "memory.high": b"max",
        "memory.low": 0,
        "memory.max": _memory_max,
        "memory.min": 0,
        "memory.stat": _memory_stat,
        "memory.swap.current": 0,
        "memory.swap.max": 0,
        "pids.current": _pids_current,
        "pids.max": _pids_max,
    }


class CgroupFs(SyntheticFs):
    """The file system.

    Arguments:
        device: st_dev.
        kernel: whose sandbox it is.
    """

    name = "cgroup2"
    magic = CGROUP2_SUPER_MAGIC

    def __init__(self, device: int, kernel: Kernel) -> None:
        super().__init__(device, kernel)
        self._root = Directory(self, 0o555)
        build(self, self._root, _tree())

    @property
    def root(self) -> Inode:
        return self._root
