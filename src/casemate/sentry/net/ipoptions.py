"""Options of levels ``IPPROTO_IP`` and ``IPPROTO_IPV6``, ip(7) and ipv6(7), that only have to be kept."""

from __future__ import annotations

from errno import EINVAL, ENOPROTOOPT, EPERM
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_NET_ADMIN
from casemate.sentry.errno import SysError

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

IP_TOS, IP_TTL, IP_HDRINCL, IP_RECVOPTS, IP_RETOPTS, IP_PKTINFO = 1, 2, 3, 6, 7, 8
IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTTL, IP_RECVTOS, IP_MTU, IP_FREEBIND = 10, 11, 12, 13, 14, 15
IP_TRANSPARENT, IP_RECVORIGDSTADDR, IP_MINTTL, IP_NODEFRAG, IP_BIND_ADDRESS_NO_PORT = 19, 20, 21, 22, 24
IP_RECVFRAGSIZE, IP_MULTICAST_IF, IP_MULTICAST_TTL, IP_MULTICAST_LOOP, IP_MULTICAST_ALL = 25, 32, 33, 34, 49
IPV6_UNICAST_HOPS, IPV6_MULTICAST_IF, IPV6_MULTICAST_HOPS, IPV6_MULTICAST_LOOP = 16, 17, 18, 19
IPV6_MTU_DISCOVER, IPV6_MTU, IPV6_RECVERR, IPV6_V6ONLY, IPV6_AUTOFLOWLABEL = 23, 24, 25, 26, 70
IPV6_RECVPKTINFO, IPV6_PKTINFO, IPV6_RECVHOPLIMIT, IPV6_HOPLIMIT, IPV6_RECVHOPOPTS = 49, 50, 51, 52, 53
IPV6_RECVRTHDR, IPV6_RECVDSTOPTS, IPV6_RECVPATHMTU, IPV6_DONTFRAG, IPV6_RECVTCLASS, IPV6_TCLASS = (
    56,
    58,
    60,
    62,
    66,
    67,
)
MTU = 65536

IP: dict[int, tuple[int, int, int]] = {
    IP_TOS: (0, 0, 255),
    IP_TTL: (64, -1, 255),
    IP_RECVOPTS: (0, 0, 1),
    IP_RETOPTS: (0, 0, 1),
    IP_PKTINFO: (0, 0, 1),
    IP_MTU_DISCOVER: (1, 0, 5),
    IP_RECVERR: (0, 0, 1),
    IP_RECVTTL: (0, 0, 1),
    IP_RECVTOS: (0, 0, 1),
    IP_FREEBIND: (0, 0, 1),
    IP_TRANSPARENT: (0, 0, 1),
    IP_RECVORIGDSTADDR: (0, 0, 1),
    IP_MINTTL: (0, 0, 255),
    IP_NODEFRAG: (0, 0, 1),
    IP_BIND_ADDRESS_NO_PORT: (0, 0, 1),
    IP_MULTICAST_TTL: (1, -1, 255),
    IP_MULTICAST_LOOP: (1, 0, 1),
    IP_MULTICAST_ALL: (1, 0, 1),
}
"""Default, least and greatest value of each."""

IPV6: dict[int, tuple[int, int, int]] = {
    IPV6_UNICAST_HOPS: (64, -1, 255),
    IPV6_MULTICAST_HOPS: (1, -1, 255),
    IPV6_MULTICAST_LOOP: (1, 0, 1),
    IPV6_MTU_DISCOVER: (1, 0, 5),
    IPV6_RECVERR: (0, 0, 1),
    IPV6_V6ONLY: (0, 0, 1),
    IPV6_RECVPKTINFO: (0, 0, 1),
    IPV6_RECVHOPLIMIT: (0, 0, 1),
    IPV6_RECVHOPOPTS: (0, 0, 1),
    IPV6_RECVRTHDR: (0, 0, 1),
    IPV6_RECVDSTOPTS: (0, 0, 1),
    IPV6_RECVPATHMTU: (0, 0, 1),
    IPV6_DONTFRAG: (0, 0, 1),
    IPV6_RECVTCLASS: (0, 0, 1),
    IPV6_TCLASS: (0, -1, 255),
    IPV6_AUTOFLOWLABEL: (1, 0, 1),
}


class IpOptions:
    """The values of one socket's options of one level.

    Arguments:
        known: :data:`IP` or :data:`IPV6`.
    """

    __slots__ = ("_known", "_values")

    def __init__(self, known: dict[int, tuple[int, int, int]], values: dict[int, int] | None = None) -> None:
        self._known = known
        self._values: dict[int, int] = values or {}

    def __getitem__(self, name: int) -> int:
        """An option's value."""
        value = self._values.get(name)
        return self._known[name][0] if value is None else value

    def copy(self) -> IpOptions:
        """The same values, for an accepted connection."""
        return IpOptions(self._known, dict(self._values))

    def get(self, name: int) -> int:
        """getsockopt(2). Raises SysError(ENOPROTOOPT)."""
        if name == (IP_MTU if self._known is IP else IPV6_MTU):
            return MTU
        if name not in self._known:
            raise SysError(ENOPROTOOPT)
        return self[name]

    def set(self, task: Task, name: int, value: bytes) -> None:
        """setsockopt(2); IPv4's take one byte as well. Raises SysError: EINVAL, ENOPROTOOPT, EPERM."""
        known = self._known.get(name)
        if known is None:
            raise SysError(ENOPROTOOPT)
        default, least, greatest = known
        if len(value) >= 4:
            number = int.from_bytes(value[:4], "little", signed=True)
        elif value and self._known is IP:
            number = value[0]
        else:
            raise SysError(EINVAL)
        if (least, greatest) == (0, 1):
            number = int(bool(number))
        if self._known is IP and name == IP_TOS:
            number &= 0xFF
        if not least <= number <= greatest or (name == IP_TTL and self._known is IP and number == 0):
            raise SysError(EINVAL)
        if name == IP_TRANSPARENT and self._known is IP and number and not task.creds.capable(CAP_NET_ADMIN):
            raise SysError(EPERM)
        self._values[name] = default if number == -1 else number
