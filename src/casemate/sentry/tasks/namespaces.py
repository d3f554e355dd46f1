"""Namespaces of containers: numbers of processes, System V and POSIX IPC, and names of the host, namespaces(7).

A container has one of each kind, its own or that of another container of the sandbox. Its processes can neither make
others nor enter any, so there is nothing above or below one, and a process has one number.
"""

from __future__ import annotations

from errno import EAGAIN
from itertools import count
from typing import TYPE_CHECKING, Any

from casemate.sentry.errno import SysError

if TYPE_CHECKING:
    from casemate.sentry.clock import Clock
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task, ThreadGroup

FIRST_AGAIN = 300
"""Where numbers of processes start over: low ones look like a system's own."""
SHIFT = 32
"""A number and that of its namespace make a key of the kernel's tables, which hold the processes of all."""
FIRST_INODE = 0xF0000000
_inodes = count(FIRST_INODE)


def number_of(key: int) -> int:
    """The number of a task or process in its own namespace."""
    return key & (1 << SHIFT) - 1


class PidNamespace:
    """Numbers of processes and threads, pid_namespaces(7)."""

    def __init__(self, kernel: Kernel, index: int) -> None:
        self.kernel = kernel
        self.base = index << SHIFT
        self.last = 0
        self.reused = False
        self.init: ThreadGroup | None = None
        """Its first process, which gets orphans and whose end is the end of all."""
        self.ended = False
        """That has ended: nothing begins here any more."""
        self.inode = next(_inodes)

    def key(self, number: int) -> int:
        """Where the kernel's tables have the task or process of that number."""
        return self.base + number

    def shown(self, key: int) -> int:
        """The number of a task or process as it is seen in this namespace: 0 for those of others."""
        number = key - self.base
        return number if 0 < number < 1 << SHIFT else 0

    def task(self, number: int) -> Task | None:
        """The task of that number."""
        return self.kernel.tasks.get(self.base + number) if number > 0 else None

    def group(self, number: int) -> ThreadGroup | None:
        """The process of that number."""
        return self.kernel.groups.get(self.base + number) if number > 0 else None

    def groups(self) -> list[ThreadGroup]:
        """All processes, the oldest first."""
        return [group for group in self.kernel.groups.values() if group.ns.pid is self]

    def next(self) -> int:
        """A free number, going round as Linux does: also not that of a process group or session whose first process has
        ended. Raises SysError(EAGAIN) when there is none."""
        kernel = self.kernel
        for _ in range(kernel.pid_max):
            if self.last >= kernel.pid_max:
                self.last = FIRST_AGAIN - 1
                self.reused = True
            self.last += 1
            pid = self.last
            if self.key(pid) in kernel.tasks or self.key(pid) in kernel.groups:
                continue
            if self.reused and any(
                pid in (group.process_group.pgid, group.process_group.session.sid) for group in self.groups()
            ):
                continue
            return pid
        raise SysError(EAGAIN)


class IpcNamespace:
    """System V IPC and POSIX message queues, ipc_namespaces(7).

    Arguments:
        clock: the kernel's.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.subsystems: dict[str, Any] = {}
        """``sem``, ``msg``, ``shm`` and ``mqueue``, each made when it is first used."""
        self.users = 0
        self.inode = next(_inodes)

    def leave(self) -> None:
        """One of the containers that have it is gone; with the last one its objects go."""
        self.users -= 1
        if self.users > 0:
            return
        for table in list(self.subsystems.values()):
            if (clear := getattr(table, "clear", None)) is not None:
                clear()
        self.subsystems.clear()


class UtsNamespace:
    """Names, uts_namespaces(7)."""

    def __init__(self, hostname: bytes) -> None:
        self.hostname = hostname
        self.domainname = b"(none)"
        self.inode = next(_inodes)


class Namespaces:
    """Those of a container, and so of each of its processes."""

    __slots__ = ("ipc", "pid", "uts")

    def __init__(self, pid: PidNamespace, ipc: IpcNamespace, uts: UtsNamespace) -> None:
        self.pid = pid
        self.ipc = ipc
        self.uts = uts
