"""Queries of names at loopback addresses of the guest, answered by the host.

An engine's own name server listens in the container's network namespace on the host. Here the agent listens in its
place, and carries queries and answers over two streams, in messages as ``docs/protocol.md`` describes them.
"""

from __future__ import annotations

import os
import select
import struct
from _socket import (
    AF_INET,
    SHUT_RDWR,
    SO_REUSEADDR,
    SO_SNDBUF,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    inet_aton,
    socket,
)
from time import monotonic

from casemate.agent import redirect
from casemate.agent.netlink import parse_address
from casemate.agent.system import bad, get_list, log
from casemate.agent.terminal import accept
from casemate.protocol import threads
from casemate.protocol.wire import StreamClosed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from casemate.agent.process import Streams
    from casemate.protocol.stream import Stream

PORT = 53
LIKELY = "127.0.0.11"
"""Where Docker's name server is."""
MAX_ADDRESSES = 8
MAX_PENDING = 1024
"""Queries that wait for an answer; the oldest gives way to a new one."""
MAX_CONNECTIONS = 64
IDLE = 30.0
"""Seconds after which a connection on which nothing is asked is closed."""
PATIENCE = 5.0
TRIES = 8
BURST = 64
"""Queries that are taken from one socket before the next has its turn."""
UDP, TCP = 0, 1
HEAD = struct.Struct("!HBI")
"""The length of the query or answer that follows, its kind, and a number that the answer repeats."""


class _Connection:
    """A client that asks over TCP: each query is preceded by its length (RFC 1035, section 4.2.2)."""

    def __init__(self, fd: int) -> None:
        self.socket = socket(AF_INET, SOCK_STREAM, 0, fd)
        self.socket.setblocking(False)
        self.socket.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 18)  # a whole answer fits
        self.buffer = b""
        self.last = monotonic()
        self.open = True

    def close(self) -> None:
        self.open = False
        self.socket.close()


class Listener:
    """Two sockets that listen at one address and port, for datagrams and for connections.

    Arguments:
        address: an IPv4 address of the loopback interface.
        port: 0 lets the kernel choose.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(self, address: str, port: int) -> None:
        self.udp = _bound(SOCK_DGRAM, address, port)
        self.port: int = self.udp.getsockname()[1]
        try:
            self.tcp = _bound(SOCK_STREAM, address, self.port)
        except BaseException:
            self.udp.close()
            raise
        self.tcp.listen(MAX_CONNECTIONS)

    def close(self) -> None:
        """Listen no more."""
        self.udp.close()
        self.tcp.close()


class Relay:
    """Carries queries and answers until the host ends one of the streams, or :meth:`close`.

    Arguments:
        listeners: where queries come from; owned.
        links: descriptors to be closed at the end.
        stdin, stdout: answers come from the one, queries go to the other; both are owned.
    """

    def __init__(self, listeners: list[Listener], links: list[int], stdin: Stream, stdout: Stream) -> None:
        self.over = threads.Event()
        """Set when everything has been given back."""
        self._listeners = listeners
        self._links = links
        self._stdin = stdin
        self._stdout = stdout
        self._lock = threads.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._open = True
        self._tag = 0
        self._pending: dict[int, tuple[socket, Any] | _Connection] = {}
        self._udp = {listener.udp.fileno(): listener.udp for listener in listeners}
        self._tcp = {listener.tcp.fileno(): listener.tcp for listener in listeners}
        self._connections: dict[int, _Connection] = {}

    def start(self) -> None:
        """Begin to carry."""
        threads.start(self._ask)
        threads.start(self._answer)

    def close(self) -> None:
        """End it; may be called more than once."""
        with self._lock:
            if self._open:
                self._open = False
                os.eventfd_write(self._wake, 1)

    # ---- queries

    def _ask(self) -> None:
        poller = select.poll()
        for fd in (self._wake, *self._udp, *self._tcp):
            poller.register(fd, select.POLLIN)
        try:
            while self._open:
                for fd, _ in poller.poll(IDLE * 1000 if self._connections else None):
                    if fd in self._udp:
                        self._take_datagrams(self._udp[fd])
                    elif fd in self._tcp:
                        self._accept(self._tcp[fd], poller)
                    elif fd in self._connections:
                        self._take_bytes(fd, poller)
                self._drop_idle(poller)
        except StreamClosed:
            pass  # the host wants no more
        except OSError as error:
            log(f"names are not looked up any more: {error}")
        finally:
            self.close()
            self._give_back()

    def _give_back(self) -> None:
        with self._lock:
            self._pending.clear()
            for connection in self._connections.values():
                connection.close()
            for listener in self._listeners:
                listener.close()
            for fd in (*self._links, self._wake):
                os.close(fd)
        self._stdin.close()
        self._stdout.close()
        self.over.set()

    def _send(self, kind: int, query: bytes, origin: tuple[socket, Any] | _Connection) -> None:
        with self._lock:
            self._tag = (self._tag + 1) & 0xFFFFFFFF
            tag = self._tag
            self._pending[tag] = origin
            while len(self._pending) > MAX_PENDING:
                del self._pending[next(iter(self._pending))]
        self._stdout.send(HEAD.pack(len(query), kind, tag) + query)

    def _take_datagrams(self, sock: socket) -> None:
        for _ in range(BURST):
            try:
                query, sender = sock.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:  # an answer before this one found nobody
                continue
            if query:
                self._send(UDP, query, (sock, sender))

    def _accept(self, listener: socket, poller: select.poll) -> None:
        try:
            fd, _ = accept(listener)
        except OSError:  # it is gone already
            return
        connection = _Connection(fd)
        if len(self._connections) >= MAX_CONNECTIONS:
            oldest = min(self._connections.items(), key=lambda item: item[1].last)
            self._close(oldest[0], poller)
        self._connections[fd] = connection
        poller.register(fd, select.POLLIN)

    def _take_bytes(self, fd: int, poller: select.poll) -> None:
        connection = self._connections[fd]
        try:
            data = connection.socket.recv(16384)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(fd, poller)
            return
        connection.last = monotonic()
        connection.buffer += data
        start, end = 0, len(connection.buffer)
        while end - start >= 2:
            length = int.from_bytes(connection.buffer[start : start + 2], "big")
            if end - start - 2 < length:
                break
            self._send(TCP, connection.buffer[start + 2 : start + 2 + length], connection)
            start += 2 + length
        connection.buffer = connection.buffer[start:]

    def _drop_idle(self, poller: select.poll) -> None:
        now = monotonic()
        for fd in [fd for fd, connection in self._connections.items() if now - connection.last > IDLE]:
            self._close(fd, poller)

    def _close(self, fd: int, poller: select.poll) -> None:
        poller.unregister(fd)
        connection = self._connections.pop(fd)
        with self._lock:
            connection.close()

    # ---- answers

    def _answer(self) -> None:
        buffer = b""
        while data := self._stdin.recv():
            buffer += data
            start, end = 0, len(buffer)
            while end - start >= HEAD.size:
                length, _, tag = HEAD.unpack_from(buffer, start)
                if end - start - HEAD.size < length:
                    break
                self._deliver(tag, buffer[start + HEAD.size : start + HEAD.size + length])
                start += HEAD.size + length
            buffer = buffer[start:]
        self.close()

    def _deliver(self, tag: int, answer: bytes) -> None:
        with self._lock:
            origin = self._pending.pop(tag, None)
            try:
                if isinstance(origin, _Connection):
                    framed = len(answer).to_bytes(2, "big") + answer
                    # Without an answer, or with one that it does not read, a connection is of no more use: what comes
                    # next would be taken for the answer.
                    if origin.open and not (answer and origin.socket.send(framed) == len(framed)):
                        origin.socket.shutdown(SHUT_RDWR)
                elif origin is not None and answer:
                    origin[0].sendto(answer, origin[1])
            except OSError:
                return  # who asked is gone


def _bound(kind: int, address: str, port: int) -> socket:
    sock = socket(AF_INET, kind | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    try:
        if kind == SOCK_STREAM:
            sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)  # connections of a relay before this one may be closing
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


_lock = threads.Lock()
_current: Relay | None = None


def serve(params: dict[str, Any], streams: Streams, group: str) -> None:
    """Listen for queries; a relay that was there before ends.

    Arguments:
        params: ``addresses``, IPv4 addresses of the loopback interface.
        streams: ``stdin`` and ``stdout``, which are taken.
        group: the directory of the control group of all containers.

    Raises:
        RequestFailed: ``bad-spec``. OSError: it cannot listen.
    """
    global _current
    addresses: list[str] = []
    for text in get_list(params, "addresses", MAX_ADDRESSES):
        if not isinstance(text, str) or not text.startswith("127.") or text in addresses:
            raise bad("addresses must be different ones of 127.0.0.0/8")
        parse_address(text)
        addresses.append(text)
    if not addresses or not {"stdin", "stdout"} <= set(streams.by_name):
        raise bad("addresses, stdin and stdout are needed")
    with _lock:
        if _current is not None:
            _current.close()
            _current.over.wait(PATIENCE)
        listeners, links = _listen(addresses, group)
        _current = Relay(listeners, links, streams.by_name.pop("stdin"), streams.by_name.pop("stdout"))
        _current.start()


def practise(group: str) -> None:
    """Do what :func:`serve` begins with, and undo it: in guests that are made of this one it takes half of the time.

    Arguments:
        group: as for :func:`serve`.

    Raises:
        OSError: it cannot listen.
    """
    listeners, links = _listen([LIKELY], group)
    for link in links:
        os.close(link)
    for listener in listeners:
        listener.close()


def _listen(addresses: list[str], group: str) -> tuple[list[Listener], list[int]]:
    """At a port that a container will hardly want, to which those who ask are led; at their own port if that fails."""
    listeners = _listeners(addresses, 0)
    try:
        ports = {inet_aton(address): listener.port for address, listener in zip(addresses, listeners, strict=True)}
        return listeners, redirect.attach(group, ports, PORT)
    except OSError as error:
        log(f"queries of names are taken at their own port, for they cannot be redirected: {error}")
        for listener in listeners:
            listener.close()
    return _listeners(addresses, PORT), []


def _listeners(addresses: list[str], port: int) -> list[Listener]:
    made: list[Listener] = []
    try:
        for address in addresses:
            for attempt in range(TRIES):
                try:
                    made.append(Listener(address, port))
                    break
                except OSError:  # the port that the kernel chose for datagrams is taken for connections
                    if attempt == TRIES - 1:
                        raise
    except BaseException:
        for listener in made:
            listener.close()
        raise
    return made
