"""The filter between a VMM and a file server."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.vm import window
from casemate.vm.window import HEADER, REGION, Broken, Message

BASE, SIZE = 112 << 20, 16 << 20


def table(*regions: tuple[int, int, int, int]) -> bytes:
    return struct.pack("<II", len(regions), 0) + b"".join(REGION.pack(*region) for region in regions)


def descriptors(count: int) -> list[int]:
    return [os.memfd_create(f"region-{number}") for number in range(count)]


def is_open(fd: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(fd)
        return True
    return False


def test_only_the_window_is_shown() -> None:
    fds = descriptors(2)
    given = Message(window.SET_MEM_TABLE, 1, table((0, BASE, 7, 0), (BASE, SIZE, 9, 0)), list(fds))
    shown = window.to_server(given, BASE, SIZE)
    assert shown.body == table((BASE, SIZE, 9, 0))
    assert shown.fds == [fds[1]]
    assert not is_open(fds[0])
    shown.close()


@pytest.mark.parametrize(
    "regions",
    [
        (),
        ((0, BASE, 0, 0),),
        ((BASE, SIZE, 0, 4096),),  # the window, it says, but another part of the file
        ((BASE, SIZE + 1, 0, 0),),
        ((BASE - 1, SIZE, 0, 0),),
    ],
)
def test_a_table_without_the_window_is_refused(regions: tuple[tuple[int, int, int, int], ...]) -> None:
    message = Message(window.SET_MEM_TABLE, 1, table(*regions), descriptors(len(regions)))
    fds = list(message.fds)
    with pytest.raises(Broken, match="without the window"):
        window.to_server(message, BASE, SIZE)
    message.close()
    assert not any(is_open(fd) for fd in fds)


def test_a_second_window_is_not_shown() -> None:
    message = Message(window.SET_MEM_TABLE, 1, table((BASE, SIZE, 1, 0), (BASE, SIZE, 2, 0)), descriptors(2))
    shown = window.to_server(message, BASE, SIZE)
    assert shown.body == table((BASE, SIZE, 1, 0))
    assert len(shown.fds) == 1
    shown.close()


@pytest.mark.parametrize(
    ("body", "count"),
    [(b"", 0), (b"\1\0\0", 0), (table((BASE, SIZE, 0, 0)), 0), (table((BASE, SIZE, 0, 0))[:-1], 1), (b"\xff" * 8, 0)],
)
def test_a_table_that_is_none(body: bytes, count: int) -> None:
    message = Message(window.SET_MEM_TABLE, 1, body, descriptors(count))
    with pytest.raises(Broken):
        window.to_server(message, BASE, SIZE)
    message.close()


def test_features() -> None:
    word = struct.pack("<Q", 1 << 32 | 1 << 28)
    offered = window.to_vmm(Message(window.GET_FEATURES, 5, word))
    assert offered.body == struct.pack("<Q", 1 << 33 | 1 << 32 | 1 << 28)
    taken = window.to_server(Message(window.SET_FEATURES, 1, offered.body), BASE, SIZE)
    assert taken.body == word  # the server does not know that it is on the other side of bounce buffers


def test_extensions_that_go_round_the_table_are_not_agreed_on() -> None:
    everything = struct.pack("<Q", (1 << 64) - 1)
    offered = window.to_vmm(Message(window.GET_PROTOCOL_FEATURES, 5, everything))
    taken = window.to_server(Message(window.SET_PROTOCOL_FEATURES, 1, everything), BASE, SIZE)
    for message in (offered, taken):
        agreed = int.from_bytes(message.body, "little")
        assert agreed == window.PROTOCOL_FEATURES
        assert not agreed & (1 << 15), "CONFIGURE_MEM_SLOTS would add regions one by one"


@given(st.integers(0, 60), st.binary(max_size=200), st.integers(0, 8))
def test_whatever_comes_is_passed_on_or_refused(request: int, body: bytes, count: int) -> None:
    message = Message(request, 1, body, descriptors(count))
    fds = list(message.fds)
    try:
        try:
            window.to_server(message, BASE, SIZE)
        except Broken:
            return
        if request == window.SET_MEM_TABLE:
            assert len(message.fds) == 1
    finally:
        message.close()
        assert not any(is_open(fd) for fd in fds)


class Ends:
    """Both ends of a guarded connection, played by the test."""

    def __init__(self) -> None:
        server, theirs = socket.socketpair()
        self.complaints: list[str] = []
        self.told = threading.Event()
        self.server = server
        self.vmm = socket.socket(fileno=window.guard(theirs.detach(), BASE, SIZE, self._complain))
        for sock in (self.server, self.vmm):
            sock.settimeout(30)

    def _complain(self, text: str) -> None:
        self.complaints.append(text)
        self.told.set()

    def close(self) -> None:
        self.server.close()
        self.vmm.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def test_a_conversation(ends: Ends) -> None:
    window.send(ends.vmm, Message(window.GET_FEATURES, 1, b""))
    asked = window.receive(ends.server)
    assert asked is not None
    assert (asked.request, asked.body) == (window.GET_FEATURES, b"")
    window.send(ends.server, Message(window.GET_FEATURES, 5, struct.pack("<Q", 1)))
    answered = window.receive(ends.vmm)
    assert answered is not None
    assert int.from_bytes(answered.body, "little") == 1 | window.VIRTIO_F_ACCESS_PLATFORM
    fds = descriptors(2)
    window.send(ends.vmm, Message(window.SET_MEM_TABLE, 1, table((0, BASE, 0, 0), (BASE, SIZE, 0, 0)), fds))
    shown = window.receive(ends.server)
    assert shown is not None
    assert len(shown.fds) == 1
    assert not os.get_inheritable(shown.fds[0])  # or programs that are started meanwhile would have it
    assert os.readlink(f"/proc/self/fd/{shown.fds[0]}") == "/memfd:region-1 (deleted)"
    shown.close()


@pytest.mark.parametrize("data", [HEADER.pack(1, 1, 1 << 20), HEADER.pack(1, 0, 0), HEADER.pack(1, 3, 0)])
@pytest.mark.parametrize("side", ["vmm", "server"])
def test_what_is_no_message_ends_it(ends: Ends, data: bytes, side: str) -> None:
    sender = getattr(ends, side)
    sender.sendall(data)
    assert ends.told.wait(30)
    assert "a message of" in ends.complaints[0]
    for sock in (ends.vmm, ends.server):
        assert sock.recv(1) == b""


def test_an_end_in_the_midst(ends: Ends) -> None:
    ends.vmm.sendall(HEADER.pack(1, 1, 100) + b"x")
    ends.vmm.close()
    assert ends.told.wait(30)
    assert "midst" in ends.complaints[0]


def test_the_end_is_passed_on(ends: Ends) -> None:
    ends.server.close()
    assert ends.vmm.recv(1) == b""
    assert not ends.complaints
