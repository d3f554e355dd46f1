"""The little that a guest build needs to know of ELF files: sections, needed libraries, the interpreter.

Source: the System V ABI, chapters 4 and 5 (object files, program loading). Files come from packages whose checksum was
verified, yet every offset is checked: a cut-off file must give an error and not a wrong image.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from casemate.errors import GuestError

_PT_DYNAMIC = 2
_PT_INTERP = 3
_DT_NEEDED = 1
_DT_STRTAB = 5
_PT_LOAD = 1


@dataclass(frozen=True, slots=True)
class Links:
    """What the dynamic loader reads of a file: names of the libraries, and the path of the loader itself."""

    needed: tuple[str, ...]
    interpreter: str


class Elf:
    """A 64-bit ELF file of either byte order, held in memory.

    Arguments:
        data: the whole file.
        name: what to call it in errors.

    Raises:
        GuestError: not an ELF file of 64 bits.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        if data[:4] != b"\x7fELF" or len(data) < 64 or data[4] != 2 or data[5] not in (1, 2):
            raise GuestError(f"{name} is not a 64-bit ELF file")
        self._order = "<" if data[5] == 1 else ">"
        (self._phoff, self._shoff) = self._unpack("QQ", 32)
        (self._phentsize, self._phnum, self._shentsize, self._shnum, self._shstrndx) = self._unpack("HHHHH", 54)

    def section(self, wanted: str) -> bytes | None:
        """The content of the first section called ``wanted``, or None."""
        headers = [self._unpack("IIQQQQ", self._shoff + i * self._shentsize) for i in range(self._shnum)]
        if self._shstrndx >= len(headers):
            return None
        names = headers[self._shstrndx][4]
        for name, _kind, _flags, _address, offset, size in headers:
            if self._string(names + name) == wanted:
                return self._slice(offset, size)
        return None

    def links(self) -> Links | None:
        """What the file wants of the dynamic loader; None when it is linked statically."""
        segments = [self._unpack("IIQQQQ", self._phoff + i * self._phentsize) for i in range(self._phnum)]
        interpreter = ""
        dynamic: list[tuple[int, int]] | None = None
        for kind, _flags, offset, _virtual, _physical, size in segments:
            if kind == _PT_INTERP:
                interpreter = self._slice(offset, size).rstrip(b"\0").decode()
            elif kind == _PT_DYNAMIC:
                dynamic = [self._unpack("QQ", offset + i * 16) for i in range(size // 16)]  # type: ignore[misc]
        if dynamic is None:
            return None
        tables = [value for tag, value in dynamic if tag == _DT_STRTAB]
        if not tables:
            return Links((), interpreter)
        for kind, _flags, offset, virtual, _physical, size in segments:
            if kind == _PT_LOAD and virtual <= tables[0] < virtual + size:
                strings = offset + tables[0] - virtual
                return Links(tuple(self._string(strings + v) for t, v in dynamic if t == _DT_NEEDED), interpreter)
        raise GuestError(f"{self._name} is damaged: its string table is in no segment")

    def _unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(self._order + layout, self._data, offset)
        except (struct.error, OverflowError):  # the second for an offset beyond what an index can be
            raise GuestError(f"{self._name} is damaged: it ends too early") from None

    def _slice(self, offset: int, size: int) -> bytes:
        if offset + size > len(self._data):
            raise GuestError(f"{self._name} is damaged: it ends too early")
        return self._data[offset : offset + size]

    def _string(self, offset: int) -> str:
        end = self._data.find(b"\0", offset) if offset < len(self._data) else -1
        if end < 0:
            raise GuestError(f"{self._name} is damaged: a name has no end")
        return self._data[offset:end].decode("utf-8", "replace")
