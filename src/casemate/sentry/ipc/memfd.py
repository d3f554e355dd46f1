"""Files in memory without a name, memfd_create(2): a tmpfs file whose host memfd keeps the seals."""

from __future__ import annotations

import fcntl
import os
from errno import EPERM
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError, from_os
from casemate.sentry.vfs.inode import Attributes
from casemate.sentry.vfs.tmpfile import TmpFile, TmpHandle
from casemate.sentry.vfs.tmpfs import TmpFs

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

F_SEAL_SEAL = 0x1
F_SEAL_SHRINK = 0x2
F_SEAL_GROW = 0x4
F_SEAL_WRITE = 0x8
F_SEAL_FUTURE_WRITE = 0x10
F_SEAL_EXEC = 0x20


def shm_fs(kernel: Kernel) -> TmpFs:
    """The file system that is mounted nowhere and holds memfds."""
    fs = kernel.subsystems.get("memfd")
    if fs is None:
        fs = kernel.subsystems["memfd"] = TmpFs(os.makedev(0, 1))
    assert isinstance(fs, TmpFs)
    return fs


class MemFile(TmpFile):
    """The file. The host enforces seals on its memfd: also for writes of the kernel's own, and for mappings.

    Arguments:
        mode: permissions, 0777 or 0666.
        seals: the first ones: F_SEAL_SEAL for a file that takes none.
    """

    def __init__(self, task: Task, mode: int, seals: int) -> None:
        creds = task.creds
        super().__init__(shm_fs(task.kernel), mode, creds.fsuid, creds.fsgid)
        self.nlink = 0
        try:
            self.fd = os.memfd_create("memfd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            self.no_exec = bool(seals & F_SEAL_EXEC)
            """F_SEAL_EXEC is kept here: execute permission is nothing to the host's file."""
            if seals & ~F_SEAL_EXEC:
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals & ~F_SEAL_EXEC)
        except OSError as error:
            raise from_os(error) from None

    def open(self, task: Task, flags: int) -> MemHandle:
        return MemHandle(flags, self, b"")

    def seals(self) -> int:
        """All seals that are set."""
        return fcntl.fcntl(self.fd, fcntl.F_GET_SEALS) | (F_SEAL_EXEC if self.no_exec else 0)

    def setattr(self, task: Task, attributes: Attributes) -> None:
        if self.no_exec and attributes.mode is not None and (attributes.mode ^ self.mode) & 0o111:
            raise SysError(EPERM)
        super().setattr(task, attributes)


class MemHandle(TmpHandle):
    """An open memfd.

    Arguments:
        name: what it was called, for ``/proc/PID/fd``.
    """

    inode: MemFile

    def __init__(self, flags: int, inode: MemFile, name: bytes) -> None:
        super().__init__(flags, inode)
        self.name = name

    def seals(self, task: Task) -> int:
        return self.inode.seals()

    def add_seals(self, task: Task, seals: int) -> None:
        """F_ADD_SEALS. EPERM once sealed or for a descriptor without write access, EBUSY with writable mappings."""
        inode = self.inode
        if not self.can_write:
            raise SysError(EPERM)
        if seals & F_SEAL_EXEC:
            if inode.seals() & F_SEAL_SEAL:
                raise SysError(EPERM)
            # Nobody shall write what is known to be executable and sealed so, memfd_create(2).
            if inode.mode & 0o111:
                seals |= F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE
        try:
            fcntl.fcntl(inode.fd, fcntl.F_ADD_SEALS, seals & ~F_SEAL_EXEC)
        except OSError as error:
            raise from_os(error) from None
        if seals & F_SEAL_EXEC:
            inode.no_exec = True

    def describe(self) -> bytes:
        return b"/memfd:" + self.name + b" (deleted)"
