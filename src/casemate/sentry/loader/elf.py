"""ELF programs, elf(5): what of the headers running one needs, with nothing in them believed unchecked."""

from __future__ import annotations

import struct
from errno import EINVAL, ENOEXEC
from typing import Protocol

from casemate.sentry.abi import PAGE_SIZE, page_down, page_up
from casemate.sentry.errno import SysError
from casemate.sentry.mm.memory import TASK_SIZE

ET_EXEC, ET_DYN = 2, 3
EM_X86_64 = 62
PT_LOAD, PT_INTERP, PT_PHDR = 1, 3, 6
PT_GNU_STACK = 0x6474E551
PF_X, PF_W, PF_R = 1, 2, 4
PATH_MAX = 4096
EHDR_SIZE = 64
PHDR_SIZE = 56
MAX_HEADERS = 65536 // PHDR_SIZE

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")


class Readable(Protocol):
    """What headers are read from."""

    def __call__(self, size: int, offset: int) -> bytes:
        """At most ``size`` bytes from ``offset`` on; fewer only at the end."""


class Segment:
    """One part of the file that is to be mapped, ``PT_LOAD``."""

    __slots__ = ("filesz", "flags", "memsz", "offset", "vaddr")

    def __init__(self, flags: int, offset: int, vaddr: int, filesz: int, memsz: int) -> None:
        self.flags = flags
        self.offset = offset
        self.vaddr = vaddr
        self.filesz = filesz
        self.memsz = memsz


class Elf:
    """The headers of a program or of its interpreter.

    Arguments:
        head: the file's first bytes, at least 64 for an ELF file.
        read: reads more of it.

    Raises:
        SysError: ENOEXEC for what is no x86-64 ELF program, EINVAL for segments that make no sense.
    """

    __slots__ = ("dynamic", "end", "entry", "interpreter", "phdr", "phnum", "segments", "stack_exec", "start")

    def __init__(self, head: bytes, read: Readable) -> None:
        if len(head) < EHDR_SIZE or head[:4] != b"\x7fELF":
            raise SysError(ENOEXEC)
        ident, kind, machine, _, entry, phoff, _, _, _, phentsize, phnum, _, _, _ = _EHDR.unpack_from(head)
        if ident[4] != 2 or ident[5] != 1 or kind not in (ET_EXEC, ET_DYN) or machine != EM_X86_64:
            raise SysError(ENOEXEC)
        if phentsize != PHDR_SIZE or not 0 < phnum <= MAX_HEADERS:
            raise SysError(ENOEXEC)
        size = phnum * PHDR_SIZE
        table = head[phoff : phoff + size] if phoff + size <= len(head) else _exactly(read, size, phoff)
        self.dynamic = kind == ET_DYN
        """Whether it can be anywhere: a position-independent program or a shared library."""
        self.entry: int = entry
        self.phnum: int = phnum
        self.phdr = 0
        """Where the program headers come to be in memory, relative to the load bias; 0 when in no segment."""
        self.segments: list[Segment] = []
        self.interpreter: bytes | None = None
        self.stack_exec = False
        """Whether the stack can be executed. Without ``PT_GNU_STACK`` it cannot, on x86-64."""
        phdr = None
        for index in range(phnum):
            kind, flags, offset, vaddr, _, filesz, memsz, _ = _PHDR.unpack_from(table, index * PHDR_SIZE)
            if kind == PT_LOAD:
                self._segment(Segment(flags, offset, vaddr, filesz, memsz))
                if offset <= phoff and phoff + size <= offset + filesz and phdr is None:
                    phdr = vaddr + phoff - offset
            elif kind == PT_INTERP and self.interpreter is None:
                if not 2 <= filesz <= PATH_MAX:
                    raise SysError(ENOEXEC)
                text = head[offset : offset + filesz]
                if offset + filesz > len(head):
                    text = _exactly(read, filesz, offset)
                if text[-1] != 0:
                    raise SysError(ENOEXEC)
                self.interpreter = text[: text.index(0)]
            elif kind == PT_GNU_STACK:
                self.stack_exec = bool(flags & PF_X)
            elif kind == PT_PHDR:
                self.phdr = vaddr
        if not self.segments:
            raise SysError(ENOEXEC)
        if phdr is not None:
            self.phdr = phdr
        self.start = page_down(min(segment.vaddr for segment in self.segments))
        self.end = page_up(max(segment.vaddr + segment.memsz for segment in self.segments))
        if not self.dynamic and self.start < PAGE_SIZE * 16:
            raise SysError(EINVAL)

    def _segment(self, segment: Segment) -> None:
        if segment.memsz == 0:
            return
        if (
            segment.filesz > segment.memsz
            or segment.memsz > TASK_SIZE
            or segment.vaddr + segment.memsz > TASK_SIZE
            or segment.offset + segment.filesz >= 1 << 63
            or (segment.vaddr - segment.offset) % PAGE_SIZE
        ):
            raise SysError(EINVAL)
        if self.segments and segment.vaddr < self.segments[-1].vaddr + self.segments[-1].memsz:
            raise SysError(EINVAL)  # they must ascend
        self.segments.append(segment)


def _exactly(read: Readable, size: int, offset: int) -> bytes:
    if offset >= 1 << 62:
        raise SysError(ENOEXEC)
    data = read(size, offset)
    if len(data) != size:
        raise SysError(ENOEXEC)
    return data
