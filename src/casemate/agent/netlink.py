"""The guest's network interfaces, set up by raw rtnetlink(7): starting a program for each step would cost far more."""

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

from casemate.agent.system import bad, get_list, get_optional_int, get_text, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NETLINK_ROUTE = 0
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE = 0x1, 0x4, 0x100, 0x400
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 20, 24
IFF_UP = 1
IFLA_MTU = 4
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK = 254, 4, 0, 1, 4

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst, src, tos, table, protocol, scope, type, flags


def attribute(kind: int, value: bytes) -> bytes:
    """A struct rtattr: its length without padding, its type, its value padded to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A struct nlmsghdr and its body."""
    flags |= NLM_F_REQUEST | NLM_F_ACK
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def link_body(index: int, mtu: int | None) -> bytes:
    """For RTM_NEWLINK: bring an interface up, with a largest packet size where one is given."""
    body = _LINK.pack(0, 0, index, IFF_UP, IFF_UP)
    return body if mtu is None else body + attribute(IFLA_MTU, struct.pack("=I", mtu))


def address_body(index: int, family: int, address: bytes, prefix: int) -> bytes:
    """For RTM_NEWADDR."""
    body = _ADDRESS.pack(family, prefix, 0, 0, index)
    return body + attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, address)


def default_route_body(index: int, family: int, gateway: bytes) -> bytes:
    """For RTM_NEWROUTE: everything through ``gateway``, which is reached on the link although no prefix covers it."""
    head = _ROUTE.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK)
    return head + attribute(RTA_GATEWAY, gateway) + attribute(RTA_OIF, struct.pack("=I", index))


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

    def request(self, kind: int, flags: int, body: bytes, what: str) -> None:
        """Ask the kernel and wait for its answer.

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
                if number:
                    raise OSError(number, os.strerror(number), what)
                return

    def up(self, index: int, mtu: int | None, what: str) -> None:
        """Bring an interface up. Raises OSError."""
        self.request(RTM_NEWLINK, 0, link_body(index, mtu), what)

    def add_address(self, index: int, family: int, address: bytes, prefix: int, what: str) -> None:
        """Give an interface an address. Raises OSError."""
        flags = NLM_F_CREATE | NLM_F_REPLACE
        self.request(RTM_NEWADDR, flags, address_body(index, family, address, prefix), what)

    def add_default_route(self, index: int, family: int, gateway: bytes, what: str) -> None:
        """Send everything else through ``gateway``. Raises OSError."""
        flags = NLM_F_CREATE | NLM_F_REPLACE
        self.request(RTM_NEWROUTE, flags, default_route_body(index, family, gateway), what)


def parse_address(text: str) -> tuple[int, bytes, int]:
    """``address[/prefix]`` as family, bytes and prefix length (all bits when absent).

    Raises:
        RequestFailed: ``bad-spec``: it is not an address.
    """
    plain, slash, prefix = text.partition("/")
    family = AF_INET6 if ":" in plain else AF_INET
    try:
        address = inet_pton(family, plain)
    except OSError:
        raise bad(f"{text[:100]!r} is not an address") from None
    bits = 8 * len(address)
    if not slash:
        return family, address, bits
    if not (prefix.isascii() and prefix.isdigit() and len(prefix) <= 3 and int(prefix) <= bits):
        raise bad(f"{text[:100]!r} has no prefix length from 0 to {bits}")
    return family, address, int(prefix)


def index_of(mac: str, directory: str = "/sys/class/net") -> tuple[int, str]:
    """The index and name of the interface with a hardware address.

    Raises:
        RequestFailed: ``bad-spec``: there is none.
    """
    for name in sorted(os.listdir(directory)):
        if read_text(f"{directory}/{name}/address").strip().lower() == mac.lower():
            return int(read_text(f"{directory}/{name}/ifindex")), name
    raise bad(f"no interface has the hardware address {mac}")


def setup(interfaces: list[Any]) -> None:
    """Bring up the loopback interface and those that a request describes.

    Arguments:
        interfaces: ``{mac, addresses, gateway, mtu}`` each.

    Raises:
        RequestFailed: ``bad-spec``. OSError: the kernel refused something.
    """
    with Netlink() as netlink:
        netlink.up(1, None, "lo")  # the loopback interface is the first of every namespace
        for entry in interfaces:
            if not isinstance(entry, dict):
                raise bad("an interface must be an object")
            index, name = index_of(get_text(entry, "mac", 32))
            mtu = get_optional_int(entry, "mtu", 68, 65535)
            addresses = [parse_address(str(text)) for text in get_list(entry, "addresses", 64)]
            gateway = parse_address(get_text(entry, "gateway", 64)) if entry.get("gateway") is not None else None
            netlink.up(index, mtu, name)
            for family, address, prefix in addresses:
                netlink.add_address(index, family, address, prefix, name)
            if gateway is not None:
                netlink.add_default_route(index, gateway[0], gateway[1], f"{name}: gateway")
