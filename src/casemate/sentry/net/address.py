"""Internet addresses as ``struct sockaddr_in`` and ``sockaddr_in6`` have them, ip(7) and ipv6(7).

Inside the kernel an address is its 4 or 16 bytes in network order; what IPv6 sockets show as ``::ffff:a.b.c.d`` is the
4 bytes.
"""

from __future__ import annotations

import struct
from errno import EAFNOSUPPORT, EINVAL, ENETUNREACH
from socket import AF_INET, AF_INET6, AF_NETLINK, inet_ntop, inet_pton
from typing import Any

from casemate.sentry.errno import SysError

ANY4 = bytes(4)
ANY6 = bytes(16)
LOOPBACK4 = b"\x7f\0\0\1"
LOOPBACK6 = bytes(15) + b"\1"
BROADCAST4 = b"\xff\xff\xff\xff"
MAPPED = bytes(10) + b"\xff\xff"


def parse(family: int, address: bytes) -> tuple[bytes, int]:
    """Address and port for a socket of ``family``. Raises SysError: EINVAL when it is too short, EAFNOSUPPORT."""
    if len(address) < 2:
        raise SysError(EINVAL)
    own = int.from_bytes(address[:2], "little")
    if family == AF_INET:
        if len(address) < 16:
            raise SysError(EINVAL)
        if own != AF_INET:
            raise SysError(EAFNOSUPPORT)
        port, ip = struct.unpack_from(">2xH4s", address)
        return ip, port
    if own != AF_INET6:
        raise SysError(EAFNOSUPPORT)
    if len(address) < 24:
        raise SysError(EINVAL)
    port, ip = struct.unpack_from(">2xH4x16s", address)
    return normal(ip), port


def normal(ip: bytes) -> bytes:
    """A mapped IPv4 address as the IPv4 address it is."""
    return ip[12:] if ip[:12] == MAPPED else ip


def pack(family: int, ip: bytes, port: int) -> bytes:
    """The ``struct sockaddr`` that a socket of ``family`` shows."""
    head = family.to_bytes(2, "little")
    if family == AF_INET:
        return head + struct.pack(">H4s8x", port, ip if len(ip) == 4 else ANY4)
    return head + port.to_bytes(2, "big") + bytes(4) + wide(ip) + bytes(4)


def wide(ip: bytes) -> bytes:
    """As the 16 bytes of an IPv6 address."""
    return ip if len(ip) == 16 else MAPPED + ip


def is_any(ip: bytes) -> bool:
    """Whether it is ``0.0.0.0`` or ``::``."""
    return not any(ip)


def is_multicast(ip: bytes) -> bool:
    """Whether it is a group's address."""
    return ip[0] & 0xF0 == 0xE0 if len(ip) == 4 else ip[0] == 0xFF


def is_local(ip: bytes) -> bool:
    """Whether it is one of the sandbox's own: the loopback interface's."""
    return ip[0] == 127 if len(ip) == 4 else ip == LOOPBACK6


def route(ip: bytes) -> tuple[bytes, bytes]:
    """Where a packet to this address goes, and what it comes from. Raises SysError(ENETUNREACH): there is only the
    loopback interface."""
    if is_any(ip):
        ip = LOOPBACK4 if len(ip) == 4 else LOOPBACK6
    if not is_local(ip):
        raise SysError(ENETUNREACH)
    return ip, LOOPBACK4 if len(ip) == 4 else LOOPBACK6


def parse_host(family: int, address: bytes) -> tuple[Any, ...]:
    """An address of the application's as Python's socket module has it. Raises SysError: EINVAL, EAFNOSUPPORT."""
    if family == AF_NETLINK:
        if len(address) < 12:
            raise SysError(EINVAL)
        return struct.unpack_from("<4xII", address)
    if family == AF_INET and address[:2] == b"\0\0" and len(address) >= 16:
        # Old programs leave the family out.
        address = AF_INET.to_bytes(2, "little") + address[2:]
    parse(family, address)
    port = int.from_bytes(address[2:4], "big")
    if family == AF_INET:
        return inet_ntop(AF_INET, address[4:8]), port
    flow, scope = int.from_bytes(address[4:8], "big"), 0
    if len(address) >= 28:
        scope = int.from_bytes(address[24:28], "little")
    return inet_ntop(AF_INET6, address[8:24]), port, flow & 0xFFFFF, scope


def pack_host(family: int, address: tuple[Any, ...]) -> bytes:
    """An address of Python's socket module as ``struct sockaddr``."""
    head = family.to_bytes(2, "little")
    if family == AF_NETLINK:
        return head + struct.pack("<2xII", *address)
    if family == AF_INET:
        return head + struct.pack(">H4s8x", address[1], inet_pton(AF_INET, address[0]))
    name = str(address[0]).split("%")[0]
    head += struct.pack(">HI16s", address[1], address[2], inet_pton(AF_INET6, name))
    return head + struct.pack("<I", address[3])
