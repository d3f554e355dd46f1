"""Echo sockets answer themselves."""

from __future__ import annotations

import socket
import struct
from errno import EACCES, EAGAIN, EDESTADDRREQ, EINVAL, ENETUNREACH, EPERM

import pytest

from casemate.sentry.net.icmp import PING_GROUPS, checksum, ping_groups
from tests.unit.sentry.net.peer import Peer

REQUEST = struct.pack(">BBHHH", 8, 0, 0, 0, 7) + b"payload"


def test_an_echo_comes_back() -> None:
    peer = Peer()
    fd = peer("socket", socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
    assert peer.send(fd, REQUEST) == -EDESTADDRREQ
    assert peer.connect(fd, 0, b"\x08\x08\x08\x08") == -ENETUNREACH
    assert peer.connect(fd, 0) == 0
    assert peer.receive(fd) == -EAGAIN
    assert peer.send(fd, REQUEST[:7]) == -EINVAL
    assert peer.send(fd, b"\5" + REQUEST[1:]) == -EINVAL
    assert peer.send(fd, REQUEST) == len(REQUEST)
    reply = peer.receive(fd)
    assert isinstance(reply, bytes)
    kind, code, _, identifier, sequence = struct.unpack_from(">BBHHH", reply)
    assert (kind, code, identifier, sequence, reply[8:]) == (0, 0, peer.port(fd), 7, b"payload")
    # Over all of it, with the sum in place, the checksum is zero.
    assert checksum(reply) == 0


def test_a_raw_socket_is_good_for_echo_requests_alone() -> None:
    peer = Peer()
    raw = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    fd = peer("socket", socket.AF_INET, raw, socket.IPPROTO_ICMP)
    assert peer.connect(fd, 0) == 0
    assert peer.send(fd, b"\5" + REQUEST[1:]) == -EPERM
    assert peer.send(fd, REQUEST[:7]) == -EINVAL
    asked = REQUEST[:4] + b"\x12\x34" + REQUEST[6:]
    assert peer.send(fd, asked) == len(asked)
    reply = peer.receive(fd)
    assert isinstance(reply, bytes)
    head, echo = reply[:20], reply[20:]
    assert (head[0], int.from_bytes(head[2:4], "big"), head[8:10], head[12:]) == (
        0x45, len(reply), b"\x40\x01", bytes([127, 0, 0, 1] * 2)
    )  # fmt: skip
    assert checksum(head) == checksum(echo) == 0
    assert echo[:1] + echo[4:] == b"\0\x12\x34" + REQUEST[6:]
    # What does not fit is cut off, not written behind the buffer.
    assert peer.send(fd, asked) == len(asked)
    assert peer.receive(fd, 24) == head + echo[:4]
    assert peer("socket", socket.AF_INET, raw, socket.IPPROTO_TCP) == -EPERM
    assert peer("socket", socket.AF_INET6, raw, socket.IPPROTO_ICMP) == -EPERM
    peer.task.creds.effective = 0
    assert peer("socket", socket.AF_INET, raw, socket.IPPROTO_ICMP) == -EPERM


@pytest.mark.parametrize(
    ("groups", "gid", "further", "may"),
    [
        (None, 4000, (), True), ("0 2147483647", 0, (), True), ("10 20", 20, (), True), ("10\t20", 9, (), False),
        ("10 20", 21, (5, 10), True), ("10 20", 0, (9, 21), False), ("1 0", 0, (0, 1), False),
        ("20 10", 15, (), False), ("0 0", 0, (), True),
    ],
)  # fmt: skip
def test_groups_that_may_have_echo_sockets(groups: str | None, gid: int, further: tuple[int, ...], may: bool) -> None:
    peer = Peer()
    if groups is not None:
        peer.task.kernel.subsystems["sysctl"] = {PING_GROUPS: groups}
    peer.task.creds.egid, peer.task.creds.groups = gid, further
    for family, protocol in ((socket.AF_INET, socket.IPPROTO_ICMP), (socket.AF_INET6, socket.IPPROTO_ICMPV6)):
        found = peer("socket", family, socket.SOCK_DGRAM, protocol)
        assert (found >= 0) if may else (found == -EACCES)
        # Of those that need a right of their own they are no condition, as in Linux.
        assert peer("socket", family, socket.SOCK_RAW, protocol) >= 0
    first, last = ping_groups(peer.task.kernel)
    assert (first, last) == (1, 0) or first <= last


def test_answers_that_nobody_takes_are_bounded() -> None:
    peer = Peer()
    fd = peer("socket", socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
    assert peer.connect(fd, 0) == 0
    for _ in range(1000):
        assert peer.send(fd, REQUEST) == len(REQUEST)
    taken = 0
    while peer.receive(fd) != -EAGAIN:
        taken += 1
    assert 0 < taken < 1000
