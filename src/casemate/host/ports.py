"""Published ports: what they are, and the proxy that serves them in user space.

The proxy holds a socket on every published port, which reserves it: a second sandbox, or any other program, is told
that the port is in use. Packets from outside are sent on by the firewall before they reach that socket, so the
container sees the real client; the proxy serves the rest: the host's own programs, above all through 127.0.0.1, whose
packets the kernel would not route to another machine.

One thread serves all ports of a sandbox. Everything is bounded: connections, flows of datagrams, and what is kept for a
side that does not read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from casemate.errors import NetworkError, UsageError

MAX_PORTS = 1024
"""Published ports of one sandbox."""
MAX_CONNECTIONS = 512
"""TCP connections through one sandbox's proxy; more wait in the kernel's queue."""
MAX_FLOWS = 512
"""UDP clients of one sandbox's proxy; a new one replaces the one that was silent longest."""
FLOW_SECONDS = 60.0
CONNECT_SECONDS = 20.0
BUFFER = 256 * 1024
"""Bytes kept for one direction of a connection before the sender is made to wait."""
DATAGRAM = 65535
BURST = 64  # datagrams or connections taken from one socket before the others have their turn


@dataclass(frozen=True, slots=True)
class PortMap:
    """One published port.

    Arguments:
        host_ip: an address of the host; ``0.0.0.0`` for every IPv4 address, ``::`` for every IPv6 address.
        host_port: 1 to 65535, or 0 for one that the kernel chooses.
        container_port: 1 to 65535.
        protocol: ``tcp`` or ``udp``.
    """

    host_ip: str
    host_port: int
    container_port: int
    protocol: str = "tcp"

    def __post_init__(self) -> None:
        if self.protocol not in ("tcp", "udp"):
            raise UsageError(f"protocol {self.protocol!r} cannot be published", "use tcp or udp")
        if not 0 <= self.host_port <= 65535 or not 1 <= self.container_port <= 65535:
            raise UsageError(f"ports {self.host_port}:{self.container_port} are not ports", "use 1 to 65535")
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in self.host_ip else socket.AF_INET, self.host_ip)
        except OSError:
            raise UsageError(f"{self.host_ip!r} is not an address", "publish as ADDRESS:PORT:PORT") from None

    def __str__(self) -> str:
        host = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip
        return f"{host}:{self.host_port}->{self.container_port}/{self.protocol}"


class PortProxy:
    """The proxy of one sandbox: made by binding every port, started when the sandbox has an address.

    Arguments:
        ports: what to publish.

    Raises:
        NetworkError: a port is in use, or an address is not the host's. Nothing is left bound.
    """

    def __init__(self, ports: Sequence[PortMap]) -> None:
        if len(ports) > MAX_PORTS:
            raise NetworkError(f"{len(ports)} ports cannot be published", f"publish at most {MAX_PORTS}")
        self._sockets: list[socket.socket] = []
        made = []
        try:
            for port in ports:
                self._sockets.append(_listen(port))
                made.append(replace(port, host_port=self._sockets[-1].getsockname()[1]))
        except BaseException:
            self._close_sockets()
            raise
        self.ports = tuple(made)
        """As given, with the ports that the kernel chose filled in."""
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def start(self, address: str) -> None:
        """Serve: pass everything on to the container's ports at ``address`` (IPv4), on a thread of its own."""
        if self._thread is None and self.ports:
            loop = _Loop(self._wake_read)
            for port, sock in zip(self.ports, self._sockets, strict=True):
                target = (address, port.container_port)
                (_Listener if port.protocol == "tcp" else _Datagrams)(loop, sock, target)
            self._thread = threading.Thread(target=loop.run, name="ports", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop serving, end every connection and give the ports back. May be called twice."""
        if self._wake_write >= 0:
            os.write(self._wake_write, b".")
            if self._thread is not None:
                self._thread.join()
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_write = -1
        self._close_sockets()

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()


def _listen(port: PortMap) -> socket.socket:
    family = socket.AF_INET6 if ":" in port.host_ip else socket.AF_INET
    tcp = port.protocol == "tcp"
    sock = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if tcp:
            # Connections of a predecessor that still linger must not keep the port. (For UDP this would share it.)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((port.host_ip, port.host_port))
        if tcp:
            sock.listen(512)
    except OSError as error:
        sock.close()
        where = f"port {port.host_port}/{port.protocol} of {port.host_ip}"
        if error.errno == errno.EADDRINUSE:
            hint = "stop who uses it (ss -lntup), or publish another"
            raise NetworkError(f"{where} is already in use", hint) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise NetworkError(f"{port.host_ip} is not an address of this host", "see: ip address") from None
        hint = "run as root" if error.errno == errno.EACCES else ""
        raise NetworkError(f"cannot listen on {where}: {error.strerror}", hint) from None
    return sock


class _Loop:
    """Waits for sockets and calls what they are registered with; drops what has been silent too long."""

    def __init__(self, wake: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.selector.register(wake, selectors.EVENT_READ, None)
        self.closing: list[Callable[[], None]] = []
        self.timers: list[Callable[[float], None]] = []
        self.connections = 0
        self.listeners: list[_Listener] = []

    def run(self) -> None:
        woken = False
        next_tick = time.monotonic() + 1.0
        while not woken:
            for key, events in self.selector.select(max(0.0, next_tick - time.monotonic())):
                if key.data is None:
                    woken = True
                elif self._is_there(key):
                    key.data(events)
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + 1.0
                for tick in tuple(self.timers):
                    tick(now)
        for close in tuple(self.closing):
            close()
        self.selector.close()

    def _is_there(self, key: selectors.SelectorKey) -> bool:
        """Whether it was not closed by an earlier one of this round. A closed socket cannot be asked for: its number is
        gone, and may be another's by now."""
        known = self.selector.get_map().get(key.fd)
        return known is not None and known.fileobj is key.fileobj

    def want(self, sock: socket.socket, events: int, call: Callable[[int], None]) -> None:
        """Register, change or (with no events) drop the interest in ``sock``."""
        known = self.selector.get_map().get(sock)
        if not events:
            if known is not None:
                self.selector.unregister(sock)
        elif known is None:
            self.selector.register(sock, events, call)
        elif known.events != events:
            self.selector.modify(sock, events, call)

    def connection_ended(self) -> None:
        self.connections -= 1
        for listener in self.listeners:
            listener.resume()


class _Listener:
    def __init__(self, loop: _Loop, sock: socket.socket, target: tuple[str, int]) -> None:
        self.loop, self.sock, self.target = loop, sock, target
        self._out_of = 0.0
        loop.listeners.append(self)
        loop.timers.append(self._tick)
        self.resume()

    def resume(self) -> None:
        if self.loop.connections < MAX_CONNECTIONS and not self._out_of:
            self.loop.want(self.sock, selectors.EVENT_READ, self._accept)

    def _tick(self, now: float) -> None:
        if self._out_of:
            self._out_of = 0.0
            self.resume()

    def _accept(self, events: int) -> None:
        for _ in range(BURST):
            if self.loop.connections >= MAX_CONNECTIONS:
                self.loop.want(self.sock, 0, self._accept)
                return
            try:
                client, _ = self.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # Out of descriptors or memory: the listener would stay readable and spin, so it rests until the tick.
                self._out_of = time.monotonic()
                self.loop.want(self.sock, 0, self._accept)
                return
            try:
                _Connection(self.loop, client, self.target)
            except OSError:
                _reset(client)


class _Connection:
    """A client, its counterpart in the container, and a buffer for each direction."""

    def __init__(self, loop: _Loop, client: socket.socket, target: tuple[str, int]) -> None:
        self.loop = loop
        self.calls = (lambda events: self._ready(0, events), lambda events: self._ready(1, events))
        client.setblocking(False)
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            server.setblocking(False)
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            status = server.connect_ex(target)
            if status not in (0, errno.EINPROGRESS):
                raise OSError(status, os.strerror(status))
            loop.want(server, selectors.EVENT_WRITE, self.calls[1])
        except OSError:
            server.close()
            raise
        self.ends = (client, server)
        self.buffers = (bytearray(), bytearray())
        """What goes to the client and what goes to the server."""
        self.ended = [False, False]
        """Whether the client and the server have sent their end."""
        self.shut = [False, False]
        """Whether the client and the server have been told of the other's end."""
        self.deadline: float | None = time.monotonic() + CONNECT_SECONDS
        loop.connections += 1
        loop.closing.append(self.close)
        loop.timers.append(self._tick)

    def close(self, reset: bool = False) -> None:
        self.loop.closing.remove(self.close)
        self.loop.timers.remove(self._tick)
        for end in self.ends:
            self.loop.want(end, 0, self.calls[0])
            (_reset if reset else socket.socket.close)(end)
        self.loop.connection_ended()

    def _tick(self, now: float) -> None:
        if self.deadline is not None and now > self.deadline:
            self.close(reset=True)

    def _ready(self, side: int, events: int) -> None:
        try:
            if self.deadline is not None:
                status = self.ends[1].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if status:
                    raise OSError(status, os.strerror(status))
                self.deadline = None
            if events & selectors.EVENT_READ:
                self._read(side)
            if events & selectors.EVENT_WRITE:
                self._write(side)
        except OSError:
            self.close(reset=True)  # as the client would have seen it without us
            return
        if all(self.shut):
            self.close()
            return
        for one in (0, 1):
            wanted = 0
            if not self.ended[one] and len(self.buffers[1 - one]) < BUFFER:
                wanted |= selectors.EVENT_READ
            if self.buffers[one]:
                wanted |= selectors.EVENT_WRITE
            self.loop.want(self.ends[one], wanted, self.calls[one])

    def _read(self, side: int) -> None:
        try:
            data = self.ends[side].recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        if data:
            self.buffers[1 - side].extend(data)
        else:
            self.ended[side] = True
        self._write(1 - side)

    def _write(self, side: int) -> None:
        buffer = self.buffers[side]
        if buffer:
            try:
                sent = self.ends[side].send(buffer)
            except (BlockingIOError, InterruptedError):
                return
            del buffer[:sent]
        if not buffer and self.ended[1 - side] and not self.shut[side]:
            self.shut[side] = True
            self.ends[side].shutdown(socket.SHUT_WR)


class _Datagrams:
    """A published UDP port: each client address has a socket of its own towards the container."""

    def __init__(self, loop: _Loop, sock: socket.socket, target: tuple[str, int]) -> None:
        self.loop, self.sock, self.target = loop, sock, target
        self.flows: dict[object, tuple[socket.socket, list[float]]] = {}  # the longest silent first
        loop.closing.append(self._close)
        loop.timers.append(self._tick)
        loop.want(sock, selectors.EVENT_READ, self._from_clients)

    def _from_clients(self, events: int) -> None:
        for _ in range(BURST):
            try:
                data, client = self.sock.recvfrom(DATAGRAM)
            except OSError:
                return  # nothing more; or an ICMP error that belongs to an answer to some earlier client
            flow = self._flow(client)
            if flow is not None:
                with contextlib.suppress(OSError):  # a datagram that cannot be sent on is lost, as datagrams are
                    flow.send(data)

    def _flow(self, client: object) -> socket.socket | None:
        known = self.flows.pop(client, None)
        if known is None:
            if len(self.flows) >= MAX_FLOWS:
                self._drop(next(iter(self.flows)))
            try:
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            except OSError:
                return None
            try:
                sock.setblocking(False)
                sock.connect(self.target)
            except OSError:
                sock.close()
                return None
            known = (sock, [0.0])
            self.loop.want(sock, selectors.EVENT_READ, lambda events: self._from_container(sock, client))
        known[1][0] = time.monotonic()
        self.flows[client] = known
        return known[0]

    def _from_container(self, sock: socket.socket, client: object) -> None:
        for _ in range(BURST):
            try:
                data = sock.recv(DATAGRAM)
            except OSError:
                return  # nothing more; or "connection refused" from the container, which datagram senders do not hear
            flow = self.flows.pop(client, None)
            if flow is not None:
                flow[1][0] = time.monotonic()
                self.flows[client] = flow
            with contextlib.suppress(OSError):
                self.sock.sendto(data, client)  # type: ignore[call-overload]

    def _drop(self, client: object) -> None:
        sock, _ = self.flows.pop(client)
        self.loop.want(sock, 0, self._from_clients)
        sock.close()

    def _tick(self, now: float) -> None:
        while self.flows:
            client, (_, seen) = next(iter(self.flows.items()))
            if now - seen[0] < FLOW_SECONDS:
                break
            self._drop(client)

    def _close(self) -> None:
        for client in tuple(self.flows):
            self._drop(client)


def _reset(sock: socket.socket) -> None:
    """Close so that the peer sees an abort, not an orderly end after which data might be thought complete."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
