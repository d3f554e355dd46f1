"""The interfaces in /sys/class/net: the sandbox's own loopback, or those of the network that the host gave it."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable
from errno import EINVAL, ENOENT
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError, from_os
from casemate.sentry.vfs.inode import Inode
from casemate.sentry.vfs.proc.net import read_table
from casemate.sentry.vfs.synthetic import Directory, Entry, Link, Node, SyntheticFs, Tree, build

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

SIOCGIFFLAGS, SIOCGIFMTU, SIOCGIFHWADDR, SIOCGIFINDEX = 0x8913, 0x8921, 0x8927, 0x8933
IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40
_COUNTS = (
    "rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "rx_fifo_errors", "rx_frame_errors", "rx_compressed",
    "multicast", "tx_bytes", "tx_packets", "tx_errors", "tx_dropped", "tx_fifo_errors", "collisions",
    "tx_carrier_errors", "tx_compressed",
)  # fmt: skip
"""As ``/proc/net/dev`` has them, in this order."""


def table(kernel: Kernel) -> dict[str, list[int]]:
    """The interfaces with their counts."""
    text = read_table(kernel, "dev")
    if text is None:
        return {"lo": [0] * len(_COUNTS)}
    found = {}
    for line in text.decode("ascii", "replace").splitlines()[2:]:
        name, _, rest = line.partition(":")
        found[name.strip()] = [int(word) for word in rest.split()]
    return found


def _ask(name: str, command: int, size: int) -> bytes:
    """An ioctl of netdevice(7) about an interface. Raises SysError."""
    request = struct.pack("16s24x", name.encode())
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            answer = fcntl.ioctl(sock, command, request)
    except OSError as error:
        raise from_os(error) from None
    return answer[16 : 16 + size]


class _Value:
    """One file of an interface."""

    __slots__ = ("make", "name")

    def __init__(self, name: str, make: Callable[[str], object]) -> None:
        self.name = name
        self.make = make

    def __call__(self, task: Task) -> bytes:
        return f"{self.make(self.name)}\n".encode()


class _Count:
    """One count of an interface."""

    __slots__ = ("index", "name")

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        self.index = index

    def __call__(self, task: Task) -> bytes:
        counts = table(task.kernel).get(self.name)
        if counts is None or len(counts) <= self.index:
            raise SysError(EINVAL)
        return b"%d\n" % counts[self.index]


def _flags(name: str) -> int:
    return int.from_bytes(_ask(name, SIOCGIFFLAGS, 2), "little")


def _state(name: str) -> str:
    flags = _flags(name)
    if flags & IFF_LOOPBACK:
        return "unknown"
    return "up" if flags & IFF_RUNNING else "down"


def _address(name: str) -> str:
    return ":".join(f"{byte:02x}" for byte in _ask(name, SIOCGIFHWADDR, 8)[2:])


def _index(name: str) -> int:
    return int.from_bytes(_ask(name, SIOCGIFINDEX, 4), "little")


def _mtu(name: str) -> int:
    return int.from_bytes(_ask(name, SIOCGIFMTU, 4), "little")


def _type(name: str) -> int:
    return int.from_bytes(_ask(name, SIOCGIFHWADDR, 2), "little")


def _carrier(name: str) -> int:
    return int(bool(_flags(name) & IFF_RUNNING))


def _shown_flags(name: str) -> str:
    return hex(_flags(name) & ~IFF_RUNNING)


def _given(name: str) -> Tree:
    """What an interface of the host's network has."""
    index = _Value(name, _index)
    return {
        "address": _Value(name, _address),
        "addr_len": 6,
        "carrier": _Value(name, _carrier),
        "flags": _Value(name, _shown_flags),
        "ifindex": index,
        "iflink": index,
        "mtu": _Value(name, _mtu),
        "operstate": _Value(name, _state),
        "type": _Value(name, _type),
        "statistics": {count: _Count(name, index) for index, count in enumerate(_COUNTS)},
    }


def _loopback() -> Tree:
    """What the sandbox's own loopback has."""
    return {
        "address": "00:00:00:00:00:00",
        "addr_len": 6,
        "carrier": 1,
        "flags": "0x9",
        "ifindex": 1,
        "iflink": 1,
        "mtu": 65536,
        "operstate": "unknown",
        "type": 772,
        "statistics": dict.fromkeys(_COUNTS, 0),
    }


class Interfaces(Directory):
    """``/sys/devices/virtual/net``: a directory for each interface; ``/sys/class/net`` with ``links``.

    Arguments:
        links: links to the directories take their place.
    """

    def __init__(self, fs: SyntheticFs, links: bool) -> None:
        super().__init__(fs)
        self._sys = fs
        self._links = links

    def _names(self) -> list[bytes]:
        return [name.encode() for name in table(self._sys.kernel)]

    def lookup(self, task: Task, name: bytes) -> Inode:
        if name not in self._names():
            self.fixed.pop(name, None)
            raise SysError(ENOENT)
        node = self.fixed.get(name)
        if node is None:
            node = self.fixed[name] = self._make(name)
        return node

    def _make(self, name: bytes) -> Node:
        if self._links:
            return Link(self._sys, b"../../devices/virtual/net/" + name)
        made = Directory(self._sys)
        given = self._sys.kernel.subsystems.get("network") == "host"
        build(self._sys, made, _given(os.fsdecode(name)) if given else _loopback())
        return made

    def readdir(self, task: Task) -> list[Entry]:
        kind = stat.S_IFLNK if self._links else stat.S_IFDIR
        return [(name, self.ino << 16 | index, kind) for index, name in enumerate(self._names())]
