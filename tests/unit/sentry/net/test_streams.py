"""Connections, of UNIX sockets and TCP alike: what arrives is what was sent, whatever happens on the way."""

from __future__ import annotations

import os
import socket
from errno import EAGAIN, ECONNRESET, EPIPE

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.vfs.file import POLLHUP, POLLIN, POLLOUT, POLLRDHUP
from casemate.sentry.wait import Block
from tests.unit.sentry.net.peer import Peer
from tests.unit.sentry.vfs.calls import SCRATCH, Waits

KINDS = ("unix", "tcp")


def ends(peer: Peer, kind: str) -> tuple[int, int]:
    return peer.pair() if kind == "unix" else peer.connected()


def poll(peer: Peer, fd: int) -> int:
    mask: int = peer.task.files.get(fd).poll(peer.task)
    return mask


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "receive", "peek", "shut"]), st.integers(0, 1),
        st.sampled_from([1, 7, 1000, 4096, 70000, 300000, 3 << 20]),
    ),
    max_size=40,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(steps=STEPS)
def test_bytes_arrive_in_order(kind: str, steps: list[tuple[str, int, int]]) -> None:
    peer = Peer()
    fds = ends(peer, kind)
    flying = [bytearray(), bytearray()]
    shut = [False, False]
    for what, side, size in steps:
        if what == "send":
            data = os.urandom(16) * (size // 16 + 1)
            sent = peer.send(fds[side], data[:size])
            if shut[side]:
                assert sent == -EPIPE
            elif sent < 0:
                assert sent == -EAGAIN and flying[side]
            else:
                assert 0 < sent <= size
                flying[side] += data[:sent]
        elif what == "shut":
            if not (shut[0] and shut[1]):
                assert peer("shutdown", fds[side], socket.SHUT_WR) == 0
            shut[side] = True
        else:
            other = flying[1 - side]
            got = peer.receive(fds[side], size, socket.MSG_PEEK if what == "peek" else 0)
            if other:
                assert isinstance(got, bytes) and got and got == other[: len(got)]
                if what == "receive":
                    del other[: len(got)]
            else:
                assert got == (b"" if shut[1 - side] else -EAGAIN)
        for at in (0, 1):
            mask = poll(peer, fds[at])
            assert bool(mask & POLLIN) == bool(flying[1 - at] or shut[1 - at])
            assert bool(mask & POLLRDHUP) == shut[1 - at]
            assert bool(mask & POLLHUP) == (shut[0] and shut[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_waiting_send_keeps_what_went(kind: str) -> None:
    peer = Peer()
    one, other = ends(peer, kind)
    peer.task.files.get(one).flags &= ~os.O_NONBLOCK
    data = os.urandom(1 << 20) * 3
    peer.memory.write(SCRATCH, data)
    got = bytearray()
    with pytest.raises(Waits) as waits:
        peer.raw("sendto", one, SCRATCH, len(data), 0, 0, 0)
    for _ in range(1000):
        block = waits.value.__cause__
        assert isinstance(block, Block) and 0 < block.partial < len(data)
        # What a signal would make it return is what has gone.
        assert block.partial == len(got) + peer.task.files.get(other).pending()
        part = peer.task.files.get(other).read(peer.task, 100000)
        while part:
            got += part
            part = peer.task.files.get(other).read(peer.task, 100000) if poll(peer, other) & POLLIN else b""
        try:
            assert peer.raw("sendto", one, SCRATCH, len(data), 0, 0, 0) == len(data)
            break
        except Waits as again:
            waits.value.__cause__ = again.__cause__
    while poll(peer, other) & POLLIN:
        got += peer.task.files.get(other).read(peer.task, 1 << 20)
    assert got == data


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_connection_becomes_writable_again(kind: str) -> None:
    peer = Peer()
    one, other = ends(peer, kind)
    while peer.send(one, bytes(50000)) > 0:
        pass
    told: list[int] = []

    class Waiter:
        def wake(self, mask: int) -> None:
            told.append(mask)

    peer.task.files.get(one).queue.add(Waiter())
    assert not poll(peer, one) & POLLOUT
    while not poll(peer, one) & POLLOUT:
        assert isinstance(peer.receive(other, 10000), bytes)
    # Who waits for it was told, at that moment and not at every receive.
    assert [mask & POLLOUT for mask in told] == [POLLOUT]


@pytest.mark.parametrize("kind", KINDS)
def test_closing_with_unread_data_is_a_reset(kind: str) -> None:
    peer = Peer()
    one, other = ends(peer, kind)
    assert peer.send(one, b"unread") == 6
    assert peer.send(other, b"read") == 4
    assert peer("close", other) == 0
    # What came before is still there.
    assert peer.receive(one) == b"read"
    assert peer.receive(one) == -ECONNRESET
    assert peer.receive(one) == b""
    assert peer.send(one, b"x") == -EPIPE
