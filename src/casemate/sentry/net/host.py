"""The host's network for a sandbox that shares it: internet sockets are sockets that the sentry itself makes.

They never wait: the sentry's loop learns of their events from one epoll set of the host, edge-triggered, so that events
reach the application's own waiting and polling just once. What may be set on them is listed here; the sentry has no
privileges, so that the host refuses what only root may do.
"""

from __future__ import annotations

import ctypes
import fcntl
import select
import socket
from errno import (
    EACCES,
    EAGAIN,
    EINPROGRESS,
    EINVAL,
    ENOPROTOOPT,
    ENOTTY,
    EPIPE,
    EPROTONOSUPPORT,
    ESOCKTNOSUPPORT,
)
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError, from_os
from casemate.sentry.net import hostoptions, icmp, options, rawecho
from casemate.sentry.net.address import pack_host, parse_host
from casemate.sentry.net.options import SO_ERROR, SO_RCVTIMEO, SO_RCVTIMEO_NEW, SO_SNDTIMEO, SO_SNDTIMEO_NEW, SOL_SOCKET
from casemate.sentry.net.ports import may_bind
from casemate.sentry.net.socket import (
    FIONREAD,
    MSG_DONTWAIT,
    MSG_ERRQUEUE,
    MSG_NOSIGNAL,
    MSG_OOB,
    MSG_PEEK,
    MSG_TRUNC,
    MSG_WAITALL,
    SIOCATMARK,
    SIOCOUTQ,
    Control,
    Message,
    Socket,
)
from casemate.sentry.vfs.file import POLLERR, POLLHUP, POLLOUT, POLLRDHUP

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

_LIBC = ctypes.CDLL(None, use_errno=True)
EVENTS = 0x1 | 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | POLLRDHUP
CHUNK = 1 << 20
"""How much one receive takes at most."""
WAITALL = 1 << 16
"""How much a receive with MSG_WAITALL waits for: what the host's buffers surely hold."""
MSG_MORE, MSG_DONTROUTE, MSG_CONFIRM, MSG_EOR = 0x8000, 0x4, 0x800, 0x80
_SEND_FLAGS = MSG_OOB | MSG_MORE | MSG_DONTROUTE | MSG_CONFIRM | MSG_EOR
_RECEIVE_FLAGS = MSG_OOB | MSG_PEEK | MSG_ERRQUEUE
_TIMEOUTS = frozenset((SO_RCVTIMEO, SO_RCVTIMEO_NEW, SO_SNDTIMEO, SO_SNDTIMEO_NEW))
_ECHO = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)
_IP_CONTROLS = frozenset((socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_UDP))


class HostNetwork:
    """The sockets of one sandbox that are the host's."""

    vital = True

    def __init__(self, kernel: Kernel) -> None:
        self.epoll = select.epoll()
        self.sockets: dict[int, HostSocket] = {}
        self.asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        """For what UNIX sockets are asked about interfaces."""
        kernel.platform.watch(self.epoll.fileno(), select.POLLIN, self)

    def add(self, sock: HostSocket) -> None:
        """Tell this one of its events."""
        fd = sock.host.fileno()
        self.sockets[fd] = sock
        self.epoll.register(fd, EVENTS | select.EPOLLET)

    def remove(self, sock: HostSocket) -> None:
        """It is about to be closed, and leaves the set by that."""
        self.sockets.pop(sock.host.fileno(), None)

    def ready(self, mask: int) -> None:
        """Some have events; called by the platform. What goes wrong with who waits for one is that one's affair
        (:meth:`WaitQueue.notify`)."""
        for fd, events in self.epoll.poll(0, 256):
            sock = self.sockets.get(fd)
            if sock is not None:
                sock.queue.notify(events & 0xFFFF)


def network(kernel: Kernel) -> HostNetwork:
    """The sandbox's."""
    found = kernel.subsystems.get("host_network")
    if found is None:
        found = kernel.subsystems["host_network"] = HostNetwork(kernel)
    assert isinstance(found, HostNetwork)
    return found


def ask(task: Task, command: int, argument: int) -> None:
    """The ``SIOCGIF*`` calls of netdevice(7). Raises SysError: ENOTTY for all that change something."""
    if command not in hostoptions.QUERIES:
        raise SysError(ENOTTY)
    hostoptions.query(task, network(task.kernel).asking.fileno(), command, argument)


class HostSocket(Socket):
    """A socket of the host's."""

    def __init__(self, task: Task, host: socket.socket, flags: int = 0) -> None:
        super().__init__(task, host.family, host.type, host.proto, flags)
        self.stream = host.type == socket.SOCK_STREAM
        self.host = host
        host.setblocking(False)
        self._poll = select.poll()
        self._poll.register(host.fileno(), EVENTS)
        self.network = network(task.kernel)
        self.network.add(self)

    def release(self) -> None:
        self.network.remove(self)
        self.host.close()

    def poll(self, task: Task) -> int:
        found = self._poll.poll(0)
        return found[0][1] if found else 0

    @property
    def listening(self) -> bool:
        return bool(self.host.getsockopt(SOL_SOCKET, options.SO_ACCEPTCONN))

    # Names and connections.

    def bind(self, task: Task, address: bytes) -> None:
        where = parse_host(self.family, address)
        port = int(where[1]) if self.family != socket.AF_NETLINK and self.protocol not in _ECHO else 0
        # The host lets the sentry take all that the namespace has.
        if not may_bind(task, port, 0):
            raise SysError(EACCES)
        try:
            self.host.bind(where)
        except OSError as error:
            raise from_os(error) from None

    def connect(self, task: Task, address: bytes) -> None:
        if task.blocked.get("connect"):
            self._connected(task, address)
            return
        if address[:2] == b"\0\0":
            # Python has no way to say this: take the connection back.
            if _LIBC.connect(self.host.fileno(), bytes(16), 16) < 0:
                raise SysError(ctypes.get_errno())
            return
        error = self.host.connect_ex(parse_host(self.family, address))
        if error == EINPROGRESS and not self.nonblocking:
            task.blocked["connect"] = True
            self._connected(task, address)
        elif error:
            raise SysError(error)

    def _connected(self, task: Task, address: bytes) -> None:
        """Wait for what became of connecting."""
        if not self.poll(task) & (POLLOUT | POLLERR | POLLHUP):
            wait = self.wait_for(task, 0, self.send_timeout)
            raise SysError(EINPROGRESS) if isinstance(wait, SysError) else wait
        error = self.host.getsockopt(SOL_SOCKET, SO_ERROR)
        if not error:
            # Once more, for the host to see that it was told.
            error = self.host.connect_ex(parse_host(self.family, address))
        if error:
            raise SysError(error)

    def listen(self, task: Task, backlog: int) -> None:
        try:
            self.host.listen(max(0, backlog) if backlog >= 0 else 4096)
        except OSError as error:
            raise from_os(error) from None

    def accept(self, task: Task, flags: int) -> Socket:
        try:
            made, _ = self.host.accept()
        except BlockingIOError:
            raise self.wait_for(task, 0, self.receive_timeout) from None
        except OSError as error:
            raise from_os(error) from None
        return HostSocket(task, made, flags)

    def name(self) -> bytes:
        try:
            return pack_host(self.family, self.host.getsockname())
        except OSError as error:
            raise from_os(error) from None

    def peer_name(self) -> bytes:
        try:
            return pack_host(self.family, self.host.getpeername())
        except OSError as error:
            raise from_os(error) from None

    def shutdown(self, task: Task, how: int) -> None:
        try:
            self.host.shutdown(how)
        except OSError as error:
            raise from_os(error) from None

    # Data.

    def send(self, task: Task, data: bytes, flags: int, address: bytes = b"", control: Control | None = None) -> int:
        done: int = task.blocked.get("sent", 0) if task.blocked else 0
        part = data[done:] if done else data
        if control and any(level not in _IP_CONTROLS for level, _, _ in control):
            raise SysError(EINVAL)
        wanted = flags & _SEND_FLAGS | MSG_NOSIGNAL | MSG_DONTWAIT
        try:
            if control or address:
                to = (parse_host(self.family, address),) if address else ()
                done += self.host.sendmsg([part], control or (), wanted, *to)
            else:
                done += self.host.send(part, wanted)
        except BlockingIOError:
            pass
        except OSError as error:
            if done:
                return done
            if error.errno == EPIPE:
                raise self.broken_pipe(task, flags) from None
            raise from_os(error) from None
        else:
            if done == len(data) or not self.stream:
                return done
        wait = self.wait_for(task, flags, self.send_timeout, partial=done)
        if done:
            if isinstance(wait, SysError):
                return done
            task.blocked["sent"] = done
        raise wait

    def receive(self, task: Task, size: int, flags: int) -> Message:
        self.check_error()
        if flags & MSG_WAITALL and self.stream and not flags & (MSG_PEEK | MSG_OOB):
            self._collect(task, size, flags)
        room = min(size, CHUNK)
        length: int | None = None
        try:
            if flags & MSG_TRUNC and not self.stream and not flags & MSG_ERRQUEUE:
                # Asked beforehand: in recvmsg() Python would take this length for that of the data.
                length = self.host.recv_into(bytearray(1), 1, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT)
            data, control, result, address = self.host.recvmsg(
                room, 1024, flags & _RECEIVE_FLAGS | MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            if flags & MSG_ERRQUEUE:
                raise SysError(EAGAIN) from None
            raise self.wait_for(task, flags, self.receive_timeout) from None
        except OSError as error:
            raise from_os(error) from None
        message = Message(data, flags=result & ~socket.MSG_CMSG_CLOEXEC)
        if address and not self.stream:
            message.address = pack_host(self.family, address)
        message.control = [entry for entry in control if entry[0] != SOL_SOCKET or entry[1] != socket.SCM_RIGHTS]
        if length is not None:
            message.length = length
        elif flags & MSG_TRUNC:
            message.data = b""
        return message

    def _collect(self, task: Task, size: int, flags: int) -> None:
        """Wait until so much is there; return where that cannot be waited for any longer."""
        if self.pending() >= min(size, WAITALL) or self.poll(task) & (POLLRDHUP | POLLHUP | POLLERR):
            return
        wait = self.wait_for(task, flags, self.receive_timeout)
        if not isinstance(wait, SysError):
            raise wait

    def error_queue(self) -> None:
        """It is the host's: receive() asks there."""

    def _ask(self, command: int) -> int:
        try:
            answer = fcntl.ioctl(self.host.fileno(), command, bytes(4))
        except OSError as error:
            raise from_os(error) from None
        return int.from_bytes(answer, "little", signed=True)

    def pending(self) -> int:
        return self._ask(FIONREAD)

    def unsent(self) -> int:
        return self._ask(SIOCOUTQ)

    @property
    def at_mark(self) -> bool:
        return bool(self._ask(SIOCATMARK))

    # Options.

    def get_option(self, task: Task, level: int, name: int, size: int) -> bytes:
        if level == SOL_SOCKET and (name in _TIMEOUTS or name not in hostoptions.SOCKET):
            return super().get_option(task, level, name, size)
        if not hostoptions.allowed(level, name):
            raise SysError(ENOPROTOOPT)
        try:
            return self.host.getsockopt(level, name, min(size, 1024)) if size else b""
        except OSError as error:
            raise from_os(error) from None

    def set_option(self, task: Task, level: int, name: int, value: bytes) -> None:
        if level == SOL_SOCKET and name in _TIMEOUTS:
            super().set_option(task, level, name, value)
            return
        if not hostoptions.allowed(level, name):
            raise SysError(ENOPROTOOPT)
        try:
            self.host.setsockopt(level, name, value)
        except OSError as error:
            raise from_os(error) from None


def create(task: Task, family: int, kind: int, protocol: int, flags: int) -> Socket:
    """socket(2) of a family that is the host's: TCP, UDP, "ping" sockets where the host has them, and netlink routes.

    Raises SysError: EPERM for raw sockets but those of :mod:`casemate.sentry.net.rawecho`,
        ESOCKTNOSUPPORT, EPROTONOSUPPORT, EACCES.
    """
    if family == socket.AF_NETLINK:
        if kind not in (socket.SOCK_RAW, socket.SOCK_DGRAM):
            raise SysError(ESOCKTNOSUPPORT)
        if protocol != 0:
            raise SysError(EPROTONOSUPPORT)
    elif kind == socket.SOCK_RAW:
        return rawecho.create(task, family, kind, protocol, flags, _create)
    elif kind not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        raise SysError(ESOCKTNOSUPPORT)
    elif kind == socket.SOCK_DGRAM and protocol in _ECHO:
        icmp.permit(task)
    return _create(task, family, kind, protocol, flags)


def _create(task: Task, family: int, kind: int, protocol: int, flags: int) -> HostSocket:
    try:
        host = socket.socket(family, kind, protocol)
    except OSError as error:
        raise from_os(error) from None
    return HostSocket(task, host, flags)
