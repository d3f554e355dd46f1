"""pipe(2), pipe2(2)."""

from __future__ import annotations

import os
import struct
from errno import EINVAL, ENOPKG
from typing import TYPE_CHECKING

from casemate.sentry.abi import u32
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.pipe import make_pipe
from casemate.sentry.syscalls.table import syscall

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task


@syscall("pipe")
def pipe(task: Task, fds: int) -> int:
    """pipe(2)."""
    return pipe2(task, fds, 0)


@syscall("pipe2")
def pipe2(task: Task, fds: int, flags: int) -> int:
    """pipe2(2): O_CLOEXEC, O_NONBLOCK, O_DIRECT. EINVAL for other flags, EMFILE, EFAULT."""
    flags = u32(flags)
    if flags & ~(os.O_CLOEXEC | os.O_NONBLOCK | os.O_DIRECT | os.O_EXCL):
        raise SysError(EINVAL)
    if flags & os.O_EXCL:
        raise SysError(ENOPKG)  # O_NOTIFICATION_PIPE, of a Linux built without it
    reader, writer = make_pipe(task, flags & (os.O_NONBLOCK | os.O_DIRECT))
    cloexec = bool(flags & os.O_CLOEXEC)
    files = task.files
    try:
        first = files.install(reader, cloexec=cloexec)
    except SysError:
        reader.decref()
        writer.decref()
        raise
    try:
        second = files.install(writer, cloexec=cloexec)
    except SysError:
        files.close(task, first)
        writer.decref()
        raise
    try:
        task.mem.write(fds, struct.pack("<ii", first, second))
    except SysError:
        files.close(task, first)
        files.close(task, second)
        raise
    return 0
