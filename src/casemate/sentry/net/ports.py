"""Who is bound to which port, ip(7): one table for each protocol in each sandbox."""

from __future__ import annotations

import os
from collections.abc import Iterable
from errno import EADDRINUSE
from socket import AF_INET6
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_NET_BIND_SERVICE
from casemate.sentry.errno import SysError
from casemate.sentry.net.address import ANY6, is_any
from casemate.sentry.net.options import SO_REUSEADDR, SO_REUSEPORT

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.net.inet import InetSocket
    from casemate.sentry.net.tcp import TcpSocket
    from casemate.sentry.tasks.task import Task

FIRST_EPHEMERAL, LAST_EPHEMERAL = 32768, 60999
"""``net.ipv4.ip_local_port_range``."""


class Ports:
    """The ports of one protocol, and the sockets bound to each."""

    def __init__(self) -> None:
        self._bound: dict[int, dict[InetSocket, None]] = {}
        self._next = FIRST_EPHEMERAL + int.from_bytes(os.urandom(4), "little") % (LAST_EPHEMERAL - FIRST_EPHEMERAL + 1)

    def at(self, port: int) -> Iterable[InetSocket]:
        """Who is bound to a port."""
        return self._bound.get(port, ())

    def all(self) -> list[InetSocket]:
        """All bound sockets."""
        return [sock for bound in self._bound.values() for sock in bound]

    def add(self, sock: InetSocket, ip: bytes, port: int) -> None:
        """Bind a socket. ``port`` 0 stands for a free one. Raises SysError(EADDRINUSE)."""
        if port == 0:
            port = self._free()
        else:
            for other in self._bound.get(port, ()):
                if _conflict(sock, ip, other):
                    raise SysError(EADDRINUSE)
        self._bound.setdefault(port, {})[sock] = None
        sock.local_ip, sock.local_port = ip, port

    def remove(self, sock: InetSocket) -> None:
        """Unbind it; nothing where it is not bound."""
        bound = self._bound.get(sock.local_port)
        if bound is not None and sock in bound:
            del bound[sock]
            if not bound:
                del self._bound[sock.local_port]

    def _free(self) -> int:
        for _ in range(LAST_EPHEMERAL - FIRST_EPHEMERAL + 1):
            port = self._next
            self._next = port + 1 if port < LAST_EPHEMERAL else FIRST_EPHEMERAL
            if port not in self._bound:
                return port
        raise SysError(EADDRINUSE)


def _conflict(new: InetSocket, ip: bytes, old: InetSocket) -> bool:
    """Whether a socket cannot be bound where another one is, at the same port."""
    if not _overlap(new, ip, old):
        return False
    if new.options.get(SO_REUSEPORT) and old.options.get(SO_REUSEPORT) and new.uid == old.uid:
        return False
    reuse = new.options.get(SO_REUSEADDR) and old.options.get(SO_REUSEADDR)
    return not reuse or old.listening or new.listening


def _overlap(new: InetSocket, ip: bytes, old: InetSocket) -> bool:
    """Whether the same packets could be meant for both."""
    a, b = ip, old.local_ip
    if len(a) == len(b):
        return a == b or is_any(a) or is_any(b)
    # One is IPv4, the other IPv6: only "any" of an IPv6 socket that takes both meets an IPv4 address.
    wide, owner = (a, new) if len(a) == 16 else (b, old)
    return wide == ANY6 and owner.family == AF_INET6 and not owner.v6only


class Stack:
    """What internet sockets of one sandbox share."""

    def __init__(self) -> None:
        self.tcp = Ports()
        self.udp = Ports()
        self.udplite = Ports()
        self.echo = Ports()
        self.arrivals = 0
        """Connections so far: those that share a port take them in turn."""
        self.connections: dict[tuple[bytes, int, bytes, int], TcpSocket] = {}
        """Both ends of each TCP connection, by local address and port, and the peer's."""


def may_bind(task: Task, port: int, start: int) -> bool:
    """Whether the task may take a port.

    Arguments:
        start: ``net.ipv4.ip_unprivileged_port_start`` where the specification says nothing of it.
    """
    given = task.kernel.subsystems.get("sysctl", {}).get("net/ipv4/ip_unprivileged_port_start")
    if given is not None:
        start = int(given)  # its form was checked when the container was made
    return not 0 < port < start or task.creds.capable(CAP_NET_BIND_SERVICE)


def stack(kernel: Kernel) -> Stack:
    """The sandbox's."""
    found = kernel.subsystems.get("inet")
    if found is None:
        found = kernel.subsystems["inet"] = Stack()
    assert isinstance(found, Stack)
    return found
