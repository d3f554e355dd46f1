"""What a signal tells: ``siginfo_t``, sigaction(2)."""

from __future__ import annotations

import struct
from typing import Protocol

# si_code: who sent it. Those above zero are the kernel's.
SI_USER = 0
SI_KERNEL = 0x80
SI_QUEUE = -1
SI_TIMER = -2
SI_MESGQ = -3
SI_ASYNCIO = -4
SI_SIGIO = -5
SI_TKILL = -6

ILL_ILLOPC, ILL_ILLOPN = 1, 2
FPE_INTDIV, FPE_FLTDIV, FPE_FLTINV = 1, 3, 7
SEGV_MAPERR, SEGV_ACCERR, SEGV_BNDERR, SEGV_PKUERR = 1, 2, 3, 4
BUS_ADRALN, BUS_ADRERR, BUS_OBJERR = 1, 2, 3
TRAP_BRKPT, TRAP_TRACE = 1, 2
CLD_EXITED, CLD_KILLED, CLD_DUMPED, CLD_TRAPPED, CLD_STOPPED, CLD_CONTINUED = 1, 2, 3, 4, 5, 6
POLL_IN, POLL_OUT, POLL_MSG, POLL_ERR, POLL_PRI, POLL_HUP = 1, 2, 3, 4, 5, 6
SYS_SECCOMP = 1

SIZE = 128
"""``sizeof (siginfo_t)``."""
_HEAD = struct.Struct("<iii4x")
_S32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Source(Protocol):
    """Who sent a signal and wants to know when it was taken: timers, which do not send a second one until then."""

    def taken(self, info: SigInfo, /) -> None:
        """The signal leaves the queue, to be delivered or read."""

    def dropped(self, info: SigInfo, /) -> None:
        """The signal leaves the queue unread: discarded, or its receiver is gone."""


class SigInfo:
    """One signal on its way.

    Arguments:
        signo: its number, 1 to 64.
        code: ``si_code``.
        body: the union behind the three first fields, from byte 16 on; at most 112 bytes.
        errno: ``si_errno``.
    """

    __slots__ = ("body", "code", "errno", "signo", "source")

    def __init__(self, signo: int, code: int = SI_KERNEL, body: bytes = b"", errno: int = 0) -> None:
        self.signo = signo
        self.code = code
        self.body = body
        self.errno = errno
        self.source: Source | None = None

    # How they are made.

    @classmethod
    def user(cls, signo: int, code: int, pid: int, uid: int) -> SigInfo:
        """By kill(2) (``SI_USER``) or tgkill(2) (``SI_TKILL``)."""
        return cls(signo, code, struct.pack("<iI", pid, uid))

    @classmethod
    def queued(cls, signo: int, pid: int, uid: int, value: int, code: int = SI_QUEUE) -> SigInfo:
        """By sigqueue(3), mq_notify(3): with a value, of 64 bits."""
        return cls(signo, code, struct.pack("<iIQ", pid, uid, value & 0xFFFF_FFFF_FFFF_FFFF))

    @classmethod
    def timer(cls, signo: int, timer: int, overrun: int, value: int) -> SigInfo:
        """By a timer of timer_create(2)."""
        return cls(signo, SI_TIMER, struct.pack("<iiQ", timer, overrun, value & 0xFFFF_FFFF_FFFF_FFFF))

    @classmethod
    def child(
        cls, code: int, pid: int, uid: int, status: int, utime: int = 0, stime: int = 0, signo: int = 17
    ) -> SigInfo:
        """What a parent gets (``SIGCHLD``, or the signal that clone(2) was told).

        Arguments:
            code: ``CLD_*``.
            status: the exit status, or the signal.
            utime, stime: clock ticks.
        """
        return cls(signo, code, struct.pack("<iIi4xqq", pid, uid, status, utime, stime))

    @classmethod
    def fault(cls, signo: int, code: int, address: int) -> SigInfo:
        """For ``SIGSEGV``, ``SIGBUS``, ``SIGILL``, ``SIGFPE`` and ``SIGTRAP``."""
        return cls(signo, code, struct.pack("<Q", address & 0xFFFF_FFFF_FFFF_FFFF))

    @classmethod
    def poll(cls, signo: int, code: int, band: int, fd: int) -> SigInfo:
        """For ``SIGIO`` with ``F_SETSIG``, fcntl(2)."""
        return cls(signo, code, struct.pack("<qi", band, fd))

    @classmethod
    def sys(cls, address: int, number: int, arch: int, errno: int = 0) -> SigInfo:
        """``SIGSYS`` of seccomp(2)."""
        return cls(31, SYS_SECCOMP, struct.pack("<QiI", address, number, arch), errno)

    @classmethod
    def parse(cls, data: bytes) -> SigInfo:
        """From the bytes of a ``siginfo_t``."""
        signo, errno, code = _HEAD.unpack_from(data)
        return cls(signo, code, data[16:SIZE], errno)

    def pack(self) -> bytes:
        """The bytes of the ``siginfo_t``, 128 of them."""
        return (_HEAD.pack(self.signo, self.errno, self.code) + self.body).ljust(SIZE, b"\0")

    # What is in them; which fields mean something depends on the code.

    def _s32(self, offset: int) -> int:
        return int(_S32.unpack_from(self.body, offset)[0]) if len(self.body) >= offset + 4 else 0

    def _u32(self, offset: int) -> int:
        return int(_U32.unpack_from(self.body, offset)[0]) if len(self.body) >= offset + 4 else 0

    def _u64(self, offset: int) -> int:
        return int(_U64.unpack_from(self.body, offset)[0]) if len(self.body) >= offset + 8 else 0

    @property
    def pid(self) -> int:
        """``si_pid``."""
        return self._s32(0)

    @property
    def uid(self) -> int:
        """``si_uid``."""
        return self._u32(4)

    @property
    def status(self) -> int:
        """``si_status`` of ``SIGCHLD``."""
        return self._s32(8)

    @property
    def utime(self) -> int:
        """``si_utime`` of ``SIGCHLD``, clock ticks."""
        return self._u64(16)

    @property
    def stime(self) -> int:
        """``si_stime`` of ``SIGCHLD``, clock ticks."""
        return self._u64(24)

    @property
    def timer_id(self) -> int:
        """``si_timerid``."""
        return self._s32(0)

    @property
    def overrun(self) -> int:
        """``si_overrun`` of timers."""
        return self._s32(4)

    @property
    def value(self) -> int:
        """``si_value`` of queued signals and timers, all 64 bits."""
        return self._u64(8)

    @property
    def address(self) -> int:
        """``si_addr`` of faults."""
        return self._u64(0)

    @property
    def band(self) -> int:
        """``si_band`` of ``SIGIO``."""
        return self._u64(0)

    @property
    def fd(self) -> int:
        """``si_fd`` of ``SIGIO``."""
        return self._s32(8)

    def __repr__(self) -> str:
        return f"<signal {self.signo} code {self.code}>"
