"""The seccomp filter that stubs run under: no system call of an application is made by the host."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SYS_SECCOMP = 317
AUDIT_ARCH_X86_64 = 0xC000003E

SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_RET_TRACE = 0x7FF00000

# Classic BPF, <linux/filter.h>.
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_ANY = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_NUMBER, _ARCH, _FIRST, _LAST = 0, 4, 16, 56  # offsets in struct seccomp_data: of arguments their low halves
_MMAP, _CLONE, _UNSHARE, _CLONE3 = 9, 56, 272, 435
CLONE_NEWUSER = 0x10000000
MARK = 0x6D736163
"""The sixth argument of calls that the sentry makes in a stub. A filter looks again at a call that it has stopped once
and whose number the tracer has changed, and that must not be told to a listener."""
HUGE = 2 << 20
"""From this size on the host puts memory where it can be of huge pages, Linux 6.7."""
PLAIN_FLAGS = 0x2 | 0x20
"""``MAP_PRIVATE`` and ``MAP_ANONYMOUS``."""
PLAIN_IGNORED = 0x4000 | 0x20000
"""``MAP_NORESERVE`` and ``MAP_STACK``, which may come with them."""
PLAIN_RIGHTS = 0x1 | 0x2
"""Nothing but ``PROT_READ`` and ``PROT_WRITE``."""


def program(stopping: Iterable[int] | None = None, marked: Iterable[int] = (), plain: bool = False) -> bytes:
    """A filter that lets no system call through.

    Arguments:
        stopping: numbers of the calls that stop the thread for its tracer, while the others go to the filter's
            listener; None for all.
        marked: of the others those that the sentry itself makes in a stub, too: they stop it where :data:`MARK` is
            their sixth argument, which they have none of. An application that puts it there gets the slower way.
        plain: mmap(2), which is none of the others, goes to the listener where it asks for some private anonymous
            memory, anywhere: what the sentry itself asks for has a place.

    Calls of other architectures (``int $0x80`` of a 64-bit program) answer ENOSYS: their numbers mean other calls.
    Nobody gets a user namespace, nor clone3(2), whose flags a filter does not see: these are the calls that the filter
    refuses by itself, for the sake of a sentry that was taken over. It could have a stub make any other one.
    """
    instructions = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.ENOSYS),
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.ENOSYS),
        (_EQUAL, 1, 0, _CLONE),
        (_EQUAL, 0, 3, _UNSHARE),
        (_LOAD, 0, 0, _FIRST),
        (_ANY, 0, 1, CLONE_NEWUSER),
        (_RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EPERM),
    ]
    if stopping is not None:
        instructions.append((_LOAD, 0, 0, _NUMBER))
        for number in sorted(stopping):
            instructions += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, SECCOMP_RET_TRACE)]
        for number in sorted(marked):
            instructions += [
                (_EQUAL, 0, 3, number),
                (_LOAD, 0, 0, _LAST),
                (_EQUAL, 0, 1, MARK),
                (_RETURN, 0, 0, SECCOMP_RET_TRACE),
                (_LOAD, 0, 0, _NUMBER),
            ]
        if plain:
            conditions = [
                [(_LOAD, 0, 0, _FIRST), (_EQUAL, 1, 0, 0)],
                [(_LOAD, 0, 0, _FIRST + 4), (_EQUAL, 1, 0, 0)],
                [(_LOAD, 0, 0, _FIRST + 12), (_EQUAL, 1, 0, 0)],
                [(_LOAD, 0, 0, _FIRST + 8), (_AT_LEAST, 0, 1, HUGE)],
                [(_LOAD, 0, 0, _FIRST + 16), (_ANY, 0, 1, 0xFFFFFFFF & ~PLAIN_RIGHTS)],
                [(_LOAD, 0, 0, _FIRST + 24), (_AND, 0, 0, 0xFFFFFFFF & ~PLAIN_IGNORED), (_EQUAL, 1, 0, PLAIN_FLAGS)],
            ]
            steps = [step for one in conditions for step in (*one, (_RETURN, 0, 0, SECCOMP_RET_TRACE))]
            instructions += [(_EQUAL, 0, len(steps), _MMAP), *steps]
        instructions.append((_RETURN, 0, 0, SECCOMP_RET_USER_NOTIF))
    else:
        instructions.append((_RETURN, 0, 0, SECCOMP_RET_TRACE))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)


def install(code: bytes, flags: int = 0) -> int:
    """Put the calling thread under a filter, for good, seccomp(2).

    Returns the listener's descriptor where the flags ask for one, else 0. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: a short, padding, a pointer.
    fprog = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer)), 16)
    result: int = libc.syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(fprog))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
    return result
