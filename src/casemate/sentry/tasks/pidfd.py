"""Descriptors of processes, pidfd_open(2)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from casemate.sentry.ipc.anon import anon_inode
from casemate.sentry.vfs.file import READABLE, File

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task, ThreadGroup


class PidFile(File):
    """A process that cannot be mistaken for a later one with the same number.

    Arguments:
        flags: ``O_NONBLOCK`` matters, to waitid(2).
    """

    anonymous = "anon_inode:[pidfd]"

    spliceable = False

    def __init__(self, flags: int, group: ThreadGroup) -> None:
        super().__init__(flags & ~os.O_ACCMODE | os.O_RDWR, anon_inode(group.kernel))
        self.group = group
        self.queue = group.exit_queue

    def poll(self, task: Task) -> int:
        """Readable once the process has ended."""
        return READABLE if self.group.zombie else 0

    def fdinfo(self) -> bytes:
        group = self.group
        pid = group.pid if group.ns.pid.group(group.pid) is group else -1
        return b"Pid:\t%d\nNSpid:\t%d\n" % (pid, pid)
