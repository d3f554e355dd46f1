"""One connection between host and agent: requests, events and streams over two file descriptors.

The same class serves both sides. One thread reads and never writes, so that two peers can not wait for each other;
writes are serialized by a lock. Requests run on a bounded pool of threads, events on a thread of their own, and every
stream has its own window: whoever is slow stalls only itself.
"""

from __future__ import annotations

import os
import select
from time import monotonic

from casemate.protocol import threads, wire
from casemate.protocol.stream import Stream
from casemate.protocol.threads import deque
from casemate.protocol.wire import (
    HEADER_SIZE,
    LinkClosed,
    LinkError,
    LinkTimeout,
    ProtocolError,
    RequestFailed,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Link", "Reply", "Stream"]

BUFFER = 256 * 1024
CLOSED = "the peer closed the link"
"""The reason of an end that came in order, between two frames."""
MAX_WORKERS = 64
IDLE_WORKERS = 4
MAX_EVENTS = 4096
MAX_EVENT_BYTES = 1024 * 1024
"""As they were sent. What they become in memory may be thirty times as much."""
EARLY = 16
"""How many streams the agent takes data of before it has handled the request that names them."""
REMEMBERED = 4096
"""How many closed streams, and calls that timed out, are known: what still arrives for them is dropped."""
JOINED = 8192
"""Payloads up to this size are copied behind their header: one write is cheaper than two buffers."""


class Reply:
    """An answer after which something is to happen.

    Arguments:
        result: what the caller gets.
        then: called on the same thread once the answer has been written, or could not be.
    """

    __slots__ = ("result", "then")

    def __init__(self, result: dict[str, Any], then: Callable[[], None]) -> None:
        self.result = result
        self.then = then


class _Call:
    __slots__ = ("done", "result", "error")

    def __init__(self) -> None:
        self.done = threads.Event()
        self.result: dict[str, Any] | None = None
        self.error: LinkError | None = None


class Link:
    """A connection to the peer; it owns both descriptors and closes them.

    Arguments:
        read_fd, write_fd: byte streams of the peer; may be one and the same. They become non-blocking.
        role: ``host`` or ``agent``.
        version: of casemate, told to the peer.
        on_request: answers a request (method, params); runs on a worker thread. :class:`RequestFailed` becomes an
            error at the caller; without it a request of the peer breaks the protocol.
        on_event: takes an event (name, params); called one at a time, in order, on a thread of its own.
        on_closed: takes the reason, exactly once, when the link is over.
    """

    def __init__(
        self,
        read_fd: int,
        write_fd: int,
        *,
        role: str,
        version: str,
        on_request: Callable[[str, dict[str, Any]], dict[str, Any] | Reply] | None = None,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        on_closed: Callable[[str], None] | None = None,
    ) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._role = role
        self._version = version
        self._on_request = on_request
        self._on_event = on_event
        self._on_closed = on_closed
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._writing = threads.Lock()
        self._lock = threads.Lock()  # guards everything below
        self._started = False
        self._finished = False
        self._dispatching = False
        self._reason: str | None = None
        self._broken: ProtocolError | None = None
        self._greeted = threads.Event()
        self._peer: dict[str, Any] | None = None
        self._next = 1
        self._calls: dict[int, _Call] = {}
        self._abandoned: dict[int, None] = {}
        self._serving: set[int] = set()
        self._streams: dict[int, Stream] = {}
        self._early: set[int] = set()
        self._gone: dict[int, None] = {}
        self._jobs: deque[tuple[int, dict[str, Any]]] = deque()
        self._jobs_ready = threads.Condition(self._lock)
        self._workers = 0
        self._idle = 0
        self._events: deque[tuple[int, dict[str, Any]]] = deque()
        self._event_bytes = 0
        self._events_ready = threads.Condition(self._lock)

    # ---- what both sides call

    @property
    def closed(self) -> bool:
        """Whether the link is over."""
        return self._reason is not None

    def start(self, timeout: float) -> dict[str, Any]:
        """Exchange HELLO and begin.

        Arguments:
            timeout: how many seconds the peer has for its HELLO.

        Returns:
            the peer's HELLO: ``protocol``, ``role``, ``version``.

        Raises:
            LinkTimeout: the peer was silent. LinkClosed: it went away. ProtocolError: it is not a peer of ours.
        """
        deadline = monotonic() + timeout
        with self._lock:
            if self._started or self._reason is not None:
                raise LinkClosed(self._reason or "the link was started before")
            self._started = True
        threads.start(self._read)
        try:
            self._control(wire.HELLO, 0, wire.hello(self._role, self._version), deadline)
        except LinkClosed:
            self._greeted.wait(max(0.0, deadline - monotonic()))  # the reader knows better why
        if not self._greeted.wait(max(0.0, deadline - monotonic())):
            self.close("no HELLO in time")
            raise LinkTimeout(f"no HELLO from the {wire._other(self._role)} within {timeout:g} s")
        if self._peer is None:
            raise self._broken or LinkClosed(self._reason or "closed")
        return self._peer

    def resume(self, hello: dict[str, Any]) -> None:
        """Begin where another link of this side has left off: the peer was greeted by that, and is idle since.

        Arguments:
            hello: what the peer said then.

        Raises:
            ProtocolError: it is no HELLO of a peer of ours. LinkClosed: the link was started or closed before.
        """
        with self._lock:
            if self._started or self._reason is not None:
                raise LinkClosed(self._reason or "the link was started before")
            self._started = True
        self._take_hello(hello)
        threads.start(self._read)

    def call(self, method: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Ask the peer and wait for the answer.

        Arguments:
            method, params: the request.
            timeout: how many seconds it may take altogether.

        Raises:
            RequestFailed: the peer refused. LinkTimeout: no answer in time (a later one is dropped). LinkClosed: the
            link ended. ProtocolError: the parameters cannot be sent.
        """
        deadline = monotonic() + timeout
        payload = wire.pack(wire.REQUEST, {"method": method, "params": params})
        call = _Call()
        with self._lock:
            self._must_be_open()
            if len(self._calls) >= wire.MAX_CHANNELS:
                raise LinkTimeout(f"{method}: too many requests wait for an answer")
            number = self._next
            self._next += 1
            self._calls[number] = call
        try:
            self._frame(wire.REQUEST, number, payload, deadline)
        except LinkError:
            with self._lock:
                self._calls.pop(number, None)
            raise
        if not call.done.wait(max(0.0, deadline - monotonic())):
            with self._lock:
                if self._calls.pop(number, None) is not None:
                    _remember(self._abandoned, number)
            if not call.done.is_set():
                raise LinkTimeout(f"{method}: no answer within {timeout:g} s")
        if call.error is not None:
            raise call.error
        return call.result if call.result is not None else {}

    def notify(self, event: str, params: dict[str, Any]) -> None:
        """Tell the peer; it does not answer.

        Raises:
            LinkClosed: the link ended. ProtocolError: the event cannot be sent.
        """
        self._control(wire.EVENT, 0, {"event": event, "params": params}, None)

    def stream(self, channel: int) -> Stream:
        """Open a stream in both directions.

        Arguments:
            channel: its number, from 1 to 2**32-1. The host chooses it, never twice on one link, opens the stream
                and only then names the number in a request.

        Raises:
            LinkClosed: the link ended. LinkError: the number is in use or was, or too many streams are open.
        """
        if not 0 < channel < 1 << 32:
            raise LinkError(f"channel {channel} is out of bounds")
        with self._lock:
            self._must_be_open()
            if channel in self._early:
                self._early.remove(channel)
                return self._streams[channel]
            if channel in self._streams or channel in self._gone:
                raise LinkError(f"channel {channel} is in use")
            if len(self._streams) >= wire.MAX_CHANNELS:
                raise LinkError(f"{len(self._streams)} streams are open, and there can be no more")
            stream = self._streams[channel] = Stream(self, channel)
            return stream

    def close(self, reason: str) -> None:
        """End the link: calls fail, streams end after what has arrived. May be called by any thread, at any time."""
        with self._lock:
            if self._reason is None:
                self._reason = reason
            started, self._started = self._started, True
            if started and not self._finished:
                os.write(self._wake_write, b"!")
        if not started:
            self._finish(reason)

    # ---- writing

    def _must_be_open(self) -> None:
        if self._reason is not None:
            raise LinkClosed(self._reason)

    def _control(self, kind: int, channel: int, message: dict[str, Any], deadline: float | None) -> None:
        self._frame(kind, channel, wire.pack(kind, message), deadline)

    def _frame(
        self, kind: int, channel: int, payload: bytes | memoryview = b"", deadline: float | None = None, flags: int = 0
    ) -> None:
        """Write one frame whole; waits for the peer, until ``deadline`` (monotonic seconds) where there is one."""
        head = wire.header(kind, len(payload), channel, flags)
        if deadline is None:
            self._writing.acquire()
        elif not self._writing.acquire(timeout=max(0.0, deadline - monotonic())):
            raise LinkTimeout("the peer takes nothing: another write has been waiting for it")
        try:
            self._must_be_open()
            if len(payload) <= JOINED:
                self._write([memoryview(b"".join((head, payload)))], deadline)
            else:
                self._write([memoryview(head), memoryview(payload)], deadline)
        finally:
            self._writing.release()

    def _write(self, parts: list[memoryview], deadline: float | None) -> None:
        began = False
        while parts:
            try:
                done = os.writev(self._write_fd, parts) if len(parts) > 1 else os.write(self._write_fd, parts[0])
            except BlockingIOError:
                self._wait_writable(deadline, began)
                continue
            except OSError as error:
                # What the peer said before it went is still to be read: the reader ends the link, not this.
                raise LinkClosed(f"the peer is gone: {error.strerror}") from None
            began = True
            while parts and done >= len(parts[0]):
                done -= len(parts.pop(0))
            if parts:
                parts[0] = parts[0][done:]

    def _wait_writable(self, deadline: float | None, began: bool) -> None:
        poller = select.poll()
        poller.register(self._write_fd, select.POLLOUT)
        poller.register(self._wake_read, select.POLLIN)
        timeout = None if deadline is None else max(0.0, deadline - monotonic()) * 1000
        ready = poller.poll(timeout)
        self._must_be_open()
        if not ready:
            if began:
                self.close("the peer stopped reading inside a frame")
            raise LinkTimeout("the peer takes nothing")

    # ---- reading: everything below runs on the reader thread, which must never write to the peer or wait for it

    def _read(self) -> None:
        try:
            reason = self._pump()
        except ProtocolError as error:
            self._broken = error
            reason = f"the peer broke the protocol: {error}"
        except OSError as error:
            reason = f"the link cannot be read: {error.strerror}"
        except (MemoryError, RuntimeError) as error:  # RuntimeError: no thread can be started
            reason = f"out of resources: {error}"
        self._finish(reason)

    def _pump(self) -> str:
        buffer = bytearray(BUFFER)
        view = memoryview(buffer)
        start = end = 0
        poller = select.poll()
        poller.register(self._read_fd, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        while self._reason is None:
            try:
                got = os.readv(self._read_fd, [view[end:]])
            except BlockingIOError:
                poller.poll()
                continue
            if got == 0:
                if start != end:
                    raise ProtocolError("the stream of frames ended inside a frame")
                return CLOSED
            end += got
            wanted = HEADER_SIZE
            while end - start >= HEADER_SIZE:
                length, kind, flags, reserved, channel = wire.HEADER.unpack_from(buffer, start)
                wire.check(kind, length, channel, flags, reserved)
                wanted = HEADER_SIZE + length
                if end - start < wanted:
                    break
                self._take(kind, channel, flags, view[start + HEADER_SIZE : start + wanted])
                start += wanted
                wanted = HEADER_SIZE
            # Make room for the rest of the frame that has begun; the buffer is large only while a large frame is in it.
            size = max(BUFFER, wanted, end - start)
            if size != len(buffer):
                fresh = bytearray(size)
                fresh[: end - start] = view[start:end]
                buffer, view = fresh, memoryview(fresh)
                start, end = 0, end - start
            elif start == end:
                start = end = 0
            elif start + wanted > size or end == size:
                view[: end - start] = bytes(view[start:end])
                start, end = 0, end - start
        return self._reason

    def _take(self, kind: int, channel: int, flags: int, payload: memoryview) -> None:
        if self._peer is None:
            if kind != wire.HELLO:
                raise ProtocolError(f"{wire.NAMES[kind]} before HELLO")
            self._take_hello(wire.unpack(kind, bytes(payload)))
        elif kind == wire.DATA:
            self._take_data(channel, payload)
        elif kind == wire.CREDIT:
            self._take_credit(channel, flags, payload)
        elif kind == wire.EOF:
            self._take_data(channel, payload)
        elif kind == wire.REQUEST:
            self._take_request(channel, wire.unpack(kind, bytes(payload)))
        elif kind == wire.EVENT:
            self._take_event(len(payload), wire.unpack(kind, bytes(payload)))
        elif kind == wire.HELLO:
            raise ProtocolError("a second HELLO")
        else:
            self._take_answer(kind, channel, wire.unpack(kind, bytes(payload)))

    def _take_hello(self, message: dict[str, Any]) -> None:
        wire.check_hello(message, self._role)
        if self._on_event is not None:
            threads.start(self._dispatch)
            self._dispatching = True  # only now: where no thread could start, on_closed is the reader's
        self._peer = message
        self._greeted.set()

    def _take_data(self, channel: int, payload: memoryview) -> None:
        """DATA, or EOF, whose payload is empty."""
        with self._lock:
            stream = self._streams.get(channel)
            if stream is None:
                if channel in self._gone:
                    return
                if self._role != "agent" or len(self._early) >= EARLY or len(self._streams) >= wire.MAX_CHANNELS:
                    raise ProtocolError(f"data on channel {channel}, which is not open")
                stream = self._streams[channel] = Stream(self, channel)
                self._early.add(channel)
        stream.arrived(payload)

    def _take_credit(self, channel: int, flags: int, payload: memoryview) -> None:
        with self._lock:
            stream = self._streams.get(channel)
            if stream is None:
                if channel in self._gone:
                    return
                raise ProtocolError(f"credit for channel {channel}, which is not open")
        if flags == wire.STOP:
            stream.stopped()
        else:
            stream.credited(wire.CREDIT_SIZE.unpack(payload)[0])

    def _take_answer(self, kind: int, channel: int, message: dict[str, Any]) -> None:
        error = None
        if kind == wire.ERROR:
            error = RequestFailed(wire.text(message, "code", 64), wire.text(message, "message", 4096))
        with self._lock:
            call = self._calls.pop(channel, None)
            if call is None:
                if channel not in self._abandoned:
                    raise ProtocolError(f"{wire.NAMES[kind]} to request {channel}, which nobody made")
                del self._abandoned[channel]
                return
        call.result, call.error = message, error
        call.done.set()

    def _take_request(self, channel: int, message: dict[str, Any]) -> None:
        if self._on_request is None:
            raise ProtocolError("a request to the side that serves none")
        wire.text(message, "method", 64)
        wire.mapping(message, "params")
        with self._lock:
            if channel in self._serving:
                raise ProtocolError(f"request {channel} twice")
            if len(self._serving) >= wire.MAX_CHANNELS:
                raise ProtocolError(f"more than {wire.MAX_CHANNELS} requests at once")
            self._serving.add(channel)
            self._jobs.append((channel, message))
            if self._idle >= len(self._jobs):
                self._jobs_ready.notify()
                return
            if self._workers >= MAX_WORKERS:
                return
            self._workers += 1
        try:
            threads.start(self._work)
        except RuntimeError:  # there can be no more threads for the moment
            with self._lock:
                self._workers -= 1
                if self._workers == 0:
                    raise  # nobody is there who would come to it

    def _take_event(self, size: int, message: dict[str, Any]) -> None:
        wire.text(message, "event", 64)
        wire.mapping(message, "params")
        if self._on_event is None:
            return
        with self._lock:
            if len(self._events) >= MAX_EVENTS or self._event_bytes + size > MAX_EVENT_BYTES:
                raise ProtocolError("events come faster than they can be handled")
            self._events.append((size, message))
            self._event_bytes += size
            self._events_ready.notify()

    def _finish(self, reason: str) -> None:
        """Let everybody know, close the descriptors."""
        with self._lock:
            if self._reason is None:
                self._reason = reason
            reason = self._reason
            self._finished = True
            os.write(self._wake_write, b"!")  # whoever waits to write holds the lock of the writers
            calls, self._calls = list(self._calls.values()), {}
            streams = list(self._streams.values())
            self._jobs.clear()
            self._jobs_ready.notify_all()
            self._events_ready.notify_all()
        with self._writing:
            for fd in {self._read_fd, self._write_fd, self._wake_read, self._wake_write}:
                os.close(fd)
        for call in calls:
            call.error = LinkClosed(reason)
            call.done.set()
        for stream in streams:
            stream.link_over()
        self._greeted.set()
        if not self._dispatching:
            self._tell_closed(reason)

    def _tell_closed(self, reason: str) -> None:
        if self._on_closed is not None:
            try:
                self._on_closed(reason)
            except Exception as error:  # the callback's own affair; the link is over in any case
                _complain("on_closed", error)

    # ---- other threads

    def _dispatch(self) -> None:
        while True:
            with self._lock:
                while not self._events and not self._finished:
                    self._events_ready.wait()
                if not self._events:
                    break
                size, message = self._events.popleft()
                self._event_bytes -= size
            try:
                assert self._on_event is not None
                self._on_event(message["event"], message["params"])
            except Exception as error:  # a callback that fails must not end the events after it
                _complain(f"event {message['event']!r}", error)
        self._tell_closed(self._reason or "closed")

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._jobs:
                    if self._reason is not None or self._idle >= IDLE_WORKERS:
                        self._workers -= 1
                        return
                    self._idle += 1
                    self._jobs_ready.wait()
                    self._idle -= 1
                channel, message = self._jobs.popleft()
            self._serve(channel, message["method"], message["params"])

    def _serve(self, channel: int, method: str, params: dict[str, Any]) -> None:
        kind = wire.RESPONSE
        then = None
        try:
            assert self._on_request is not None
            answer = self._on_request(method, params)
            if isinstance(answer, Reply):
                then, answer = answer.then, answer.result
            payload = wire.pack(kind, answer)
        except RequestFailed as error:
            kind, payload = _refusal(error.code, error.message)
        except Exception as error:  # whatever a request does to its handler, the link and its peer live on
            kind, payload = _refusal("internal", f"{method}: {type(error).__name__}: {error}")
        with self._lock:
            self._serving.discard(channel)
        try:
            self._frame(kind, channel, payload)
        except LinkError:
            return  # the asker is gone; "finally" still comes
        finally:
            if then is not None:
                then()

    # ---- for streams

    def forget(self, channel: int) -> None:
        """A stream was closed on this side: drop what still comes for it."""
        with self._lock:
            if self._streams.pop(channel, None) is not None:
                _remember(self._gone, channel)


def _refusal(code: str, message: str) -> tuple[int, bytes]:
    return wire.ERROR, wire.pack(wire.ERROR, {"code": code[:64], "message": message[:4096]})


def _remember(known: dict[int, None], number: int) -> None:
    known[number] = None
    while len(known) > REMEMBERED:
        del known[next(iter(known))]


def _complain(what: str, error: Exception) -> None:
    os.write(2, f"casemate link: {what}: {type(error).__name__}: {error}\n".encode("utf-8", "replace")[:1000])
