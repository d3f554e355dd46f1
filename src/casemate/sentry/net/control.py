"""Messages of sendmsg(2) and recvmsg(2) in an application's memory: ``struct msghdr`` and cmsg(3)."""

from __future__ import annotations

import struct
from errno import EINVAL, EMSGSIZE, ENOBUFS
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32
from casemate.sentry.errno import SysError
from casemate.sentry.mm.memory import IOV_MAX
from casemate.sentry.net.options import SCM_RIGHTS, SOL_SOCKET
from casemate.sentry.net.socket import MSG_CMSG_CLOEXEC, MSG_CTRUNC, Control, Message, Socket
from casemate.sentry.wait import Block

if TYPE_CHECKING:
    from casemate.sentry.mm.space import AddressSpace
    from casemate.sentry.tasks.task import Task

MAX_ADDRESS = 128
"""``sizeof(struct sockaddr_storage)``."""
MAX_CONTROL = 20480
"""``net.core.optmem_max``."""
MSGHDR = 56
CHUNK = 1 << 20
"""How much of one send is copied at a time."""
_MSGHDR = struct.Struct("<QI4xQQQQi4x")
_CMSGHDR = struct.Struct("<Qii")


class Header:
    """A ``struct msghdr``, read once."""

    __slots__ = ("at", "control", "control_size", "name", "name_size", "vectors")

    def __init__(self, task: Task, at: int) -> None:
        mem = task.mem
        self.at = at
        self.name, name_size, vectors, count, self.control, self.control_size, _ = _MSGHDR.unpack(mem.read(at, MSGHDR))
        if name_size > 0x7FFF_FFFF or self.control_size > 0x7FFF_FFFF_FFFF_FFFF:
            raise SysError(EINVAL)
        self.name_size: int = min(name_size, MAX_ADDRESS)
        if count > IOV_MAX:
            raise SysError(EMSGSIZE)
        self.vectors = mem.iovecs(vectors, count)

    def address(self, mem: AddressSpace) -> bytes:
        """Where to send to; empty for the peer."""
        return mem.read(self.name, self.name_size) if self.name and self.name_size else b""

    def controls(self, mem: AddressSpace) -> Control | None:
        """The control messages to send. Raises SysError: EINVAL, ENOBUFS."""
        size = self.control_size
        if size == 0:
            return None
        if size > MAX_CONTROL:
            raise SysError(ENOBUFS)
        data = mem.read(self.control, size)
        found: Control = []
        at = 0
        while at + _CMSGHDR.size <= size:
            length, level, kind = _CMSGHDR.unpack_from(data, at)
            if not _CMSGHDR.size <= length <= size - at:
                raise SysError(EINVAL)
            found.append((level, kind, data[at + _CMSGHDR.size : at + length]))
            at += (length + 7) & ~7
        return found


def store(task: Task, header: Header, message: Message, flags: int) -> None:
    """Tell what was received, beside the data: address, control messages with their files, flags."""
    mem = task.mem
    if header.name:
        mem.write(header.name, message.address[: header.name_size])
        mem.put_u32(header.at + 8, len(message.address))
    result = message.flags | flags & MSG_CMSG_CLOEXEC
    used = 0
    if message.control or message.files:
        used, truncated = _store_control(task, header, message, bool(flags & MSG_CMSG_CLOEXEC))
        if truncated:
            result |= MSG_CTRUNC
    mem.write(header.at + 40, struct.pack("<Qi", used, result))


def _store_control(task: Task, header: Header, message: Message, cloexec: bool) -> tuple[int, bool]:
    """Write control messages: how much space they took, and whether it was too little."""
    space = header.control_size if header.control else 0
    parts: list[bytes] = []
    used = 0
    truncated = False
    for level, kind, value in message.control:
        room = space - used - _CMSGHDR.size
        if room < 0:
            truncated = True
            break
        if room < len(value):
            truncated = True
            value = value[:room]
        used += _append(parts, level, kind, value, space - used)
    if message.files:
        room = (space - used - _CMSGHDR.size) // 4
        numbers: list[int] = []
        files = message.files
        for index, file in enumerate(files):
            try:
                if index >= room:
                    raise SysError(ENOBUFS)
                numbers.append(task.files.install(file, cloexec))
            except SysError:
                truncated = True
                for left in files[index:]:
                    left.decref()
                break
        if numbers:
            used += _append(parts, SOL_SOCKET, SCM_RIGHTS, struct.pack(f"<{len(numbers)}i", *numbers), space - used)
    task.mem.write(header.control, b"".join(parts))
    return used, truncated


def _append(parts: list[bytes], level: int, kind: int, value: bytes, space: int) -> int:
    """Add one control message, with what comes to the next one's place if there is room. Returns what it takes."""
    length = _CMSGHDR.size + len(value)
    padding = min(-length % 8, space - length)
    parts.append(_CMSGHDR.pack(length, level, kind) + value + bytes(padding))
    return length + padding


def read_address(task: Task, at: int, size: int) -> bytes:
    """A ``struct sockaddr`` that the application gives. Raises SysError: EINVAL, EFAULT."""
    size = s32(size)
    if not 0 <= size <= MAX_ADDRESS:
        raise SysError(EINVAL)
    return task.mem.read(at, size)


def write_address(task: Task, at: int, size_at: int, address: bytes) -> None:
    """Give an address to the application: as much of it as there is room for, and how long it really is.

    Arguments:
        at: the buffer.
        size_at: where its size is, and the address's length is put. EINVAL for a negative size.
    """
    size = task.mem.s32(size_at)
    if size < 0:
        raise SysError(EINVAL)
    task.mem.write(at, address[:size])
    task.mem.put_u32(size_at, len(address))


def send_vectors(
    task: Task, found: Socket, vectors: list[tuple[int, int]], flags: int, address: bytes, control: Control | None
) -> int:
    """Send what the buffers hold: a stream's in steps that are bounded, anything else as one message."""
    total = sum([size for _, size in vectors])
    if total <= CHUNK or not found.stream:
        # Nobody takes a datagram that long; the socket says so without its being copied.
        data = task.mem.gather(vectors) if total <= found.max_datagram else bytes(found.max_datagram + 1)
        return found.send(task, data, flags, address, control)
    base: int = task.blocked.get("base", 0)
    while base < total:
        part = task.mem.gather(_slice(vectors, base, CHUNK))
        try:
            done = found.send(task, part, flags, address, control if base == 0 else None)
        except SysError:
            if base:
                return base
            raise
        except Block as block:
            block.partial += base
            raise
        base += done
        if done < len(part):
            break
        task.blocked = {"base": base}
    return base


def _slice(vectors: list[tuple[int, int]], start: int, size: int) -> list[tuple[int, int]]:
    """The part of the buffers from ``start`` on."""
    result: list[tuple[int, int]] = []
    for base, length in vectors:
        if start >= length:
            start -= length
            continue
        take = min(length - start, size)
        result.append((base + start, take))
        size -= take
        start = 0
        if not size:
            break
    return result
