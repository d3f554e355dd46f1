"""Whom a directory of /proc is about, and what of it can be had."""

from __future__ import annotations

import os
from errno import EACCES, ESRCH
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_SYS_PTRACE
from casemate.sentry.errno import SysError
from casemate.sentry.tasks.task import State

if TYPE_CHECKING:
    from casemate.sentry.creds import Credentials
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.mm.space import AddressSpace
    from casemate.sentry.tasks.task import Task, ThreadGroup
    from casemate.sentry.vfs.file import File

HZ = 100
"""``sysconf(_SC_CLK_TCK)``: what times of /proc are counted in."""


class View:
    """A process, or one thread of it.

    Arguments:
        group: the process.
        tid: the thread, for ``/proc/PID/task/TID``; None for the process.
    """

    __slots__ = ("group", "tid")

    def __init__(self, group: ThreadGroup, tid: int | None = None) -> None:
        self.group = group
        self.tid = tid

    @property
    def kernel(self) -> Kernel:
        """Of both."""
        return self.group.kernel

    @property
    def number(self) -> int:
        """The directory's name."""
        return self.group.pid if self.tid is None else self.tid

    @property
    def alive(self) -> bool:
        """Whether it is still there (zombies are)."""
        if self.tid is not None and self.tid != self.group.pid:
            return self.tid in self.group.tasks
        return self.group.ns.pid.group(self.group.pid) is self.group

    @property
    def task(self) -> Task | None:
        """The thread that it shows: of a process the first one, though that has ended (a zombie has neither memory nor
        files), be it before the others."""
        if self.tid is not None and self.tid != self.group.pid:
            return self.group.tasks.get(self.tid)
        return self.group.ns.pid.task(self.group.pid) or self.group.any_task

    def living(self) -> Task:
        """The thread, which has memory and files. Raises SysError(ESRCH)."""
        task = self.task
        if task is None or task.thread is None or not self.alive:
            raise SysError(ESRCH)
        return task

    @property
    def mm(self) -> AddressSpace | None:
        """Its memory; None for one that has ended."""
        task = self.task
        return None if task is None or task.thread is None or self.group.zombie else task.mm

    @property
    def creds(self) -> Credentials | None:
        """Who it acts as."""
        task = self.task
        return None if task is None else task.creds

    @property
    def name(self) -> bytes:
        """``comm``."""
        task = self.task
        return task.name if task is not None else os.path.basename(self.group.exec_path)[:15]

    @property
    def letter(self) -> str:
        """Its state, as ``ps`` shows it."""
        if self.group.zombie:
            return "Z"
        task = self.task
        if task is None:
            return "X"
        if task.state is not State.ZOMBIE and self.group.signals.stopped or task.state is State.STOPPED:
            return "T"
        return str(task.state.value)

    @property
    def threads(self) -> int:
        """How many it has: a first one that has ended counts."""
        group = self.group
        return max(1, len(group.tasks) + (group.pid not in group.tasks and not group.zombie))

    def owner(self) -> tuple[int, int]:
        """Whom its files belong to, proc_pid(5)."""
        creds = self.creds
        if creds is None or self.group.dumpable != 1:
            return 0, 0
        return creds.euid, creds.egid

    def check(self, task: Task) -> None:
        """Raise SysError(EACCES) unless ``task`` may look into it: ptrace(2), "Ptrace access mode checking"."""
        target = self.task
        if target is None:
            raise SysError(ESRCH)
        if target.group is task.group or task.creds.capable(CAP_SYS_PTRACE):
            return
        mine, creds = task.creds, target.creds
        same = all(mine.fsuid == uid for uid in (creds.uid, creds.euid, creds.suid)) and all(
            mine.fsgid == gid for gid in (creds.gid, creds.egid, creds.sgid)
        )
        if not same or self.group.dumpable != 1 or creds.permitted & ~mine.permitted:
            raise SysError(EACCES)


def file_path(task: Task, file: File) -> bytes:
    """What readlink(2) of ``/proc/PID/fd/N`` says of an open file, seen from the root of the task that asks."""
    place = file.place
    if place is None:
        return file.describe()
    path: bytes = place.path(task.fs.root)
    return path
