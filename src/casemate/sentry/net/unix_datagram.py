"""UNIX datagram sockets, unix(7)."""

from __future__ import annotations

from errno import ECONNREFUSED, EMSGSIZE, ENOTCONN, EOPNOTSUPP, EPERM
from socket import AF_UNSPEC
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.net.options import SO_PASSCRED
from casemate.sentry.net.socket import MSG_OOB, SHUT_RD, SHUT_WR, Control, Message
from casemate.sentry.net.unix import UnixSocket
from casemate.sentry.vfs.file import POLLERR, POLLHUP, POLLRDHUP, READABLE, WRITABLE

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

MAX_QUEUE = 10
"""``net.unix.max_dgram_qlen``: with more datagrams in its queue a socket takes none but from its own peer."""


class UnixDatagram(UnixSocket):
    """``SOCK_DGRAM``."""

    def __init__(self, task: Task, kind: int, flags: int = 0) -> None:
        super().__init__(task, kind, flags)
        self.peer: UnixDatagram | None = None
        self.senders: dict[UnixDatagram, None] = {}
        """Who is connected to it: they are told when it takes datagrams again, and when it is gone."""

    def join(self, other: UnixSocket) -> None:
        assert isinstance(other, UnixDatagram)
        self._set_peer(other)
        other._set_peer(self)

    def _set_peer(self, peer: UnixDatagram | None) -> None:
        if self.peer is not None:
            self.peer.senders.pop(self, None)
        self.peer = peer
        if peer is not None:
            peer.senders[self] = None

    def connect(self, task: Task, address: bytes) -> None:
        if len(address) >= 2 and int.from_bytes(address[:2], "little") == AF_UNSPEC:
            self._set_peer(None)
            return
        peer = self.find(task, address)
        assert isinstance(peer, UnixDatagram)
        if peer.peer is not None and peer.peer is not self:
            raise SysError(EPERM)
        if self.options.get(SO_PASSCRED):
            self.auto_bind()
        self._set_peer(peer)
        self.queue.notify(WRITABLE)

    def peer_name(self) -> bytes:
        if self.peer is None:
            raise SysError(ENOTCONN)
        return self.peer.name()

    def shutdown(self, task: Task, how: int) -> None:
        if how != SHUT_WR:
            self.read_shut = True
        if how != SHUT_RD:
            self.write_shut = True
        self.queue.notify()

    def release(self) -> None:
        self._set_peer(None)
        super().release()
        senders, self.senders = self.senders, {}
        for sender in senders:
            sender.queue.notify()
        self.queue.notify()

    def poll(self, task: Task) -> int:
        mask = POLLERR if self.error else 0
        if self.receiving:
            mask |= READABLE
        if self.read_shut:
            mask |= READABLE | POLLRDHUP
            if self.write_shut:
                mask |= POLLHUP
        if self.peer is None or not self.peer.full(self):
            mask |= WRITABLE
        return mask

    def pending(self) -> int:
        return len(self.receiving[0].data) if self.receiving else 0

    def full(self, sender: UnixDatagram) -> bool:
        """Whether it takes nothing from this sender now."""
        if self.closed:
            return False
        if self.receiving and sender.room(self, sender.sndbuf) <= 0:
            return True
        return self.peer is not sender and len(self.receiving) > MAX_QUEUE

    def send(self, task: Task, data: bytes, flags: int, address: bytes = b"", control: Control | None = None) -> int:
        if flags & MSG_OOB:
            raise SysError(EOPNOTSUPP)
        self.check_error()
        if self.write_shut:
            raise self.broken_pipe(task, flags)
        if len(data) > self.sndbuf - 32:
            raise SysError(EMSGSIZE)
        if self.options.get(SO_PASSCRED):
            self.auto_bind()
        if address:
            target = self.find(task, address)
            assert isinstance(target, UnixDatagram)
            if target.peer is not None and target.peer is not self:
                raise SysError(EPERM)
        else:
            if self.peer is None:
                raise SysError(ENOTCONN)
            target = self.peer
            if target.closed:
                self._set_peer(None)
                raise SysError(ECONNREFUSED)
        if target.read_shut:
            raise self.broken_pipe(task, flags)
        if target.full(self):
            raise self.wait_for(task, flags, self.send_timeout, target.queue, self.queue)
        target.deliver(self.packet(task, data, control))
        return len(data)

    def receive(self, task: Task, size: int, flags: int) -> Message:
        self.check_error()
        if not self.receiving:
            if self.read_shut:
                return Message(b"")
            raise self.wait_for(task, flags, self.receive_timeout)
        message = self.whole(task, size, flags)
        self.queue.notify(WRITABLE)
        for sender in self.senders:
            sender.queue.notify(WRITABLE)
        return message
