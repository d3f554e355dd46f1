"""Sockets of a shared network: the host's, with what applications may do to them."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from errno import EAGAIN, EINPROGRESS, ENOPROTOOPT, EPERM, EPIPE, ESOCKTNOSUPPORT
from typing import Any

import pytest

from casemate.sentry.net.host import HostNetwork, HostSocket
from casemate.sentry.vfs.file import POLLIN, POLLOUT
from casemate.sentry.wait import Block
from tests.unit.sentry.net.peer import Peer
from tests.unit.sentry.vfs.calls import SCRATCH, Waits

SO_ATTACH_FILTER, IPT_SO_SET_REPLACE = 26, 64


class FakePlatform:
    """Watches nothing; tests ask for events themselves."""

    def watch(self, fd: int, mask: int, watcher: Any) -> None:
        pass


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    peer.kernel.subsystems["network"] = "host"
    peer.kernel.platform = FakePlatform()
    yield peer
    for fd in list(peer.task.files):
        peer("close", fd)
    network = peer.kernel.subsystems.get("host_network")
    if network is not None:
        assert not network.sockets
        network.epoll.close()
        network.asking.close()


def events(peer: Peer) -> None:
    """Let the network tell what happens within some time."""
    network: HostNetwork = peer.kernel.subsystems["host_network"]
    select.select([network.epoll.fileno()], [], [], 5)
    network.ready(POLLIN)


def test_a_connection_to_the_host(peer: Peer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        fd = peer.inet()
        assert isinstance(peer.task.files.get(fd), HostSocket)
        assert peer.connect(fd, server.getsockname()[1]) in (0, -EINPROGRESS)
        other, address = server.accept()
        with other:
            assert peer.port(fd) == address[1]
            assert peer.receive(fd) == -EAGAIN
            other.sendall(b"hello")
            while peer.task.files.get(fd).poll(peer.task) & POLLIN == 0:
                time.sleep(0.001)
            assert peer.receive(fd, 3) == b"hel" and peer.receive(fd) == b"lo"
            assert peer.send(fd, b"back") == 4 and other.recv(10) == b"back"
        while peer.send(fd, b"x") != -EPIPE:
            time.sleep(0.001)


def test_waiting_is_told_by_events(peer: Peer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        fd = peer.inet()
        peer.connect(fd, server.getsockname()[1])
        other, _ = server.accept()
        with other:
            peer.task.files.get(fd).flags &= ~os.O_NONBLOCK
            with pytest.raises(Waits) as waits:
                peer.raw("recvfrom", fd, SCRATCH, 10, 0, 0, 0)
            block = waits.value.__cause__
            assert isinstance(block, Block)
            told: list[int] = []

            class Waiter:
                def wake(self, mask: int) -> None:
                    told.append(mask)

            block.queues[0].add(Waiter())
            events(peer)
            told.clear()
            other.sendall(b"now")
            events(peer)
            assert told and told[0] & POLLIN
            assert peer.raw("recvfrom", fd, SCRATCH, 10, 0, 0, 0) == 3
            # Nothing more happens: nothing more is told.
            told.clear()
            peer.kernel.subsystems["host_network"].ready(POLLIN)
            assert not [mask for mask in told if mask & POLLIN]


def test_a_large_send_goes_on_where_it_was(peer: Peer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        fd = peer.inet()
        peer.connect(fd, server.getsockname()[1])
        other, _ = server.accept()
        with other:
            peer.task.files.get(fd).flags &= ~os.O_NONBLOCK
            data = os.urandom(1 << 20) * 7
            peer.memory.write(SCRATCH, data)
            got = bytearray()
            other.settimeout(5)
            while True:
                try:
                    assert peer.raw("sendto", fd, SCRATCH, len(data), 0, 0, 0) == len(data)
                    break
                except Waits as waits:
                    block = waits.__cause__
                    assert isinstance(block, Block) and 0 < block.partial < len(data)
                    while len(got) < block.partial:
                        got += other.recv(1 << 20)
            while len(got) < len(data):
                got += other.recv(1 << 20)
            assert got == data


def test_datagrams(peer: Peer) -> None:
    one, other = peer.inet(socket.SOCK_DGRAM), peer.inet(socket.SOCK_DGRAM)
    assert peer.bind(other, 0) == 0
    assert peer.connect(one, peer.port(other)) == 0
    assert peer.send(one, b"datagram") == 8 and peer.send(one, b"") == 0
    MSG_TRUNC = socket.MSG_TRUNC
    assert peer("recvfrom", other, SCRATCH, 4, MSG_TRUNC | socket.MSG_PEEK, 0, 0) == 8
    assert peer.receive(other, 4) == b"data"
    assert peer.receive(other) == b""
    assert peer.task.files.get(other).poll(peer.task) & (POLLIN | POLLOUT) == POLLOUT


def test_what_is_not_passed_on(peer: Peer) -> None:
    fd = peer.inet()
    peer.memory.write(SCRATCH, struct.pack("<HxxxxxxQ", 1, SCRATCH + 64))
    for level, name in ((socket.SOL_SOCKET, SO_ATTACH_FILTER), (socket.IPPROTO_IP, IPT_SO_SET_REPLACE), (263, 1)):
        assert peer("setsockopt", fd, level, name, SCRATCH, 16) == -ENOPROTOOPT
        peer.memory.write(SCRATCH + 32, struct.pack("<I", 16))
        assert peer("getsockopt", fd, level, name, SCRATCH, SCRATCH + 32) == -ENOPROTOOPT
    for protocol in (socket.IPPROTO_RAW, socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        assert peer("socket", socket.AF_INET, socket.SOCK_RAW, protocol) == -EPERM
    assert peer("socket", socket.AF_NETLINK, socket.SOCK_STREAM, 0) == -ESOCKTNOSUPPORT
    assert not isinstance(peer.task.files.get(peer.pair()[0]), HostSocket)
