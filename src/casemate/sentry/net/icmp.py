"""Echo ("ping") sockets, icmp(7): requests to the sandbox's own addresses, which it answers itself."""

from __future__ import annotations

import struct
from collections import deque
from errno import EACCES, EDESTADDRREQ, EINVAL, EMSGSIZE, EOPNOTSUPP
from socket import AF_INET, AF_UNSPEC, IPPROTO_IP, IPPROTO_IPV6
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.net.address import pack
from casemate.sentry.net.inet import InetSocket
from casemate.sentry.net.ipoptions import IP_RECVTTL, IP_TTL, IPV6_HOPLIMIT, IPV6_RECVHOPLIMIT
from casemate.sentry.net.options import SO_TIMESTAMP, SOL_SOCKET, word
from casemate.sentry.net.ports import Ports
from casemate.sentry.net.socket import MSG_OOB, MSG_PEEK, MSG_TRUNC, Control, Message
from casemate.sentry.vfs.file import READABLE, WRITABLE

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

ECHO, ECHO_REPLY = 8, 0
ECHO6, ECHO_REPLY6 = 128, 129
MAX_WAITING = 256
MAX_ECHO = 65507
PING_GROUPS = "net/ipv4/ping_group_range"
LAST_GROUP = 0x7FFF_FFFF


def ping_groups(kernel: Kernel) -> tuple[int, int]:
    """``net.ipv4.ping_group_range``, icmp(7): the first and the last group that may have an echo socket. All may where
    the specification says nothing of it; a range that begins behind its end is nobody's, and is then 1 to 0."""
    given: str | None = kernel.subsystems.get("sysctl", {}).get(PING_GROUPS)
    if given is None:
        return 0, LAST_GROUP
    first, last = map(int, given.split())  # its form was checked when the container was made
    return (first, last) if first <= last else (1, 0)


def permit(task: Task) -> None:
    """Raises SysError(EACCES) where none of the task's groups may have an echo socket, whatever else it may."""
    first, last = ping_groups(task.kernel)
    creds = task.creds
    if not any(first <= group <= last for group in (creds.egid, *creds.groups)):
        raise SysError(EACCES)


def checksum(data: bytes) -> int:
    """The internet checksum, RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class EchoSocket(InetSocket):
    """A socket of ``IPPROTO_ICMP`` or ``IPPROTO_ICMPV6``. Its "port" is the identifier of its requests."""

    max_datagram = MAX_ECHO

    def __init__(self, task: Task, family: int, kind: int, protocol: int, flags: int = 0) -> None:
        super().__init__(task, family, kind, protocol, flags)
        self.answers: deque[tuple[bytes, bytes, int]] = deque()
        """Replies, where each is from, and when it came."""

    @property
    def ports(self) -> Ports:
        return self.stack.echo

    def connect(self, task: Task, address: bytes) -> None:
        if address[:2] == AF_UNSPEC.to_bytes(2, "little"):
            self.remote_ip = b""
            return
        self.remote_ip, self.remote_port, _ = self.target(address)
        self.auto_bind()

    def release(self) -> None:
        self.ports.remove(self)
        self.answers.clear()

    def poll(self, task: Task) -> int:
        return WRITABLE | READABLE if self.answers else WRITABLE

    def pending(self) -> int:
        return len(self.answers[0][0]) if self.answers else 0

    def send(self, task: Task, data: bytes, flags: int, address: bytes = b"", control: Control | None = None) -> int:
        if flags & MSG_OOB:
            raise SysError(EOPNOTSUPP)
        if len(data) > MAX_ECHO:
            raise SysError(EMSGSIZE)
        if address:
            ip, _, _ = self.target(address)
        elif self.remote_ip:
            ip = self.remote_ip
        else:
            raise SysError(EDESTADDRREQ)
        four = self.family == AF_INET
        if len(data) < 8 or data[0] != (ECHO if four else ECHO6) or data[1] or len(ip) != (4 if four else 16):
            raise SysError(EINVAL)
        self.auto_bind()
        if len(self.answers) < MAX_WAITING:
            head = bytes([ECHO_REPLY if four else ECHO_REPLY6, 0, 0, 0])
            reply = head + self.local_port.to_bytes(2, "big") + data[6:]
            if four:
                reply = reply[:2] + checksum(reply).to_bytes(2, "big") + reply[4:]
            self.answers.append((reply, ip, task.kernel.clock.realtime()))
            self.queue.notify(READABLE)
        return len(data)

    def receive(self, task: Task, size: int, flags: int) -> Message:
        if flags & MSG_OOB:
            raise SysError(EOPNOTSUPP)
        if not self.answers:
            raise self.wait_for(task, flags, self.receive_timeout)
        data, ip, time = self.answers[0] if flags & MSG_PEEK else self.answers.popleft()
        message = Message(data[:size], pack(self.family, ip, 0), length=len(data))
        if size < len(data):
            message.flags |= MSG_TRUNC
        if self.options.get(SO_TIMESTAMP):
            stamp = struct.pack("<qq", *divmod(time // 1000, 1_000_000))
            message.control.append((SOL_SOCKET, SO_TIMESTAMP, stamp))
        if self.ip[IP_RECVTTL] and self.family == AF_INET:
            message.control.append((IPPROTO_IP, IP_TTL, word(64)))
        if self.ip6[IPV6_RECVHOPLIMIT] and self.family != AF_INET:
            message.control.append((IPPROTO_IPV6, IPV6_HOPLIMIT, word(64)))
        return message
