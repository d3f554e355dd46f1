"""A "world" beyond the host for tests of networks: a namespace behind a link of the host, with servers in it.

Sandboxes reach it through the host's NAT, and it reaches the host by an address that is not the loopback's. The servers
are threads of the test process; only their sockets belong to the namespace.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import socket
import struct
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from casemate.host import namespaces

T = TypeVar("T")
NAME = "web.world.test"
PATIENCE = 30.0
"""Seconds that a socket may be silent before a test fails."""


@dataclass
class World:
    """``host`` is the host's address on the link, ``address`` the world's."""

    netns: int
    host: str
    address: str
    questions: list[str] = field(default_factory=list)
    """Names that the name server was asked for."""

    def inside(self, function: Callable[[], T]) -> T:
        """Call a function in the namespace."""
        return namespaces.in_netns(self.netns, function)

    def socket(self, kind: socket.SocketKind, port: int = 0) -> socket.socket:
        """A socket of the world's that is bound to its address."""
        sock = self.inside(lambda: socket.socket(socket.AF_INET, kind))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(PATIENCE)
        sock.bind((self.address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(64)
        return sock

    def get(self, url: str) -> bytes:
        """Fetch a page as somebody in the world does."""
        return self.inside(lambda: get(url))

    @contextlib.contextmanager
    def web(self, pages: dict[str, bytes], port: int = 80) -> Iterator[list[str]]:
        """A web server in the world. What is sent to it by POST is answered with its SHA-256.

        Yields:
            the addresses that asked, in order.
        """
        clients: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                clients.append(self.client_address[0])
                self.answer(pages.get(self.path))

            def do_POST(self) -> None:
                clients.append(self.client_address[0])
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(hashlib.sha256(body).hexdigest().encode())

            def answer(self, body: bytes | None) -> None:
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        server = http.server.ThreadingHTTPServer((self.address, port), Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = self.socket(socket.SOCK_STREAM, port)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield clients
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    @contextlib.contextmanager
    def names(self) -> Iterator[None]:
        """A name server in the world, which knows :data:`NAME`."""
        with self.socket(socket.SOCK_DGRAM, 53) as sock, self.socket(socket.SOCK_DGRAM) as stopper:
            sock.settimeout(None)

            def serve() -> None:
                while True:
                    data, client = sock.recvfrom(512)
                    if client == stopper.getsockname():
                        return
                    sock.sendto(self._answer(data), client)

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                yield
            finally:
                stopper.sendto(b"stop", sock.getsockname())
                thread.join()

    def _answer(self, question: bytes) -> bytes:
        """The answer to a question (RFC 1035): the one A record there is, no other type, no other name."""
        labels, at = [], 12
        while length := question[at]:
            labels.append(question[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name, end = ".".join(labels).lower(), at + 5
        kind = struct.unpack("!H", question[at + 1 : at + 3])[0]
        self.questions.append(name)
        found = name == NAME and kind == 1
        flags = 0x8580 | (0 if name == NAME else 3)  # an answer, authoritative, recursion offered; 3: no such name
        header = question[:2] + struct.pack("!HHHHH", flags, 1, int(found), 0, 0)
        record = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(self.address)
        return header + question[12:end] + (record if found else b"")


def get(url: str) -> bytes:
    """Fetch a page, by no proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=PATIENCE) as answer:
        body: bytes = answer.read()
    return body


@contextlib.contextmanager
def world(number: int) -> Iterator[World]:
    """Make a world, and take it away again.

    Arguments:
        number: 0 to 255; tells it from the worlds of other test processes.
    """
    link, host, address = f"cmw{number}", f"198.18.{number}.1", f"198.18.{number}.2"
    netns = namespaces.new_netns()
    try:
        _ip(
            f"link add {link} type veth peer name w0 netns /proc/{os.getpid()}/fd/{netns}",
            f"addr add {host}/30 dev {link}",
            f"link set {link} up",
        )
        # Nobody in the world knows a way to the sandboxes: what is to reach it has to come from the host's address.
        namespaces.in_netns(
            netns, lambda: _ip("link set lo up", f"addr add {address}/30 dev w0", "link set w0 up")
        )
        yield World(netns, host, address)
    finally:
        os.close(netns)
        subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)


def _ip(*commands: str) -> None:
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
