"""Netlink, netlink(7) and rtnetlink(7): dumps of the loopback interface, its addresses and routes.

getifaddrs(3), getaddrinfo(3) and ip(8) ask in this way. Nothing can be changed: the network is decided about outside.
"""

from __future__ import annotations

import struct
from collections import deque
from errno import EINVAL, ENODEV, EOPNOTSUPP, EPERM, EPROTONOSUPPORT, ESOCKTNOSUPPORT
from socket import AF_INET, AF_INET6, AF_NETLINK, AF_UNSPEC, SOCK_DGRAM, SOCK_RAW
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.net.address import LOOPBACK4, LOOPBACK6
from casemate.sentry.net.interfaces import ARPHRD_LOOPBACK, LO_FLAGS, LO_INDEX, LO_MTU, LO_NAME, LO_TXQLEN
from casemate.sentry.net.options import integer, word
from casemate.sentry.net.socket import MSG_OOB, MSG_PEEK, MSG_TRUNC, Control, Message, Socket
from casemate.sentry.vfs.file import READABLE, WRITABLE

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SOL_NETLINK = 270
NETLINK_ROUTE = 0
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_ROOT, NLM_F_MATCH = 0x1, 0x2, 0x4, 0x100, 0x200
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH
RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE = 16, 18, 20, 22, 24, 26
RTM_GETNEIGH, RTM_GETRULE, RTM_MAX = 30, 34, 120
IFLA_ADDRESS, IFLA_BROADCAST, IFLA_IFNAME, IFLA_MTU, IFLA_QDISC, IFLA_STATS = 1, 2, 3, 4, 6, 7
IFLA_TXQLEN, IFLA_OPERSTATE, IFLA_LINKMODE, IFLA_GROUP, IFLA_PROMISCUITY = 13, 16, 17, 27, 30
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 3, 6, 8
RTA_DST, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY, RTA_TABLE = 1, 4, 7, 6, 15
IFA_F_PERMANENT = 0x80
RT_TABLE_LOCAL, RTPROT_KERNEL, RTN_LOCAL = 255, 2, 2
RT_SCOPE_HOST = 254
MAX_PENDING = 64
"""Answers that nobody receives."""
_HEADER = struct.Struct("<IHHII")


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("<HH", length, kind) + value + bytes(-length % 4)


def _link() -> bytes:
    """``struct ifinfomsg`` of lo with its attributes."""
    head = struct.pack("<BxHiII", AF_UNSPEC, ARPHRD_LOOPBACK, LO_INDEX, LO_FLAGS | 0x10000, 0)
    return head + b"".join(
        (
            _attribute(IFLA_IFNAME, LO_NAME + b"\0"),
            _attribute(IFLA_TXQLEN, word(LO_TXQLEN)),
            _attribute(IFLA_OPERSTATE, b"\0"),
            _attribute(IFLA_LINKMODE, b"\0"),
            _attribute(IFLA_MTU, word(LO_MTU)),
            _attribute(IFLA_GROUP, word(0)),
            _attribute(IFLA_PROMISCUITY, word(0)),
            _attribute(IFLA_ADDRESS, bytes(6)),
            _attribute(IFLA_BROADCAST, bytes(6)),
            _attribute(IFLA_QDISC, b"noqueue\0"),
            _attribute(IFLA_STATS, bytes(23 * 4)),
        )
    )


def _address(family: int) -> bytes:
    """``struct ifaddrmsg`` of lo's address of one family."""
    ip, prefix = (LOOPBACK4, 8) if family == AF_INET else (LOOPBACK6, 128)
    head = struct.pack("<BBBBI", family, prefix, IFA_F_PERMANENT, RT_SCOPE_HOST, LO_INDEX)
    parts = [head, _attribute(IFA_ADDRESS, ip)]
    if family == AF_INET:
        parts += [_attribute(IFA_LOCAL, ip), _attribute(IFA_LABEL, LO_NAME + b"\0")]
    parts.append(_attribute(IFA_CACHEINFO, struct.pack("<IIII", 0xFFFF_FFFF, 0xFFFF_FFFF, 0, 0)))
    parts.append(_attribute(IFA_FLAGS, word(IFA_F_PERMANENT)))
    return b"".join(parts)


def _route(family: int) -> bytes:
    """``struct rtmsg`` of the route to lo's addresses."""
    ip, prefix = (b"\x7f\0\0\0", 8) if family == AF_INET else (LOOPBACK6, 128)
    head = struct.pack("<BBBBBBBBI", family, prefix, 0, 0, RT_TABLE_LOCAL, RTPROT_KERNEL, RT_SCOPE_HOST, RTN_LOCAL, 0)
    parts = [head, _attribute(RTA_TABLE, word(RT_TABLE_LOCAL)), _attribute(RTA_DST, ip)]
    if family == AF_INET:
        parts.append(_attribute(RTA_PREFSRC, LOOPBACK4))
    else:
        parts.append(_attribute(RTA_PRIORITY, word(0)))
    parts.append(_attribute(RTA_OIF, word(LO_INDEX)))
    return b"".join(parts)


class NetlinkSocket(Socket):
    """A socket that asks the kernel."""

    def __init__(self, task: Task, kind: int, protocol: int, flags: int = 0) -> None:
        super().__init__(task, AF_NETLINK, kind, protocol, flags)
        self.port = 0
        self.groups = 0
        self.kept: dict[int, int] = {}
        self.answers: deque[bytes] = deque()

    def bind(self, task: Task, address: bytes) -> None:
        port, groups = _parse(address)
        if self.port and port not in (0, self.port):
            raise SysError(EINVAL)
        if port:
            self.port = port
        self._bound(task)
        self.groups = groups

    def _bound(self, task: Task) -> None:
        """Linux gives the first socket of a process its pid as the port, further ones other numbers."""
        if not self.port:
            used = task.kernel.subsystems.setdefault("netlink", {})
            self.port = task.group.pid
            while used.get((self.protocol, self.port), self) is not self:
                self.port = 0xFFFF_F000 - len(used) if self.port == task.group.pid else self.port - 1
            used[(self.protocol, self.port)] = self
            self._used = used

    _used: dict[tuple[int, int], NetlinkSocket] | None = None

    def release(self) -> None:
        if self._used is not None and self._used.get((self.protocol, self.port)) is self:
            del self._used[(self.protocol, self.port)]
        self.answers.clear()

    def connect(self, task: Task, address: bytes) -> None:
        if address[:2] == b"\0\0":
            return
        port, _ = _parse(address)
        if port:
            raise SysError(EPERM)
        self._bound(task)

    def name(self) -> bytes:
        return struct.pack("<HHII", AF_NETLINK, 0, self.port, self.groups)

    def peer_name(self) -> bytes:
        return struct.pack("<HHII", AF_NETLINK, 0, 0, 0)

    def send(self, task: Task, data: bytes, flags: int, address: bytes = b"", control: Control | None = None) -> int:
        if flags & MSG_OOB:
            raise SysError(EOPNOTSUPP)
        if address and _parse(address)[0]:
            raise SysError(EPERM)
        self._bound(task)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, request, sequence, _ = _HEADER.unpack_from(data, at)
            if not _HEADER.size <= length <= len(data) - at:
                break
            if request & NLM_F_REQUEST and kind >= RTM_NEWLINK:
                self._request(kind, request, sequence, data[at : at + length])
            elif request & NLM_F_ACK:
                self._error(sequence, 0, data[at : at + length])
            at += (length + 3) & ~3
        return len(data)

    def _request(self, kind: int, flags: int, sequence: int, message: bytes) -> None:
        body = message[_HEADER.size :]
        if kind > RTM_MAX or self.protocol != NETLINK_ROUTE:
            self._error(sequence, EOPNOTSUPP, message)
            return
        if (kind - RTM_NEWLINK) % 4 != 2:
            self._error(sequence, EPERM, message)
            return
        family = body[0] if body else AF_UNSPEC
        answers: list[tuple[int, bytes]] = []
        families = [which for which in (AF_INET, AF_INET6) if family in (AF_UNSPEC, which)]
        if kind == RTM_GETLINK:
            if not flags & NLM_F_DUMP and not _asks_for_lo(body):
                self._error(sequence, ENODEV, message)
                return
            answers = [(RTM_NEWLINK, _link())]
        elif kind == RTM_GETADDR:
            answers = [(RTM_NEWADDR, _address(which)) for which in families]
        elif kind == RTM_GETROUTE:
            answers = [(RTM_NEWROUTE, _route(which)) for which in families]
        elif not flags & NLM_F_DUMP:
            self._error(sequence, EOPNOTSUPP, message)
            return
        if flags & NLM_F_DUMP:
            parts = [self._message(what, NLM_F_MULTI, sequence, answer) for what, answer in answers]
            self.answer(b"".join(parts) + self._message(NLMSG_DONE, NLM_F_MULTI, sequence, bytes(4)))
        else:
            for what, answer in answers[:1]:
                self.answer(self._message(what, 0, sequence, answer))
            if flags & NLM_F_ACK:
                self._error(sequence, 0, message)

    def _message(self, kind: int, flags: int, sequence: int, body: bytes) -> bytes:
        length = _HEADER.size + len(body)
        return _HEADER.pack(length, kind, flags, sequence, self.port) + body + bytes(-length % 4)

    def _error(self, sequence: int, error: int, message: bytes) -> None:
        """``struct nlmsgerr``: an error, or an acknowledgement."""
        body = struct.pack("<i", -error) + (message if error else message[: _HEADER.size])
        self.answer(self._message(NLMSG_ERROR, 0, sequence, body))

    def answer(self, data: bytes) -> None:
        """Have it received; what is too much is lost."""
        if len(self.answers) < MAX_PENDING:
            self.answers.append(data)
            self.queue.notify(READABLE)

    def poll(self, task: Task) -> int:
        return WRITABLE | READABLE if self.answers else WRITABLE

    def pending(self) -> int:
        return len(self.answers[0]) if self.answers else 0

    def receive(self, task: Task, size: int, flags: int) -> Message:
        if not self.answers:
            raise self.wait_for(task, flags, self.receive_timeout)
        data = self.answers[0] if flags & MSG_PEEK else self.answers.popleft()
        message = Message(data[:size], self.peer_name(), length=len(data))
        if size < len(data):
            message.flags |= MSG_TRUNC
        return message

    def get_option(self, task: Task, level: int, name: int, size: int) -> bytes:
        if level == SOL_NETLINK:
            return word(self.kept.get(name, 0))
        return super().get_option(task, level, name, size)

    def set_option(self, task: Task, level: int, name: int, value: bytes) -> None:
        if level == SOL_NETLINK:
            if not 1 <= name <= 12:
                raise SysError(EINVAL)
            self.kept[name] = integer(value)
            return
        super().set_option(task, level, name, value)


def _asks_for_lo(body: bytes) -> bool:
    """Whether an RTM_GETLINK for one interface means lo, by index or name."""
    if len(body) < 16:
        return False
    index = int.from_bytes(body[4:8], "little", signed=True)
    if index:
        return index == LO_INDEX
    at = 16
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("<HH", body, at)
        if length < 4:
            break
        if kind == IFLA_IFNAME:
            return body[at + 4 : at + length].rstrip(b"\0") == LO_NAME
        at += (length + 3) & ~3
    return False


def _parse(address: bytes) -> tuple[int, int]:
    """Port and groups of a ``struct sockaddr_nl``. Raises SysError(EINVAL)."""
    if len(address) < 12 or int.from_bytes(address[:2], "little") != AF_NETLINK:
        raise SysError(EINVAL)
    port, groups = struct.unpack_from("<4xII", address)
    return port, groups


def create(task: Task, kind: int, protocol: int, flags: int) -> NetlinkSocket:
    """socket(2) of ``AF_NETLINK``. Raises SysError: ESOCKTNOSUPPORT, EPROTONOSUPPORT for all but NETLINK_ROUTE."""
    if kind not in (SOCK_RAW, SOCK_DGRAM):
        raise SysError(ESOCKTNOSUPPORT)
    if protocol != NETLINK_ROUTE:
        raise SysError(EPROTONOSUPPORT)
    return NetlinkSocket(task, kind, protocol, flags)
