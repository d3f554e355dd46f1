"""UDP and UDP-Lite between sockets of one sandbox, udp(7) and udplite(7)."""

from __future__ import annotations

import struct
from collections import deque
from errno import (
    EACCES,
    ECONNREFUSED,
    EDESTADDRREQ,
    EINVAL,
    EMSGSIZE,
    ENOPROTOOPT,
    ENOTCONN,
    EOPNOTSUPP,
)
from socket import AF_INET, AF_INET6, AF_UNSPEC, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.net.address import ANY4, ANY6, BROADCAST4, is_any, pack, wide
from casemate.sentry.net.buffer import SCARCE
from casemate.sentry.net.inet import InetSocket
from casemate.sentry.net.interfaces import LO_INDEX
from casemate.sentry.net.ipoptions import (
    IP_PKTINFO,
    IP_RECVTOS,
    IP_RECVTTL,
    IP_TOS,
    IP_TTL,
    IPV6_HOPLIMIT,
    IPV6_PKTINFO,
    IPV6_RECVHOPLIMIT,
    IPV6_RECVPKTINFO,
    IPV6_RECVTCLASS,
    IPV6_TCLASS,
    IPV6_UNICAST_HOPS,
)
from casemate.sentry.net.options import (
    SO_BROADCAST,
    SO_REUSEPORT,
    SO_TIMESTAMP,
    SO_TIMESTAMPNS,
    SOL_SOCKET,
    integer,
    word,
)
from casemate.sentry.net.ports import Ports
from casemate.sentry.net.socket import (
    MSG_OOB,
    MSG_PEEK,
    MSG_TRUNC,
    SHUT_RD,
    SHUT_WR,
    Control,
    Message,
)
from casemate.sentry.vfs.file import POLLERR, POLLHUP, POLLRDHUP, READABLE, WRITABLE

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

UDPLITE_SEND_CSCOV, UDPLITE_RECV_CSCOV = 10, 11
MAX_DATAGRAM = 65507
OVERHEAD = 512
"""What a datagram takes of the receiver's buffer beside its data."""
_AF_UNSPEC = AF_UNSPEC.to_bytes(2, "little")


class Datagram:
    """One datagram that waits to be received."""

    __slots__ = ("data", "destination", "hops", "port", "source", "time", "tos")

    def __init__(self, data: bytes, source: bytes, port: int, destination: bytes) -> None:
        self.data = data
        self.source = source
        self.port = port
        self.destination = destination
        self.hops = 64
        self.tos = 0
        self.time = 0


class UdpSocket(InetSocket):
    """A UDP socket."""

    max_datagram = MAX_DATAGRAM

    def __init__(self, task: Task, family: int, kind: int, protocol: int, flags: int = 0) -> None:
        super().__init__(task, family, kind, protocol, flags)
        self.receiving: deque[Datagram] = deque()
        self.used = 0
        self.read_shut = False
        self.write_shut = False
        self.dropped = 0
        self.coverage: dict[int, int] = {}
        """What checksums of UDP-Lite cover. Nothing is ever damaged here."""

    @property
    def ports(self) -> Ports:
        return self.stack.udp if self.protocol == IPPROTO_UDP else self.stack.udplite

    def connect(self, task: Task, address: bytes) -> None:
        if address[:2] == _AF_UNSPEC:
            self.reset_address()
            if not self.given_port:
                self.ports.remove(self)
                self.local_port = 0
            return
        ip, port, source = self.target(address)
        self.auto_bind()
        if is_any(self.local_ip):
            self.local_ip = source
        self.remote_ip, self.remote_port = ip, port
        self.error = 0

    def shutdown(self, task: Task, how: int) -> None:
        if not self.remote_ip:
            raise SysError(ENOTCONN)
        if how != SHUT_WR:
            self.read_shut = True
        if how != SHUT_RD:
            self.write_shut = True
        self.queue.notify()

    def release(self) -> None:
        self.ports.remove(self)
        self.receiving.clear()
        self.budget.used -= self.used
        self.used = 0

    def poll(self, task: Task) -> int:
        mask = WRITABLE
        if self.error:
            mask |= POLLERR
        if self.receiving:
            mask |= READABLE
        if self.read_shut:
            mask |= READABLE | POLLRDHUP
            if self.write_shut:
                mask |= POLLHUP
        return mask

    def pending(self) -> int:
        return len(self.receiving[0].data) if self.receiving else 0

    # Sending.

    def send(self, task: Task, data: bytes, flags: int, address: bytes = b"", control: Control | None = None) -> int:
        if flags & MSG_OOB:
            raise SysError(EOPNOTSUPP)
        if len(data) > MAX_DATAGRAM:
            raise SysError(EMSGSIZE)
        if address:
            if address[4:8] == BROADCAST4 and self.family == AF_INET and not self.options.get(SO_BROADCAST):
                raise SysError(EACCES)
            ip, port, source = self.target(address)
            if not port:
                raise SysError(EINVAL)
        elif self.remote_ip:
            ip, port, source = self.remote_ip, self.remote_port, self.local_ip
        else:
            raise SysError(EDESTADDRREQ)
        self.check_error()
        if self.write_shut:
            raise self.broken_pipe(task, flags)
        self.auto_bind()
        datagram = Datagram(data, source, self.local_port, ip)
        datagram.hops = self.ip[IP_TTL] if len(ip) == 4 else self.ip6[IPV6_UNICAST_HOPS]
        datagram.tos = self.ip[IP_TOS] if len(ip) == 4 else self.ip6[IPV6_TCLASS]
        datagram.time = task.kernel.clock.realtime()
        if control:
            _apply(datagram, control)
        receiver = self._find(ip, port, source)
        if receiver is not None:
            receiver._arrive(datagram)
        elif self.remote_ip == ip and self.remote_port == port:
            # "Port unreachable" is told only to those who are connected.
            self.error = ECONNREFUSED
            self.queue.notify(POLLERR)
        return len(data)

    def _find(self, ip: bytes, port: int, source: bytes) -> UdpSocket | None:
        """Who gets a datagram: who is connected to its sender, else who is bound to the very address, else to any;
        the one that was bound last where several are equal, or with SO_REUSEPORT always the same one for a sender."""
        best: list[UdpSocket] = []
        score = 0
        for sock in self.ports.at(port):
            assert isinstance(sock, UdpSocket)
            points = 1
            if sock.local_ip == ip:
                points += 4
            elif not is_any(sock.local_ip) or (len(sock.local_ip) != len(ip) and (len(ip) == 16 or sock.v6only)):
                continue
            elif len(sock.local_ip) == len(ip):
                points += 1
            if sock.remote_ip:
                if sock.remote_ip != source or sock.remote_port != self.local_port:
                    continue
                points += 8
            if points > score:
                best, score = [sock], points
            elif points == score:
                best.append(sock)
        if len(best) > 1 and best[-1].options.get(SO_REUSEPORT):
            return best[hash((source, self.local_port)) % len(best)]
        return best[-1] if best else None

    def _arrive(self, datagram: Datagram) -> None:
        used = len(datagram.data) + OVERHEAD
        if self.used and self.used + used > (SCARCE if self.budget.scarce else self.rcvbuf):
            self.dropped += 1
            return
        self.used += used
        self.budget.used += used
        self.receiving.append(datagram)
        self.queue.notify(READABLE)

    # Receiving.

    def receive(self, task: Task, size: int, flags: int) -> Message:
        if flags & MSG_OOB:
            raise SysError(EOPNOTSUPP)
        self.check_error()
        if not self.receiving:
            if self.read_shut:
                return Message(b"")
            raise self.wait_for(task, flags, self.receive_timeout)
        datagram = self.receiving[0]
        if not flags & MSG_PEEK:
            self.receiving.popleft()
            self.used -= len(datagram.data) + OVERHEAD
            self.budget.used -= len(datagram.data) + OVERHEAD
        message = Message(
            datagram.data[:size], pack(self.family, datagram.source, datagram.port), length=len(datagram.data)
        )
        if size < message.length:
            message.flags |= MSG_TRUNC
        self._tell(message, datagram)
        return message

    def _tell(self, message: Message, datagram: Datagram) -> None:
        """Add the control messages that were asked for."""
        control = message.control
        options = self.options
        if options:
            seconds, nanoseconds = divmod(datagram.time, 1_000_000_000)
            if options.get(SO_TIMESTAMPNS):
                control.append((SOL_SOCKET, SO_TIMESTAMPNS, struct.pack("<qq", seconds, nanoseconds)))
            elif options.get(SO_TIMESTAMP):
                control.append((SOL_SOCKET, SO_TIMESTAMP, struct.pack("<qq", seconds, nanoseconds // 1000)))
        if len(datagram.destination) == 4:
            ip = self.ip
            if ip[IP_PKTINFO]:
                info = struct.pack("<i", LO_INDEX) + datagram.destination * 2
                control.append((IPPROTO_IP, IP_PKTINFO, info))
            if ip[IP_RECVTTL]:
                control.append((IPPROTO_IP, IP_TTL, datagram.hops.to_bytes(4, "little")))
            if ip[IP_RECVTOS]:
                control.append((IPPROTO_IP, IP_TOS, bytes([datagram.tos])))
        if self.family == AF_INET6:
            ip6 = self.ip6
            if ip6[IPV6_RECVPKTINFO]:
                info = wide(datagram.destination) + struct.pack("<i", LO_INDEX)
                control.append((IPPROTO_IPV6, IPV6_PKTINFO, info))
            if len(datagram.destination) == 16:
                if ip6[IPV6_RECVHOPLIMIT]:
                    control.append((IPPROTO_IPV6, IPV6_HOPLIMIT, datagram.hops.to_bytes(4, "little")))
                if ip6[IPV6_RECVTCLASS]:
                    control.append((IPPROTO_IPV6, IPV6_TCLASS, datagram.tos.to_bytes(4, "little")))

    # Options.

    def get_option(self, task: Task, level: int, name: int, size: int) -> bytes:
        if level == self.protocol:
            if level == IPPROTO_UDP or name not in (UDPLITE_SEND_CSCOV, UDPLITE_RECV_CSCOV):
                raise SysError(ENOPROTOOPT)
            return word(self.coverage.get(name, 0))
        return super().get_option(task, level, name, size)

    def set_option(self, task: Task, level: int, name: int, value: bytes) -> None:
        if level == self.protocol:
            if level == IPPROTO_UDP or name not in (UDPLITE_SEND_CSCOV, UDPLITE_RECV_CSCOV):
                raise SysError(ENOPROTOOPT)
            coverage = integer(value)
            # The header of eight bytes is always covered; zero stands for all.
            self.coverage[name] = 0 if coverage == 0 else min(max(coverage, 8), 0xFFFF)
            return
        super().set_option(task, level, name, value)


def _apply(datagram: Datagram, control: Control) -> None:
    """What control messages ask for one datagram, ip(7). Raises SysError(EINVAL)."""
    for level, kind, value in control:
        if (level, kind) in ((IPPROTO_IP, IP_TTL), (IPPROTO_IPV6, IPV6_HOPLIMIT)):
            hops = integer(value)
            if not -1 <= hops <= 255 or (level == IPPROTO_IP and hops < 1):
                raise SysError(EINVAL)
            datagram.hops = 64 if hops == -1 else hops
        elif (level, kind) == (IPPROTO_IP, IP_TOS) and value:
            datagram.tos = value[0]
        elif (level, kind) == (IPPROTO_IPV6, IPV6_TCLASS):
            tos = integer(value)
            if not -1 <= tos <= 255:
                raise SysError(EINVAL)
            datagram.tos = max(0, tos)
        elif (level, kind) == (IPPROTO_IP, IP_PKTINFO):
            if len(value) < 12:
                raise SysError(EINVAL)
            if value[4:8] != ANY4:
                datagram.source = value[4:8]
        elif (level, kind) == (IPPROTO_IPV6, IPV6_PKTINFO):
            if len(value) < 20:
                raise SysError(EINVAL)
            if value[:16] != ANY6 and len(datagram.source) == 16:
                datagram.source = value[:16]
        elif level in (IPPROTO_IP, IPPROTO_IPV6):
            raise SysError(EINVAL)
