"""The headers of programs: good ones are understood, and nothing else does any harm."""

from __future__ import annotations

import struct
from errno import EINVAL, ENOEXEC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.errno import SysError
from casemate.sentry.loader.elf import (
    ET_DYN,
    ET_EXEC,
    PF_R,
    PF_W,
    PF_X,
    PHDR_SIZE,
    PT_GNU_STACK,
    PT_INTERP,
    PT_LOAD,
    Elf,
)
from casemate.sentry.mm.memory import TASK_SIZE

LOADER = b"/lib64/ld-linux-x86-64.so.2\0"
Header = tuple[int, int, int, int, int, int]


def program(headers: list[Header], kind: int = ET_DYN, machine: int = 62, tail: bytes = b"") -> bytes:
    """An ELF file with these program headers: type, flags, offset, address, size in the file and in memory."""
    ident = b"\x7fELF\2\1\1" + bytes(9)
    count = len(headers)
    head = ident + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0x1000, 64, 0, 0, 64, PHDR_SIZE, count, 0, 0, 0)
    for type_, flags, offset, address, filesz, memsz in headers:
        head += struct.pack("<IIQQQQQQ", type_, flags, offset, address, address, filesz, memsz, 4096)
    return head + tail


def parse(data: bytes, head: int = 1024) -> Elf:
    return Elf(data[:head], lambda size, offset: data[offset : offset + size])


def refused(data: bytes) -> int:
    with pytest.raises(SysError) as caught:
        parse(data)
    return caught.value.errno


CODE: Header = (PT_LOAD, PF_R | PF_X, 0, 0, 0x1800, 0x1800)
DATA: Header = (PT_LOAD, PF_R | PF_W, 0x1800, 0x2800, 0x100, 0x2000)


def test_a_program() -> None:
    at = 64 + 4 * PHDR_SIZE
    loader = (PT_INTERP, PF_R, at, at, len(LOADER), len(LOADER))
    elf = parse(program([CODE, DATA, loader, (PT_GNU_STACK, PF_X, 0, 0, 0, 0)], tail=LOADER))
    assert elf.dynamic
    assert (elf.start, elf.end) == (0, 0x5000)
    assert elf.entry == 0x1000
    assert elf.phdr == 64
    assert elf.phnum == 4
    assert elf.interpreter == LOADER[:-1]
    assert elf.stack_exec
    assert [(segment.vaddr, segment.filesz, segment.memsz) for segment in elf.segments] == [
        (0, 0x1800, 0x1800), (0x2800, 0x100, 0x2000),
    ]  # fmt: skip


def test_headers_beyond_what_was_read_first() -> None:
    assert parse(program([CODE] + [(PT_GNU_STACK, 0, 0, 0, 0, 0)] * 30), head=256).phnum == 31


def test_stack_without_a_header_cannot_be_executed() -> None:
    assert not parse(program([CODE])).stack_exec


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF",
        b"MZ" + bytes(100),
        program([CODE], machine=183),
        program([CODE], kind=1),
        program([]),
        program([(PT_GNU_STACK, 0, 0, 0, 0, 0)]),
        program([CODE])[:70],
        program([CODE, (PT_INTERP, PF_R, 0, 0, 1, 1)]),
        program([CODE, (PT_INTERP, PF_R, 0, 0, 5000, 5000)]),
        program([CODE, (PT_INTERP, PF_R, 1 << 62, 0, 10, 10)]),
        program([CODE, (PT_INTERP, PF_R, 64, 0, 5, 5)]),
    ],
)
def test_no_program(data: bytes) -> None:
    assert refused(data) == ENOEXEC


@pytest.mark.parametrize(
    "headers",
    [
        [(PT_LOAD, PF_R, 0, 0, 0x2000, 0x1000)],
        [(PT_LOAD, PF_R, 0, TASK_SIZE - 0x1000, 0x1000, 0x2000)],
        [(PT_LOAD, PF_R, 0, 0, 0, 1 << 63)],
        [(PT_LOAD, PF_R, 0x10, 0x20, 0x10, 0x10)],
        [(PT_LOAD, PF_R, (1 << 64) - 0x1000, 0, 0x1000, 0x1000)],
        [DATA, CODE],
        [CODE, (PT_LOAD, PF_R, 0, 0x1000, 0x1000, 0x1000)],
    ],
)
def test_segments_that_make_no_sense(headers: list[Header]) -> None:
    assert refused(program(headers)) == EINVAL


def test_nothing_at_the_lowest_addresses() -> None:
    assert refused(program([CODE], kind=ET_EXEC)) == EINVAL


@given(st.binary(max_size=300), st.integers(0, 200), st.binary(max_size=16))
def test_any_bytes(data: bytes, at: int, change: bytes) -> None:
    """Whatever the file holds: a program within bounds, or an error of execve(2)."""
    good = bytearray(program([CODE, DATA], tail=data))
    good[at : at + len(change)] = change
    try:
        elf = parse(bytes(good))
    except SysError as error:
        assert error.errno in (ENOEXEC, EINVAL)
        return
    for segment in elf.segments:
        assert 0 <= segment.filesz <= segment.memsz
        assert segment.vaddr + segment.memsz <= TASK_SIZE
    assert 0 <= elf.start < elf.end <= TASK_SIZE + 4096
