"""What applications may ask of the host's network, and set on its sockets."""

from __future__ import annotations

import array
import fcntl
import struct
from socket import IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP
from typing import TYPE_CHECKING

from casemate.sentry.errno import from_os
from casemate.sentry.net import interfaces, ipoptions, options, tcpoptions
from casemate.sentry.net.options import SOL_SOCKET

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SOL_NETLINK = 270
SOCKET = options.BOOLEANS | {
    options.SO_TYPE, options.SO_ERROR, options.SO_SNDBUF, options.SO_RCVBUF, options.SO_LINGER, options.SO_RCVLOWAT,
    options.SO_PRIORITY, options.SO_ACCEPTCONN, options.SO_PROTOCOL, options.SO_DOMAIN, options.SO_MARK,
    options.SO_SNDLOWAT, options.SO_SNDBUFFORCE, options.SO_RCVBUFFORCE, options.SO_INCOMING_CPU,
    options.SO_BINDTODEVICE,
}  # fmt: skip
"""Of ``SOL_SOCKET``; no filters, which are programs for the host's kernel."""
_MULTICAST = frozenset((32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50))
_IP = frozenset(ipoptions.IP) | _MULTICAST | {ipoptions.IP_MTU}
_IPV6 = frozenset(ipoptions.IPV6) | {16, 17, 18, 19, 20, 21, 24, 26, 42, 43, 44, 45, 46, 47, 76}
_TCP = frozenset(range(1, 14)) | {16, 17, 18, 23, 24, 25, 30, 36, 37} - {tcpoptions.TCP_ULP}
_UDP = frozenset((1, 101, 102, 103, 104))
"""``UDP_CORK``, checksums, segmentation."""
_LEVELS: dict[int, frozenset[int]] = {
    SOL_SOCKET: frozenset(SOCKET),
    IPPROTO_IP: _IP,
    IPPROTO_IPV6: _IPV6,
    IPPROTO_TCP: _TCP,
    IPPROTO_UDP: _UDP,
    SOL_NETLINK: frozenset(range(1, 13)),
}

QUERIES = frozenset(
    (
        interfaces.SIOCGIFNAME, interfaces.SIOCGIFCONF, interfaces.SIOCGIFFLAGS, interfaces.SIOCGIFADDR,
        interfaces.SIOCGIFDSTADDR, interfaces.SIOCGIFBRDADDR, interfaces.SIOCGIFNETMASK, interfaces.SIOCGIFMETRIC,
        interfaces.SIOCGIFMTU, interfaces.SIOCGIFHWADDR, interfaces.SIOCGIFINDEX, interfaces.SIOCGIFTXQLEN,
        interfaces.SIOCGIFMAP,
    )
)  # fmt: skip
"""What netdevice(7) has that only asks."""
_IFREQ = 40
_MOST = 1024
"""Interfaces that SIOCGIFCONF tells of at most."""


def allowed(level: int, name: int) -> bool:
    """Whether an option is among those that are passed on."""
    return name in _LEVELS.get(level, ())


def query(task: Task, fd: int, command: int, argument: int) -> None:
    """Ask the host about its interfaces, by a socket of its. Raises SysError."""
    mem = task.mem
    try:
        if command != interfaces.SIOCGIFCONF:
            mem.write(argument, fcntl.ioctl(fd, command, mem.read(argument, _IFREQ)))
            return
        size, buffer = struct.unpack("<i4xQ", mem.read(argument, 16))
        room = array.array("B", bytes(_MOST * _IFREQ))
        answer = fcntl.ioctl(fd, command, struct.pack("<i4xQ", len(room), room.buffer_info()[0]))
    except OSError as error:
        raise from_os(error) from None
    found = room.tobytes()[: struct.unpack_from("<i", answer)[0]]
    if buffer:
        found = found[: max(0, size) // _IFREQ * _IFREQ]
        mem.write(buffer, found)
    mem.put_u32(argument, len(found))
