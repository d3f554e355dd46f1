"""Messages of rtnetlink(7) and a socket for them: starting a program for each step would cost far more."""

from __future__ import annotations

import os
import struct
from _socket import (
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    SO_RCVTIMEO,
    SOCK_CLOEXEC,
    SOCK_RAW,
    SOL_SOCKET,
    inet_pton,
    socket,
)

from casemate.agent.system import bad

NETLINK_ROUTE = 0
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE = 0x1, 0x4, 0x100, 0x400
RTM_NEWLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE = 16, 20, 21, 24, 25
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
IFF_UP = 1
IFLA_IFNAME, IFLA_MTU = 3, 4
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 4, 5, 6, 7
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST, RTNH_F_ONLINK = 254, 4, 1, 4
NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst, src, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, index, state, flags, type


def attribute(kind: int, value: bytes) -> bytes:
    """A struct rtattr: its length without padding, its type, its value padded to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A struct nlmsghdr and its body."""
    flags |= NLM_F_REQUEST | NLM_F_ACK
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def link_body(index: int, up: bool, mtu: int | None = None, name: str | None = None) -> bytes:
    """For RTM_NEWLINK: bring an interface up or down, set its largest packet and its name where they are given."""
    body = _LINK.pack(0, 0, index, IFF_UP if up else 0, IFF_UP)
    if mtu is not None:
        body += attribute(IFLA_MTU, struct.pack("=I", mtu))
    if name is not None:
        body += attribute(IFLA_IFNAME, name.encode() + b"\0")
    return body


def address_body(index: int, family: int, address: bytes, prefix: int) -> bytes:
    """For RTM_NEWADDR and RTM_DELADDR. Nobody asks the network whether it has an IPv6 address already: it is the
    host's own word that this interface has it, and asking would keep it from being used for a second."""
    body = _ADDRESS.pack(family, prefix, IFA_F_NODAD if family == AF_INET6 else 0, 0, index)
    body += attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, address)
    if family == AF_INET and prefix < 31:
        everybody = int.from_bytes(address, "big") | ((1 << (32 - prefix)) - 1)
        body += attribute(IFA_BROADCAST, everybody.to_bytes(4, "big"))
    return body


def route_body(
    index: int,
    family: int,
    destination: bytes,
    prefix: int,
    gateway: bytes | None = None,
    metric: int = 0,
    scope: int = 0,
    source: bytes | None = None,
    onlink: bool = False,
) -> bytes:
    """For RTM_NEWROUTE and RTM_DELROUTE, in the main table.

    Arguments:
        scope: a number of rtnetlink(7): 0 for the universe, 253 for the link, 254 for the host.
        onlink: the gateway is reached on the link although no prefix covers it.
    """
    flags = RTNH_F_ONLINK if onlink else 0
    body = _ROUTE.pack(family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, flags)
    if prefix:
        body += attribute(RTA_DST, destination)
    if gateway is not None:
        body += attribute(RTA_GATEWAY, gateway)
    if metric:
        body += attribute(RTA_PRIORITY, struct.pack("=I", metric))
    if source is not None:
        body += attribute(RTA_PREFSRC, source)
    return body + attribute(RTA_OIF, struct.pack("=I", index))


def neighbour_body(index: int, family: int, address: bytes, mac: bytes) -> bytes:
    """For RTM_NEWNEIGH and RTM_DELNEIGH: an entry that stays."""
    body = _NEIGHBOUR.pack(family, index, NUD_PERMANENT, 0, 0)
    return body + attribute(NDA_DST, address) + attribute(NDA_LLADDR, mac)


class Netlink:
    """A route socket of the current network namespace; a context manager."""

    def __init__(self) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)
        self._socket.setsockopt(SOL_SOCKET, SO_RCVTIMEO, struct.pack("@ll", 5, 0))
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes, what: str, fine: tuple[int, ...] = ()) -> None:
        """Ask the kernel and wait for its answer.

        Arguments:
            fine: refusals that are none, by their error numbers.

        Raises:
            OSError: it refused; ``filename`` is ``what``.
        """
        self._sequence += 1
        self._socket.send(message(kind, flags, self._sequence, body))
        while True:
            data = self._socket.recv(65536)
            _, answer, _, sequence, _ = _HEADER.unpack_from(data)
            if sequence == self._sequence and answer == NLMSG_ERROR:
                number = -struct.unpack_from("=i", data, _HEADER.size)[0]
                if number and number not in fine:
                    raise OSError(number, os.strerror(number), what)
                return


def parse_address(text: str) -> tuple[int, bytes, int]:
    """``address[/prefix]`` as family, bytes and prefix length (all bits when absent).

    Raises:
        RequestFailed: ``bad-spec``: it is not an address.
    """
    plain, slash, prefix = text.partition("/")
    family = AF_INET6 if ":" in plain else AF_INET
    try:
        address = inet_pton(family, plain)
    except (OSError, ValueError):
        raise bad(f"{text[:100]!r} is not an address") from None
    bits = 8 * len(address)
    if not slash:
        return family, address, bits
    if not (prefix.isascii() and prefix.isdigit() and len(prefix) <= 3 and int(prefix) <= bits):
        raise bad(f"{text[:100]!r} has no prefix length from 0 to {bits}")
    return family, address, int(prefix)
