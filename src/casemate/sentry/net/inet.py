"""Internet sockets on the sandbox's own loopback interface, ip(7) and ipv6(7): what TCP and UDP have in common."""

from __future__ import annotations

from errno import (
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EINVAL,
    ENETUNREACH,
    ENODEV,
    ENOTCONN,
    EPROTONOSUPPORT,
    ESOCKTNOSUPPORT,
)
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    SOCK_DGRAM,
    SOCK_RAW,
    SOCK_STREAM,
)
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.net import ipoptions
from casemate.sentry.net.address import (
    ANY4,
    ANY6,
    BROADCAST4,
    is_any,
    is_local,
    is_multicast,
    pack,
    parse,
    route,
)
from casemate.sentry.net.ipoptions import IP_FREEBIND, IPV6_MULTICAST_IF, IPV6_V6ONLY, IpOptions
from casemate.sentry.net.options import integer, word
from casemate.sentry.net.ports import Ports, Stack, may_bind, stack
from casemate.sentry.net.socket import Socket

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

IPPROTO_UDPLITE = 136
UNPRIVILEGED = 1024
"""``net.ipv4.ip_unprivileged_port_start``."""
_MULTICAST_IF, _GROUPS = 32, frozenset((35, 36, 39, 40, 41, 42, 43, 44, 45, 46, 47))
"""``IP_MULTICAST_IF``, and joining and leaving groups."""
_GROUPS6 = frozenset((20, 21, 42, 43, 44, 45, 46, 47))


class InetSocket(Socket):
    """A TCP or UDP socket."""

    def __init__(self, task: Task, family: int, kind: int, protocol: int, flags: int = 0) -> None:
        super().__init__(task, family, kind, protocol, flags)
        self.stack: Stack = stack(task.kernel)
        self.ip = IpOptions(ipoptions.IP)
        self.ip6 = IpOptions(ipoptions.IPV6)
        self.local_ip = ANY4 if family == AF_INET else ANY6
        self.local_port = 0
        """0 while it is not bound."""
        self.given_ip = self.given_port = False
        """bind(2) gave them; what connect(2) chose is let go of again."""
        self.remote_ip = b""
        """Empty while it is not connected."""
        self.remote_port = 0

    @property
    def ports(self) -> Ports:
        """Of its protocol."""
        raise NotImplementedError

    @property
    def v6only(self) -> bool:
        """Whether an IPv6 socket has nothing to do with IPv4."""
        return bool(self.ip6[IPV6_V6ONLY])

    # Addresses.

    def bind(self, task: Task, address: bytes) -> None:
        if self.family == AF_INET and address[:2] == AF_UNSPEC.to_bytes(2, "little") and address[4:8] == ANY4:
            # Old programs leave the family out.
            address = AF_INET.to_bytes(2, "little") + address[2:]
        ip, port = parse(self.family, address)
        if self.family == AF_INET6 and len(ip) == 4 and self.v6only:
            raise SysError(EINVAL)
        if not (is_any(ip) or is_local(ip) or is_multicast(ip) or ip == BROADCAST4 or self.ip[IP_FREEBIND]):
            raise SysError(EADDRNOTAVAIL)
        if not may_bind(task, port, UNPRIVILEGED):
            raise SysError(EACCES)
        if self.local_port or self.remote_ip or self.listening:
            raise SysError(EINVAL)
        self.ports.add(self, ip, port)
        self.given_ip, self.given_port = not is_any(ip), port != 0

    def reset_address(self) -> None:
        """It is connected no more: forget the address that connecting chose."""
        self.remote_ip = b""
        self.remote_port = 0
        if not self.given_ip:
            self.local_ip = ANY4 if self.family == AF_INET else ANY6

    def auto_bind(self, ip: bytes | None = None) -> None:
        """Take a free port where it has none. Raises SysError(EADDRNOTAVAIL)."""
        if not self.local_port:
            try:
                self.ports.add(self, self.local_ip if ip is None else ip, 0)
            except SysError as error:
                raise SysError(EADDRNOTAVAIL if error.errno == EADDRINUSE else error.errno) from None

    def target(self, address: bytes) -> tuple[bytes, int, bytes]:
        """Where an address that the application gives leads: address, port, and the address to send from.

        Raises SysError: EINVAL, EAFNOSUPPORT, ENETUNREACH.
        """
        family = self.family
        if family == AF_INET6 and self.kind == SOCK_DGRAM and address[:2] == AF_INET.to_bytes(2, "little"):
            family = AF_INET
        ip, port = parse(family, address)
        if self.family == AF_INET6:
            if len(ip) == 4 and self.v6only:
                raise SysError(ENETUNREACH)
            if ip == ANY6 and len(self.local_ip) == 4:
                ip = ANY4
            if self.local_port and not is_any(self.local_ip) and len(self.local_ip) != len(ip):
                raise SysError(ENETUNREACH)
        if ip == BROADCAST4 or is_multicast(ip):
            raise SysError(ENETUNREACH)
        ip, source = route(ip)
        if not is_any(self.local_ip) and len(self.local_ip) == len(ip):
            source = self.local_ip
        return ip, port, source

    def name(self) -> bytes:
        return pack(self.family, self.local_ip, self.local_port)

    def peer_name(self) -> bytes:
        if not self.remote_ip:
            raise SysError(ENOTCONN)
        return pack(self.family, self.remote_ip, self.remote_port)

    # Options.

    def get_option(self, task: Task, level: int, name: int, size: int) -> bytes:
        if level == IPPROTO_IP:
            if name == _MULTICAST_IF:
                return ANY4
            value = word(self.ip.get(name))
            # A small buffer gets the value as one byte, ip(7).
            return value[:1] if 0 < size < 4 else value
        if level == IPPROTO_IPV6 and self.family == AF_INET6:
            if name == IPV6_MULTICAST_IF:
                return word(0)
            return word(self.ip6.get(name))
        return super().get_option(task, level, name, size)

    def set_option(self, task: Task, level: int, name: int, value: bytes) -> None:
        if level == IPPROTO_IP:
            if name in _GROUPS:
                raise SysError(ENODEV)
            if name == _MULTICAST_IF:
                if len(value) < 4:
                    raise SysError(EINVAL)
                interface = value[4:8] if len(value) >= 8 else value[:4]
                if not (is_any(interface) or is_local(interface)):
                    raise SysError(EADDRNOTAVAIL)
                return
            self.ip.set(task, name, value)
        elif level == IPPROTO_IPV6 and self.family == AF_INET6:
            if name in _GROUPS6:
                raise SysError(ENODEV)
            if name == IPV6_MULTICAST_IF:
                if integer(value) not in (0, 1):
                    raise SysError(ENODEV)
                return
            if name == IPV6_V6ONLY and self.local_port:
                raise SysError(EINVAL)
            self.ip6.set(task, name, value)
        else:
            super().set_option(task, level, name, value)


def create(task: Task, family: int, kind: int, protocol: int, flags: int) -> Socket:
    """socket(2) of ``AF_INET`` and ``AF_INET6``. Raises SysError: EPROTONOSUPPORT, ESOCKTNOSUPPORT, EPERM, EACCES."""
    from casemate.sentry.net import rawecho
    from casemate.sentry.net.icmp import EchoSocket, permit
    from casemate.sentry.net.tcp import TcpSocket
    from casemate.sentry.net.udp import UdpSocket

    if kind == SOCK_STREAM and protocol in (0, IPPROTO_TCP):
        return TcpSocket(task, family, kind, IPPROTO_TCP, flags)
    if kind == SOCK_DGRAM and protocol in (0, IPPROTO_UDP):
        return UdpSocket(task, family, kind, IPPROTO_UDP, flags)
    if kind == SOCK_DGRAM and protocol == IPPROTO_UDPLITE:
        return UdpSocket(task, family, kind, protocol, flags)
    if kind == SOCK_DGRAM and (family, protocol) in ((AF_INET, IPPROTO_ICMP), (AF_INET6, IPPROTO_ICMPV6)):
        permit(task)
        return EchoSocket(task, family, kind, protocol, flags)
    if kind == SOCK_RAW:
        return rawecho.create(task, family, kind, protocol, flags, EchoSocket)
    if kind in (SOCK_STREAM, SOCK_DGRAM):
        raise SysError(EPROTONOSUPPORT)
    raise SysError(ESOCKTNOSUPPORT)
