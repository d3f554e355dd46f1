"""Signals that tell of what happens at a file: ``O_ASYNC``, ``F_SETOWN`` and ``F_SETSIG`` of fcntl(2)."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from casemate.sentry.ipc.pipe import PipeFile
from casemate.sentry.net.socket import Socket
from casemate.sentry.signals.info import POLL_ERR, POLL_HUP, POLL_IN, POLL_OUT, SigInfo
from casemate.sentry.signals.send import send
from casemate.sentry.vfs.file import POLLERR, POLLHUP, POLLIN, POLLOUT, READABLE, WRITABLE, File

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task, ThreadGroup

EVENTS = (
    (POLLIN, POLL_IN, READABLE),
    (POLLOUT, POLL_OUT, WRITABLE),
    (POLLHUP, POLL_HUP, POLLHUP | POLLERR),
    (POLLERR, POLL_ERR, POLLERR),
)
"""What happened, ``si_code`` and ``si_band``; the first that applies is told."""


class Notice:
    """Waits for a file's events for as long as it is ``O_ASYNC``.

    Arguments:
        task: who asked for it: the signals are sent with its permissions, and say its descriptor.
    """

    def __init__(self, task: Task, file: File, fd: int) -> None:
        self.kernel = task.kernel
        self.file = file
        self.fd = fd
        self.queue = file.queue
        self.uids = (task.creds.uid, task.creds.euid)
        self.pids = task.group.ns.pid

    def wake(self, mask: int) -> None:
        """Something happened: say so."""
        file = self.file
        if file.refs <= 0 or file.sigio is not self:
            self.queue.remove(self)
            return
        if not file.owner:
            return
        for bits, code, band in EVENTS:
            if mask & bits:
                self._tell(code, band)
                return

    def _tell(self, code: int, band: int) -> None:
        file = self.file
        signo = file.signal
        owner = file.owner
        for group in self.pids.groups():
            if group.pid == owner or group.process_group.pgid == -owner:
                if group.zombie or not self._permitted(group):
                    continue
                if signo:
                    send(group, SigInfo.poll(signo, code, band, self.fd))
                else:
                    send(group, SigInfo(signal.SIGIO))

    def _permitted(self, group: ThreadGroup) -> bool:
        """Whether who asked sees it, and may send signals to it, as kill(2) decides."""
        task = group.any_task
        if task is None:
            return False
        uid, euid = self.uids
        return euid == 0 or bool({uid, euid} & {task.creds.uid, task.creds.suid})


def switch(task: Task, file: File, fd: int, on: bool) -> bool:
    """Begin or end to tell; whether this kind of file can."""
    from casemate.sentry.vfs.ttyfile import TerminalFile

    if not isinstance(file, (PipeFile, Socket, TerminalFile)):
        return False
    if on == (file.sigio is not None):
        return True
    if on:
        notice = file.sigio = Notice(task, file, fd)
        file.queue.add(notice)
        file.flags |= os.O_ASYNC
    else:
        file.queue.remove(file.sigio)
        file.sigio = None
        file.flags &= ~os.O_ASYNC
    return True
