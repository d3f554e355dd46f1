"""What registers hold: 64-bit words that calls read as C's types."""

from __future__ import annotations

import os

PAGE_SIZE = 4096
AT_FDCWD = -100
U64 = (1 << 64) - 1


def uuid4() -> str:
    """A random UUID, uuid(3), without the modules that Python's own needs at a start."""
    number = int.from_bytes(os.urandom(16), "big") & ~(0xF000 << 64 | 0xC000 << 48) | 0x4000 << 64 | 0x8000 << 48
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def s32(word: int) -> int:
    """As a C ``int``."""
    word &= 0xFFFFFFFF
    return word - 0x1_0000_0000 if word & 0x8000_0000 else word


def u32(word: int) -> int:
    """As a C ``unsigned int``."""
    return word & 0xFFFFFFFF


def s64(word: int) -> int:
    """As a C ``long``."""
    word &= U64
    return word - (1 << 64) if word >> 63 else word


def page_down(address: int) -> int:
    """The start of the page."""
    return address & ~(PAGE_SIZE - 1)


def page_up(address: int) -> int:
    """The next page's start, or the address itself where a page starts there."""
    return (address + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
