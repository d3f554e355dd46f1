"""ttrpc: what containerd and its shims speak over a UNIX socket, both sides, on one loop.

A frame is a length (4 bytes, big-endian), the number of the stream (4 bytes, odd for what a client began), a type and
flags, then as many bytes; the payloads are ``ttrpc.Request`` and ``ttrpc.Response``. Source: PROTOCOL.md of
github.com/containerd/ttrpc. Only unary calls are served; a call with streams is told so.

The peer of a server is root on this host, like ourselves, and checked to be; frames, requests in flight and what waits
to be sent are bounded all the same, so that a mistake there stays small here.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import deque

from casemate.shim import messages, status, wire
from casemate.shim.loop import ERROR, HANGUP, READ, WRITE, Future, Loop, Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Handler = Callable[["Call", dict[str, Any]], Any]
    Service = dict[str, tuple[wire.Table, wire.Table, Handler]]

HEADER = struct.Struct(">IIBB")
TYPE_REQUEST, TYPE_RESPONSE, TYPE_DATA = 1, 2, 3
REMOTE_CLOSED, REMOTE_OPEN, NO_DATA = 1, 2, 4
"""Flags: the peer sends no more on this stream; it sends more; this frame has no data."""
MAX_LENGTH = 4 << 20
MAX_IN_FLIGHT = 4096
"""Most requests of one connection that wait for an answer. Waiting for a process costs one for as long as it runs."""
WAITS = ("Wait", "WaitSandbox")
MAX_WAITS = MAX_IN_FLIGHT * 3 // 4
"""With more under way nobody can begin to wait for a process: a client that gives up waiting does not tell, and must
not be kept from everything else by that."""
MAX_UNSENT = 64 << 20
"""A peer that lets more bytes of answers wait than this has gone astray and is cut off."""
_PEERCRED = struct.Struct("iII")


class FramingError(Exception):
    """The peer does not keep to the protocol, or is gone."""


class Oversized(FramingError):
    """A frame that is too large; the stream's number is its argument. The connection can go on."""

    def __init__(self, stream: int, length: int) -> None:
        super().__init__(f"message length {length} exceed maximum message size of {MAX_LENGTH}")
        self.stream = stream


def frame(stream: int, kind: int, payload: bytes, flags: int = 0) -> bytes:
    """One frame.

    Raises:
        TooLarge: the payload is larger than 4 MiB.
    """
    if len(payload) > MAX_LENGTH:
        raise TooLarge(f"a message of {len(payload)} bytes, at most {MAX_LENGTH} are allowed")
    return HEADER.pack(len(payload), stream, kind, flags) + payload


class TooLarge(FramingError):
    """A message of ours that is larger than a peer would take."""


class Parser:
    """Takes bytes as they come and gives frames ``(stream, type, flags, payload)``."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._discard = 0

    def feed(self, data: bytes) -> None:
        """Take bytes that were received."""
        if self._discard:
            dropped = min(self._discard, len(data))
            self._discard -= dropped
            data = data[dropped:]
        self._buffer += data

    def next(self) -> tuple[int, int, int, bytes] | None:
        """The next frame that is whole, or None.

        Raises:
            Oversized: a frame of more than 4 MiB came; its bytes are thrown away as they come.
        """
        if len(self._buffer) < HEADER.size:
            return None
        length, stream, kind, flags = HEADER.unpack_from(self._buffer)
        if length > MAX_LENGTH:
            there = min(length, len(self._buffer) - HEADER.size)
            self._discard = length - there
            del self._buffer[: HEADER.size + there]
            raise Oversized(stream, length)
        if len(self._buffer) < HEADER.size + length:
            return None
        payload = bytes(self._buffer[HEADER.size : HEADER.size + length])
        del self._buffer[: HEADER.size + length]
        return stream, kind, flags, payload


class Connection:
    """A socket on a loop that sends and receives frames.

    Arguments:
        loop: where it is watched.
        sock: connected; the connection owns it from now on.
        on_frame: called with each frame's stream, type, flags and payload.
        on_oversized: called with the stream of a frame that was too large.
        on_close: called once when it is closed, with the reason.
    """

    def __init__(
        self, loop: Loop, sock: socket.socket, on_frame: Callable[[int, int, int, bytes], None],
        on_oversized: Callable[[int, str], None], on_close: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_frame = on_frame
        self._on_oversized = on_oversized
        self._on_close = on_close
        self._parser = Parser()
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self.closed = False
        sock.setblocking(False)
        loop.watch(sock.fileno(), READ, self._ready)

    def send(self, data: bytes) -> None:
        """Send frames, later what the peer does not take now. Sending on a closed connection does nothing."""
        if self.closed:
            return
        self._unsent.append(memoryview(data))
        self._unsent_bytes += len(data)
        if len(self._unsent) == 1:
            self._flush()
        if self._unsent_bytes > MAX_UNSENT:
            self.close("the peer takes no answers")

    def _flush(self) -> None:
        while self._unsent and not self.closed:
            part = self._unsent[0]
            try:
                sent = self._sock.send(part)
            except BlockingIOError:
                break
            except OSError as error:
                self.close(error.strerror or "cannot send")
                return
            self._unsent_bytes -= sent
            if sent < len(part):
                self._unsent[0] = part[sent:]
            else:
                self._unsent.popleft()
        if not self.closed:
            self._loop.watch(self._sock.fileno(), READ | WRITE if self._unsent else READ, self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & (READ | HANGUP | ERROR) and not self.closed:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(error.strerror or "cannot receive")
            return
        if not data:
            self.close("closed by the peer")
            return
        self._parser.feed(data)
        while not self.closed:
            try:
                received = self._parser.next()
            except Oversized as error:
                self._on_oversized(error.stream, str(error))
                continue
            if received is None:
                return
            self._on_frame(*received)

    def close(self, reason: str = "closed") -> None:
        """Close the socket. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        self._unsent.clear()
        self._on_close(reason)


class Call:
    """One request that a server was asked. It is answered once; a second answer does nothing.

    Arguments:
        connection: where the answer goes.
        stream: the number of the request's stream.
        answer: the table of the answer.
        seconds: how long the peer waits; None for ever.
    """

    def __init__(
        self, served: Served, stream: int, answer: wire.Table | None, name: str, seconds: float | None
    ) -> None:
        self._served = served
        self._stream = stream
        self._answer = answer
        self.name = name
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.answered = False
        self.on_over: Callable[[], None] | None = None
        """Called when it has been answered, or nobody is there any more who could be."""
        self._timer: Timer | None = None
        if seconds is not None:
            self._timer = served.loop.later(seconds, self._late)

    def left(self) -> float | None:
        """Seconds until the peer waits no longer; None for ever."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def reply(self, message: dict[str, Any]) -> None:
        """Answer with a message."""
        if self._answer is None:
            return
        try:
            payload = wire.encode(self._answer, message)
            response = wire.encode(messages.RESPONSE, {"payload": payload})
            data = frame(self._stream, TYPE_RESPONSE, response)
        except (wire.WireError, FramingError) as error:
            self.fail(status.INTERNAL, str(error))
            return
        self._finish(data)

    def fail(self, code: int, message: str) -> None:
        """Answer with an error."""
        text = message[:65536].encode("utf-8", "replace").decode()
        response = wire.encode(messages.RESPONSE, {"status": {"code": code, "message": text}})
        self._finish(frame(self._stream, TYPE_RESPONSE, response))

    def finish(self, future: Future) -> None:
        """Answer with the value of a future, or its error."""
        error = future.error
        if error is None:
            self.reply(future.value or {})
        elif isinstance(error, status.StatusError):
            self.fail(error.code, error.message)
        elif isinstance(error, TimeoutError):
            self.fail(status.DEADLINE_EXCEEDED, "context deadline exceeded")
        else:
            self._served.loop.complain(f"{self.name}: {type(error).__name__}: {error}")
            self.fail(status.UNKNOWN, str(error) or type(error).__name__)

    def _late(self) -> None:
        self.fail(status.DEADLINE_EXCEEDED, "context deadline exceeded")

    def _finish(self, data: bytes) -> None:
        if not self.answered:
            self.forget()
            self._served.finished(self, data)

    def forget(self) -> None:
        """Answer it no more."""
        self.answered = True
        if self._timer is not None:
            self._timer.cancel()
        if self.on_over is not None:
            self.on_over()
            self.on_over = None


class Served:
    """One connection of a server."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.loop = server.loop
        self._server = server
        self._calls: set[Call] = set()
        self.connection = Connection(self.loop, sock, self._frame, self._oversized, self._closed)

    def _oversized(self, stream: int, message: str) -> None:
        self._refuse(stream, status.RESOURCE_EXHAUSTED, message)

    def _refuse(self, stream: int, code: int, message: str) -> None:
        Call(self, stream, None, "", None).fail(code, message)

    def _frame(self, stream: int, kind: int, flags: int, payload: bytes) -> None:
        if kind != TYPE_REQUEST:
            return  # to be ignored, says the protocol
        try:
            request = wire.decode(messages.REQUEST, payload)
        except wire.WireError as error:
            self._refuse(stream, status.INVALID_ARGUMENT, f"unmarshal request error: {error}")
            return
        if stream % 2 != 1:
            self._refuse(
                stream, status.INVALID_ARGUMENT, "StreamID must be odd for client initiated streams"
            )
            return
        most = MAX_WAITS if request["method"] in WAITS else MAX_IN_FLIGHT
        if len(self._calls) >= most:
            self._refuse(stream, status.RESOURCE_EXHAUSTED, f"more than {most} requests in flight")
            return
        service = self._server.services.get(request["service"])
        if service is None:
            self._refuse(stream, status.UNIMPLEMENTED, f"service {request['service']}")
            return
        method = service.get(request["method"])
        if method is None or flags & REMOTE_OPEN:
            self._refuse(stream, status.UNIMPLEMENTED, f"method {request['method']}")
            return
        table, answer, handler = method
        seconds = request["timeout_nano"] / 1e9 if request["timeout_nano"] > 0 else None
        call = Call(self, stream, answer, f"{request['service']}/{request['method']}", seconds)
        try:
            message = wire.decode(table, request["payload"])
        except wire.WireError as error:
            call.fail(status.INVALID_ARGUMENT, f"unmarshal request error: {error}")
            return
        self._calls.add(call)
        try:
            steps = handler(call, message)
        except status.StatusError as error:
            call.fail(error.code, error.message)
            return
        if steps is not None:
            self.loop.start(steps).then(call.finish)

    def finished(self, call: Call, data: bytes) -> None:
        """Send a call's answer."""
        self._calls.discard(call)
        self.connection.send(data)

    def _closed(self, reason: str) -> None:
        self._server.connections.discard(self)
        for call in list(self._calls):
            call.forget()
        self._calls.clear()


class Server:
    """Serves services to whoever connects and has our user id.

    Arguments:
        loop: where it works.
        listener: a listening socket; the server owns it from now on.
        services: by full name: its methods, each with the tables of request and answer, and a function. The function
            gets the call and the request; it returns steps whose value is the answer, or None when it answers itself.
    """

    def __init__(self, loop: Loop, listener: socket.socket, services: dict[str, Service]) -> None:
        self.loop = loop
        self.services = services
        self.connections: set[Served] = set()
        self._listener = listener
        listener.setblocking(False)
        loop.watch(listener.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor is left: not again at once, the listener would stay ready
            self.loop.complain(f"cannot accept a connection: {error.strerror}")
            self.loop.unwatch(self._listener.fileno())
            self.loop.later(0.1, self._listen_again)
            return
        _pid, uid, _gid = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
        if uid != os.geteuid():
            self.loop.complain(f"refused a connection of user {uid}")
            sock.close()
            return
        self.connections.add(Served(self, sock))

    def _listen_again(self) -> None:
        if self.listening():
            self.loop.watch(self._listener.fileno(), READ, self._accept)

    def listening(self) -> bool:
        """Whether new connections are taken."""
        return self._listener.fileno() >= 0

    def stop_listening(self) -> None:
        """Take no new connections; those that are there stay."""
        if self.listening():
            self.loop.unwatch(self._listener.fileno())
            self._listener.close()

    def close(self) -> None:
        """End everything, with answers unsent that the peers have not taken."""
        self.stop_listening()
        for served in list(self.connections):
            served.connection.close()


class Client:
    """A connection to a server, such as containerd's own.

    Arguments:
        loop: where it works.
        path: the server's socket.

    Raises:
        OSError: nobody listens there.
    """

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self._waiting: dict[int, Future] = {}
        self._stream = 1
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(5.0)  # until it is accepted into the queue, which only a full one delays
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        self._connection = Connection(loop, sock, self._frame, self._oversized, self._closed)

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._connection.closed

    def call(
        self, service: str, method: str, table: wire.Table, message: dict[str, Any], answer: wire.Table,
        seconds: float | None = None,
    ) -> Future:
        """Ask the server.

        Returns:
            a future with the answer. It fails with StatusError when the server refuses, FramingError when the
            connection ends, TimeoutError after ``seconds``.
        """
        future = Future()
        stream, self._stream = self._stream, self._stream + 2
        if self.closed:
            future.fail(FramingError("closed"))
            return future
        request: dict[str, Any] = {"service": service, "method": method, "payload": wire.encode(table, message)}
        if seconds is not None:
            request["timeout_nano"] = int(seconds * 1e9)
        raw = Future()
        self._waiting[stream] = raw

        def done(result: Future) -> None:
            self._waiting.pop(stream, None)
            if result.error is not None:
                future.fail(result.error)
                return
            try:
                future.set(_answer(answer, result.value))
            except (status.StatusError, FramingError) as error:
                future.fail(error)

        self._loop.bounded(raw, seconds).then(done)
        self._connection.send(frame(stream, TYPE_REQUEST, wire.encode(messages.REQUEST, request), REMOTE_CLOSED))
        return future

    def _frame(self, stream: int, kind: int, flags: int, payload: bytes) -> None:
        future = self._waiting.get(stream)
        if future is not None and kind == TYPE_RESPONSE:
            future.set(payload)

    def _oversized(self, stream: int, message: str) -> None:
        future = self._waiting.get(stream)
        if future is not None:
            future.fail(FramingError(message))

    def _closed(self, reason: str) -> None:
        for future in list(self._waiting.values()):
            future.fail(FramingError(reason))

    def close(self) -> None:
        """End the connection; who waits is told."""
        self._connection.close()


def _answer(table: wire.Table, payload: bytes) -> dict[str, Any]:
    try:
        response = wire.decode(messages.RESPONSE, payload)
        error = response["status"]
        if error is not None and error["code"] != status.OK:
            raise status.StatusError(error["code"], error["message"])
        return wire.decode(table, response["payload"])
    except wire.WireError as error_:
        raise FramingError(f"an answer that is none: {error_}") from None


def listen(path: str) -> socket.socket:
    """A listening socket at ``path``, for us alone (mode 0600).

    Raises:
        OSError: EADDRINUSE when something has the name.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        old = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(old)
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return sock


def answers(path: str) -> bool:
    """Whether somebody listens at ``path``; also somebody who has too much to do to accept a connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(0.1)
        try:
            sock.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass
    return True
