"""Signal frames, there and back."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.errno import SysError
from casemate.sentry.platform.base import Regs
from casemate.sentry.signals import frame
from casemate.sentry.signals.info import SigInfo
from casemate.sentry.signals.state import (
    SA_ONSTACK,
    SA_RESTORER,
    SS_AUTODISARM,
    Action,
    AltStack,
    GroupSignals,
    TaskSignals,
    bit,
)

BASE, SIZE = 0x10000, 0x10000
AVX512 = 2696
HANDLER, RESTORER = 0x7000, 0x7100


class Memory:
    """Some bytes at BASE."""

    def __init__(self) -> None:
        self.data = bytearray(SIZE)

    def write(self, address: int, data: bytes) -> None:
        if not BASE <= address <= BASE + SIZE - len(data):
            raise SysError(14)
        self.data[address - BASE : address - BASE + len(data)] = data

    def read(self, address: int, size: int) -> bytes:
        if not BASE <= address <= BASE + SIZE - size:
            raise SysError(14)
        return bytes(self.data[address - BASE : address - BASE + size])

    def u32(self, address: int) -> int:
        return int.from_bytes(self.read(address, 4), "little")


class Thread:
    """Registers that nothing runs with."""

    def __init__(self, xstate: bytes) -> None:
        self.regs = Regs()
        self.regs.eflags = 0x202
        self.regs.cs, self.regs.ss = 0x33, 0x2B
        self.state = xstate

    def xstate(self) -> bytes:
        return self.state

    def set_xstate(self, state: bytes) -> None:
        assert len(state) == len(self.state)
        assert not any(state[520:576]), "the processor would not take this header"
        self.state = bytes(state)

    def finish(self, value: int) -> None:
        self.regs.rax = value
        self.regs.orig_rax = (1 << 64) - 1


def xstate(size: int = AVX512, features: int = 0x2E7) -> bytes:
    area = bytearray(bytes(range(1, 252)) * (size // 251 + 1))[:size]
    area[464:512] = features.to_bytes(8, "little").ljust(48, b"\0")
    area[512:576] = features.to_bytes(8, "little").ljust(64, b"\0")
    return bytes(area)


def make(size: int = AVX512, features: int = 0x2E7) -> Any:
    thread = Thread(xstate(size, features))
    thread.regs.rsp = BASE + SIZE - 64
    return SimpleNamespace(
        thread=thread,
        mem=Memory(),
        signals=TaskSignals(GroupSignals(), bit(3)),
        group=SimpleNamespace(tasks={}),
    )


ACTION = Action(HANDLER, SA_RESTORER, RESTORER, 0)
NAMES = ["r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"]


def come_back(task: Any) -> None:
    """The handler's return, and the restorer's call."""
    task.thread.regs.rsp += 8
    frame.pop(task)


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=len(NAMES), max_size=len(NAMES)), st.integers(0, 0xFFF))
def test_everything_comes_back(values: list[int], flags: int) -> None:
    task = make()
    regs = task.thread.regs
    for name, value in zip(NAMES, values, strict=True):
        setattr(regs, name, value)
    regs.rip = 0x1234
    regs.eflags = 0x202 | flags & 0xCD5
    before = {name: getattr(regs, name) for name in [*NAMES, "rip", "rsp", "eflags", "cs", "ss"]}
    state = task.thread.state
    frame.push(task, SigInfo(10), ACTION, 0x55)
    assert regs.rip == HANDLER and regs.rdi == 10 and regs.rsp % 16 == 8 and not regs.eflags & 0x400
    assert task.mem.read(regs.rsp, 8) == RESTORER.to_bytes(8, "little")
    assert regs.rsp < before["rsp"] - 128 - len(state)  # the red zone stays
    assert task.thread.state != state
    come_back(task)
    assert {name: getattr(regs, name) for name in before} == before
    assert task.thread.state[:464] == state[:464] and task.thread.state[512:] == state[512:]
    assert task.signals.mask == 0x55


def test_frames_lie_where_the_handler_looks() -> None:
    task = make()
    task.signals.trap = (14, 6, 0xABC)
    task.thread.regs.rip = 0x4444
    frame.push(task, SigInfo.fault(11, 1, 0xABC), ACTION, 0)
    regs = task.thread.regs
    assert regs.rsi == regs.rsp + 8 + 304 and regs.rdx == regs.rsp + 8
    assert struct.unpack_from("<iii4xQ", task.mem.read(regs.rsi, 128)) == (11, 0, 1, 0xABC)
    gregs = struct.unpack("<23Q", task.mem.read(regs.rdx + 40, 184))
    assert gregs[16] == 0x4444 and gregs[19:23] == (6, 14, 0, 0xABC)
    fp = int.from_bytes(task.mem.read(regs.rdx + 40 + 184, 8), "little")
    assert fp % 64 == 0
    magic, extended, features, size = struct.unpack("<IIQI", task.mem.read(fp + 464, 20))
    assert (magic, extended, features, size) == (0x46505853, AVX512 + 4, 0x2E7, AVX512)
    assert task.mem.u32(fp + size) == 0x46505845


def test_tiles_have_no_room_in_frames() -> None:
    task = make(11008, 0x602E7)
    frame.push(task, SigInfo(10), ACTION, 0)
    fp = int.from_bytes(task.mem.read(task.thread.regs.rdx + 40 + 184, 8), "little")
    assert struct.unpack("<IIQI", task.mem.read(fp + 464, 20))[1:] == (AVX512 + 4, 0x2E7, AVX512)
    come_back(task)
    assert len(task.thread.state) == 11008
    assert int.from_bytes(task.thread.state[512:520], "little") == 0x2E7


def test_no_room_no_frame() -> None:
    task = make()
    task.thread.regs.rsp = BASE + 1000
    before = bytes(task.thread.regs)
    with pytest.raises(SysError):
        frame.push(task, SigInfo(10), ACTION, 0)
    assert bytes(task.thread.regs) == before
    with pytest.raises(SysError):
        frame.push(make(), SigInfo(10), Action(HANDLER), 0)  # no restorer


def test_the_alternate_stack() -> None:
    action = Action(HANDLER, SA_RESTORER | SA_ONSTACK, RESTORER)
    task = make()
    task.signals.altstack = AltStack(BASE + 0x1000, 0x4000)
    regs = task.thread.regs
    frame.push(task, SigInfo(10), action, 0)
    inner = regs.rsp
    assert BASE + 0x1000 < inner < BASE + 0x5000 - AVX512
    # A second one goes below the first, and one that would leave the stack is refused.
    frame.push(task, SigInfo(12), action, 0)
    assert BASE + 0x1000 < regs.rsp < inner - AVX512
    regs.rsp = BASE + 0x1800
    with pytest.raises(SysError):
        frame.push(task, SigInfo(12), action, 0)
    regs.rsp = inner
    come_back(task)
    assert regs.rsp == BASE + SIZE - 64 and task.signals.altstack.size == 0x4000


def test_a_stack_that_is_disarmed_while_handlers_run() -> None:
    task = make()
    task.signals.altstack = AltStack(BASE + 0x1000, 0x4000, SS_AUTODISARM)
    frame.push(task, SigInfo(10), Action(HANDLER, SA_RESTORER | SA_ONSTACK, RESTORER), 0)
    assert task.signals.altstack.size == 0
    come_back(task)
    assert (task.signals.altstack.size, task.signals.altstack.flags) == (0x4000, SS_AUTODISARM)


def poke(task: Any, offset: int, data: bytes) -> None:
    """Change the ucontext of the frame that is on top."""
    task.mem.write(task.thread.regs.rsp + 8 + offset, data)


def test_no_program_gets_into_the_32_bit_world_or_the_kernels_flags() -> None:
    task = make()
    frame.push(task, SigInfo(10), ACTION, 0)
    poke(task, 40 + 144, (0x23).to_bytes(2, "little"))
    with pytest.raises(SysError):
        come_back(task)
    task = make()
    frame.push(task, SigInfo(10), ACTION, 0)
    poke(task, 40 + 136, ((1 << 64) - 1).to_bytes(8, "little"))
    come_back(task)
    assert task.thread.regs.eflags == 0x202 | 0x50DD5


@pytest.mark.parametrize("offset", [464, 480])
def test_a_state_that_is_not_marked_as_extended_is_the_old_one(offset: int) -> None:
    task = make()
    state = task.thread.state
    frame.push(task, SigInfo(10), ACTION, 0)
    fp = int.from_bytes(task.mem.read(task.thread.regs.rdx + 40 + 184, 8), "little")
    task.mem.write(fp + offset, b"\xff\xff\xff\x7f")
    come_back(task)
    assert task.thread.state[:464] == state[:464]
    assert int.from_bytes(task.thread.state[512:520], "little") == 3
    assert not any(task.thread.state[576:])


@given(st.binary(min_size=frame.FRAME_SIZE, max_size=frame.FRAME_SIZE))
def test_frames_of_nonsense_end_in_errors_or_states_that_processors_take(data: bytes) -> None:
    task = make()
    task.mem.write(BASE, data)
    task.mem.write(BASE + 8 + 40 + 144, (0x33).to_bytes(2, "little"))
    task.thread.regs.rsp = BASE + 8
    try:
        frame.pop(task)
    except SysError:
        return
    assert task.thread.regs.cs == 0x33 and task.thread.regs.ss == 0x2B
    assert not task.signals.mask & (bit(9) | bit(19))
