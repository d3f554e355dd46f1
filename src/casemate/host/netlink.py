"""rtnetlink(7): what links, addresses, routes and neighbours a network namespace has, and a few changes to them.

Raw messages over a socket, because a program for each question would cost more than all of the answers. A socket
belongs to the namespace of the thread that opened it, and may then be used from any other: see :func:`open_in`.

Everything that is read is bounded, and a message that is not well formed is an error, never a guess. Numbers are of the
machine's byte order, addresses of the network's.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from casemate.errors import NetworkError
from casemate.host import namespaces

# linux/netlink.h
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 1, 2, 3, 4
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x10
NLM_F_DUMP, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_ACK_TLVS = 0x300, 0x100, 0x200, 0x400, 0x200
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _SOL_NETLINK, _ERR_ATTR_MSG = 10, 11, 270, 1
# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x100, 0x400
RT_TABLE_MAIN, RTN_UNICAST, RTPROT_KERNEL = 254, 1, 2
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
RTNH_F_ONLINK, _RTM_F_CLONED = 4, 0x200
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA, _RTA_ENCAP = 9, 15, 18, 22
# linux/if.h, if_arp.h, if_link.h
IFF_UP, IFF_LOOPBACK, ARPHRD_ETHER = 0x1, 0x8, 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 1, 3, 4, 10, 18, 1
# linux/if_addr.h
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, IFA_F_DADFAILED = 1, 2, 8, 0x08
# linux/neighbour.h
_NDA_DST, _NDA_LLADDR, _NUD_PERMANENT, _NTF_PROXY = 1, 2, 0x80, 0x08

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length with this head, type
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst, src, tos, table, protocol, scope, type, flags
_NEXT_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length with this head, flags, hops, index
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, index, state, flags, type

RECEIVE = 128 * 1024
"""Bytes of one reading; the kernel fills at most 32 KiB of a dump at once."""
MAX_DUMP = 16 << 20
"""Bytes of one dump."""
MAX_ATTRIBUTES = 1024
SECONDS = 5.0
"""For one answer of the kernel, which gives it at once unless something is very wrong."""
TRIES = 8
"""Times that a dump is asked for anew because the table changed meanwhile."""


class Message(NamedTuple):
    """One message: ``RTM_*`` or ``NLMSG_*``, ``NLM_F_*``, the number of the request, and what follows the head."""

    kind: int
    flags: int
    sequence: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface."""

    index: int
    name: str
    hardware: int
    """``ARPHRD_*``."""
    flags: int
    """``IFF_*``."""
    mac: str
    """Empty unless it has six bytes."""
    mtu: int
    master: int
    """The index of the bridge or bond that it is a port of, or 0."""
    kind: str
    """The driver as ``ip link`` names it (``veth``, ``tun``), empty for a physical one."""


@dataclass(frozen=True, slots=True)
class Address:
    """An interface's address."""

    index: int
    family: int
    address: str
    prefix: int
    peer: str | None
    """The other end of a link of two, to which ``prefix`` then belongs."""
    flags: int
    """``IFA_F_*``."""


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """A unicast route of the main table."""

    index: int
    family: int
    destination: str
    """In CIDR form."""
    gateway: str | None
    metric: int
    scope: int
    protocol: int
    source: str | None
    onlink: bool


@dataclass(frozen=True, slots=True)
class NeighbourEntry:
    """A permanent neighbour."""

    index: int
    address: str
    mac: str


def damaged(what: str) -> NetworkError:
    """The error for a message that breaks the form."""
    return NetworkError(f"a netlink message is damaged: {what}")


def attribute(kind: int, value: bytes) -> bytes:
    """A ``struct rtattr``: its length without padding, its type, its value padded to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def text(kind: int, value: str) -> bytes:
    """An attribute that is a string with its ending zero."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """An attribute that is a number of 32 bits."""
    return attribute(kind, struct.pack("=I", value))


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram.

    Raises:
        NetworkError: one does not fit.
    """
    at = 0
    while len(data) - at >= _HEADER.size:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            raise damaged(f"a length of {length} where {len(data) - at} bytes are left")
        yield Message(kind, flags, sequence, data[at + _HEADER.size : at + length])
        at += length + -length % 4
    if at < len(data):
        raise damaged(f"{len(data) - at} bytes follow the last message")


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes in ``data`` from ``start`` on, by type; of several of one type the last one counts.

    Raises:
        NetworkError: one does not fit, or there are too many.
    """
    found: dict[int, bytes] = {}
    at, count = start, 0
    while len(data) - at >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        count += 1
        if not _ATTRIBUTE.size <= length <= len(data) - at or count > MAX_ATTRIBUTES:
            raise damaged(f"an attribute of {length} bytes where {len(data) - at} are left")
        found[kind & 0x3FFF] = data[at + _ATTRIBUTE.size : at + length]  # the upper bits tell of nesting and order
        at += length + -length % 4
    return found


def parse_link(body: bytes) -> Link:
    """A link from the body of RTM_NEWLINK. Raises NetworkError."""
    _, hardware, index, flags, _ = unpack(_LINK, body)
    found = attributes(body, _LINK.size)
    mac = found.get(_IFLA_ADDRESS, b"")
    information = attributes(found.get(_IFLA_LINKINFO, b""))
    return Link(
        index,
        _string(found.get(_IFLA_IFNAME, b"")),
        hardware,
        flags,
        mac.hex(":") if len(mac) == 6 else "",
        _u32(found, _IFLA_MTU),
        _u32(found, _IFLA_MASTER),
        _string(information.get(_IFLA_INFO_KIND, b"")),
    )


def parse_address(body: bytes) -> Address | None:
    """An address from the body of RTM_NEWADDR, None for one of another family than IP. Raises NetworkError."""
    family, prefix, flags, _, index = unpack(_ADDRESS, body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = attributes(body, _ADDRESS.size)
    other = _ip(family, found.get(_IFA_ADDRESS))
    local = _ip(family, found.get(_IFA_LOCAL)) or other
    if local is None:
        raise damaged("an address without an address")
    _check_prefix(family, prefix)
    peer = other if other != local else None
    return Address(index, family, local, prefix, peer, _u32(found, _IFA_FLAGS, flags))


def parse_route(body: bytes) -> RouteEntry | None:
    """A route from the body of RTM_NEWROUTE.

    None for what is not a unicast IP route of the main table through an interface, to a gateway of the same family or
    none, and for one that wraps packets into others. Of several ways the first counts.

    Raises:
        NetworkError: it is damaged.
    """
    family, prefix, source_bits, tos, table, protocol, scope, kind, flags = unpack(_ROUTE, body)
    found = attributes(body, _ROUTE.size)
    if (
        family not in (socket.AF_INET, socket.AF_INET6)
        or _u32(found, _RTA_TABLE, table) != RT_TABLE_MAIN
        or kind != RTN_UNICAST
        or flags & _RTM_F_CLONED
        or source_bits
        or tos
    ):
        return None
    metric, source = _u32(found, _RTA_PRIORITY), _ip(family, found.get(_RTA_PREFSRC))
    destination = _ip(family, found.get(_RTA_DST)) or ("0.0.0.0" if family == socket.AF_INET else "::")
    _check_prefix(family, prefix)
    index = _u32(found, _RTA_OIF)
    hops = found.get(_RTA_MULTIPATH)
    if hops:
        length, hop_flags, _, index = unpack(_NEXT_HOP, hops)
        if not _NEXT_HOP.size <= length <= len(hops):
            raise damaged(f"a next hop of {length} bytes where {len(hops)} are left")
        found = attributes(hops[:length], _NEXT_HOP.size)
        flags |= hop_flags
    if index <= 0 or _RTA_VIA in found or _RTA_ENCAP in found:
        return None
    gateway = _ip(family, found.get(_RTA_GATEWAY))
    onlink = bool(flags & RTNH_F_ONLINK)
    return RouteEntry(index, family, f"{destination}/{prefix}", gateway, metric, scope, protocol, source, onlink)


def parse_neighbour(body: bytes) -> NeighbourEntry | None:
    """A neighbour from the body of RTM_NEWNEIGH, None for one that is not permanent. Raises NetworkError."""
    family, index, state, flags, _ = unpack(_NEIGHBOUR, body)
    found = attributes(body, _NEIGHBOUR.size)
    mac = found.get(_NDA_LLADDR, b"")
    if (
        family not in (socket.AF_INET, socket.AF_INET6)
        or not state & _NUD_PERMANENT
        or flags & _NTF_PROXY
        or len(mac) != 6
    ):
        return None
    address = _ip(family, found.get(_NDA_DST))
    return None if address is None else NeighbourEntry(index, address, mac.hex(":"))


def unpack(form: struct.Struct, body: bytes) -> tuple[int, ...]:
    """The numbers at the beginning of ``body``. Raises NetworkError when it is too short."""
    if len(body) < form.size:
        raise damaged(f"{len(body)} bytes where {form.size} are the least")
    return form.unpack_from(body)


def _u32(found: dict[int, bytes], kind: int, default: int = 0) -> int:
    value = found.get(kind)
    if value is None:
        return default
    if len(value) != 4:
        raise damaged(f"a number of {len(value)} bytes")
    return int(struct.unpack("=I", value)[0])


def _string(value: bytes) -> str:
    return value.partition(b"\0")[0].decode(errors="replace")


def _ip(family: int, value: bytes | None) -> str | None:
    if value is None:
        return None
    if len(value) != (4 if family == socket.AF_INET else 16):
        raise damaged(f"an address of {len(value)} bytes")
    return socket.inet_ntop(family, value)


def _check_prefix(family: int, prefix: int) -> None:
    if prefix > (32 if family == socket.AF_INET else 128):
        raise damaged(f"a prefix of {prefix} bits")


class Netlink:
    """A route socket of the calling thread's network namespace; a context manager. Not for two threads at once.

    Arguments:
        groups: ``RTMGRP_*``, whose news then arrive on the socket. Such a socket is not for requests.

    Raises:
        NetworkError: it cannot be opened.
    """

    def __init__(self, groups: int = 0) -> None:
        try:
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        except OSError as error:
            raise NetworkError(f"cannot open a netlink socket: {error.strerror}") from None
        try:
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
                self.socket.setsockopt(_SOL_NETLINK, option, 1)
            self.socket.settimeout(SECONDS)
            self.socket.bind((0, groups))
        except OSError as error:
            self.socket.close()
            raise NetworkError(f"cannot open a netlink socket: {error.strerror}") from None
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """Ask the kernel for a change and wait until it is made.

        Arguments:
            kind: ``RTM_*``.
            flags: ``NLM_F_*`` beside REQUEST and ACK.
            body: what follows the head.

        Raises:
            OSError: the kernel refused; its text is the kernel's own where it gave one.
            NetworkError: it answers with nonsense.
        """
        for message in self._ask(kind, flags | NLM_F_ACK, body):
            if message.kind == NLMSG_ERROR:
                _raise_refusal(message)
                return

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """All entries of a table: the bodies of the answers.

        Arguments:
            kind: ``RTM_GET*``.
            body: the head of the table's messages, with what the kernel shall choose by.

        Raises:
            OSError: the kernel refused.
            NetworkError: it answers with nonsense, or too much.
        """
        found: list[bytes] = []
        for _ in range(TRIES):
            found, size, whole = [], 0, True
            for message in self._ask(kind, NLM_F_DUMP, body):
                whole = whole and not message.flags & NLM_F_DUMP_INTR
                if message.kind in (NLMSG_DONE, NLMSG_ERROR):
                    _raise_refusal(message)
                    break
                size += len(message.body)
                if size > MAX_DUMP:
                    raise NetworkError(f"a network namespace has more than {MAX_DUMP >> 20} MiB of entries in a table")
                found.append(message.body)
            if whole:
                break
        return found  # changed each time: whoever watches asks again anyway, and others have no better moment

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[Message]:
        self._sequence += 1
        head = _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0)
        self.socket.send(head + body)
        while True:
            try:
                data = self.socket.recv(RECEIVE)
            except TimeoutError:
                raise NetworkError(f"the kernel does not answer on netlink within {SECONDS:g} s") from None
            for message in messages(data):
                if message.sequence != self._sequence:
                    continue  # the rest of an answer that somebody gave up on
                if message.kind == NLMSG_OVERRUN:
                    raise damaged("data was lost")
                if message.kind != NLMSG_NOOP:
                    yield message

    def links(self) -> list[Link]:
        """All interfaces, in the order of their indexes. Raises OSError, NetworkError."""
        found = [parse_link(body) for body in self.dump(RTM_GETLINK, _LINK.pack(0, 0, 0, 0, 0))]
        return sorted(found, key=lambda link: link.index)

    def link(self, name: str) -> Link:
        """One interface. Raises OSError where there is none, NetworkError."""
        for link in self.links():
            if link.name == name:
                return link
        raise OSError(errno.ENODEV, f"there is no interface {name}")

    # The tables below are asked for without a family: for one that the kernel lacks it would give all others.

    def addresses(self) -> list[Address]:
        """All addresses, IPv4 before IPv6, each interface's first one first. Raises OSError, NetworkError."""
        found = map(parse_address, self.dump(RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)))
        return [address for address in found if address is not None]

    def routes(self) -> list[RouteEntry]:
        """The unicast routes of the main table, IPv4 before IPv6. Raises OSError, NetworkError."""
        found = map(parse_route, self.dump(RTM_GETROUTE, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)))
        return [route for route in found if route is not None]

    def neighbours(self) -> list[NeighbourEntry]:
        """The permanent neighbours, IPv4 before IPv6. Raises OSError, NetworkError."""
        found = map(parse_neighbour, self.dump(RTM_GETNEIGH, _NEIGHBOUR.pack(0, 0, 0, 0, 0)))
        return [entry for entry in found if entry is not None]

    def set_link(self, index: int, *, up: bool | None = None, mtu: int | None = None) -> None:
        """Bring an interface up or down, or set its MTU. Raises OSError, NetworkError."""
        flags, change = IFF_UP if up else 0, 0 if up is None else IFF_UP
        body = _LINK.pack(0, 0, index, flags, change)
        self.request(RTM_NEWLINK, 0, body if mtu is None else body + number(_IFLA_MTU, mtu))


def open_in(netns: int, groups: int = 0) -> Netlink:
    """A socket of the network namespace that descriptor ``netns`` holds. Raises NetworkError, OSError."""
    return namespaces.in_netns(netns, lambda: Netlink(groups))


def _raise_refusal(message: Message) -> None:
    """Raise what NLMSG_ERROR or NLMSG_DONE says, nothing when that is success."""
    if len(message.body) < 4:
        if message.kind == NLMSG_DONE:
            return
        raise damaged("an answer without a number")
    (code,) = struct.unpack_from("=i", message.body)
    if code >= 0:
        return
    said = ""
    if message.kind == NLMSG_ERROR and message.flags & NLM_F_ACK_TLVS:
        # With NETLINK_CAP_ACK only the head of the request follows the number.
        said = _string(attributes(message.body, 4 + _HEADER.size).get(_ERR_ATTR_MSG, b""))
    raise OSError(-code, said or os.strerror(-code))
