"""Who can be bound to a port beside whom."""

from __future__ import annotations

import socket
import struct
from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL, EINVAL, ENETUNREACH

import pytest

from casemate.sentry.errno import SysError
from casemate.sentry.net.address import ANY4, LOOPBACK4, LOOPBACK6, normal, pack, parse, route, wide
from casemate.sentry.net.options import SO_REUSEADDR, SO_REUSEPORT, SOL_SOCKET
from tests.unit.sentry.net.peer import Peer
from tests.unit.sentry.vfs.calls import SCRATCH

OTHER = b"\x7f\0\0\2"


def option(peer: Peer, fd: int, level: int, name: int, value: int) -> int:
    peer.memory.write(SCRATCH, struct.pack("<i", value))
    return peer("setsockopt", fd, level, name, SCRATCH, 4)


@pytest.mark.parametrize(
    ("first", "second", "reuse", "listening", "fails"),
    [
        (LOOPBACK4, LOOPBACK4, False, False, True),
        (LOOPBACK4, OTHER, False, False, False),
        (LOOPBACK4, ANY4, False, False, True),
        (ANY4, OTHER, False, False, True),
        (LOOPBACK4, LOOPBACK4, True, False, False),
        (LOOPBACK4, LOOPBACK4, True, True, True),
        (ANY4, LOOPBACK4, True, True, True),
    ],
)
def test_tcp(first: bytes, second: bytes, reuse: bool, listening: bool, fails: bool) -> None:
    peer = Peer()
    one, two = peer.inet(), peer.inet()
    if reuse:
        for fd in (one, two):
            assert option(peer, fd, SOL_SOCKET, SO_REUSEADDR, 1) == 0
    assert peer.bind(one, 5000, first) == 0
    if listening:
        assert peer("listen", one, 1) == 0
    assert peer.bind(two, 5000, second) == (-EADDRINUSE if fails else 0)
    peer("close", one)
    if fails:
        assert peer.bind(two, 5000, second) == 0


def test_reuse_of_a_port_is_for_one_user() -> None:
    root = Peer()
    user, other = Peer(root, 2, 1000), Peer(root, 3, 1001)
    fds = []
    for peer in (user, user, other):
        fd = peer.inet()
        assert option(peer, fd, SOL_SOCKET, SO_REUSEPORT, 1) == 0
        fds.append((peer, fd))
    assert user.bind(fds[0][1], 5000) == 0
    assert user.bind(fds[1][1], 5000) == 0
    assert other.bind(fds[2][1], 5000) == -EADDRINUSE
    assert other.bind(other.inet(), 80) == -EACCES


def test_both_families_share_ports() -> None:
    peer = Peer()
    six = peer.inet(family=socket.AF_INET6)
    peer.memory.write(SCRATCH, struct.pack("<H", socket.AF_INET6) + (5000).to_bytes(2, "big") + bytes(24))
    assert peer("bind", six, SCRATCH, 28) == 0
    assert peer.bind(peer.inet(), 5000) == -EADDRINUSE
    peer("close", six)
    six = peer.inet(family=socket.AF_INET6)
    assert option(peer, six, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1) == 0
    peer.memory.write(SCRATCH, struct.pack("<H", socket.AF_INET6) + (5000).to_bytes(2, "big") + bytes(24))
    assert peer("bind", six, SCRATCH, 28) == 0
    assert peer.bind(peer.inet(), 5000) == 0


def test_ports_run_out_and_come_back() -> None:
    peer = Peer()
    peer.task.group.limits.set(7, 1 << 17, 1 << 17)
    fds = []
    while True:
        fd = peer.inet(socket.SOCK_DGRAM)
        if peer.bind(fd, 0) != 0:
            break
        fds.append(fd)
    assert len(fds) == 60999 - 32768 + 1
    assert peer.connect(fd, 9) == -EADDRNOTAVAIL
    peer("close", fds[100])
    assert peer.connect(fd, 9) == 0


def test_addresses() -> None:
    assert parse(socket.AF_INET, pack(socket.AF_INET, OTHER, 80)) == (OTHER, 80)
    assert parse(socket.AF_INET6, pack(socket.AF_INET6, LOOPBACK6, 80)) == (LOOPBACK6, 80)
    # IPv4 in an IPv6 socket's view, and back.
    assert parse(socket.AF_INET6, pack(socket.AF_INET6, OTHER, 80)) == (OTHER, 80)
    assert normal(wide(OTHER)) == OTHER
    assert route(ANY4) == (LOOPBACK4, LOOPBACK4) and route(OTHER) == (OTHER, LOOPBACK4)
    with pytest.raises(SysError) as failed:
        route(b"\x08\x08\x08\x08")
    assert failed.value.errno == ENETUNREACH
    with pytest.raises(SysError) as failed:
        parse(socket.AF_INET, b"\2\0\0\0")
    assert failed.value.errno == EINVAL
