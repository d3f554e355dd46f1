"""The assembler for BPF programs."""

from __future__ import annotations

import struct
import sys

import pytest

from casemate.host import bpf, steer
from casemate.pod import forward


def registers(target: int, source: int) -> int:
    return source << 4 | target if sys.byteorder == "little" else target << 4 | source


def test_instructions_are_encoded_as_the_kernel_wants_them() -> None:
    code = bpf.assemble([
        bpf.put(bpf.R0, -1), bpf.copy(bpf.R6, bpf.R1), bpf.load(bpf.HALF, bpf.R7, bpf.R10, -8),
        bpf.store(bpf.WORD, bpf.R10, -16, bpf.R1), bpf.call(26), *bpf.map_of(bpf.R1, 9), bpf.leave(),
    ])  # fmt: skip
    assert [struct.unpack_from("=BBhi", code, at) for at in range(0, len(code), 8)] == [
        (0xB7, registers(0, 0), 0, -1), (0xBF, registers(6, 1), 0, 0), (0x69, registers(7, 10), -8, 0),
        (0x63, registers(10, 1), -16, 0), (0x85, 0, 0, 26), (0x18, registers(1, 1), 0, 9), (0, 0, 0, 0),
        (0x95, 0, 0, 0),
    ]  # fmt: skip


def test_jumps_go_to_their_labels() -> None:
    code = bpf.assemble([
        bpf.if_equal(bpf.R1, 5, "end"), bpf.if_not(bpf.R1, 6, "next"), "next", bpf.if_above(bpf.R1, 7, "end"),
        bpf.jump("end"), bpf.put(bpf.R0, 1), "end", bpf.leave(),
    ])  # fmt: skip
    assert [struct.unpack_from("=BBhi", code, at)[2] for at in range(0, len(code), 8)] == [4, 0, 2, 1, 0, 0]
    with pytest.raises(KeyError):
        bpf.assemble([bpf.jump("nowhere")])


def test_numbers_of_the_network() -> None:
    assert struct.pack("=H", bpf.net16(0x0800)) == b"\x08\x00"
    assert struct.pack("=i", bpf.net32(0x7F000001)) == b"\x7f\x00\x00\x01"


def test_the_programs_have_all_their_labels_and_only_go_forward() -> None:
    for program in (steer.to_guest(7), forward.to_listener(3)):
        code = bpf.assemble(program)
        for at in range(0, len(code), 8):
            operation, _, offset, _ = struct.unpack_from("=BBhi", code, at)
            if operation & 0x07 == 0x05 and operation not in (0x85, 0x95):
                assert 0 <= offset < len(code) // 8 - at // 8
