"""System V shared memory, shmget(2), shmat(2), shmctl(2): segments are memory files of the host."""

from __future__ import annotations

import os
import struct
from errno import EINVAL, ENOMEM, ENOSPC
from typing import TYPE_CHECKING

from casemate.sentry.abi import page_up
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.sysv import IPC_PRIVATE, IpcObject, IpcTable, mark
from casemate.sentry.vfs.file import File

if TYPE_CHECKING:
    from casemate.sentry.clock import Clock
    from casemate.sentry.tasks.namespaces import IpcNamespace
    from casemate.sentry.tasks.task import Task

SHMMNI = 4096
SHMMAX = (1 << 64) - 1 - (1 << 24)
SHMALL = SHMMAX
SHM_DEST, SHM_LOCKED = 0o1000, 0o2000
"""Further bits of a segment's mode."""
MAX_SIZE = 1 << 47
"""More fits into no address space."""

_TIMES = struct.Struct("<QqqqiiQQQ")


class SegmentFile(File):
    """What mappings of a segment refer to; each of them is one attachment.

    Arguments:
        segment: which holds one reference as long as it exists.
        writable: false for ``SHM_RDONLY``.
    """

    def __init__(self, segment: Segment, writable: bool) -> None:
        super().__init__(os.O_RDWR if writable else os.O_RDONLY)
        self.segment = segment

    def decref(self) -> None:
        super().decref()
        self.segment.detached()

    def host_fd(self, shared: bool, writable: bool) -> int:
        return self.segment.fd

    def describe(self) -> bytes:
        return b"/SYSV%08x (deleted)" % (self.segment.key & 0xFFFF_FFFF)


class Segment(IpcObject):
    """A shared memory segment.

    Arguments:
        size: bytes, as asked for.
        table: what it is in.
    """

    def __init__(self, task: Task, key: int, mode: int, size: int, table: Segments) -> None:
        super().__init__(task, key, mode)
        self.size = size
        self.table = table
        try:
            self.fd = os.memfd_create("sysv", os.MFD_CLOEXEC)
        except OSError:
            raise SysError(ENOSPC) from None
        try:
            os.ftruncate(self.fd, page_up(size))
        except OSError:
            os.close(self.fd)
            raise SysError(ENOMEM) from None
        self.read_write = SegmentFile(self, True)
        self.read_only = SegmentFile(self, False)
        self.atime = self.dtime = 0
        self.cpid = task.pid
        self.lpid = 0

    @property
    def attached(self) -> int:
        """How many mappings there are, ``shm_nattch``."""
        return self.read_write.refs + self.read_only.refs - 2

    @property
    def doomed(self) -> bool:
        """Removed as soon as nobody has it attached."""
        return bool(self.mode & SHM_DEST)

    def detached(self) -> None:
        """A mapping is gone."""
        self.dtime = self.table.now()
        if self.doomed and not self.removed and self.attached <= 0:
            self.destroy()

    def doom(self) -> None:
        """``IPC_RMID``: gone with its last mapping."""
        self.table.hide(self)
        self.key = IPC_PRIVATE
        self.mode |= SHM_DEST
        if self.attached == 0:
            self.destroy()

    def destroy(self) -> None:
        """Give the memory back."""
        self.table.remove(self)

    def remove(self) -> None:
        super().remove()
        os.close(self.fd)
        self.fd = -1

    def stat(self) -> bytes:
        """``struct shmid64_ds``."""
        return self.perm() + _TIMES.pack(
            self.size, self.atime, self.dtime, self.changed, self.cpid, self.lpid, self.attached, 0, 0
        )


class Segments(IpcTable[Segment]):
    """All segments of a namespace."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(SHMMNI)
        self.clock = clock

    def now(self) -> int:
        """Seconds since the epoch."""
        return self.clock.realtime() // 1_000_000_000

    def obtain(self, task: Task, key: int, size: int, flags: int) -> int:
        """shmget(2), with signed ``key``."""

        def make() -> Segment:
            if not 0 < size <= SHMMAX or size >> 63:
                raise SysError(EINVAL)
            if size > MAX_SIZE:
                raise SysError(ENOMEM)
            return Segment(task, key, flags, size, self)

        def fits(segment: Segment) -> None:
            if segment.size < size:
                raise SysError(EINVAL)

        return self.get(task, key, flags, make, fits).id

    def pages(self) -> int:
        """Of all segments."""
        return sum(page_up(segment.size) for segment in self.by_index.values()) // 4096

    def proc(self, name: str) -> bytes:
        """The lines of ``/proc/sysvipc/shm`` below its head, proc_sysvipc(5)."""
        lines = []
        for _, one in sorted(self.by_index.items()):
            lines.append(
                b"%10d %10d  %4o %21d %5d %5d  %5d %5d %5d %5d %5d %10d %10d %10d %21d %21d\n"
                % (
                    one.key, one.id, one.mode, one.size, one.cpid, one.lpid, one.attached, one.uid, one.gid,
                    one.cuid, one.cgid, one.atime, one.dtime, one.changed, page_up(one.size), 0,
                )
            )  # fmt: skip
        return b"".join(lines)


def segments(ipc: IpcNamespace) -> Segments:
    """A namespace's."""
    found = ipc.subsystems.get("shm")
    if not isinstance(found, Segments):
        mark(ipc)
        found = ipc.subsystems["shm"] = Segments(ipc.clock)
    return found
