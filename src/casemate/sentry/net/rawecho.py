"""Raw sockets of ICMP, raw(7), as far as they send echo requests: for programs that ``ping`` in the old way.

The sentry has no right to a raw socket, and is to have none: it would read and forge whatever its network carries.
So one of an application's is an echo socket, icmp(7), with what a raw one has around it: the caller's identifier in the
answers, and a header of IP before them. Whoever sends anything else than echo requests by it gets EPERM.
"""

from __future__ import annotations

import struct
from errno import EINVAL, ENOPROTOOPT, EPERM
from socket import AF_INET, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IP, IPPROTO_IPV6, SOCK_DGRAM
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_NET_RAW
from casemate.sentry.errno import SysError
from casemate.sentry.net import options
from casemate.sentry.net.icmp import ECHO, ECHO6, checksum
from casemate.sentry.net.ipoptions import IP_RECVTTL, IP_TTL, IPV6_HOPLIMIT, IPV6_RECVHOPLIMIT
from casemate.sentry.net.socket import MSG_ERRQUEUE, MSG_TRUNC, Control, Message, Socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.sentry.tasks.task import Task

    Create = Callable[[Task, int, int, int, int], Socket]

SOL_RAW = 255
FILTER = 1
"""``ICMP_FILTER`` of SOL_RAW, ``ICMP6_FILTER`` of IPPROTO_ICMPV6."""
IPV6_CHECKSUM, IPV6_2292HOPLIMIT = 7, 8
HEADER = 20


class RawEcho(Socket):
    """A socket of ``SOCK_RAW`` with ``IPPROTO_ICMP`` or ``IPPROTO_ICMPV6``.

    Arguments:
        create: makes the echo socket, one of the sandbox's own loopback or one of the host's.
    """

    max_datagram = 65507

    def __init__(self, task: Task, family: int, kind: int, protocol: int, flags: int, create: Create) -> None:
        super().__init__(task, family, kind, protocol, flags)
        self.echo = create(task, family, SOCK_DGRAM, protocol, flags)
        self.four = family == AF_INET
        self.identifier = b"\0\0"
        """Of the requests that were sent last."""
        self.filter = b""
        self.header = False
        """Whether the caller wants to know the time to live by itself."""
        self.old_limit = False
        """Whether it is told of the hop limit in the way of RFC 2292."""
        # What waits for one waits for both.
        self.queue = self.echo.queue
        if self.four:
            self.echo.set_option(task, IPPROTO_IP, IP_RECVTTL, options.word(1))

    def release(self) -> None:
        self.echo.decref()

    def poll(self, task: Task) -> int:
        return self.echo.poll(task)

    def pending(self) -> int:
        size = self.echo.pending()
        return size + HEADER if size and self.four else size

    # Addresses: without ports.

    def bind(self, task: Task, address: bytes) -> None:
        self.echo.bind(task, address[:2] + bytes(2) + address[4:])

    def connect(self, task: Task, address: bytes) -> None:
        self.echo.connect(task, address)

    def name(self) -> bytes:
        name = self.echo.name()
        return name[:2] + bytes(2) + name[4:]

    def peer_name(self) -> bytes:
        return self.echo.peer_name()

    # Data.

    def send(self, task: Task, data: bytes, flags: int, address: bytes = b"", control: Control | None = None) -> int:
        if len(data) < 8:
            raise SysError(EINVAL)
        if data[0] != (ECHO if self.four else ECHO6) or data[1]:
            raise SysError(EPERM)
        self.identifier = data[4:6]
        self.echo.flags = self.flags
        return self.echo.send(task, data, flags, address, control)

    def receive(self, task: Task, size: int, flags: int) -> Message:
        self.echo.flags = self.flags
        head = HEADER if self.four else 0
        message = self.echo.receive(task, max(8, size - head) if not flags & MSG_ERRQUEUE else size, flags)
        if flags & MSG_ERRQUEUE:
            return message
        data = message.data
        if len(data) >= 8:
            data = _renamed(data, self.identifier)
        if self.four:
            data = self._header(message) + data
            message.length += HEADER
            if not self.header:
                message.control = [one for one in message.control if one[:2] != (IPPROTO_IP, IP_TTL)]
        elif self.old_limit:
            message.control = [
                (level, IPV6_2292HOPLIMIT if (level, name) == (IPPROTO_IPV6, IPV6_HOPLIMIT) else name, value)
                for level, name, value in message.control
            ]
        if len(data) > size:
            message.flags |= MSG_TRUNC
        message.data = data[:size]
        return message

    def _header(self, message: Message) -> bytes:
        """What IPv4 has before the answer; whom it was for is not told by an echo socket, but who sent it."""
        ttl = next((value[0] for level, name, value in message.control if (level, name) == (IPPROTO_IP, IP_TTL)), 64)
        source = message.address[4:8] if len(message.address) >= 8 else bytes(4)
        target = source if source[:1] == b"\x7f" else self.echo.name()[4:8]
        length = HEADER + message.length
        made = struct.pack(">BBHHHBBH4s4s", 0x45, 0, length, 0, 0, ttl, IPPROTO_ICMP, 0, source, target)
        return made[:10] + checksum(made).to_bytes(2, "big") + made[12:]

    # Options.

    def get_option(self, task: Task, level: int, name: int, size: int) -> bytes:
        if level == options.SOL_SOCKET and name in (options.SO_TYPE, options.SO_PROTOCOL, options.SO_DOMAIN):
            return super().get_option(task, level, name, size)
        if (level, name) == self._filter():
            return self.filter or bytes(4 if self.four else 32)
        if level == SOL_RAW:
            raise SysError(ENOPROTOOPT)
        return self.echo.get_option(task, level, name, size)

    def set_option(self, task: Task, level: int, name: int, value: bytes) -> None:
        if (level, name) == self._filter():
            # Nothing but answers to echo requests comes in any case, which is what the filters of "ping" let by.
            self.filter = value[: 4 if self.four else 32]
        elif name == IPV6_CHECKSUM and level in (SOL_RAW, IPPROTO_IPV6) and not self.four:
            return  # the kernel does it for ICMP
        elif level == SOL_RAW:
            raise SysError(ENOPROTOOPT)
        else:
            if level == IPPROTO_IP and name == IP_RECVTTL:
                self.header = any(value)
                value = options.word(1)
            elif level == IPPROTO_IPV6 and name == IPV6_2292HOPLIMIT:
                self.old_limit, name = any(value), IPV6_RECVHOPLIMIT
            self.echo.set_option(task, level, name, value)

    def _filter(self) -> tuple[int, int]:
        return (SOL_RAW, FILTER) if self.four else (IPPROTO_ICMPV6, FILTER)


def _renamed(data: bytes, identifier: bytes) -> bytes:
    """An answer with another identifier, and its checksum for that, RFC 1624: the rest of it may have been cut off."""
    given, old, new = (int.from_bytes(part, "big") for part in (data[2:4], data[4:6], identifier))
    total = (~given & 0xFFFF) + (~old & 0xFFFF) + new
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:2] + (~total & 0xFFFF).to_bytes(2, "big") + identifier + data[6:]


def create(task: Task, family: int, kind: int, protocol: int, flags: int, create: Create) -> RawEcho:
    """socket(2) of ``SOCK_RAW``. Raises SysError(EPERM) for all but ICMP, and for who may have none: whoever pings goes
    on with an echo socket after this error, and not after others."""
    wanted = IPPROTO_ICMP if family == AF_INET else IPPROTO_ICMPV6
    if protocol != wanted or not task.creds.capable(CAP_NET_RAW):
        raise SysError(EPERM)
    return RawEcho(task, family, kind, protocol, flags, create)
