"""Opening FIFOs, fifo(7): both ends wait for each other."""

from __future__ import annotations

import os
from errno import EINVAL, ENXIO
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.ipc.pipe import Opening, Pipe, PipeFile
from casemate.sentry.vfs.file import File
from casemate.sentry.vfs.inode import Inode
from casemate.sentry.wait import Block

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task


def open_fifo(task: Task, inode: Inode, flags: int) -> File:
    """open(2) of a FIFO, or of a pipe by ``/proc/PID/fd``; see fifo(7).

    It is called again after it had to wait: with the same inode, which the caller keeps meanwhile (its name may go).

    Raises:
        Block: the other end is not open yet.
        SysError: ENXIO for ``O_WRONLY | O_NONBLOCK`` without a reader.
    """
    access = flags & os.O_ACCMODE
    if access == os.O_ACCMODE:
        raise SysError(EINVAL)
    pipe = inode.extra.get("pipe")
    if pipe is None:
        pipe = Pipe(inode, named=True)
    assert isinstance(pipe, Pipe)
    if not pipe.named:
        return PipeFile(pipe, flags)
    write = access == os.O_WRONLY
    opening: Opening | None = task.blocked.pop("fifo", None)
    if opening is not None and opening.file is not None:
        del pipe.opening[task]
        return opening.file
    if access != os.O_RDWR and not (pipe.readers if write else pipe.writers) and not pipe.waiting(not write):
        if not flags & os.O_NONBLOCK:
            inode.extra["pipe"] = pipe
            pipe.opening[task] = task.blocked["fifo"] = opening or Opening(flags, write)
            raise Block(pipe.arrivals)
        if write:
            raise SysError(ENXIO)
    inode.extra["pipe"] = pipe
    pipe.opening.pop(task, None)
    file = PipeFile(pipe, flags)
    if file.reads and not file.writes:
        file.first_writer = pipe.write_opens
    pipe.arrived(file.reads, file.writes)
    return file
