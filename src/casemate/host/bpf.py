"""Small BPF programs without a compiler: an assembler for the few instructions that they need, and bpf(2).

A program and a map live as long as descriptors, filters and links refer to them; nothing is pinned, so nothing stays
behind. Registers and calls are described in the kernel's Documentation/bpf/instruction-set.rst and bpf-helpers(7):
a call takes its arguments in R1 to R5, gives its result in R0 and leaves only R6 to R10 as they were; R10 points to
the end of a stack of 512 bytes, R1 to what the program is called with.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Sequence
from typing import NamedTuple

from casemate.errors import HostError
from casemate.host import syscalls

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)
BYTE, HALF, WORD = 0x10, 0x08, 0x00
# linux/bpf.h: commands, types of programs, maps and attachments
_MAP_CREATE, _MAP_UPDATE, _PROG_LOAD, _LINK_CREATE = 0, 2, 5, 28
SCHED_CLS, SK_LOOKUP = 3, 30
SOCKMAP = 15
AT_SK_LOOKUP = 36
_PSEUDO_MAP_FD = 1
LOG = 64 * 1024
NAME = 15  # bytes of a name


class Instruction(NamedTuple):
    """One instruction; a jump's target is a label until :func:`assemble` puts a distance there."""

    code: int
    target: int = 0
    source: int = 0
    offset: int | str = 0
    value: int = 0


Item = Instruction | str
"""An instruction, or a label for the one that follows."""


def put(register: int, value: int) -> Instruction:
    """register = value (32 bits, its sign carried on)"""
    return Instruction(0xB7, register, value=value)


def copy(register: int, source: int) -> Instruction:
    """register = source"""
    return Instruction(0xBF, register, source)


def add(register: int, value: int) -> Instruction:
    """register += value"""
    return Instruction(0x07, register, value=value)


def mask(register: int, value: int) -> Instruction:
    """register &= value"""
    return Instruction(0x57, register, value=value)


def shift(register: int, bits: int) -> Instruction:
    """register <<= bits"""
    return Instruction(0x67, register, value=bits)


def load(size: int, register: int, base: int, offset: int) -> Instruction:
    """register = what is at base + offset, in the machine's byte order"""
    return Instruction(0x61 | size, register, base, offset)


def store(size: int, base: int, offset: int, source: int) -> Instruction:
    """what is at base + offset = source"""
    return Instruction(0x63 | size, base, source, offset)


def jump(label: str) -> Instruction:
    """Go on at ``label``, which must be further down."""
    return Instruction(0x05, offset=label)


def if_equal(register: int, value: int, label: str) -> Instruction:
    """Go on at ``label`` if register == value."""
    return Instruction(0x15, register, offset=label, value=value)


def if_not(register: int, value: int, label: str) -> Instruction:
    """Go on at ``label`` if register != value."""
    return Instruction(0x55, register, offset=label, value=value)


def if_above(register: int, value: int, label: str) -> Instruction:
    """Go on at ``label`` if register > value."""
    return Instruction(0x25, register, offset=label, value=value)


def call(helper: int) -> Instruction:
    """R0 = what a helper (``BPF_FUNC_*``) returns."""
    return Instruction(0x85, value=helper)


def leave() -> Instruction:
    """End the program; its result is R0."""
    return Instruction(0x95)


def map_of(register: int, fd: int) -> list[Item]:
    """register = the map that descriptor ``fd`` holds"""
    return [Instruction(0x18, register, _PSEUDO_MAP_FD, value=fd), Instruction(0)]


def assemble(items: Sequence[Item]) -> bytes:
    """The program's code.

    Raises:
        KeyError: a jump to a label that is not there. struct.error: a value that does not fit.
    """
    labels: dict[str, int] = {}
    instructions: list[Instruction] = []
    for item in items:
        if isinstance(item, str):
            labels[item] = len(instructions)
        else:
            instructions.append(item)
    code = b""
    for at, one in enumerate(instructions):
        offset = labels[one.offset] - at - 1 if isinstance(one.offset, str) else one.offset
        pair = (one.source, one.target) if sys.byteorder == "little" else (one.target, one.source)
        code += struct.pack("=BBhi", one.code, pair[0] << 4 | pair[1], offset, one.value)
    return code


def net16(value: int) -> int:
    """A number as a program sees it that loads two bytes of the network's order."""
    return int(struct.unpack("=H", struct.pack("!H", value))[0])


def net32(value: int) -> int:
    """The same of four bytes, as a comparison takes it: with a sign."""
    return int(struct.unpack("=i", struct.pack("!I", value))[0])


def program(kind: int, items: Sequence[Item], name: str, attachment: int = 0) -> int:
    """Load a program and return its descriptor (close-on-exec).

    Arguments:
        kind: SCHED_CLS or SK_LOOKUP.
        name: for ``bpftool prog``; at most 15 letters, digits and ``_``.
        attachment: ``AT_*`` that the kernel has to check it for.

    Raises:
        HostError: the kernel has no such programs, forbids them, or finds a fault in this one.
    """
    import ctypes  # local: it is slow to import, and only keepers get here

    code = assemble(items)
    code_buffer = ctypes.create_string_buffer(code, len(code))
    license_buffer = ctypes.create_string_buffer(b"Apache-2.0")

    def attempt(log: int) -> int:
        return syscalls.bpf(
            _PROG_LOAD,
            struct.pack(
                "=IIQQIIQII16sII",
                kind, len(code) // 8, ctypes.addressof(code_buffer), ctypes.addressof(license_buffer),
                1 if log else 0, LOG if log else 0, log, 0, 0, name[:NAME].encode(), 0, attachment,
            ),  # fmt: skip
        )

    try:
        return attempt(0)
    except OSError as error:
        log = ctypes.create_string_buffer(LOG)
        try:
            return attempt(ctypes.addressof(log))
        except OSError:
            lines = log.value.decode(errors="replace").strip().splitlines()
            said = next((line for line in reversed(lines) if not line.startswith("processed ")), "")
            reason = f"{os.strerror(error.errno or 0)}{': ' if said else ''}{said}"
            raise HostError(f"the kernel does not take a BPF program: {reason}") from None


def socket_map(size: int) -> int:
    """A map of sockets, its keys being 0 to ``size`` - 1; its descriptor (close-on-exec). Raises HostError."""
    try:
        return syscalls.bpf(_MAP_CREATE, struct.pack("=IIIII", SOCKMAP, 4, 8, size, 0))
    except OSError as error:
        raise HostError(f"the kernel does not make a BPF map of sockets: {os.strerror(error.errno or 0)}") from None


def set_socket(map_fd: int, key: int, fd: int) -> None:
    """Put the socket ``fd`` into a map of sockets, which lets go of it when it is closed. Raises HostError."""
    import ctypes

    key_buffer = ctypes.create_string_buffer(struct.pack("=I", key), 4)
    value = ctypes.create_string_buffer(struct.pack("=Q", fd), 8)
    try:
        pair = ctypes.addressof(key_buffer), ctypes.addressof(value)
        syscalls.bpf(_MAP_UPDATE, struct.pack("=I4xQQQ", map_fd, *pair, 0))
    except OSError as error:
        raise HostError(f"a socket does not go into a BPF map: {os.strerror(error.errno or 0)}") from None


def attach(program_fd: int, target: int, attachment: int) -> int:
    """Attach a program to ``target`` for as long as the descriptor (close-on-exec) that is returned is open.

    Arguments:
        target: descriptor of a network namespace.
        attachment: ``AT_*``.

    Raises:
        HostError: it cannot be attached there.
    """
    try:
        return syscalls.bpf(_LINK_CREATE, struct.pack("=IIII", program_fd, target, attachment, 0))
    except OSError as error:
        raise HostError(f"a BPF program cannot be attached: {os.strerror(error.errno or 0)}") from None
