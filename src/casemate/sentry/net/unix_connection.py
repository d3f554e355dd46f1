"""UNIX sockets with connections: streams and sequenced packets, unix(7)."""

from __future__ import annotations

from collections import deque
from errno import (
    ECONNREFUSED,
    ECONNRESET,
    EINVAL,
    EISCONN,
    EMSGSIZE,
    ENOTCONN,
    EOPNOTSUPP,
)
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.net.buffer import SCARCE
from casemate.sentry.net.options import SO_PASSCRED
from casemate.sentry.net.socket import (
    MSG_OOB,
    MSG_PEEK,
    MSG_WAITALL,
    SHUT_RD,
    SHUT_WR,
    Control,
    Message,
    Socket,
)
from casemate.sentry.net.unix import OVERHEAD, Ids, UnixSocket
from casemate.sentry.vfs.file import POLLERR, POLLHUP, POLLRDHUP, READABLE, WRITABLE

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SOMAXCONN = 4096
MAX_WAITALL = 8 << 20
"""How much a receive with MSG_WAITALL collects at most before it returns."""


class UnixConnection(UnixSocket):
    """A socket that listens, or is connected to one other."""

    def __init__(self, task: Task, kind: int, flags: int = 0) -> None:
        super().__init__(task, kind, flags)
        self.peer: UnixConnection | None = None
        """Stays when the peer is closed."""
        self.backlog: deque[UnixConnection] | None = None
        """Connections that nobody accepted yet; None for a socket that does not listen."""
        self.backlog_limit = 0
        self.want = 0
        """What a receive with MSG_WAITALL waits for: the peer may send as much."""

    @property
    def listening(self) -> bool:
        return self.backlog is not None

    def join(self, other: UnixSocket) -> None:
        assert isinstance(other, UnixConnection)
        self.peer, other.peer = other, self

    def listen(self, task: Task, backlog: int) -> None:
        if not self.address or self.peer is not None:
            raise SysError(EINVAL)
        if self.backlog is None:
            self.backlog = deque()
        self.backlog_limit = min(backlog, SOMAXCONN) if backlog >= 0 else SOMAXCONN
        self.note_peer(task)
        self.queue.notify(WRITABLE)

    def connect(self, task: Task, address: bytes) -> None:
        listener = self.find(task, address)
        assert isinstance(listener, UnixConnection)
        if self.peer is not None:
            raise SysError(EISCONN)
        if self.backlog is not None:
            raise SysError(EINVAL)
        if listener.backlog is None or listener.read_shut:
            raise SysError(ECONNREFUSED)
        if self.options.get(SO_PASSCRED):
            self.auto_bind()
        if len(listener.backlog) > listener.backlog_limit:
            raise self.wait_for(task, 0, self.send_timeout, listener.queue)
        other = type(self)(task, self.kind)
        other.address, other.pids = listener.address, listener.pids
        other.rcvbuf, other.sndbuf = listener.rcvbuf, listener.sndbuf
        other.options[SO_PASSCRED] = listener.options.get(SO_PASSCRED, 0)
        other.note_peer(task)
        self.peer_ids, self.peer_groups = listener.peer_ids, listener.peer_groups
        self.join(other)
        listener.backlog.append(other)
        listener.queue.notify(READABLE)
        self.queue.notify(WRITABLE)

    def accept(self, task: Task, flags: int) -> Socket:
        if self.backlog is None or self.read_shut:
            raise SysError(EINVAL)
        if not self.backlog:
            raise self.wait_for(task, 0, self.receive_timeout)
        full = len(self.backlog) > self.backlog_limit
        connection = self.backlog.popleft()
        connection.flags |= flags
        if full:
            self.queue.notify(WRITABLE)
        return connection

    def peer_name(self) -> bytes:
        if self.peer is None:
            raise SysError(ENOTCONN)
        return self.peer.name()

    def shutdown(self, task: Task, how: int) -> None:
        peer = self.peer
        if how != SHUT_WR:
            self.read_shut = True
        if how != SHUT_RD:
            self.write_shut = True
        if peer is not None:
            peer.read_shut = peer.read_shut or self.write_shut
            peer.write_shut = peer.write_shut or self.read_shut
            peer.queue.notify()
        self.queue.notify()

    def release(self) -> None:
        unread = bool(self.receiving)
        backlog, self.backlog = self.backlog, None
        super().release()
        for connection in backlog or ():
            if connection.peer is not None:
                connection.peer.error = ECONNRESET
            connection.decref()
        peer = self.peer
        if peer is not None:
            peer.read_shut = peer.write_shut = True
            if unread:
                peer.error = ECONNRESET
            peer.queue.notify()
        self.queue.notify()

    def poll(self, task: Task) -> int:
        if self.backlog is not None:
            mask = READABLE if self.backlog else 0
            return mask | (READABLE | POLLRDHUP if self.read_shut else 0)
        mask = POLLERR if self.error else 0
        if self.receiving:
            mask |= READABLE
        peer = self.peer
        if peer is None:
            return mask | POLLHUP | WRITABLE
        if self.read_shut:
            mask |= READABLE | POLLRDHUP
            if self.write_shut:
                mask |= POLLHUP
        if self.write_shut or not peer.receiving or peer.cost() * 4 <= self.cost_bound(peer):
            mask |= WRITABLE
        return mask

    def pending(self) -> int:
        return self.bytes

    def unsent(self) -> int:
        return self.peer.bytes if self.peer is not None else 0

    # Sending.

    def _receiver(self, task: Task, flags: int, address: bytes) -> UnixConnection:
        """Whom to send to. Raises SysError."""
        if flags & MSG_OOB:
            raise SysError(EOPNOTSUPP)
        peer = self.peer
        if address and self.stream:
            raise SysError(EISCONN if peer is not None else EOPNOTSUPP)
        if peer is None:
            raise SysError(ENOTCONN)
        if self.write_shut or peer.read_shut or peer.closed:
            raise self.broken_pipe(task, flags)
        return peer

    def cost_bound(self, peer: UnixConnection) -> int:
        """How much the peer holds for it."""
        bound = max(self.sndbuf, peer.want)
        return SCARCE if bound > SCARCE and self.budget.scarce else bound

    def _empty(self, task: Task, flags: int) -> Message:
        """Nothing is there to be received: the end, an error, or waiting."""
        if self.error:
            raise SysError(self.take_error())
        if self.read_shut:
            return Message(b"")
        if self.peer is None:
            raise SysError(EINVAL if self.stream else ENOTCONN)
        raise self.wait_for(task, flags, self.receive_timeout)

    def _freed(self, before: int) -> None:
        """Something was received: tell the peer when that made it writable."""
        peer = self.peer
        if peer is not None and (
            self.cost() * 4 <= peer.sndbuf < before * 4 or (peer.starved and not self.receiving)
        ):
            peer.starved = False
            peer.queue.notify(WRITABLE)


class UnixStream(UnixConnection):
    """``SOCK_STREAM``."""

    stream = True

    def send(self, task: Task, data: bytes, flags: int, address: bytes = b"", control: Control | None = None) -> int:
        blocked = task.blocked
        done: int = blocked.get("sent", 0) if blocked else 0
        try:
            peer = self._receiver(task, flags, address)
        except SysError:
            if done:
                return done
            raise
        total = len(data)
        if total == 0:
            return 0
        room = self.room(peer, max(self.sndbuf, peer.want)) - OVERHEAD
        if room > 0:
            part = data if not done and total <= room else data[done : done + room]
            peer.deliver(self.packet(task, part, None if done else control))
            done += len(part)
            if done == total:
                return done
        wait = self.wait_for(task, flags, self.send_timeout, partial=done)
        if done:
            if isinstance(wait, SysError):
                return done
            task.blocked["sent"] = done
        raise wait

    def receive(self, task: Task, size: int, flags: int) -> Message:
        receiving = self.receiving
        if not receiving:
            return self._empty(task, flags)
        if size == 0:
            return Message(b"")
        if flags & MSG_WAITALL and not flags & MSG_PEEK and self.bytes < size and not self.read_shut:
            self._collect(task, size, flags)
        if flags & MSG_PEEK:
            return self._peek(size)
        before = self.cost()
        packet = receiving[0]
        message = Message(b"")
        self.say_creds(message, packet)
        passcred = bool(message.control)
        creds: Ids = packet.creds
        parts: list[bytes] = []
        left = size
        while left and receiving:
            packet = receiving[0]
            if passcred and packet.creds != creds:
                break
            data, offset = packet.data, packet.offset
            if len(data) - offset <= left:
                receiving.popleft()
                part = data[offset:] if offset else data
            else:
                part = data[offset : offset + left]
                packet.offset = offset + left
            left -= len(part)
            parts.append(part)
            if packet.files:
                message.files = packet.take_files()
                break
        message.data = data = parts[0] if len(parts) == 1 else b"".join(parts)
        message.length = len(data)
        self.bytes -= len(data)
        self.budget.used -= len(data)
        self.want = 0
        self._freed(before)
        return message

    def _collect(self, task: Task, size: int, flags: int) -> None:
        """Wait until so much is there, MSG_WAITALL; return where that cannot be waited for any longer."""
        self.want = min(size, MAX_WAITALL)
        if self.bytes >= self.want or any(packet.files for packet in self.receiving):
            return
        wait = self.wait_for(task, flags, self.receive_timeout)
        if isinstance(wait, SysError):
            return
        if self.peer is not None:
            self.peer.queue.notify(WRITABLE)
        raise wait

    def _peek(self, size: int) -> Message:
        parts: list[bytes] = []
        packet = self.receiving[0]
        message = Message(b"")
        self.say_creds(message, packet)
        left = size
        for packet in self.receiving:
            part = packet.data[packet.offset : packet.offset + left]
            parts.append(part)
            left -= len(part)
            if packet.files:
                message.files = [file.incref() for file in packet.files]
                break
            if not left:
                break
        message.data = b"".join(parts)
        message.length = len(message.data)
        return message


class UnixSeqpacket(UnixConnection):
    """``SOCK_SEQPACKET``."""

    def send(self, task: Task, data: bytes, flags: int, address: bytes = b"", control: Control | None = None) -> int:
        peer = self._receiver(task, flags, b"")
        if len(data) > self.sndbuf - 32:
            raise SysError(EMSGSIZE)
        if peer.receiving and self.room(peer, self.sndbuf) <= 0:
            raise self.wait_for(task, flags, self.send_timeout)
        peer.deliver(self.packet(task, data, control))
        return len(data)

    def receive(self, task: Task, size: int, flags: int) -> Message:
        if not self.receiving:
            return self._empty(task, flags)
        before = self.cost()
        message = self.whole(task, size, flags)
        message.address = b""
        self._freed(before)
        return message


