"""Names and ports: what goes between sockets of the guest and streams of the host."""

from __future__ import annotations

import os
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from casemate.agent import dns, modules, redirect
from casemate.agent.dns import HEAD, TCP, UDP, Listener, Relay
from casemate.protocol.link import Stream
from casemate.protocol.wire import RequestFailed, StreamClosed
from tests.unit.agent.box import Box, read_all

ADDRESS = "127.0.0.11"


class Pipe:
    """Either end of a stream: what is put is received, and what is sent can be taken."""

    def __init__(self) -> None:
        self.given: queue.Queue[bytes] = queue.Queue()
        self.sent: queue.Queue[bytes] = queue.Queue()
        self.closed = threading.Event()

    def recv(self, limit: int = 65536) -> bytes:
        return b"" if self.closed.is_set() else self.given.get(timeout=30)

    def send(self, data: bytes) -> None:
        if self.closed.is_set():
            raise StreamClosed("closed")
        self.sent.put(bytes(data))

    def close(self) -> None:
        self.closed.set()
        self.given.put(b"")

    def query(self) -> tuple[int, int, bytes]:
        """The next query: its kind, its tag, and the message."""
        data = self.sent.get(timeout=30)
        length, kind, tag = HEAD.unpack_from(data)
        assert len(data) == HEAD.size + length
        return kind, tag, data[HEAD.size :]


class Side:
    """A relay at a free port, and the host's side of it."""

    def __init__(self) -> None:
        self.stdin, self.stdout = Pipe(), Pipe()
        listener = Listener(ADDRESS, 0)
        self.address = (ADDRESS, listener.port)
        self.relay = Relay([listener], [], cast(Stream, self.stdin), cast(Stream, self.stdout))
        self.relay.start()

    def answer(self, tag: int, message: bytes, kind: int = UDP) -> None:
        self.stdin.given.put(HEAD.pack(len(message), kind, tag) + message)

    def udp(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(30)
        sock.connect(self.address)
        return sock

    def tcp(self) -> socket.socket:
        return socket.create_connection(self.address, 30)


@pytest.fixture
def side() -> Iterator[Side]:
    one = Side()
    yield one
    one.relay.close()
    assert one.relay.over.wait(30)
    assert one.stdin.closed.is_set() and one.stdout.closed.is_set()


def receive(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (chunk := sock.recv(size - len(got))):
        got += chunk
    return got


def test_answers_find_who_asked_in_any_order(side: Side) -> None:
    with side.udp() as one, side.udp() as two:
        one.send(b"first")
        first = side.stdout.query()
        two.send(b"second")
        second = side.stdout.query()
        assert (first[0], first[2], second[2]) == (UDP, b"first", b"second")
        side.answer(second[1], b"to two")
        side.answer(second[1], b"twice")
        side.answer(12345, b"to nobody")
        side.answer(first[1], b"to one")
        assert one.recv(100) == b"to one"
        assert two.recv(100) == b"to two"
        two.setblocking(False)
        with pytest.raises(BlockingIOError):
            two.recv(100)


def test_answers_that_come_in_pieces(side: Side) -> None:
    with side.udp() as one:
        one.send(b"x")
        tag = side.stdout.query()[1]
        message = HEAD.pack(60000, UDP, tag) + b"a" * 60000 + HEAD.pack(1, UDP, 9) + b"b"
        for start in range(0, len(message), 7001):
            side.stdin.given.put(message[start : start + 7001])
        assert one.recv(65535) == b"a" * 60000


def test_connections(side: Side) -> None:
    with side.tcp() as one, side.tcp() as two:
        one.sendall(b"\0\5he")
        two.sendall(b"\0\3two\0\4more\0")
        kind, tag, message = side.stdout.query()
        assert (kind, message) == (TCP, b"two")
        assert side.stdout.query()[2] == b"more"
        one.sendall(b"llo")
        first = side.stdout.query()
        assert first[2] == b"hello"
        side.answer(tag, b"x" * 65535, TCP)
        side.answer(first[1], b"short", TCP)
        assert receive(one, 7) == b"\0\5short"
        assert receive(two, 65537) == b"\xff\xff" + b"x" * 65535
        one.sendall(b"\0\1y")
        side.answer(side.stdout.query()[1], b"", TCP)
        assert one.recv(1) == b"", "there is no answer: the connection is over"


def test_who_is_gone_does_no_harm(side: Side) -> None:
    with side.tcp() as one:
        one.sendall(b"\0\1x")
        tag = side.stdout.query()[1]
    with side.udp() as two:
        two.send(b"y")
        other = side.stdout.query()[1]
    side.answer(tag, b"late", TCP)
    side.answer(other, b"late")
    with side.udp() as three:
        three.send(b"z")
        side.answer(side.stdout.query()[1], b"in time")
        assert three.recv(100) == b"in time"


def test_bounds(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "MAX_PENDING", 3)
    monkeypatch.setattr(dns, "MAX_CONNECTIONS", 2)
    with side.udp() as one:
        tags = []
        for number in range(5):
            one.send(str(number).encode())
            tags.append(side.stdout.query()[1])
        for tag in tags:
            side.answer(tag, str(tag).encode())
        assert [one.recv(10) for _ in range(3)] == [str(tag).encode() for tag in tags[2:]]
    with side.tcp() as first, side.tcp() as second:
        for sock in (first, second):
            sock.sendall(b"\0\1x")
            side.stdout.query()
        with side.tcp() as third:
            assert first.recv(1) == b"", "the one that was silent for longest gives way"
            for sock in (second, third):
                sock.sendall(b"\0\1x")
                side.answer(side.stdout.query()[1], b"yes", TCP)
                assert receive(sock, 5) == b"\0\3yes"


def test_either_stream_ends_it() -> None:
    for end in ("stdin", "stdout"):
        side = Side()
        getattr(side, end).close()
        if end == "stdout":
            with side.udp() as sock:
                sock.send(b"x")
        assert side.relay.over.wait(30)
        with pytest.raises(ConnectionRefusedError):
            side.tcp()


def test_the_redirecting_program() -> None:
    code = redirect.program([(socket.inet_aton(ADDRESS), 53, 4660)])
    lines = [code[i : i + 8].hex() for i in range(0, len(code), 8)]
    if sys.byteorder == "little":
        assert lines == [
            "6112040000000000",  # r2 = the address
            "550204007f00000b",  # 127.0.0.11, else on to the end
            "6112180000000000",  # r2 = the port
            "5502020000350000",  # 53
            "b702000012340000",  # r2 = 0x1234
            "6321180000000000",  # the port = r2
            "b700000001000000",  # 1: go on
            "9500000000000000",
        ]
    assert len(redirect.program([(b"\x7f\0\0\1", 1, 2)] * 3)) == 8 * (6 * 3 + 2)
    with pytest.raises(OSError):
        redirect.attach("/", {socket.inet_aton(ADDRESS): 5}, 53)


# ---- requests


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    one = Box(tmp_path)
    yield one
    assert "Traceback" not in one.close()


def test_bad_requests_for_names(box: Box) -> None:
    for addresses in ([], ["10.0.0.1"], ["127.0.0.1", "127.0.0.1"], ["127.0.0.x"], [3], "127.0.0.1", ["127.0.0.1"] * 9):
        into, out = box.channel(), box.channel()
        with pytest.raises(RequestFailed) as caught:
            box.link.call("sandbox.dns", {"addresses": addresses, "stdin": into[0], "stdout": out[0]}, 20)
        assert caught.value.code == "bad-spec", addresses
        assert read_all(out[1]) == b""
    with pytest.raises(RequestFailed) as caught:
        box.link.call("sandbox.dns", {"addresses": ["127.0.0.1"]}, 20)
    assert caught.value.code == "bad-spec"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for port 53")
def test_names_at_their_own_port_where_nothing_can_be_redirected(box: Box) -> None:
    into, out = box.channel(), box.channel()
    address = "127.53.53.53"
    box.link.call("sandbox.dns", {"addresses": [address], "stdin": into[0], "stdout": out[0]}, 20)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        sock.connect((address, 53))
        sock.send(b"who")
        length, kind, tag = HEAD.unpack(out[1].recv(HEAD.size))
        assert (kind, out[1].recv(length)) == (UDP, b"who")
        into[1].send(HEAD.pack(2, UDP, tag) + b"me")
        assert sock.recv(100) == b"me"
    later = box.channel(), box.channel()
    box.link.call("sandbox.dns", {"addresses": [address], "stdin": later[0][0], "stdout": later[1][0]}, 20)
    assert read_all(out[1]) == b"", "the earlier one has given way"
    with socket.create_connection((address, 53), 30) as sock:
        sock.sendall(b"\0\1x")
        assert HEAD.unpack(later[1][1].recv(HEAD.size))[:2] == (1, TCP)


class Server:
    """A listener at a port of its own, whose connections a function serves."""

    def __init__(self, serve: Callable[[socket.socket], None], address: str = "127.0.0.1") -> None:
        self.sock = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.port: int = self.sock.getsockname()[1]
        self.thread = threading.Thread(target=self._run, args=(serve,))
        self.thread.start()

    def _run(self, serve: Callable[[socket.socket], None]) -> None:
        connection, _ = self.sock.accept()
        with connection:
            connection.settimeout(30)
            serve(connection)

    def close(self) -> None:
        self.thread.join(30)
        self.sock.close()
        assert not self.thread.is_alive()


def connect(box: Box, port: Any) -> tuple[Stream, Stream]:
    into, out = box.channel(), box.channel()
    box.link.call("sandbox.connect", {"port": port, "stdin": into[0], "stdout": out[0]}, 20)
    return into[1], out[1]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_connection_goes_both_ways_and_ends_one_way_at_a_time(box: Box, address: str) -> None:
    def serve(sock: socket.socket) -> None:
        sock.sendall(b"welcome")
        got = b""
        while chunk := sock.recv(65536):
            got += chunk
        sock.sendall(struct.pack("!I", len(got)))

    server = Server(serve, address)
    into, out = connect(box, server.port)
    assert out.recv() == b"welcome"
    into.send(b"x" * 700_000)
    into.send_eof()
    assert read_all(out) == struct.pack("!I", 700_000)
    server.close()


def test_who_refuses(box: Box) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(RequestFailed) as caught:
        connect(box, port)
    assert caught.value.code == "refused"
    for bad in (0, 65536, "80", None):
        with pytest.raises(RequestFailed) as caught:
            connect(box, bad)
        assert caught.value.code == "bad-spec"
    with pytest.raises(RequestFailed) as caught:
        box.link.call("sandbox.connect", {"port": 80}, 20)
    assert caught.value.code == "bad-spec"


def test_a_server_is_told_that_nobody_listens(box: Box) -> None:
    def serve(sock: socket.socket) -> None:
        with pytest.raises(OSError):
            while True:
                sock.sendall(b"x" * 65536)

    server = Server(serve)
    into, out = connect(box, server.port)
    assert out.recv()
    out.close()
    into.close()
    server.close()


def test_connections_leave_no_descriptors(box: Box) -> None:
    def count() -> int:
        return len(os.listdir(f"/proc/{box.process.pid}/fd"))

    def round_trip() -> None:
        server = Server(lambda sock: sock.sendall(b"bye"))
        into, out = connect(box, server.port)
        assert read_all(out) == b"bye"
        into.close()
        out.close()
        server.close()

    round_trip()
    before = count()
    for _ in range(20):
        round_trip()
    deadline = time.monotonic() + 20
    while count() > before:  # the ends of the last ones are not told to anybody
        assert time.monotonic() < deadline, "descriptors of connections that are over stay open"
        time.sleep(0.01)


# ---- modules


def test_modules_are_loaded_after_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[bytes] = []

    def syscall(name: str, image: bytes, size: int, options: bytes) -> int:
        assert (name, size, options) == ("init_module", len(image), b"")
        if image == b"mid":
            raise FileExistsError(17, "it is there already")
        if image == b"broken":
            raise OSError(8, "it is no module")
        loaded.append(image)
        return 0

    monkeypatch.setattr(modules, "syscall", syscall)
    table = ("low_x.ko:", "mid.ko: low_x.ko", "top_y.ko: mid.ko low_x.ko", "broken.ko: low_x.ko")
    (tmp_path / "modules.dep").write_text("".join(f"{line}\n" for line in table))
    for name in ("low_x", "mid", "top_y", "broken"):
        (tmp_path / f"{name}.ko").write_bytes(name.encode())
    assert modules.load("top_y", str(tmp_path))
    assert loaded == [b"low_x", b"top_y"]
    assert not modules.load("broken", str(tmp_path))
    assert not modules.load("none", str(tmp_path))
    assert not modules.load("none", str(tmp_path / "nowhere"))


def test_the_agent_reaches_the_host_without_its_extras() -> None:
    """What few sandboxes need is not imported when none of them asks for it."""
    source = Path(__file__).parents[3] / "src"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import casemate.agent.main, casemate.agent.guest;"
        "print(*sys.modules)"
    )
    arguments = [sys.executable, "-I", "-S", "-c", code, str(source)]
    found = set(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split())
    extras = {f"casemate.agent.{name}" for name in ("dns", "redirect", "connect", "shm", "priority", "modules")}
    assert found & extras == set()


def test_practising_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket, no program, nobody who listens."""
    links: list[int] = []

    def attach(group: str, ports: dict[bytes, int], port: int = 53) -> list[int]:
        assert group == str(tmp_path) and list(ports) == [socket.inet_aton(dns.LIKELY)] and port == dns.PORT
        links.append(os.open(tmp_path, os.O_RDONLY))
        return list(links)

    monkeypatch.setattr(redirect, "attach", attach)
    before = sorted(os.listdir("/proc/self/fd"))
    dns.practise(str(tmp_path))
    assert len(links) == 1
    assert sorted(os.listdir("/proc/self/fd")) == before
