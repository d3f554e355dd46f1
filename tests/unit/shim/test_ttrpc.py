"""ttrpc: frames in any pieces, requests of any kind, and peers that know no rules."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.shim import messages, status, ttrpc, wire
from casemate.shim.loop import Future, Loop
from casemate.shim.status import StatusError

SERVICE = "tests.Service"


BYTE = st.integers(0, 255)


@given(st.lists(st.tuples(st.integers(0, (1 << 32) - 1), BYTE, BYTE, st.binary(max_size=50))), st.integers(1, 40))
def test_frames_come_in_any_pieces(frames: list[tuple[int, int, int, bytes]], size: int) -> None:
    data = b"".join(ttrpc.frame(stream, kind, payload, flags) for stream, kind, flags, payload in frames)
    parser, found = ttrpc.Parser(), []
    for at in range(0, len(data), size):
        parser.feed(data[at : at + size])
        while (one := parser.next()) is not None:
            found.append(one)
    assert found == frames


@given(st.lists(st.binary(max_size=200)))
def test_the_parser_takes_anything(pieces: list[bytes]) -> None:
    parser = ttrpc.Parser()
    for piece in pieces:
        parser.feed(piece)
        while True:
            try:
                if parser.next() is None:
                    break
            except ttrpc.Oversized:
                pass


def test_a_frame_that_is_too_large_is_skipped() -> None:
    parser = ttrpc.Parser()
    size = ttrpc.MAX_LENGTH + 1
    parser.feed(struct.pack(">IIBB", size, 5, 1, 0))
    with pytest.raises(ttrpc.Oversized) as caught:
        parser.next()
    assert caught.value.stream == 5
    rest = bytes(size) + ttrpc.frame(7, 1, b"next")
    for at in range(0, len(rest), 1 << 20):
        parser.feed(rest[at : at + (1 << 20)])
    assert parser.next() == (7, 1, 0, b"next")
    with pytest.raises(ttrpc.FramingError):
        ttrpc.frame(1, 1, bytes(size))


class Service:
    """A server with some methods, and the loop that it and its clients share."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.complaints: list[str] = []
        self.loop = Loop(self.complaints.append)
        self.held: list[ttrpc.Call] = []
        table = messages.KILL_REQUEST
        service: ttrpc.Service = {
            "Echo": (table, table, self._echo), "Hold": (table, table, lambda call, _: self.held.append(call)),
            "Wait": (table, table, lambda call, _: self.held.append(call)),
            "Refuse": (table, table, self._refuse), "Break": (table, table, self._break),
            "Large": (messages.EMPTY, messages.STATE_RESPONSE, self._large),
            "Wrong": (table, messages.START_RESPONSE, self._wrong),
        }
        self.server = ttrpc.Server(self.loop, ttrpc.listen(self.path), {SERVICE: service})

    def _echo(self, call: ttrpc.Call, request: dict[str, Any]) -> Any:
        yield self.loop.pause(0.001)
        return request

    def _refuse(self, call: ttrpc.Call, request: dict[str, Any]) -> None:
        raise StatusError(status.NOT_FOUND, "no such thing: not found")

    def _break(self, call: ttrpc.Call, request: dict[str, Any]) -> Any:
        yield self.loop.pause(0)
        raise ValueError("our own mistake")

    def _wrong(self, call: ttrpc.Call, request: dict[str, Any]) -> None:
        call.reply({"pid": -1})

    def _large(self, call: ttrpc.Call, request: dict[str, Any]) -> None:
        call.reply({"stdin": "x" * ttrpc.MAX_LENGTH})

    def client(self) -> ttrpc.Client:
        return ttrpc.Client(self.loop, self.path)

    def ask(self, client: ttrpc.Client, method: str, seconds: float | None = 10.0, **fields: Any) -> Future:
        return client.call(SERVICE, method, messages.KILL_REQUEST, fields, messages.KILL_REQUEST, seconds)

    def raw(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        sock.settimeout(0)
        return sock

    def answer(self, sock: socket.socket) -> tuple[int, dict[str, Any]]:
        """The next answer on a raw connection: its stream and the response."""
        parser = ttrpc.Parser()
        for _ in range(1000):
            self.loop.turn(0.01)
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                continue
            assert data, "closed"
            parser.feed(data)
            found = parser.next()
            if found is not None:
                return found[0], wire.decode(messages.RESPONSE, found[3])
        raise AssertionError("no answer")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "s")
    yield made
    made.server.close()
    made.loop.close()


def test_requests_and_answers(service: Service) -> None:
    client = service.client()
    futures = [service.ask(client, "Echo", signal=number, id="x" * number) for number in range(100)]
    for number, future in enumerate(futures):
        assert service.loop.run_until(future, 10)["signal"] == number


def test_an_answer_may_come_later_and_out_of_turn(service: Service) -> None:
    client = service.client()
    first, second = service.ask(client, "Hold", signal=1), service.ask(client, "Hold", signal=2)
    while len(service.held) < 2:
        service.loop.turn(0.1)
    service.held[1].reply({"signal": 22})
    assert service.loop.run_until(second, 10)["signal"] == 22
    assert not first.done
    service.held[0].reply({"signal": 11})
    service.held[0].reply({"signal": 12})  # nothing comes of a second one
    assert service.loop.run_until(first, 10)["signal"] == 11


@pytest.mark.parametrize(("method", "code", "words"), [
    ("Refuse", status.NOT_FOUND, "no such thing: not found"), ("Break", status.UNKNOWN, "our own mistake"),
    ("Wrong", status.INTERNAL, "pid cannot be -1"), ("Nothing", status.UNIMPLEMENTED, "method Nothing"),
    ("Large", status.INTERNAL, "a message of"),
])
def test_errors(service: Service, method: str, code: int, words: str) -> None:
    with pytest.raises(StatusError) as caught:
        service.loop.run_until(service.ask(service.client(), method), 10)
    assert caught.value.code == code
    assert words in caught.value.message
    assert bool(service.complaints) == (method == "Break")


def test_deadlines(service: Service) -> None:
    client = service.client()
    with pytest.raises(TimeoutError):
        service.loop.run_until(service.ask(client, "Hold", 0.05), 10)
    sock = service.raw()
    request = {"service": SERVICE, "method": "Hold", "timeout_nano": 50_000_000}
    sock.sendall(ttrpc.frame(1, 1, wire.encode(messages.REQUEST, request)))
    assert service.answer(sock)[1]["status"]["code"] == status.DEADLINE_EXCEEDED
    assert service.held[1].left() == 0.0
    sock.close()


def test_a_client_is_told_that_the_server_is_gone(service: Service) -> None:
    client = service.client()
    future = service.ask(client, "Hold")
    while not service.held:
        service.loop.turn(0.1)
    service.server.close()
    with pytest.raises(ttrpc.FramingError):
        service.loop.run_until(future, 10)
    with pytest.raises(ttrpc.FramingError):
        service.loop.run_until(service.ask(client, "Echo"), 10)
    service.held[0].reply({})  # to nobody


def test_what_is_no_request(service: Service) -> None:
    sock = service.raw()
    good = wire.encode(messages.REQUEST, {"service": SERVICE, "method": "Echo"})
    for stream, payload, flags, code in (
        (1, b"\xff", 0, status.INVALID_ARGUMENT), (2, good, 0, status.INVALID_ARGUMENT),
        (3, wire.encode(messages.REQUEST, {"service": SERVICE, "method": "Echo", "payload": b"\xff"}), 0,
         status.INVALID_ARGUMENT),
        (5, good, ttrpc.REMOTE_OPEN, status.UNIMPLEMENTED),
        (7, wire.encode(messages.REQUEST, {"service": "x"}), 0, status.UNIMPLEMENTED),
    ):
        sock.sendall(ttrpc.frame(stream, ttrpc.TYPE_REQUEST, payload, flags))
        answered, response = service.answer(sock)
        assert (answered, response["status"]["code"]) == (stream, code)
    sock.sendall(ttrpc.frame(9, ttrpc.TYPE_DATA, b"?") + ttrpc.frame(11, 99, b"?") + ttrpc.frame(13, 1, good))
    assert service.answer(sock)[0] == 13  # unknown kinds are left alone
    sock.close()


def test_a_request_that_is_too_large_leaves_the_connection_usable(service: Service) -> None:
    sock = service.raw()
    sock.settimeout(None)
    size = ttrpc.MAX_LENGTH + 1
    sock.sendall(struct.pack(">IIBB", size, 3, 1, 0))
    sock.settimeout(0)
    assert service.answer(sock)[1]["status"]["code"] == status.RESOURCE_EXHAUSTED
    left = bytes(size) + ttrpc.frame(5, 1, wire.encode(messages.REQUEST, {"service": SERVICE, "method": "Echo"}))
    while left:
        try:
            left = left[sock.send(left) :]
        except BlockingIOError:
            service.loop.turn(0.01)
    assert service.answer(sock)[0] == 5
    sock.close()


def test_requests_in_flight_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttrpc, "MAX_IN_FLIGHT", 3)
    client = service.client()
    for _ in range(3):
        service.ask(client, "Hold")
    with pytest.raises(StatusError) as caught:
        service.loop.run_until(service.ask(client, "Hold"), 10)
    assert caught.value.code == status.RESOURCE_EXHAUSTED
    service.held[0].reply({})
    assert service.loop.run_until(service.ask(client, "Echo", signal=1), 10)["signal"] == 1


def test_whoever_gave_up_waiting_is_kept_from_nothing_else(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of containerd's that goes away while it waits for a process leaves the request behind."""
    monkeypatch.setattr(ttrpc, "MAX_WAITS", 3)
    client = service.client()
    for _ in range(3):
        service.ask(client, "Wait")
    with pytest.raises(StatusError) as caught:
        service.loop.run_until(service.ask(client, "Wait"), 10)
    assert caught.value.code == status.RESOURCE_EXHAUSTED
    assert service.loop.run_until(service.ask(client, "Echo", signal=1), 10)["signal"] == 1


def test_a_connection_that_ends_leaves_no_request_behind(service: Service) -> None:
    client = service.client()
    service.ask(client, "Wait", seconds=1000.0)
    while not service.held:
        service.loop.turn(1)
    call, over = service.held[0], Future()
    call.on_over = over.set
    client.close()
    service.loop.run_until(over, 10)
    call.reply({"signal": 1})  # for nobody
    assert service.complaints == []


def test_a_peer_that_takes_no_answers_is_cut_off(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttrpc, "MAX_UNSENT", 1 << 20)
    sock = service.raw()
    payload = wire.encode(messages.KILL_REQUEST, {"id": "x" * 100_000})
    request = wire.encode(messages.REQUEST, {"service": SERVICE, "method": "Echo", "payload": payload})
    left = b""
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(5000):
            left = left or ttrpc.frame(1, 1, request)
            try:
                left = left[sock.send(left) :]
            except BlockingIOError:
                service.loop.turn(0.002)
    sock.close()
    assert service.loop.run_until(service.ask(service.client(), "Echo", signal=3), 10)["signal"] == 3


@given(st.binary(max_size=300))
def test_a_server_outlives_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    service = _shared(tmp_path_factory)
    sock = service.raw()
    sock.sendall(data)
    service.loop.turn(0)
    sock.close()
    service.loop.turn(0)
    assert service.loop.run_until(service.ask(service.client(), "Echo", signal=7), 10)["signal"] == 7


_kept: list[Service] = []


def _shared(factory: pytest.TempPathFactory) -> Service:
    if not _kept:
        _kept.append(Service(factory.mktemp("ttrpc") / "s"))
    return _kept[0]


def test_the_socket_is_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    sock = ttrpc.listen(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert ttrpc.answers(str(path))
    with pytest.raises(OSError, match="in use"):
        ttrpc.listen(str(path))
    waiting = []
    with contextlib.suppress(BlockingIOError):
        for _ in range(1000):  # until it has more connections than it can put off
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect(str(path))
    assert len(waiting) < 1000
    assert ttrpc.answers(str(path))  # whoever has much to do is not dead
    for one in (*waiting, sock):
        one.close()
    assert not ttrpc.answers(str(path))
    assert not ttrpc.answers(str(tmp_path / "nothing"))


def test_a_listener_without_descriptors_tries_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, sock: socket.socket) -> None:
            self.sock, self.left = sock, 1

        def accept(self) -> Any:
            if self.left:
                self.left -= 1
                raise OSError(24, os.strerror(24))
            return self.sock.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

    monkeypatch.setattr(service.server, "_listener", Full(service.server._listener))
    assert service.loop.run_until(service.ask(service.client(), "Echo", signal=7), 10)["signal"] == 7
    assert "Too many open files" in service.complaints[0]
