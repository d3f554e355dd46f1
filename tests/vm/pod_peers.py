"""Peers of a sandbox's network: servers and clients for its tests, and a name server as Docker's is."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable

from tests.vm.pod_guest import EngineNamespace

SERVER = "127.0.0.11"
"""Where the name server listens."""
WAIT = 60.0
"""Seconds that anything may take which has to happen."""


def listen(address: str, port: int = 0, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.settimeout(WAIT)
    sock.bind((address, port))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def connect(address: str, port: int) -> socket.socket:
    return socket.create_connection((address, port), timeout=WAIT)


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def exchange(server: socket.socket, dial: Callable[[], socket.socket], size: int = 1000) -> str:
    """Send ``size`` bytes to the server and back; the client's address as the server sees it."""
    data = os.urandom(size)

    def serve() -> None:
        peer, who = server.accept()
        with peer:
            peer.settimeout(WAIT)
            seen.append(who[0])
            peer.sendall(read_all(peer))

    seen: list[str] = []
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with dial() as client:
            sender = threading.Thread(target=send_all, args=(client, data))
            sender.start()
            assert read_all(client) == data
            sender.join()
    finally:
        thread.join()
    return seen[0]


class NameServer:
    """A tiny name server in an engine's namespace, as Docker's is: names with "outside" in them are asked further.

    Arguments:
        engine: the namespace.
        outer: an address of the host where a second name server listens; it is asked from within the namespace.
        answer: makes an answer from a query and a text that tells who answers.
    """

    def __init__(self, engine: EngineNamespace, outer: str, answer: Callable[[bytes, bytes], bytes]) -> None:
        self.engine, self.outer, self.answer_to = engine, outer, answer
        self.udp = engine.inside(lambda: listen(SERVER, 53, socket.SOCK_DGRAM))
        self.tcp = engine.inside(lambda: listen(SERVER, 53))
        self.further = socket.create_server((outer, 53), family=socket.AF_INET6 if ":" in outer else socket.AF_INET)
        self.further_udp = listen(outer, 53, socket.SOCK_DGRAM)
        for sock in (self.udp, self.tcp, self.further_udp):
            sock.settimeout(None)  # it serves as long as the test lasts
        self.threads = [
            threading.Thread(target=work, daemon=True)
            for work in (self.serve_udp, self.serve_tcp, self.outside, self.outside_tcp)
        ]
        for thread in self.threads:
            thread.start()

    def serve_udp(self) -> None:
        while True:
            query, who = self.udp.recvfrom(65535)
            self.udp.sendto(self.answer(query, socket.SOCK_DGRAM), who)

    def serve_tcp(self) -> None:
        while True:
            connection, _ = self.tcp.accept()
            with connection:
                query = receive_tcp(connection)
                reply = self.answer(query, socket.SOCK_STREAM)
                connection.sendall(struct.pack("!H", len(reply)) + reply)

    def answer(self, query: bytes, kind: socket.SocketKind) -> bytes:
        """What the inner one says."""
        if b"outside" not in query:
            return self.answer_to(query, b"inner")
        with self.engine.inside(lambda: connected((self.outer, 53), kind)) as sock:
            if kind == socket.SOCK_DGRAM:
                sock.send(query)
                return sock.recv(65535)
            sock.sendall(struct.pack("!H", len(query)) + query)
            return receive_tcp(sock)

    def outside(self) -> None:
        while True:
            query, who = self.further_udp.recvfrom(65535)
            self.further_udp.sendto(self.answer_to(query, b"outer from " + who[0].encode()), who)

    def outside_tcp(self) -> None:
        while True:
            connection, who = self.further.accept()
            with connection:
                reply = self.answer_to(receive_tcp(connection), b"outer from " + who[0].encode())
                connection.sendall(struct.pack("!H", len(reply)) + reply)


def connected(address: tuple[str, int], kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, kind)
    sock.settimeout(WAIT)
    sock.connect(address)
    return sock


def receive_tcp(sock: socket.socket) -> bytes:
    data = b""
    while len(data) < 2 or len(data) < 2 + struct.unpack_from("!H", data)[0]:
        part = sock.recv(65535)
        assert part
        data += part
    return data[2:]


def answer_to(query: bytes, text: bytes) -> bytes:
    return query[:2] + b"\x80" + query[3:] + b" -> " + text
