"""Sockets that nobody reads cannot take all memory, and each still gets its data through."""

from __future__ import annotations

import os
import socket
from errno import EAGAIN

import pytest

from casemate.sentry.net.buffer import SCARCE, budget
from casemate.sentry.vfs.file import POLLOUT
from tests.unit.sentry.net.peer import Peer

LIMIT = 4 << 20


@pytest.mark.parametrize("kind", ["stream", "seqpacket", "datagram", "tcp"])
def test_many_full_sockets_hold_little(kind: str) -> None:
    peer = Peer()
    held = budget(peer.kernel)
    held.limit = LIMIT
    fds: list[tuple[int, int]] = []
    kinds = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET, "datagram": socket.SOCK_DGRAM}
    for _ in range(60):
        one, other = peer.connected() if kind == "tcp" else peer.pair(kinds[kind])
        fds.append((one, other))
        while peer.send(one, bytes(4096)) > 0:
            pass
    # Those that were there before it was scarce hold much, all others little.
    assert LIMIT < held.used < LIMIT + (3 << 20) + 60 * 2 * SCARCE
    one, other = fds[-1]
    file = peer.task.files.get(one)
    told: list[int] = []

    class Waiter:
        def wake(self, mask: int) -> None:
            told.append(mask)

    file.queue.add(Waiter())
    assert peer.send(one, b"x") == -EAGAIN and not file.poll(peer.task) & POLLOUT
    while isinstance(got := peer.receive(other, 4096), bytes) and got:
        pass
    # It was told that it can go on, though it is scarce still.
    assert held.scarce and any(mask & POLLOUT for mask in told)
    assert file.poll(peer.task) & POLLOUT and peer.send(one, b"x") == 1
    for pair in fds:
        for fd in pair:
            peer("close", fd)
    assert held.used == 0


def test_datagrams_of_the_network_are_dropped() -> None:
    peer = Peer()
    held = budget(peer.kernel)
    held.limit = 1 << 20
    receivers = [peer.inet(socket.SOCK_DGRAM) for _ in range(40)]
    sender = peer.inet(socket.SOCK_DGRAM)
    for fd in receivers:
        assert peer.bind(fd, 0) == 0
        assert peer.connect(sender, peer.port(fd)) == 0
        for _ in range(20):
            assert peer.send(sender, os.urandom(9000)) == 9000
        assert isinstance(peer.receive(fd, 10), bytes)
        assert peer.send(sender, b"last") == 4
    assert held.used < (1 << 20) + 300_000 + 40 * 10_000
    for fd in receivers:
        peer("close", fd)
    assert held.used == 0
