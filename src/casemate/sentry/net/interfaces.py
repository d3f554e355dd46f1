"""Network interfaces of a sandbox: the loopback one, as netdevice(7) and rtnetlink(7) tell of it."""

from __future__ import annotations

import socket
import struct
from errno import EINVAL, ENODEV, ENOTTY, EPERM
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_NET_ADMIN
from casemate.sentry.errno import SysError

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40
LO_FLAGS = IFF_UP | IFF_LOOPBACK | IFF_RUNNING
LO_INDEX = 1
LO_NAME = b"lo"
LO_MTU = 65536
LO_TXQLEN = 1000
ARPHRD_LOOPBACK = 772

SIOCGIFNAME, SIOCGIFCONF, SIOCGIFFLAGS, SIOCGIFADDR, SIOCGIFDSTADDR = 0x8910, 0x8912, 0x8913, 0x8915, 0x8917
SIOCGIFBRDADDR, SIOCGIFNETMASK, SIOCGIFMETRIC, SIOCGIFMTU, SIOCGIFHWADDR = 0x8919, 0x891B, 0x891D, 0x8921, 0x8927
SIOCGIFINDEX, SIOCGIFTXQLEN, SIOCGIFMAP = 0x8933, 0x8942, 0x8970
_IFREQ = 40
"""``sizeof(struct ifreq)``: 16 bytes of name and a union of 24."""
_PRIVILEGED = frozenset((0x890B, 0x890C, 0x8914, 0x8916, 0x8918, 0x891A, 0x891C, 0x8922, 0x8923, 0x8924, 0x8943))
"""What adds routes, and sets flags, addresses, MTU, names and queues."""


def _ipv4(address: str) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


_ANSWERS = {
    SIOCGIFFLAGS: struct.pack("=H", LO_FLAGS),
    SIOCGIFADDR: _ipv4("127.0.0.1"),
    SIOCGIFDSTADDR: _ipv4("127.0.0.1"),
    SIOCGIFBRDADDR: _ipv4("0.0.0.0"),
    SIOCGIFNETMASK: _ipv4("255.0.0.0"),
    SIOCGIFMETRIC: struct.pack("=i", 0),
    SIOCGIFMTU: struct.pack("=i", LO_MTU),
    SIOCGIFHWADDR: struct.pack("=H14x", ARPHRD_LOOPBACK),
    SIOCGIFINDEX: struct.pack("=i", LO_INDEX),
    SIOCGIFTXQLEN: struct.pack("=i", LO_TXQLEN),
    SIOCGIFMAP: bytes(24),
}


def ioctl(task: Task, command: int, argument: int) -> None:
    """The ``SIOC*`` calls of netdevice(7). Raises SysError: ENODEV for another interface, EPERM for changes, ENOTTY."""
    mem = task.mem
    if command == SIOCGIFCONF:
        size, buffer = struct.unpack("<i4xQ", mem.read(argument, 16))
        if buffer == 0:
            # Only how much there is; the size may be anything.
            mem.put_u32(argument, _IFREQ)
            return
        entry = LO_NAME.ljust(16, b"\0") + _ipv4("127.0.0.1") + bytes(8)
        if size < _IFREQ:
            entry = b""
        mem.write(buffer, entry)
        mem.put_u32(argument, len(entry))
        return
    if command in _PRIVILEGED:
        # Not even with the capability: what the network is, is decided outside of the sandbox.
        raise SysError(EPERM if not task.creds.capable(CAP_NET_ADMIN) else EINVAL)
    if command == SIOCGIFNAME:
        if mem.u32(argument + 16) != LO_INDEX:
            raise SysError(ENODEV)
        mem.write(argument, LO_NAME.ljust(16, b"\0"))
        return
    answer = _ANSWERS.get(command)
    if answer is None:
        raise SysError(ENOTTY)
    if mem.read(argument, 16).split(b"\0")[0].split(b":")[0] != LO_NAME:
        raise SysError(ENODEV)
    mem.write(argument + 16, answer)
