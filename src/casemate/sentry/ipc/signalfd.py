"""Signals that are read as a file, signalfd(2)."""

from __future__ import annotations

import os
import signal
import struct
from errno import EINVAL
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.ipc.anon import AnonFile
from casemate.sentry.signals.info import SI_KERNEL, SI_SIGIO, SI_TIMER, SI_TKILL, SI_USER, SigInfo
from casemate.sentry.vfs.file import POLLIN

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SIZE = 128
"""``sizeof (struct signalfd_siginfo)``."""
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)


class SignalFd(AnonFile):
    """A set of signals. Whose they are is up to the reader: each task sees its own and its process's.

    Arguments:
        mask: the set, bit N - 1 for signal N.
    """

    anonymous = "anon_inode:[signalfd]"

    def __init__(self, task: Task, flags: int, mask: int) -> None:
        super().__init__(task.kernel, os.O_RDWR | flags)
        self.mask = mask
        self.queue = task.group.signals.queue

    def read(self, task: Task, size: int) -> bytes:
        if size < SIZE:
            raise SysError(EINVAL)
        mask = self.mask
        parts: list[bytes] = []
        for _ in range(size // SIZE):
            info = task.signals.take(mask) or task.group.signals.take(mask)
            if info is None:
                break
            parts.append(pack(info))
        if not parts:
            self.keep(task)
            raise self.wait(task.group.signals.queue)
        return b"".join(parts)

    def poll(self, task: Task) -> int:
        group = task.group.signals
        # Who polls waits for its own process's signals, also after a fork.
        self.queue = group.queue
        return POLLIN if (task.signals.bits | group.bits) & self.mask else 0

    def fdinfo(self) -> bytes:
        return b"sigmask:\t%016x\n" % self.mask


def pack(info: SigInfo) -> bytes:
    """As ``struct signalfd_siginfo``."""
    pid = uid = status = number = value = utime = stime = address = 0
    fd = timer = band = overrun = syscall = arch = call = 0
    code, signo = info.code, info.signo
    if code == SI_TIMER:
        timer, overrun, value = info.timer_id, info.overrun, info.value
    elif code == SI_SIGIO or (signo == signal.SIGIO and 0 < code < SI_KERNEL):
        band, fd = info.band & 0xFFFF_FFFF, info.fd
    elif signo in _FAULTS and 0 < code < SI_KERNEL:
        address = info.address
    elif signo == signal.SIGSYS and 0 < code < SI_KERNEL:
        call, syscall, arch = struct.unpack("<QiI", info.body[:16].ljust(16, b"\0"))
    else:
        pid, uid = info.pid & 0xFFFF_FFFF, info.uid
        if signo == signal.SIGCHLD and 0 < code < SI_KERNEL:
            status, utime, stime = info.status, info.utime, info.stime
        elif code not in (SI_USER, SI_TKILL, SI_KERNEL):
            value = info.value
    number = value & 0xFFFF_FFFF
    return struct.pack(
        "<IiiIIiIIIIiIQQQQHHiQI28x",
        signo, info.errno, code, pid, uid, fd, timer, band, overrun, 0, status, number, value, utime, stime, address, 0,
        0, syscall, call, arch,
    )  # fmt: skip
