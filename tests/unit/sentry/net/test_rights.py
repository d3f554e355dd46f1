"""Descriptors that travel: each is closed exactly when its last holder is gone."""

from __future__ import annotations

import resource
import socket
import struct
from errno import EBADF, EINVAL, EMFILE, ETOOMANYREFS

import pytest

from casemate.sentry.net.unix import names
from tests.unit.sentry.net.peer import ADDRESS, Peer
from tests.unit.sentry.spaces import namespaces
from tests.unit.sentry.vfs.calls import SCRATCH

KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
MSG_CTRUNC = 8


@pytest.mark.parametrize("kind", KINDS)
def test_they_arrive_or_are_closed(kind: int) -> None:
    peer = Peer()
    one, other = peer.pair(kind)
    fd = peer("eventfd2", 0, 0)
    file = peer.task.files.get(fd)
    assert peer.pass_files(one, b"a", [fd, fd, fd]) == 1
    assert file.refs == 4 and names(peer.kernel).in_flight[0] == 3
    # Room for two.
    result, files, flags = peer.take_files(other, room=24)
    assert (result, len(files), flags & MSG_CTRUNC) == (1, 2, MSG_CTRUNC)
    assert file.refs == 3 and names(peer.kernel).in_flight[0] == 0
    for number in files:
        peer("close", number)
    # Received without asking for them.
    assert peer.pass_files(one, b"b", [fd]) == 1
    assert peer.receive(other) == b"b"
    assert file.refs == 1
    # Never received.
    assert peer.pass_files(one, b"c", [fd]) == 1
    peer("close", one)
    peer("close", other)
    assert file.refs == 1 and names(peer.kernel).in_flight[0] == 0
    peer("close", fd)
    assert file.refs == 0


def test_no_more_than_the_table_holds() -> None:
    peer = Peer()
    one, other = peer.pair()
    fd = peer("eventfd2", 0, 0)
    assert peer.pass_files(one, b"a", [fd, fd, fd, fd]) == 1
    used = len(peer.task.files)
    peer.task.group.limits.set(resource.RLIMIT_NOFILE, used + 2, 4096)
    result, files, flags = peer.take_files(other)
    assert result == 1 and len(files) == 2 and flags & MSG_CTRUNC
    assert peer.task.files.get(fd).refs == 3
    assert peer("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0) == -EMFILE


def test_in_flight_is_bounded() -> None:
    peer = Peer(uid=1000)
    one, _ = peer.pair(socket.SOCK_STREAM)
    fd = peer("eventfd2", 0, 0)
    peer.task.group.limits.set(resource.RLIMIT_NOFILE, 100, 100)
    sent = 0
    while (result := peer.pass_files(one, b"x", [fd] * 30)) == 1:
        sent += 30
    assert result == -ETOOMANYREFS and sent == 90
    assert peer.pass_files(one, b"x", [fd] * 300) == -EINVAL
    assert peer.pass_files(one, b"x", [999]) == -EBADF


@pytest.mark.parametrize("shared", [True, False])
def test_the_number_of_a_peer_is_that_of_its_namespace(shared: bool) -> None:
    server = Peer(pid=5)
    client = Peer(like=server, pid=7)
    if not shared:
        client.task.group.ns = namespaces(client.kernel, 1)
    listener = server("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0)
    for peer in (server, client):
        peer.memory.write(ADDRESS, struct.pack("<H", socket.AF_UNIX) + b"\0name")
    assert server("bind", listener, ADDRESS, 7) == server("listen", listener, 1) == 0
    end = client("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0)
    assert client("connect", end, ADDRESS, 7) == 0
    accepted = server("accept4", listener, 0, 0, 0)
    for peer, fd, number in ((server, accepted, 7), (client, end, 5)):
        peer.memory.write(SCRATCH + 64, struct.pack("<I", 12))
        assert peer("getsockopt", fd, socket.SOL_SOCKET, socket.SO_PEERCRED, SCRATCH, SCRATCH + 64) == 0
        assert struct.unpack("<i", peer.memory.read(SCRATCH, 4))[0] == (number if shared else 0)
