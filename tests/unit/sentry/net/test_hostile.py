"""Whatever arguments socket calls get, they answer an error that Linux has, or wait; no defect shows."""

from __future__ import annotations

import errno
import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.sentry.syscalls import socket as calls
from casemate.sentry.syscalls import table
from casemate.sentry.syscalls.numbers import NUMBERS
from tests.unit.sentry.net.peer import Peer
from tests.unit.sentry.vfs.calls import BASE, SCRATCH, Waits

NAMES = [
    "socket", "socketpair", "bind", "connect", "listen", "accept", "accept4", "getsockname", "getpeername", "sendto",
    "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg", "shutdown", "getsockopt", "setsockopt",
]  # fmt: skip
ODD = st.sampled_from(
    [0, 1, 2, 10, 16, 17, SCRATCH, BASE, SCRATCH + 128, (1 << 64) - 1, 1 << 63, (1 << 31) - 1, 0x7FFF_F000, 41, 6]
)
WORD = st.one_of(st.integers(0, 20), ODD, st.integers(0, (1 << 64) - 1))
CALLS = st.lists(st.tuples(st.sampled_from(NAMES), st.lists(WORD, min_size=6, max_size=6)), max_size=30)


def test_all_calls_are_there() -> None:
    assert calls.socket is table.TABLE[NUMBERS["socket"]].handler
    assert all(NUMBERS[name] in table.TABLE for name in NAMES)


@settings(deadline=None)
@given(CALLS, st.binary(min_size=256, max_size=256))
def test_nothing_but_errors(steps: list[tuple[str, list[int]]], memory: bytes) -> None:
    peer = Peer()
    peer.pair()
    peer.pair(socket.SOCK_DGRAM)
    peer.connected()
    peer.inet(socket.SOCK_DGRAM)
    peer.inet(socket.SOCK_STREAM, socket.AF_INET6)
    peer("socket", socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    peer("listen", peer.inet(), 1)
    for name, words in steps:
        peer.memory.write(SCRATCH, memory)
        try:
            result = peer(name, *words)
        except Waits:
            peer.task.blocked = {}
            continue
        assert result >= 0 or -result in errno.errorcode
