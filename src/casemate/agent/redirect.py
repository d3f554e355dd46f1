"""Have containers that speak to port 53 of a loopback address reach another port of it (bpf(2), cgroup hooks).

A name server of a container's own may want port 53 of every address, which it could not have if the agent had it of
one. So the agent listens elsewhere, and three small programs on the control group of all containers change the port:
where a socket is connected, where a datagram is sent, and in the sender of one that arrives.
"""

from __future__ import annotations

import _ctypes
import os
import struct

from casemate.agent.system import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROG_LOAD, LINK_CREATE = 5, 28
PROG_TYPE_CGROUP_SOCK_ADDR = 18
INET4_CONNECT, UDP4_SENDMSG, UDP4_RECVMSG = 10, 14, 19
USER_IP4, USER_PORT = 4, 24
"""Where struct bpf_sock_addr has the address and the port, in the network's byte order."""

# Instructions (Documentation/bpf/standardization/instruction-set.rst in the kernel): code, registers, offset, number.
_LOAD_WORD, _STORE_WORD = 0x61, 0x63
_JUMP_NOT_EQUAL, MOVE_NUMBER, BPF_EXIT = 0x55, 0xB7, 0x95


class _Char(_ctypes._SimpleCData):  # type: ignore[type-arg]  # cannot be subscripted
    _type_ = "c"


def instruction(code: int, to: int, of: int, offset: int, number: int) -> bytes:
    """One instruction: its code, the registers, the offset and the number in it."""
    return struct.pack("=BBhI", code, to | of << 4, offset, number)


def program(pairs: list[tuple[bytes, int, int]]) -> bytes:
    """The program that changes the port of what it is shown.

    Arguments:
        pairs: an IPv4 address, the port to look for there and the one to put in its place.
    """
    code = b""
    for address, old, new in pairs:
        ip, port, other = (int.from_bytes(word, "little" if _LITTLE else "big") for word in
                           (address, old.to_bytes(2, "big"), new.to_bytes(2, "big")))  # fmt: skip
        code += instruction(_LOAD_WORD, 2, 1, USER_IP4, 0)
        code += instruction(_JUMP_NOT_EQUAL, 2, 0, 4, ip)
        code += instruction(_LOAD_WORD, 2, 1, USER_PORT, 0)
        code += instruction(_JUMP_NOT_EQUAL, 2, 0, 2, port)
        code += instruction(MOVE_NUMBER, 2, 0, 0, other)
        code += instruction(_STORE_WORD, 1, 2, USER_PORT, 0)
    return code + instruction(MOVE_NUMBER, 0, 0, 0, 1) + instruction(BPF_EXIT, 0, 0, 0, 0)


_LITTLE = struct.pack("=H", 1) == b"\1\0"


def bytes_at(data: bytes) -> Any:
    """A copy of bytes that has an address (``_ctypes.addressof``)."""
    return (_Char * len(data)).from_buffer_copy(data)


def _load(code: bytes, kind: int) -> int:
    """A program in the kernel, which refuses one that is not safe; its descriptor."""
    instructions, licence = bytes_at(code), bytes_at(b"GPL\0")
    # union bpf_attr for BPF_PROG_LOAD, up to expected_attach_type; no log, no name.
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        PROG_TYPE_CGROUP_SOCK_ADDR, len(code) // 8, _ctypes.addressof(instructions), _ctypes.addressof(licence),
        0, 0, 0, 0, 0, b"", 0, kind,
    )  # fmt: skip
    return syscall("bpf", PROG_LOAD, attributes, len(attributes))


def _link(program: int, directory: int, kind: int) -> int:
    """Attach a program to a control group, beside those that are there, as long as the result is open."""
    attributes = struct.pack("=IIII", program, directory, kind, 0)
    return syscall("bpf", LINK_CREATE, attributes, len(attributes))


def attach(group: str, ports: dict[bytes, int], port: int = 53) -> list[int]:
    """Redirect the processes of a control group and all below it.

    Arguments:
        group: its directory.
        ports: for each IPv4 address the port in whose place ``port`` is to be seen.

    Returns:
        descriptors of what does it; when they are closed it is over.

    Raises:
        OSError: the kernel refused.
    """
    there = program([(address, port, other) for address, other in ports.items()])
    back = program([(address, other, port) for address, other in ports.items()])
    links: list[int] = []
    directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for kind, code in ((INET4_CONNECT, there), (UDP4_SENDMSG, there), (UDP4_RECVMSG, back)):
            loaded = _load(code, kind)
            try:
                links.append(_link(loaded, directory, kind))
            finally:
                os.close(loaded)
    except BaseException:
        for link in links:
            os.close(link)
        raise
    finally:
        os.close(directory)
    return links
