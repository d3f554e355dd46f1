"""TCP between sockets of one sandbox, tcp(7): listening and connecting.

Connecting either succeeds at once, fails, or waits for room in a listener's queue. States that exist only because
networks lose and delay packets (TIME_WAIT above all) do not occur.
"""

from __future__ import annotations

from collections import deque
from errno import (
    EADDRNOTAVAIL,
    EALREADY,
    ECONNABORTED,
    ECONNREFUSED,
    ECONNRESET,
    EINPROGRESS,
    EINVAL,
    EISCONN,
    ENOTCONN,
)
from socket import AF_UNSPEC, IPPROTO_TCP
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.net import tcpoptions
from casemate.sentry.net.address import is_any
from casemate.sentry.net.options import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from casemate.sentry.net.ports import Ports
from casemate.sentry.net.socket import SHUT_RD, SHUT_WR, Socket
from casemate.sentry.net.tcp_stream import TcpStream
from casemate.sentry.net.tcpoptions import CLOSE, ESTABLISHED, LISTEN, SYN_SENT
from casemate.sentry.vfs.file import READABLE, WRITABLE

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SOMAXCONN = 4096
_AF_UNSPEC = AF_UNSPEC.to_bytes(2, "little")


class TcpSocket(TcpStream):
    """A TCP socket."""

    def __init__(self, task: Task, family: int, kind: int, protocol: int, flags: int = 0) -> None:
        super().__init__(task, family, kind, protocol, flags)
        self.tcp: dict[int, int] = {}
        """Options that are kept, see :mod:`casemate.sentry.net.tcpoptions`."""
        self.connecting = False
        """connect(2) was called, and has not told yet how that ended."""
        self.backlog: deque[TcpSocket] = deque()
        self.backlog_limit = 0
        self.arriving: dict[TcpSocket, None] = {}
        """Those that wait for room in the backlog."""
        self.listener: TcpSocket | None = None
        """Where it waits for room."""

    @property
    def ports(self) -> Ports:
        return self.stack.tcp

    @property
    def listening(self) -> bool:
        return self.state == LISTEN

    # Connecting.

    def listen(self, task: Task, backlog: int) -> None:
        if self.state not in (CLOSE, LISTEN) or self.remote_ip:
            raise SysError(EINVAL)
        self.backlog_limit = min(backlog, SOMAXCONN) if backlog >= 0 else SOMAXCONN
        if self.state == CLOSE:
            if self.local_port:
                # What SO_REUSEADDR let through at bind(2) may clash now.
                ip, port = self.local_ip, self.local_port
                self.ports.remove(self)
                self.state = LISTEN
                try:
                    self.ports.add(self, ip, port)
                except SysError:
                    self.state = CLOSE
                    self.local_port = 0
                    raise
            else:
                self.auto_bind()
                self.state = LISTEN
            self.read_shut = self.write_shut = False

    def connect(self, task: Task, address: bytes) -> None:
        if address[:2] == _AF_UNSPEC:
            self._disconnect()
            return
        if self.connecting:
            self._connected(task, again="connect" not in task.blocked)
            return
        if self.state != CLOSE or self.peer is not None:
            raise SysError(EISCONN)
        ip, port, source = self.target(address)
        listener = self._find(ip, port)
        if is_any(self.local_ip) and self.local_port:
            self.local_ip = source
        self.auto_bind(source)
        if listener is not None and (self.local_ip, self.local_port, ip, port) in self.stack.connections:
            raise SysError(EADDRNOTAVAIL)
        self.remote_ip, self.remote_port = ip, port
        self.error = 0
        self.read_shut = self.write_shut = self.finished = False
        self.connecting = True
        if listener is None:
            self._refused()
        elif len(listener.backlog) > listener.backlog_limit:
            self.state = SYN_SENT
            self.listener = listener
            listener.arriving[self] = None
        else:
            self._establish(task, listener)
        if self.nonblocking:
            raise SysError(EINPROGRESS)
        self._connected(task, again=False)

    def _connected(self, task: Task, again: bool) -> None:
        """Tell how connecting went. Raises SysError, or Block while that is not known."""
        if self.state == SYN_SENT:
            if self.nonblocking:
                raise SysError(EALREADY if again else EINPROGRESS)
            task.blocked["connect"] = True
            wait = self.wait_for(task, 0, self.send_timeout)
            if isinstance(wait, SysError):
                raise SysError(EINPROGRESS)
            raise wait
        self.connecting = False
        if self.state == CLOSE:
            self.remote_ip = b""
            raise SysError(self.take_error() or ECONNABORTED)

    def _find(self, ip: bytes, port: int) -> TcpSocket | None:
        """Who listens there: at the very address rather than at any; one of them where several share a port."""
        best: list[TcpSocket] = []
        score = 0
        for sock in self.ports.at(port):
            if not isinstance(sock, TcpSocket) or sock.state != LISTEN:
                continue
            if sock.local_ip == ip:
                points = 3
            elif not is_any(sock.local_ip):
                continue
            elif len(sock.local_ip) == len(ip):
                points = 2
            elif len(ip) == 4 and not sock.v6only:
                points = 1
            else:
                continue
            if points > score:
                best, score = [sock], points
            elif points == score:
                best.append(sock)
        if len(best) > 1:
            self.stack.arrivals += 1
            return best[self.stack.arrivals % len(best)]
        return best[0] if best else None

    def _refused(self) -> None:
        self.state = CLOSE
        self.error = ECONNREFUSED
        self.listener = None
        self.queue.notify()

    def _establish(self, task: Task, listener: TcpSocket) -> None:
        """The listener has room: connect the other end, which waits in its queue to be accepted."""
        other = TcpSocket(task, listener.family, listener.kind, listener.protocol)
        other.uid = listener.uid
        other.options = dict(listener.options)
        other.tcp = dict(listener.tcp)
        other.ip, other.ip6 = listener.ip.copy(), listener.ip6.copy()
        other.sndbuf, other.rcvbuf = listener.sndbuf, listener.rcvbuf
        other.send_share, other.receive_share = listener.send_share, listener.receive_share
        other.send_timeout, other.receive_timeout = listener.send_timeout, listener.receive_timeout
        other.linger = listener.linger
        other.local_ip, other.local_port = self.remote_ip, self.remote_port
        other.remote_ip, other.remote_port = self.local_ip, self.local_port
        self.peer, other.peer = other, self
        self.state = other.state = ESTABLISHED
        self.listener = None
        connections = self.stack.connections
        connections[(self.local_ip, self.local_port, self.remote_ip, self.remote_port)] = self
        connections[(other.local_ip, other.local_port, other.remote_ip, other.remote_port)] = other
        listener.backlog.append(other)
        listener.queue.notify(READABLE)
        self.queue.notify(WRITABLE)

    def accept(self, task: Task, flags: int) -> Socket:
        if self.state != LISTEN:
            raise SysError(EINVAL)
        if not self.backlog:
            raise self.wait_for(task, 0, self.receive_timeout)
        connection = self.backlog.popleft()
        connection.flags |= flags
        while self.arriving and len(self.backlog) <= self.backlog_limit:
            waiting = next(iter(self.arriving))
            del self.arriving[waiting]
            waiting._establish(task, self)
        return connection

    def _disconnect(self) -> None:
        """connect(2) to ``AF_UNSPEC``."""
        if self.state == LISTEN:
            self._stop_listening()
        elif self.peer is not None:
            self._hang_up(reset=True)
        self._forget()
        self.reset_address()
        self.peer = None
        self.drop()
        self.connecting = False
        self.error = 0
        self.queue.notify()

    def _stop_listening(self) -> None:
        self.state = CLOSE
        backlog, self.backlog = self.backlog, deque()
        for connection in backlog:
            connection._hang_up(reset=True)
            connection.decref()
        arriving, self.arriving = self.arriving, {}
        for waiting in arriving:
            waiting._refused()

    def _forget(self) -> None:
        super()._forget()
        if self.listener is not None:
            self.listener.arriving.pop(self, None)
            self.listener = None

    def peer_name(self) -> bytes:
        if self.state != ESTABLISHED:
            raise SysError(ENOTCONN)
        return super().peer_name()

    # Ending.

    def shutdown(self, task: Task, how: int) -> None:
        if self.state == LISTEN:
            if how != SHUT_WR:
                self._stop_listening()
                self.queue.notify()
            return
        if self.state == SYN_SENT:
            self._forget()
            self.error = ECONNRESET
            self.queue.notify()
            return
        if self.state == CLOSE:
            self.read_shut = self.read_shut or how != SHUT_WR
            self.write_shut = self.write_shut or how != SHUT_RD
            raise SysError(ENOTCONN)
        if how != SHUT_WR:
            self.read_shut = True
        if how != SHUT_RD and not self.write_shut:
            self._hang_up(reset=False)
        self.queue.notify()

    def release(self) -> None:
        self.closed = True
        if self.state == LISTEN:
            self._stop_listening()
        elif self.state == ESTABLISHED:
            reset = bool(self.buffer.size) or self.linger == 0
            if reset or not self.write_shut:
                self._hang_up(reset)
        self._forget()
        self.ports.remove(self)
        self.drop()
        self.queue.notify()

    def poll(self, task: Task) -> int:
        if self.state == LISTEN:
            return READABLE if self.backlog else 0
        return super().poll(task)

    # Options.

    def get_option(self, task: Task, level: int, name: int, size: int) -> bytes:
        if level == IPPROTO_TCP:
            return tcpoptions.get(self, name)
        return super().get_option(task, level, name, size)

    def set_option(self, task: Task, level: int, name: int, value: bytes) -> None:
        if level == IPPROTO_TCP:
            tcpoptions.change(self, name, value)
            return
        super().set_option(task, level, name, value)
        if level == SOL_SOCKET and name in (SO_SNDBUF, SO_RCVBUF):
            # Half of it is for what Linux keeps beside the data.
            if SO_SNDBUF in self.options:
                self.send_share = self.sndbuf // 2
            if SO_RCVBUF in self.options:
                self.receive_share = self.rcvbuf // 2
            self.queue.notify(WRITABLE)
