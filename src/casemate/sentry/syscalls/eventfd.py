"""eventfd(2), eventfd2(2)."""

from __future__ import annotations

import os
from errno import EINVAL
from typing import TYPE_CHECKING

from casemate.sentry.abi import u32
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.eventfd import EventFd
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.vfs.file import File

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

EFD_SEMAPHORE = 1


def install(task: Task, file: File, cloexec: bool) -> int:
    """Give a new file a descriptor, or give the file up where there is none to be had (EMFILE)."""
    try:
        return task.files.install(file, cloexec=cloexec)
    except SysError:
        file.decref()
        raise


@syscall("eventfd")
def eventfd(task: Task, initial: int) -> int:
    """eventfd(2) without flags."""
    return eventfd2(task, initial, 0)


@syscall("eventfd2")
def eventfd2(task: Task, initial: int, flags: int) -> int:
    """eventfd(2): EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE. EINVAL for other flags."""
    flags = u32(flags)
    if flags & ~(os.O_CLOEXEC | os.O_NONBLOCK | EFD_SEMAPHORE):
        raise SysError(EINVAL)
    file = EventFd(task.kernel, flags & os.O_NONBLOCK, u32(initial), bool(flags & EFD_SEMAPHORE))
    return install(task, file, bool(flags & os.O_CLOEXEC))
