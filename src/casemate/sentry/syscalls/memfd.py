"""memfd_create(2), and what is there only to say no."""

from __future__ import annotations

import os
from errno import EINVAL, ENAMETOOLONG, ENOSYS, EPERM
from typing import TYPE_CHECKING

from casemate.sentry.abi import u32
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.memfd import F_SEAL_EXEC, F_SEAL_SEAL, MemFile, MemHandle
from casemate.sentry.syscalls.eventfd import install
from casemate.sentry.syscalls.table import Support, syscall

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

MFD_CLOEXEC = 0x1
MFD_ALLOW_SEALING = 0x2
MFD_HUGETLB = 0x4
MFD_NOEXEC_SEAL = 0x8
MFD_EXEC = 0x10
O_LARGEFILE = 0o100000
NAME_MAX = 249
"""The longest name: 255 with the prefix ``memfd:``."""


@syscall("memfd_create", Support.PARTIAL, "no MFD_HUGETLB")
def memfd_create(task: Task, name: int, flags: int) -> int:
    """memfd_create(2). EINVAL for unknown flags, names of more than 249 bytes, and huge pages, which are not there."""
    flags = u32(flags)
    if flags & ~(MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC):
        raise SysError(EINVAL)
    if flags & MFD_EXEC and flags & MFD_NOEXEC_SEAL:
        raise SysError(EINVAL)
    try:
        text = task.mem.cstring(name, NAME_MAX + 1)
    except SysError as error:
        raise SysError(EINVAL) if error.errno == ENAMETOOLONG else error from None
    seals = 0 if flags & (MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL) else F_SEAL_SEAL
    mode = 0o777
    if flags & MFD_NOEXEC_SEAL:
        seals |= F_SEAL_EXEC
        mode = 0o666
    file = MemHandle(os.O_RDWR | O_LARGEFILE, MemFile(task, mode, seals), text)
    return install(task, file, bool(flags & MFD_CLOEXEC))


@syscall("io_uring_setup", Support.NONE, "ENOSYS: programs use epoll and threads instead")
def io_uring_setup(task: Task, entries: int, parameters: int) -> int:
    """io_uring_setup(2)."""
    raise SysError(ENOSYS)


@syscall("userfaultfd", Support.NONE, "EPERM, as for the unprivileged on Linux")
def userfaultfd(task: Task, flags: int) -> int:
    """userfaultfd(2)."""
    raise SysError(EPERM)
