"""The QMP client against well-behaved, slow and hostile peers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.errors import HypervisorError
from casemate.vm.hypervisor import qmp
from casemate.vm.hypervisor.qmp import QmpClient

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}\r\n'


class Peer:
    """Plays QEMU: greets, then answers each request by ``answer(request)``, which gives lines to send."""

    def __init__(self, answer: Callable[[dict[str, Any]], list[bytes]], greeting: bytes = GREETING) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.answer = answer
        self.greeting = greeting
        self.fds: list[int] = []
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        with self.theirs, contextlib.suppress(OSError):
            self.theirs.sendall(self.greeting)
            buffer = b""
            while True:
                data, fds, _, _ = socket.recv_fds(self.theirs, 65536, 4)
                self.fds += fds
                if not data:
                    return
                buffer += data
                while b"\n" in buffer:
                    raw, _, buffer = buffer.partition(b"\n")
                    for reply in self.answer(json.loads(raw)):
                        if reply == b"<close>":
                            return
                        self.theirs.sendall(reply + b"\n")

    def client(self, **callbacks: Any) -> QmpClient:
        return QmpClient(self.ours.detach(), **callbacks)


def good(request: dict[str, Any]) -> list[bytes]:
    return [json.dumps({"return": request.get("arguments", {}), "id": request["id"]}).encode()]


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(answer: Callable[[dict[str, Any]], list[bytes]] = good, greeting: bytes = GREETING) -> Peer:
        made.append(Peer(answer, greeting))
        return made[-1]

    yield make
    for peer in made:
        with contextlib.suppress(OSError):
            peer.theirs.shutdown(socket.SHUT_RDWR)
        peer.thread.join(5)
        assert not peer.thread.is_alive()
        for fd in peer.fds:
            os.close(fd)


def test_greeting_commands_and_version(peers: Callable[..., Peer]) -> None:
    client = peers().client()
    assert client.connect(5) == "7.2.22"
    assert client.execute("echo", {"a": 1}) == {"a": 1}
    client.close()
    with pytest.raises(HypervisorError, match="closed"):
        client.execute("echo")


def test_many_threads(peers: Callable[..., Peer]) -> None:
    client = peers().client()
    client.connect(5)
    results: dict[int, Any] = {}

    def ask(number: int) -> None:
        results[number] = [client.execute("echo", {"n": number * 100 + turn})["n"] for turn in range(20)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {number: [number * 100 + turn for turn in range(20)] for number in range(8)}
    client.close()


def test_a_refusal_carries_the_text(peers: Callable[..., Peer]) -> None:
    def refuse(request: dict[str, Any]) -> list[bytes]:
        if request["execute"] == "qmp_capabilities":
            return good(request)
        error = {"class": "GenericError", "desc": "Device 'x' not found\nand \x1b[31mmore" + "y" * 5000}
        return [json.dumps({"error": error, "id": request["id"]}).encode()]

    client = peers(refuse).client()
    client.connect(5)
    with pytest.raises(HypervisorError, match="Device 'x' not found") as caught:
        client.execute("device_del", {"id": "x"})
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    client.close()


def test_events_arrive_between_answers(peers: Callable[..., Peer]) -> None:
    def chatty(request: dict[str, Any]) -> list[bytes]:
        return [b'{"event": "STOP"}', *good(request), b'{"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}']

    seen: list[tuple[str, dict[str, Any]]] = []
    both = threading.Event()

    def note(name: str, data: dict[str, Any]) -> None:
        seen.append((name, data))
        if len(seen) == 2:
            both.set()

    client = peers(chatty).client(on_event=note)
    client.connect(5)
    assert both.wait(5)
    assert seen[:2] == [("STOP", {}), ("SHUTDOWN", {"reason": "guest-shutdown"})]
    client.close()


def test_descriptors_are_sent(peers: Callable[..., Peer]) -> None:
    peer = peers()
    client = peer.client()
    client.connect(5)
    read, write = os.pipe()
    client.execute("getfd", {"fdname": "x"}, fds=[write])
    os.close(write)
    assert len(peer.fds) == 1
    os.write(peer.fds[0], b"through")
    assert os.read(read, 100) == b"through"
    os.close(read)
    client.close()


def test_no_answer_in_time_and_a_late_one(peers: Callable[..., Peer]) -> None:
    held: list[bytes] = []

    def slow(request: dict[str, Any]) -> list[bytes]:
        if request["execute"] == "slow":
            held.extend(good(request))
            return []
        return [*held, *good(request)]

    client = peers(slow).client()
    client.connect(5)
    with pytest.raises(HypervisorError, match=r"did not answer slow within 0\.1 s"):
        client.execute("slow", timeout=0.1)
    assert client.execute("quick", {"a": 2}) == {"a": 2}
    client.close()


def test_silence_instead_of_a_greeting(peers: Callable[..., Peer]) -> None:
    client = peers(greeting=b"").client()
    started = time.monotonic()
    with pytest.raises(HypervisorError, match="did not greet in time"):
        client.connect(0.1)
    assert time.monotonic() - started < 5


def test_a_peer_that_takes_no_commands() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(GREETING)
    client = QmpClient(ours.detach())
    filler = {"x": "y" * (1 << 22)}

    def answer_one() -> None:
        theirs.recv(4096)
        theirs.sendall(b'{"return": {}, "id": 1}\n')

    thread = threading.Thread(target=answer_one)
    thread.start()
    client.connect(5)
    thread.join(5)
    with pytest.raises(HypervisorError, match="takes no commands"):
        client.execute("big", filler, timeout=0.2)
    with pytest.raises(HypervisorError, match="takes no commands"):
        client.execute("next", timeout=0.2)
    client.close()
    theirs.close()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"not json", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not an object"),
        (b"7", "not an object"),
        (b"{}", "unknown kind"),
        (b'{"event": 5}', "malformed event"),
        (b'{"event": "X", "data": []}', "malformed event"),
        (b'{"return": {}, "id": 99}', "not asked"),
        (b'{"return": {}, "id": "1"}', "not asked"),
        (b'{"return": {}, "id": true}', "not asked"),
        (b'{"error": {"desc": "no"}}', "not asked"),
        (b'{"x": "' + b"y" * (qmp.MAX_MESSAGE + 10) + b'"}', "more than"),
        (b"y" * (qmp.MAX_MESSAGE + 70_000), "more than"),
        (b"<close>", "QEMU closed it"),
    ],
)
def test_hostile_answers_end_the_connection(peers: Callable[..., Peer], reply: bytes, reason: str) -> None:
    def hostile(request: dict[str, Any]) -> list[bytes]:
        return good(request) if request["execute"] == "qmp_capabilities" else [reply]

    closed: list[str] = []
    client = peers(hostile).client(on_closed=closed.append)
    client.connect(5)
    for _ in range(2):
        with pytest.raises(HypervisorError, match=reason):
            client.execute("anything", timeout=20)
    client.close()
    assert len(closed) == 1 and reason in closed[0]


@pytest.mark.parametrize("greeting", [b"{}\n", b'{"QMP": 1}\n', b"\x00\n", b'{"return": {}}\n'])
def test_bad_greetings(peers: Callable[..., Peer], greeting: bytes) -> None:
    client = peers(greeting=greeting).client()
    with pytest.raises(HypervisorError, match="control connection"):
        client.connect(5)
    client.close()


MESSAGES = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["QMP", "return", "error", "event", "data", "id", "version", "qemu"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    st.just(GREETING),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MESSAGES, max_size=6))
def test_any_bytes_give_an_answer_or_an_error(messages: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    closed: list[str] = []
    client = QmpClient(ours.detach(), on_event=lambda name, data: None, on_closed=closed.append)
    theirs.sendall(b"\n".join(messages))
    theirs.shutdown(socket.SHUT_WR)
    with contextlib.suppress(HypervisorError):
        client.connect(5)
        client.execute("query-status", timeout=5)
    client.close()
    theirs.close()
    assert len(closed) == 1


def test_an_error_in_a_callback_wakes_the_callers(peers: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)

    def eventful(request: dict[str, Any]) -> list[bytes]:
        return good(request) if request["execute"] == "qmp_capabilities" else [b'{"event": "X"}']

    def broken(name: str, data: dict[str, Any]) -> None:
        raise RuntimeError("a fault of ours")

    client = peers(eventful).client(on_event=broken)
    client.connect(5)
    with pytest.raises(HypervisorError, match="callback"):
        client.execute("anything", timeout=20)
    client.close()
