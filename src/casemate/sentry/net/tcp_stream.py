"""TCP connections inside a sandbox, tcp(7): data and its end. :mod:`casemate.sentry.net.tcp` connects them.

Both ends are objects of this kernel, so nothing is ever on its way: what one end sends is in the other's buffer then.
"""

from __future__ import annotations

import signal
from errno import ECONNRESET, EINVAL, ENOTCONN, EPIPE
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.net.buffer import SCARCE, ByteQueue
from casemate.sentry.net.inet import InetSocket
from casemate.sentry.net.options import SO_OOBINLINE, SO_RCVLOWAT
from casemate.sentry.net.socket import MSG_OOB, MSG_PEEK, MSG_TRUNC, MSG_WAITALL, Control, Message
from casemate.sentry.net.tcpoptions import CLOSE, ESTABLISHED, LISTEN, SYN_SENT
from casemate.sentry.vfs.file import POLLERR, POLLHUP, POLLPRI, POLLRDHUP, READABLE, WRITABLE

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SHARE = 1 << 19
"""How much each end buffers of one direction while nobody set its size."""
MAX_WAITALL = 8 << 20


class TcpStream(InetSocket):
    """One end of a connection, or what may become one."""

    stream = True

    def __init__(self, task: Task, family: int, kind: int, protocol: int, flags: int = 0) -> None:
        super().__init__(task, family, kind, protocol, flags)
        self.sndbuf, self.rcvbuf = 2626560, 131072
        self.send_share = self.receive_share = SHARE
        self.state = CLOSE
        self.peer: TcpStream | None = None
        self.closed = False
        """No descriptor is left."""
        self.buffer = ByteQueue()
        """What can be received."""
        self.want = 0
        """What a receive with MSG_WAITALL waits for."""
        self.finished = False
        """The peer sent its last byte."""
        self.read_shut = False
        self.write_shut = False
        self.received = self.sent = 0
        """Bytes in all, for TCP_INFO."""
        self.urgent: bytes | None = None
        """A byte of urgent data that was not received."""
        self.urgent_mark: int | None = None
        """Behind how many bytes of all it was sent; None when that is past."""

    # Ending.

    def _hang_up(self, reset: bool) -> None:
        """Tell the peer that nothing comes any more; with ``reset`` that nothing is taken either."""
        peer = self.peer
        self.write_shut = True
        if peer is None or peer.state != ESTABLISHED:
            return
        if reset:
            peer.was_reset()
            return
        peer.finished = True
        if peer.write_shut:
            peer._forget()
            self._forget()
        peer.queue.notify(READABLE | POLLRDHUP | (POLLHUP if peer.write_shut else 0))

    def was_reset(self) -> None:
        """The peer takes and sends nothing any more, and may not have seen all that was sent."""
        self.error = EPIPE if self.finished else ECONNRESET
        self.finished = self.write_shut = self.read_shut = True
        self._forget()
        self.queue.notify()

    def _forget(self) -> None:
        """It is connected no more."""
        self.state = CLOSE
        self.stack.connections.pop((self.local_ip, self.local_port, self.remote_ip, self.remote_port), None)

    # Data.

    def _room(self, peer: TcpStream) -> int:
        limit = max(self.send_share + peer.receive_share, peer.want)
        if self.budget.used > self.budget.limit and limit > SCARCE:
            limit = SCARCE
            self.starved = True
        return limit - peer.buffer.size

    def poll(self, task: Task) -> int:
        state = self.state
        mask = POLLERR if self.error else 0
        done = self.read_shut or self.finished
        if state == CLOSE or (done and self.write_shut):
            mask |= POLLHUP
        if done:
            mask |= READABLE | POLLRDHUP
        if self.urgent is not None:
            mask |= POLLPRI
        if state != SYN_SENT:
            if self.buffer.size and self.buffer.size >= self.options.get(SO_RCVLOWAT, 1):
                mask |= READABLE
            peer = self.peer
            if (
                self.write_shut
                or peer is None
                or not peer.buffer.size
                or 3 * self._room(peer) >= self.send_share + peer.receive_share
            ):
                mask |= WRITABLE
        return mask

    def pending(self) -> int:
        return self.buffer.size

    def unsent(self) -> int:
        return self.peer.buffer.size if self.peer is not None else 0

    def send(self, task: Task, data: bytes, flags: int, address: bytes = b"", control: Control | None = None) -> int:
        blocked = task.blocked
        done: int = blocked.get("sent", 0) if blocked else 0
        if self.state == SYN_SENT:
            raise self.wait_for(task, flags, self.send_timeout)
        peer = self.peer
        if self.error or self.write_shut or peer is None:
            if done:
                return done
            error = self.take_error()
            if error and error != EPIPE:
                raise SysError(error)
            raise self.broken_pipe(task, flags)
        total = len(data)
        if peer.closed:
            # It is gone: this is taken, as much as it had room for, and answered with a reset.
            if not total:
                return 0
            self.was_reset()
            return min(total, done + max(1, self._room(peer)))
        if flags & MSG_OOB and total:
            self._send_urgent(task, peer, data, flags)
            return total
        room = self._room(peer)
        if total - done <= room:
            if total:
                peer._put(data[done:] if done else data)
                self.sent += total - done
            return total
        if room > 0:
            peer._put(data[done : done + room])
            self.sent += room
            done += room
        wait = self.wait_for(task, flags, self.send_timeout, partial=done)
        if done:
            if isinstance(wait, SysError):
                return done
            task.blocked["sent"] = done
        raise wait

    # Urgent data: one byte beside the others, and a mark where it was sent.

    def _send_urgent(self, task: Task, peer: TcpStream, data: bytes, flags: int) -> None:
        if self._room(peer) < len(data):
            raise self.wait_for(task, flags, self.send_timeout)
        inline = bool(peer.options.get(SO_OOBINLINE))
        if len(data) > 1 or inline:
            peer._put(data if inline else data[:-1])
        self.sent += len(data)
        peer.urgent = None if inline else data[-1:]
        peer.urgent_mark = peer.received - inline
        peer.queue.notify(POLLPRI | (READABLE if inline else 0))
        peer.tell_owner(task.kernel, signal.SIGURG)

    def _receive_urgent(self, size: int, flags: int) -> Message:
        if self.urgent is None:
            raise SysError(EINVAL)
        data = self.urgent[:size]
        if not flags & MSG_PEEK:
            self.urgent = None
        message = Message(data)
        message.flags |= MSG_OOB
        return message

    def _up_to_mark(self, size: int, flags: int) -> int:
        """How much one receive takes where a mark is ahead: it stops there, and the next one leaves it behind."""
        assert self.urgent_mark is not None
        distance = self.urgent_mark - (self.received - self.buffer.size)
        if distance > 0:
            return min(size, distance)
        if self.buffer.size and not flags & MSG_PEEK:
            self.urgent = self.urgent_mark = None
        return size

    @property
    def at_mark(self) -> bool:
        return self.urgent_mark is not None and self.urgent_mark == self.received - self.buffer.size

    def _put(self, data: bytes) -> None:
        self.buffer.put(data)
        self.budget.used += len(data)
        self.received += len(data)
        self.queue.notify(READABLE)

    def receive(self, task: Task, size: int, flags: int) -> Message:
        if flags & MSG_OOB:
            return self._receive_urgent(size, flags)
        if self.urgent_mark is not None:
            size = self._up_to_mark(size, flags)
        if not self.buffer.size:
            return self._empty(task, size, flags)
        if flags & MSG_WAITALL and not flags & MSG_PEEK and self.buffer.size < size:
            self._collect(task, size, flags)
        message = Message(self.buffer.peek(size) if flags & MSG_PEEK else self._take(size))
        if flags & MSG_TRUNC:
            message.data = b""
        return message

    def _empty(self, task: Task, size: int, flags: int) -> Message:
        """Nothing is there: the end, an error, or waiting."""
        if self.error and not (self.finished and self.error == EPIPE):
            raise SysError(self.take_error())
        if self.finished or self.read_shut:
            return Message(b"")
        if self.state in (CLOSE, LISTEN):
            raise SysError(ENOTCONN)
        if size == 0 and self.state == ESTABLISHED:
            return Message(b"")
        raise self.wait_for(task, flags, self.receive_timeout)

    def _collect(self, task: Task, size: int, flags: int) -> None:
        """Wait until so much is there, MSG_WAITALL; return where that cannot be waited for any longer."""
        self.want = min(size, MAX_WAITALL)
        if self.finished or self.read_shut or self.buffer.size >= self.want:
            return
        wait = self.wait_for(task, flags, self.receive_timeout)
        if isinstance(wait, SysError):
            return
        if self.peer is not None:
            self.peer.queue.notify(WRITABLE)
        raise wait

    def drop(self) -> None:
        """Nobody will receive what is there."""
        self.budget.used -= self.buffer.size
        self.buffer.clear()

    def _take(self, size: int) -> bytes:
        buffer = self.buffer
        before = buffer.size
        data = buffer.take(size)
        self.budget.used -= len(data)
        self.want = 0
        peer = self.peer
        if peer is not None:
            # The same bound as in poll(): a third of the buffer is free again.
            bound = 2 * (peer.send_share + self.receive_share)
            if before * 3 > bound >= buffer.size * 3 or (peer.starved and not buffer.size):
                peer.starved = False
                peer.queue.notify(WRITABLE)
        return data
