"""Name queries from the guest, asked of the engine's name server in the container's network namespace.

Docker's name server listens at 127.0.0.11 in that namespace, on the host. The agent listens at the same address in the
guest, and every query travels here and is asked again from a socket in the namespace. A frame is ``!HBI``: the length
of the DNS message, 0 for UDP or 1 for TCP, a number that the answer carries too; then the message. An answer without a
message says that there was none.

The guest is not trusted: queries, sockets and time are bounded, and what is no query is dropped.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from casemate.errors import CasemateError
from casemate.host import syscalls
from casemate.pod.network import log_line
from casemate.protocol.wire import LinkError
from casemate.sandbox import PodSandbox, Stream

HEAD = struct.Struct("!HBI")
UDP, TCP = 0, 1
DNS_HEAD = 12  # bytes, RFC 1035 section 4.1.1
MAX_QUERIES = 128
"""Queries under way, each with a socket of its own; those beyond it get no answer."""
MAX_DATAGRAM = 65507
QUERY_SECONDS = 20.0
PORT = 53
MAX_SERVERS = 3  # what resolvers read, resolv.conf(5)


def loopback_servers(text: str) -> tuple[str, ...]:
    """The name servers of a ``resolv.conf(5)`` that are on the loopback (127.0.0.0/8), at most three."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        with contextlib.suppress(OSError, ValueError):
            number = socket.inet_pton(socket.AF_INET, words[1])
            if number[0] == 127 and words[1] not in found:
                found.append(words[1])
    return tuple(found[:MAX_SERVERS])


class Resolver:
    """Serves the name queries of one sandbox, from :meth:`start` to :meth:`close`.

    Arguments:
        sandbox: whose agent listens in the guest.
        netns_fd: descriptor of the engine's network namespace; copied, and not closed.
        addresses: where the name server listens there, and the agent in the guest. The first one that takes a query
            answers it.
        log: takes a line about what ends the service.
    """

    def __init__(
        self, sandbox: PodSandbox, netns_fd: int, addresses: Sequence[str], log: Callable[[str], None] = log_line
    ) -> None:
        self._sandbox, self._addresses, self._log = sandbox, tuple(addresses), log
        self._netns = os.dup(netns_fd)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._closed = False
        self._ended = False
        self._waiting: deque[tuple[int, int, bytes]] = deque()
        self._streams: tuple[Stream, Stream] | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Have the agent listen, and serve.

        Raises:
            CasemateError: it cannot listen.
        """
        streams = self._sandbox.serve_dns(self._addresses)
        if streams.stdin is None or streams.stdout is None:
            raise CasemateError("the sandbox gave no streams for name queries")
        with self._lock:
            if not self._closed:
                self._streams = streams.stdin, streams.stdout
                for work in (self._read, self._serve):
                    thread = threading.Thread(target=work, args=self._streams, name="resolver", daemon=True)
                    self._threads.append(thread)
                    thread.start()
                return
        streams.stdin.close()
        streams.stdout.close()

    def close(self) -> None:
        """Stop. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            threads = list(self._threads)
            os.eventfd_write(self._wake, 1)
        for stream in self._streams or ():
            stream.close()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
        os.close(self._wake)
        os.close(self._netns)

    def _read(self, _: Stream, queries: Stream) -> None:
        """Take frames from the agent, on a thread of its own as a stream cannot be polled."""
        rest = bytearray()
        while data := queries.recv():
            rest += data
            at = 0
            while len(rest) - at >= HEAD.size:
                length, kind, tag = HEAD.unpack_from(rest, at)
                if len(rest) - at - HEAD.size < length:
                    break
                start = at + HEAD.size
                at = start + length
                message = bytes(rest[start:at])
                if is_query(kind, message):
                    self._take(kind, tag, message)
            del rest[:at]
        with self._lock:
            self._ended = True
            if not self._closed:
                os.eventfd_write(self._wake, 1)

    def _take(self, kind: int, tag: int, message: bytes) -> None:
        with self._lock:
            if not self._closed and len(self._waiting) < MAX_QUERIES:
                self._waiting.append((kind, tag, message))
                os.eventfd_write(self._wake, 1)

    def _serve(self, answers: Stream, _: Stream) -> None:
        """Ask and answer. The sockets belong to the namespace because this thread does."""
        try:
            syscalls.setns(self._netns, syscalls.CLONE_NEWNET)
        except OSError as error:
            self._log(f"resolver: cannot enter the network namespace: {error.strerror}")
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            under_way: dict[int, _Query] = {}  # the oldest first
            try:
                while True:
                    self._begin(selector, under_way, answers)
                    if self._closed or (self._ended and not under_way):
                        return
                    until = next((query.deadline - time.monotonic() for query in under_way.values()), None)
                    for key, _events in selector.select(None if until is None else max(0.0, until)):
                        if key.data is None:
                            os.eventfd_read(self._wake)
                        else:
                            key.data.step()
                    now = time.monotonic()
                    for number, query in list(under_way.items()):
                        if query.answer is None and now >= query.deadline:
                            query.end(b"")
                        if query.answer is not None:
                            del under_way[number]
                            _send(answers, query.kind, query.tag, query.answer)
            except LinkError:
                pass  # nobody wants answers any more
            finally:
                for query in under_way.values():
                    query.end(b"")

    def _begin(self, selector: selectors.BaseSelector, under_way: dict[int, _Query], answers: Stream) -> None:
        while True:
            with self._lock:
                if self._closed or not self._waiting:
                    return
                kind, tag, message = self._waiting.popleft()
            if len(under_way) >= MAX_QUERIES:
                _send(answers, kind, tag, b"")
                continue
            query = _Query(selector, kind, tag, message, self._addresses)
            if query.answer is not None:
                _send(answers, kind, tag, query.answer)
            else:
                under_way[id(query)] = query


def is_query(kind: int, message: bytes) -> bool:
    """Whether it may be asked: a message of the right size that says that it is a query."""
    size = DNS_HEAD <= len(message) <= (65535 if kind == TCP else MAX_DATAGRAM)
    return kind in (UDP, TCP) and size and not message[2] & 0x80


def is_answer(query: bytes, message: bytes) -> bool:
    """Whether ``message`` answers ``query``, as far as the head tells."""
    return len(message) >= DNS_HEAD and message[:2] == query[:2] and bool(message[2] & 0x80)


def _send(answers: Stream, kind: int, tag: int, message: bytes) -> None:
    answers.send(HEAD.pack(len(message), kind, tag) + message)


class _Query:
    """One query on its way: a socket, and what has been sent and received so far."""

    def __init__(
        self, selector: selectors.BaseSelector, kind: int, tag: int, message: bytes, addresses: Sequence[str]
    ) -> None:
        self.kind, self.tag = kind, tag
        self.deadline = time.monotonic() + QUERY_SECONDS
        self.answer: bytes | None = None
        self._selector, self._message = selector, message
        self._addresses = deque(addresses)
        self._socket: socket.socket | None = None
        self._to_send = b""
        self._received = bytearray()
        self._next()

    def _next(self) -> None:
        """Ask the next server; no answer when there is none left."""
        self._close()
        while self._addresses:
            address = self._addresses.popleft()
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sort = socket.SOCK_STREAM if self.kind == TCP else socket.SOCK_DGRAM
            try:
                self._socket = socket.socket(family, sort | socket.SOCK_NONBLOCK)
                with contextlib.suppress(BlockingIOError):
                    self._socket.connect((address, PORT))
                if self.kind == UDP:
                    self._socket.send(self._message)
            except OSError:
                self._close()
                continue
            self._to_send = struct.pack("!H", len(self._message)) + self._message if self.kind == TCP else b""
            self._received.clear()
            events = selectors.EVENT_WRITE if self._to_send else selectors.EVENT_READ
            self._selector.register(self._socket, events, self)
            return
        self.answer = b""

    def step(self) -> None:
        """Go on: the socket is ready."""
        if self._socket is None:
            return
        try:
            if self._to_send:
                self._to_send = self._to_send[self._socket.send(self._to_send) :]
                if not self._to_send:
                    self._selector.modify(self._socket, selectors.EVENT_READ, self)
                return
            data = self._socket.recv(MAX_DATAGRAM if self.kind == UDP else 65535 + 2 - len(self._received))
        except BlockingIOError:
            return
        except OSError:
            self._next()  # nobody listens there
            return
        if self.kind == UDP:
            if is_answer(self._message, data):
                self.end(data)
            return
        self._received += data
        size = 2 + struct.unpack_from("!H", self._received)[0] if len(self._received) >= 2 else 65535 + 2
        if len(self._received) >= size:
            message = bytes(self._received[2:size])
            self.end(message if is_answer(self._message, message) else b"")
        elif not data:
            self._next()

    def end(self, answer: bytes) -> None:
        """Be done, with an answer or (empty) without."""
        self._close()
        self.answer = answer

    def _close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None
