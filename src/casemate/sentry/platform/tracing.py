"""ptrace(2) as Python calls, and what its stops mean."""

from __future__ import annotations

import ctypes
import os
from errno import EINVAL, ESRCH

from casemate.sentry.errno import SysError
from casemate.sentry.platform.base import Gone, Regs

PTRACE_CONT = 7
PTRACE_GETREGS, PTRACE_SETREGS = 12, 13
PTRACE_SYSCALL = 24
PTRACE_GETEVENTMSG, PTRACE_GETSIGINFO = 0x4201, 0x4202
PTRACE_GETREGSET, PTRACE_SETREGSET = 0x4204, 0x4205
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
PTRACE_GET_RSEQ_CONFIGURATION = 0x420F

PTRACE_O_TRACESYSGOOD = 0x1
PTRACE_O_TRACEFORK = 0x2
PTRACE_O_TRACEVFORK = 0x4
PTRACE_O_TRACECLONE = 0x8
PTRACE_O_TRACESECCOMP = 0x80
PTRACE_O_EXITKILL = 0x100000
OPTIONS = (
    PTRACE_O_TRACESYSGOOD
    | PTRACE_O_TRACEFORK
    | PTRACE_O_TRACEVFORK
    | PTRACE_O_TRACECLONE
    | PTRACE_O_TRACESECCOMP
    | PTRACE_O_EXITKILL
)

PTRACE_EVENT_FORK, PTRACE_EVENT_VFORK, PTRACE_EVENT_CLONE = 1, 2, 3
PTRACE_EVENT_SECCOMP = 7
PTRACE_EVENT_STOP = 128
SYSCALL_STOP = 0x80 | 5
"""The signal of a stop at a call's end, with PTRACE_O_TRACESYSGOOD."""
NT_X86_XSTATE = 0x202
WALL = 0x40000000
"""``__WALL`` of waitpid(2): threads too."""

# None of its requests waits, so nobody else needs to be let run meanwhile.
_libc = ctypes.PyDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


def ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    """One request. Raises OSError (ESRCH: the thread is not there, or does not stand still)."""
    if _ptrace(request, tid, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace request {request:#x}: {os.strerror(number)}")


def event_message(tid: int) -> int:
    """What an event stop tells, e.g. the new thread's number."""
    message = ctypes.c_ulong()
    ptrace(PTRACE_GETEVENTMSG, tid, 0, ctypes.addressof(message))
    return message.value


def siginfo(tid: int) -> bytes:
    """The ``siginfo_t`` of a signal stop."""
    buffer = ctypes.create_string_buffer(128)
    ptrace(PTRACE_GETSIGINFO, tid, 0, ctypes.addressof(buffer))
    return buffer.raw


_xstate = ctypes.create_string_buffer(16384)
_vector = _Iovec(ctypes.addressof(_xstate), len(_xstate))
"""Used for each XSAVE area on its way: one thread traces."""


def get_xstate(tid: int) -> bytes:
    """The XSAVE area. Raises Gone."""
    _vector.size = len(_xstate)
    try:
        ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, ctypes.addressof(_vector))
    except OSError:
        raise Gone from None
    return ctypes.string_at(_xstate, _vector.size)


def set_xstate(tid: int, state: bytes) -> None:
    """Load an XSAVE area. Raises SysError when the processor does not take it, and Gone."""
    ctypes.memmove(_xstate, state, len(state))
    _vector.size = len(state)
    try:
        ptrace(PTRACE_SETREGSET, tid, NT_X86_XSTATE, ctypes.addressof(_vector))
    except OSError as error:
        if error.errno == ESRCH:
            raise Gone from None
        raise SysError(error.errno or EINVAL) from None


def rseq_area(tid: int) -> tuple[int, int, int]:
    """Where the thread has told the kernel that its restartable sequences are: address, size, signature; zeros where
    it has none."""

    class Configuration(ctypes.Structure):
        _fields_ = [
            ("address", ctypes.c_uint64),
            ("size", ctypes.c_uint32),
            ("signature", ctypes.c_uint32),
            ("flags", ctypes.c_uint32),
            ("pad", ctypes.c_uint32),
        ]

    found = Configuration()
    try:
        ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, ctypes.sizeof(found), ctypes.addressof(found))
    except OSError:
        return 0, 0, 0
    return found.address, found.size, found.signature


REGS_SIZE = ctypes.sizeof(Regs)
