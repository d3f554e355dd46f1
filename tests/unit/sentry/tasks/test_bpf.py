"""Classic BPF: what seccomp(2) takes, and what it says then."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.errno import SysError
from casemate.sentry.tasks.bpf import Program

LOAD, RETURN, RETURN_A, JUMP, EQUAL, DIV_X, STORE, FETCH = 0x20, 0x06, 0x16, 0x05, 0x15, 0x3C, 0x02, 0x60
Instruction = tuple[int, int, int, int]


def code(*instructions: Instruction) -> bytes:
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)


def run(*instructions: Instruction, data: tuple[int, ...] = tuple(range(16))) -> tuple[int, bool]:
    return Program(code(*instructions)).run(data)


def test_tells_whether_arguments_matter() -> None:
    assert run((LOAD, 0, 0, 0), (RETURN_A, 0, 0, 0)) == (0, False)
    assert run((LOAD, 0, 0, 4), (RETURN_A, 0, 0, 0)) == (1, False)
    assert run((LOAD, 0, 0, 8), (RETURN_A, 0, 0, 0)) == (2, True)
    assert run((LOAD, 0, 0, 60), (RETURN_A, 0, 0, 0)) == (15, True)
    # Only what is looked at on the way that is taken.
    assert run((LOAD, 0, 0, 0), (EQUAL, 1, 0, 0), (LOAD, 0, 0, 16), (RETURN, 0, 0, 9)) == (9, False)


def test_division_by_nothing_refuses() -> None:
    assert run((LOAD, 0, 0, 16), (DIV_X, 0, 0, 0), (RETURN, 0, 0, 9)) == (0, True)


def test_a_word_is_written_before_it_is_read() -> None:
    kept = [(LOAD, 0, 0, 4), (STORE, 0, 0, 15), (0x00, 0, 0, 7), (FETCH, 0, 0, 15), (RETURN_A, 0, 0, 0)]
    assert run(*kept) == (1, False)
    with pytest.raises(SysError):
        # One of two ways does not write it.
        Program(code((LOAD, 0, 0, 0), (EQUAL, 0, 1, 5), (STORE, 0, 0, 1), (FETCH, 0, 0, 1), (RETURN_A, 0, 0, 0)))


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\0" * 7,
        code((LOAD, 0, 0, 0)),
        code((LOAD, 0, 0, 2), (RETURN, 0, 0, 0)),
        code((LOAD, 0, 0, 64), (RETURN, 0, 0, 0)),
        code((0x28, 0, 0, 0), (RETURN, 0, 0, 0)),  # half words are not there
        code((0x94, 0, 0, 1), (RETURN, 0, 0, 0)),  # nor is the remainder
        code((JUMP, 0, 0, 1), (RETURN, 0, 0, 0)),
        code((JUMP, 0, 0, 0xFFFFFFFF), (RETURN, 0, 0, 0)),
        code((EQUAL, 0, 1, 0), (RETURN, 0, 0, 0)),
        code((0x34, 0, 0, 0), (RETURN, 0, 0, 0)),
        code((0x64, 0, 0, 32), (RETURN, 0, 0, 0)),
        code((STORE, 0, 0, 16), (RETURN, 0, 0, 0)),
        code((RETURN, 0, 0, 0)) * 4097,
    ],
)
def test_refused(program: bytes) -> None:
    with pytest.raises(SysError, match="EINVAL"):
        Program(program)


instruction = st.tuples(
    st.sampled_from(
        [0x20, 0x80, 0x81, 0x00, 0x01, 0x60, 0x61, 0x02, 0x03, 0x06, 0x16, 0x07, 0x87, 0x84, 0x05, 0x15, 0x1D, 0x25]
        + [0x2D, 0x35, 0x3D, 0x45, 0x4D, 0x04, 0x0C, 0x14, 0x1C, 0x24, 0x2C, 0x34, 0x3C, 0x44, 0x4C, 0x54, 0x5C, 0x64]
        + [0x6C, 0x74, 0x7C, 0xA4, 0xAC]
    ),
    st.integers(0, 3),
    st.integers(0, 3),
    st.one_of(st.integers(0, 16), st.integers(0, 0xFFFFFFFF)),
)


@given(st.lists(instruction, max_size=20), st.tuples(*[st.integers(0, 0xFFFFFFFF)] * 16))
def test_what_is_taken_ends_with_a_word(program: list[Instruction], data: tuple[int, ...]) -> None:
    try:
        checked = Program(code(*program, (RETURN, 0, 0, 1)))
    except SysError:
        return
    said, _ = checked.run(data)
    assert 0 <= said <= 0xFFFFFFFF
