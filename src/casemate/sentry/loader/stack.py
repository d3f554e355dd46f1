"""What a new program finds on its stack: arguments, environment and the auxiliary vector, getauxval(3)."""

from __future__ import annotations

import functools
import os
import struct

AT_NULL, AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_BASE, AT_FLAGS, AT_ENTRY = 0, 3, 4, 5, 6, 7, 8, 9
AT_UID, AT_EUID, AT_GID, AT_EGID, AT_PLATFORM, AT_HWCAP, AT_CLKTCK, AT_SECURE = 11, 12, 13, 14, 15, 16, 17, 23
AT_RANDOM, AT_HWCAP2, AT_EXECFN, AT_SYSINFO_EHDR, AT_MINSIGSTKSZ = 25, 26, 31, 33, 51
PLATFORM = b"x86_64"


class StackImage:
    """What lies where on a new stack.

    Arguments:
        pointer: the stack pointer, at ``argc``.
        data: what is to be written from there to the stack's top.
    """

    __slots__ = ("arg_end", "arg_start", "auxv", "data", "env_end", "env_start", "pointer")

    def __init__(
        self, pointer: int, data: bytes, arg_start: int, arg_end: int, env_start: int, env_end: int, auxv: bytes
    ) -> None:
        self.pointer = pointer
        self.data = data
        self.arg_start = arg_start
        self.arg_end = arg_end
        self.env_start = env_start
        self.env_end = env_end
        self.auxv = auxv


@functools.cache
def processor_entries() -> tuple[tuple[int, int], ...]:
    """What the auxiliary vector tells of the processor: the host's, as applications run on it directly.

    To be called once before the sentry gives ``/proc`` away. (getauxval(3) does not do: the C library puts words of its
    own into ``AT_HWCAP``.)
    """
    with open("/proc/self/auxv", "rb") as file:
        data = file.read()
    kinds = (AT_HWCAP, AT_HWCAP2, AT_MINSIGSTKSZ)
    return tuple((kind, value) for kind, value in struct.iter_unpack("<QQ", data) if kind in kinds)


def build(top: int, argv: list[bytes], env: list[bytes], filename: bytes, entries: list[tuple[int, int]]) -> StackImage:
    """Lay out a stack as Linux does: strings at the top, the vectors below them, ``argc`` lowest.

    Arguments:
        top: the stack's upper end, a multiple of 16.
        filename: for ``AT_EXECFN``.
        entries: the auxiliary vector but for those that point to the stack, and its end.
    """
    args = b"".join([arg + b"\0" for arg in argv])
    envs = b"".join([entry + b"\0" for entry in env])
    strings = args + envs + filename + b"\0" + bytes(8)
    arg_start = top - len(strings)
    env_start = arg_start + len(args)
    execfn = env_start + len(envs)
    platform = PLATFORM + b"\0"
    # Between the strings and the vectors: the platform's name and 16 random bytes.
    below = arg_start - len(platform) - 16 & ~15
    random_at = below
    gap = os.urandom(16) + platform
    gap += bytes(arg_start - below - len(gap))
    auxv = b"".join(
        [
            struct.pack("<QQ", kind, value)
            for kind, value in (
                *entries,
                (AT_RANDOM, random_at),
                (AT_EXECFN, execfn),
                (AT_PLATFORM, random_at + 16),
                (AT_NULL, 0),
            )
        ]
    )
    words = [len(argv)]
    at = arg_start
    for arg in argv:
        words.append(at)
        at += len(arg) + 1
    words.append(0)
    for entry in env:
        words.append(at)
        at += len(entry) + 1
    words.append(0)
    vectors = struct.pack(f"<{len(words)}Q", *words) + auxv
    pointer = below - len(vectors) & ~15
    data = vectors + bytes(below - pointer - len(vectors)) + gap + strings
    return StackImage(pointer, data, arg_start, env_start, env_start, execfn, auxv)


def before_isolation() -> None:
    """Read what ``/proc`` has to tell, while it is there."""
    processor_entries()
