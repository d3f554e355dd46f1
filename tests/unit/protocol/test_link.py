"""Two links over a socket pair, and one link against a peer that is written by hand."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.protocol import link as link_module
from casemate.protocol import wire
from casemate.protocol.link import Link
from casemate.protocol.stream import Stream
from casemate.protocol.wire import (
    LinkClosed,
    LinkError,
    LinkTimeout,
    ProtocolError,
    RequestFailed,
    StreamClosed,
)

Handler = Callable[[str, dict[str, Any]], dict[str, Any]]
Listener = Callable[[str, dict[str, Any]], None]


class Closed:
    """An on_closed that remembers."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.happened = threading.Event()

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.happened.set()

    def reason(self) -> str:
        assert self.happened.wait(10)
        assert len(self.reasons) == 1
        return self.reasons[0]


def ends() -> tuple[int, int]:
    left, right = socket.socketpair()
    return left.detach(), right.detach()


class Pair:
    def __init__(self, on_request: Handler | None = None, on_event: Listener | None = None) -> None:
        left, right = ends()
        self.host_closed, self.agent_closed = Closed(), Closed()
        self.host = Link(left, left, role="host", version="1", on_event=on_event, on_closed=self.host_closed)
        self.agent = Link(right, right, role="agent", version="2", on_request=on_request, on_closed=self.agent_closed)
        hellos: list[dict[str, Any]] = []
        starter = threading.Thread(target=lambda: hellos.append(self.agent.start(10)))
        starter.start()
        self.hello = self.host.start(10)
        starter.join()
        assert hellos == [{"protocol": 1, "role": "host", "version": "1"}]

    def close(self) -> None:
        self.host.close("test over")
        self.agent.close("test over")
        self.host_closed.reason()
        self.agent_closed.reason()


@pytest.fixture
def make() -> Iterator[Callable[..., Pair]]:
    pairs: list[Pair] = []

    def one(*args: Any, **kwargs: Any) -> Pair:
        pairs.append(Pair(*args, **kwargs))
        return pairs[-1]

    yield one
    for pair in pairs:
        pair.close()


def echo(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "refuse":
        raise RequestFailed("not-found", "no such thing")
    if method == "break":
        raise ZeroDivisionError("of course")
    if method == "unsendable":
        return {"x": b""}
    if method == "large":
        return {"x": "y" * wire.MAX_CONTROL}
    return {"method": method, **params}


def send_all(stream: Stream, data: bytes) -> None:
    stream.send(data)
    stream.send_eof()


def test_hello_and_calls(make: Callable[..., Pair]) -> None:
    pair = make(echo)
    assert pair.hello == {"protocol": 1, "role": "agent", "version": "2", "prepared": True}
    assert pair.host.call("a", {"x": [1, "ä"]}, 10) == {"method": "a", "x": [1, "ä"]}
    codes = {"refuse": "not-found", "break": "internal", "unsendable": "internal", "large": "internal"}
    for method, code in codes.items():
        with pytest.raises(RequestFailed) as caught:
            pair.host.call(method, {}, 10)
        assert caught.value.code == code
    with pytest.raises(ProtocolError):
        pair.host.call("a", {"x": "y" * wire.MAX_CONTROL}, 10)
    big = "z" * (wire.MAX_CONTROL - 100)
    assert pair.host.call("a", {"x": big}, 10)["x"] == big
    assert pair.host.call("after", {}, 10) == {"method": "after"}


def test_a_blocked_request_stalls_no_other(make: Callable[..., Pair]) -> None:
    release = threading.Event()

    def handler(method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "wait":
            release.wait(10)
        return {}

    pair = make(handler)
    waiting = [threading.Thread(target=pair.host.call, args=("wait", {}, 10)) for _ in range(20)]
    for thread in waiting:
        thread.start()
    for _ in range(50):
        pair.host.call("quick", {}, 10)
    with pytest.raises(LinkTimeout):
        pair.host.call("wait", {}, 0.05)
    release.set()
    for thread in waiting:
        thread.join(10)
        assert not thread.is_alive()
    assert pair.host.call("quick", {}, 10) == {}  # the late answer was dropped


def test_more_requests_than_workers(make: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_WORKERS", 3)
    running, most, lock = [0], [0], threading.Lock()

    def handler(method: str, params: dict[str, Any]) -> dict[str, Any]:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.002)  # so that requests overlap
        with lock:
            running[0] -= 1
        return params

    pair = make(handler)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(pair.host.call("x", {"n": n}, 20)["n"])) for n in range(100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == list(range(100))
    assert 1 <= most[0] <= 3


def test_a_link_outlives_a_want_of_threads(make: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is there does the work of those who cannot be started; a sandbox must not end for a thread."""
    entered, go_on = threading.Event(), threading.Event()

    def slow(method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "slow":
            entered.set()
            assert go_on.wait(20)
        return {"did": method}

    pair = make(on_request=slow)
    results: list[dict[str, Any]] = []
    first = threading.Thread(target=lambda: results.append(pair.host.call("slow", {}, 20)))
    first.start()
    assert entered.wait(20)

    def refuse(target: Callable[..., None], *args: Any) -> None:
        go_on.set()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("casemate.protocol.threads.start", refuse)
    assert pair.host.call("quick", {}, 20) == {"did": "quick"}
    first.join(20)
    assert results == [{"did": "slow"}]


def test_events_in_order_before_closed(make: Callable[..., Pair]) -> None:
    seen: list[int] = []

    def on_event(name: str, params: dict[str, Any]) -> None:
        assert name == "tick"
        seen.append(params["n"])
        if params["n"] == 3:
            raise ValueError("a callback that fails")

    pair = make(None, on_event)
    for n in range(1000):
        pair.agent.notify("tick", {"n": n})
    pair.agent.close("done")
    pair.host_closed.reason()
    assert seen == list(range(1000))


def test_bulk_is_whole(make: Callable[..., Pair]) -> None:
    pair = make(echo)
    out, into = pair.agent.stream(1), pair.host.stream(1)
    data = os.urandom(1 << 20) + bytes(range(256)) * 999
    sender = threading.Thread(target=lambda: send_all(out, data))
    sender.start()
    got = bytearray()
    while chunk := into.recv(50_001):
        assert len(chunk) <= 50_001
        got += chunk
    sender.join()
    assert bytes(got) == data
    assert into.recv() == b""


def test_both_directions_and_tiny_pieces(make: Callable[..., Pair]) -> None:
    pair = make(echo)
    a, b = pair.agent.stream(9), pair.host.stream(9)
    data = os.urandom(20_000)

    def pour(stream: Any) -> None:
        for at in range(0, len(data), 3):
            stream.send(data[at : at + 3])
        stream.send_eof()

    threads = [threading.Thread(target=pour, args=(s,)) for s in (a, b)]
    for thread in threads:
        thread.start()
    for stream in (a, b):
        got = bytearray()
        while chunk := stream.recv(7):
            got += chunk
        assert bytes(got) == data
    for thread in threads:
        thread.join()


def test_a_slow_reader_stalls_only_itself(make: Callable[..., Pair]) -> None:
    pair = make(echo)
    slow_out, slow_in = pair.agent.stream(1), pair.host.stream(1)
    fast_out, fast_in = pair.agent.stream(2), pair.host.stream(2)
    stuck = threading.Thread(target=lambda: send_all(slow_out, b"s" * (3 * wire.WINDOW)))
    stuck.start()
    sender = threading.Thread(target=lambda: send_all(fast_out, b"f" * (8 * wire.WINDOW)))
    sender.start()
    total = 0
    while chunk := fast_in.recv():
        total += len(chunk)
    assert total == 8 * wire.WINDOW
    assert pair.host.call("still", {}, 10) == {"method": "still"}
    assert stuck.is_alive()
    total = 0
    while chunk := slow_in.recv(1000):
        total += len(chunk)
    assert total == 3 * wire.WINDOW
    stuck.join(10)
    sender.join(10)


def test_close_of_the_receiver_stops_the_sender(make: Callable[..., Pair]) -> None:
    pair = make(echo)
    out, into = pair.agent.stream(1), pair.host.stream(1)
    failed = threading.Event()

    def pour() -> None:
        try:
            while True:
                out.send(b"x" * 10_000)
        except StreamClosed:
            failed.set()

    threading.Thread(target=pour, daemon=True).start()
    assert into.recv()
    into.close()
    into.close()
    assert failed.wait(10)
    assert into.recv() == b""
    with pytest.raises(StreamClosed):
        into.send(b"x")
    assert out.recv() == b""  # closing says EOF as well
    out.close()
    assert pair.host.call("fine", {}, 10) == {"method": "fine"}
    assert not pair.host.closed
    with pytest.raises(LinkError):
        pair.host.stream(1)  # numbers are used once


def test_data_before_the_agent_opens(make: Callable[..., Pair]) -> None:
    pair = make(echo)
    early = pair.host.stream(5)
    early.send(b"early")
    early.send_eof()
    pair.host.call("x", {}, 10)
    stream = pair.agent.stream(5)
    assert stream.recv() == b"early"
    assert stream.recv() == b""
    for channel in range(10, 10 + link_module.EARLY + 1):
        pair.host.stream(channel).send(b"x")
    assert "not open" in pair.agent_closed.reason()


def test_too_many_streams(make: Callable[..., Pair]) -> None:
    pair = make(echo)
    streams = [pair.host.stream(n + 1) for n in range(wire.MAX_CHANNELS)]
    with pytest.raises(LinkError):
        pair.host.stream(5000)
    streams[0].close()
    pair.host.stream(5000)
    for bad in (0, -1, 1 << 32):
        with pytest.raises(LinkError):
            pair.host.stream(bad)


def test_what_arrived_is_read_after_the_end(make: Callable[..., Pair]) -> None:
    pair = make(echo)
    out, into = pair.agent.stream(1), pair.host.stream(1)
    out.send(b"last words")
    pair.agent.close("bye")
    assert "closed" in pair.host_closed.reason()
    assert into.recv() == b"last words"
    assert into.recv() == b""
    with pytest.raises(StreamClosed):
        into.send(b"x")
    with pytest.raises(LinkClosed):
        pair.host.call("x", {}, 1)
    with pytest.raises(LinkClosed):
        pair.host.notify("x", {})
    with pytest.raises(LinkClosed):
        pair.host.stream(2)
    into.close()


def test_close_wakes_everybody(make: Callable[..., Pair]) -> None:
    never = threading.Event()

    def handler(method: str, params: dict[str, Any]) -> dict[str, Any]:
        never.wait(10)
        return {}

    pair = make(handler)
    stream, other = pair.host.stream(1), pair.host.stream(2)
    problems: list[str] = []

    def expect(kind: type[Exception], function: Callable[..., Any], *args: Any) -> None:
        try:
            function(*args)
        except kind:
            problems.append("good")

    threads = [
        threading.Thread(target=expect, args=(LinkClosed, pair.host.call, "x", {}, 30)),
        threading.Thread(target=expect, args=(StreamClosed, stream.send, b"x" * wire.WINDOW * 2)),
        threading.Thread(target=other.recv),
    ]
    for thread in threads:
        thread.start()
    pair.host.close("enough")
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert problems == ["good", "good"]
    assert pair.host_closed.reason() == "enough"
    never.set()


def test_close_from_a_callback_and_before_start() -> None:
    left, right = ends()
    closed = Closed()
    link = Link(left, left, role="host", version="1", on_closed=closed)
    link.close("never mind")
    link.close("again")
    assert closed.reason() == "never mind"
    with pytest.raises(LinkClosed):
        link.start(1)
    assert os.read(right, 10) == b""
    os.close(right)


def test_hello_timeout_and_gone() -> None:
    left, right = ends()
    closed = Closed()
    with pytest.raises(LinkTimeout):
        Link(left, left, role="host", version="1", on_closed=closed).start(0.05)
    closed.reason()
    os.close(right)
    left, right = ends()
    os.close(right)
    with pytest.raises(LinkClosed):
        Link(left, left, role="host", version="1").start(5)


def test_descriptors_are_closed(make: Callable[..., Pair]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        Pair(echo).close()
    assert len(os.listdir("/proc/self/fd")) == before


# ---- a peer written by hand


def frame(kind: int, channel: int, payload: bytes = b"", flags: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">IBBHI", len(payload) if length is None else length, kind, flags, 0, channel) + payload


HELLO_OF = {
    "agent": frame(wire.HELLO, 0, b'{"protocol":1,"role":"agent","version":"x"}'),
    "host": frame(wire.HELLO, 0, b'{"protocol":1,"role":"host","version":"x"}'),
}


class Raw:
    """A link under test and the other end of its socket."""

    def __init__(self, role: str, first: bytes | None = None, on_request: Handler | None = None) -> None:
        self.peer, mine = socket.socketpair()
        self.peer.settimeout(10)
        fd = mine.detach()
        self.closed = Closed()
        self.events: list[str] = []
        self.link = Link(
            fd, fd, role=role, version="1", on_request=on_request, on_closed=self.closed,
            on_event=lambda name, params: self.events.append(name),
        )  # fmt: skip
        self.peer.sendall(HELLO_OF["agent" if role == "host" else "host"] if first is None else first)
        if first is None:
            self.link.start(10)

    def finish(self) -> str:
        self.peer.close()
        return self.closed.reason()


@pytest.mark.parametrize(
    "first",
    [
        b"\0" * 12,
        frame(wire.HELLO, 0, b'{"protocol":2,"role":"agent","version":"x"}'),
        HELLO_OF["host"],
        frame(wire.EVENT, 0, b'{"event":"x","params":{}}'),
        frame(wire.HELLO, 0, b"x" * 5000),
        frame(wire.HELLO, 0, b"[]"),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_bad_hello(first: bytes) -> None:
    raw = Raw("host", first)
    with pytest.raises(ProtocolError):
        raw.link.start(10)
    assert "protocol" in raw.finish()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (frame(0, 1), "unknown type"),
        (frame(wire.DATA, 1, length=1 << 31), "bytes"),
        (frame(wire.RESPONSE, 1, length=wire.MAX_CONTROL + 1), "bytes"),
        (frame(wire.DATA, 77, b"x"), "not open"),
        (frame(wire.EOF, 77), "not open"),
        (frame(wire.CREDIT, 77, b"\0\0\0\1"), "not open"),
        (frame(wire.CREDIT, 1, b"\0\0\0\1"), "never sent"),
        (frame(wire.CREDIT, 1, b"\0\0\0\0"), "never sent"),
        (frame(wire.CREDIT, 1, b"\xff\xff\xff\xff"), "never sent"),
        (frame(wire.EOF, 1) + frame(wire.DATA, 1, b"x"), "after its EOF"),
        (frame(wire.EOF, 1) + frame(wire.EOF, 1), "after its EOF"),
        (frame(wire.DATA, 1, b"x" * wire.MAX_DATA) * 4 + frame(wire.DATA, 1, b"x"), "were allowed"),
        (frame(wire.RESPONSE, 99, b"{}"), "nobody made"),
        (frame(wire.ERROR, 99, b'{"code":"x","message":"y"}'), "nobody made"),
        (frame(wire.ERROR, 99, b'{"code":"x"}'), "message"),
        (frame(wire.REQUEST, 1, b'{"method":"x","params":{}}'), "serves none"),
        (frame(wire.EVENT, 0, b'{"event":1,"params":{}}'), "event"),
        (frame(wire.EVENT, 0, b'{"event":"x"}'), "params"),
        (HELLO_OF["agent"], "second HELLO"),
        (frame(wire.DATA, 1, b"xx")[:-1], "inside a frame"),
        (b"\0", "inside a frame"),
    ],
)
def test_bad_frames(sent: bytes, reason: str) -> None:
    raw = Raw("host")
    stream = raw.link.stream(1)
    raw.peer.sendall(sent)
    raw.peer.shutdown(socket.SHUT_WR)
    why = raw.closed.reason()
    assert reason in why and "broke the protocol" in why
    with pytest.raises(StreamClosed):
        stream.send(b"x")
    raw.peer.close()


def test_bad_requests_of_the_host() -> None:
    release = threading.Event()

    def wait(method: str, params: dict[str, Any]) -> dict[str, Any]:
        release.wait(10)
        return {}

    request = b'{"method":"x","params":{}}'
    for sent in (
        frame(wire.REQUEST, 5, request) * 2,
        b"".join(frame(wire.REQUEST, n + 1, request) for n in range(wire.MAX_CHANNELS + 1)),
        frame(wire.REQUEST, 5, b'{"method":"x"}'),
        frame(wire.REQUEST, 5, b'{"method":"' + b"x" * 65 + b'","params":{}}'),
    ):
        raw = Raw("agent", on_request=wait)
        raw.peer.sendall(sent)
        assert "broke the protocol" in raw.closed.reason()
        raw.peer.close()
    release.set()


def test_single_bytes_do_not_cost_an_object_each() -> None:
    raw = Raw("host")
    stream = raw.link.stream(1)
    raw.peer.sendall(frame(wire.DATA, 1, b"x") * 20_000 + frame(wire.EOF, 1))
    total = 0
    while chunk := stream.recv():
        total += len(chunk)
    assert total == 20_000
    raw.finish()


def test_event_flood_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_EVENTS", 10)
    hold = threading.Event()
    raw = Raw("host")
    raw.link._on_event = lambda name, params: (hold.wait(10), None)[1]
    raw.peer.sendall(frame(wire.EVENT, 0, b'{"event":"x","params":{}}') * 12)
    raw.peer.settimeout(10)
    while raw.peer.recv(4096):  # its HELLO, and then the end
        pass
    hold.set()
    assert "faster" in raw.closed.reason()


def test_a_peer_that_does_not_read() -> None:
    raw = Raw("host")
    with pytest.raises(LinkTimeout):
        for _ in range(100):
            raw.link.call("x", {"x": "y" * 900_000}, 0.1)
    assert raw.closed.reason() == "the peer stopped reading inside a frame"
    raw.peer.close()


VALID = [
    frame(wire.EVENT, 0, b'{"event":"x","params":{}}'),
    frame(wire.DATA, 1, b"data" * 100),
    frame(wire.EOF, 2),
    frame(wire.CREDIT, 1, flags=wire.STOP),
    frame(wire.REQUEST, 1, b'{"method":"x","params":{}}'),
    frame(wire.REQUEST, 2, b'{"method":"y","params":{"a":[1,2,3]}}'),
    frame(wire.ERROR, 1, b'{"code":"x","message":"y"}'),
    frame(wire.RESPONSE, 1, b"{}"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    role=st.sampled_from(["host", "agent"]),
    greet=st.booleans(),
    parts=st.lists(st.sampled_from(VALID) | st.binary(max_size=40), max_size=12),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=6),
    cut=st.integers(0, 30),
)
def test_fuzz(role: str, greet: bool, parts: list[bytes], flips: list[tuple[int, int]], cut: int) -> None:
    """Whatever the peer says, the link ends in bounded time with one reason, and nothing hangs."""
    data = bytearray(b"".join(parts))
    for at, mask in flips:
        if data:
            data[at % len(data)] ^= mask
    data = data[: len(data) - cut] if cut < len(data) else data
    raw = Raw(role, None if greet else bytes(data), on_request=echo if role == "agent" else None)
    if greet:
        streams = [raw.link.stream(n) for n in (1, 2)]
        try:
            raw.peer.sendall(data)
            raw.peer.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has hung up on us already
        raw.closed.reason()
        for stream in streams:
            while stream.recv():
                pass
            stream.close()
        with pytest.raises((LinkClosed, LinkTimeout)):
            raw.link.call("x", {}, 1)
    else:
        raw.peer.shutdown(socket.SHUT_WR)
        with pytest.raises((LinkClosed, ProtocolError)):
            raw.link.start(10)
        raw.closed.reason()
    raw.peer.close()


@settings(max_examples=20, deadline=None)
@given(data=st.binary(min_size=1, max_size=200_000), pieces=st.lists(st.integers(1, 70_000), min_size=1, max_size=30))
def test_frames_cut_anywhere(data: bytes, pieces: list[int]) -> None:
    """The stream of frames may be cut into any pieces on its way."""
    raw = Raw("host")
    stream = raw.link.stream(1)
    sent = b"".join(frame(wire.DATA, 1, data[at : at + 40_000]) for at in range(0, len(data), 40_000))
    sent += frame(wire.EOF, 1)

    def pour() -> None:
        at, turn = 0, 0
        while at < len(sent):
            raw.peer.sendall(sent[at : at + pieces[turn % len(pieces)] + 1000])
            at += pieces[turn % len(pieces)] + 1000
            turn += 1

    thread = threading.Thread(target=pour)
    thread.start()
    got = bytearray()
    while chunk := stream.recv():
        got += chunk
    thread.join()
    assert bytes(got) == data
    raw.finish()
