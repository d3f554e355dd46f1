"""``/proc/net``, proc_pid_net(5): what the sandbox's sockets and its loopback interface look like.

The rows of the tables of sockets are made in :mod:`casemate.sentry.vfs.proc.sockets`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from casemate.sentry.vfs.synthetic import Constant, Tree

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

_INET = (
    b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
    b"                                                     \n"
)
_INET6 = (
    b"  sl  local_address                         remote_address                        st tx_queue rx_queue tr"
    b" tm->when retrnsmt   uid  timeout inode\n"
)
_UDP = (
    b"   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer"
    b" drops             \n"
)
_DEV = (
    b"Inter-|   Receive                                                |  Transmit\n"
    b" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier"
    b" compressed\n"
    b"    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0"
    b"          0\n"
)
_ROUTE = b"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
_IF_INET6 = b"00000000000000000000000000000001 01 80 10 80       lo\n"
_OF_THE_NETWORK = (
    "dev", "if_inet6", "route", "ipv6_route", "arp", "tcp", "tcp6", "udp", "udp6", "raw", "raw6", "sockstat", "snmp",
    "netstat",
)  # fmt: skip
_LIMIT = 1 << 20
"""How much of a table of the host is shown."""
_PROTOCOLS = ("TCP", "TCPv6", "UDP", "UDPv6", "UNIX", "NETLINK")


class Sockets:
    """The rows of one kind of socket, behind their heading.

    Arguments:
        name: the file's.
        heading: its first line.
    """

    __slots__ = ("heading", "name")

    def __init__(self, name: str, heading: bytes) -> None:
        self.name = name
        self.heading = heading

    def __call__(self, task: Task) -> bytes:
        from casemate.sentry.vfs.proc import sockets  # with all the families: where somebody looks

        return self.heading + sockets.rows(task.kernel, self.name)


class Namespace:
    """A file that is about the network: that of the sandbox's own loopback, or of the network that the host gave it.

    Arguments:
        name: the file's.
        own: gives what it says of the loopback.
    """

    __slots__ = ("name", "own")

    def __init__(self, name: str, own: Callable[[Task], bytes]) -> None:
        self.name = name
        self.own = own

    def __call__(self, task: Task) -> bytes:
        text = read_table(task.kernel, self.name)
        return self.own(task) if text is None else text


def read_table(kernel: Kernel, name: str) -> bytes | None:
    """What the host says of the network that it gave the sandbox; None where it gave none."""
    if kernel.subsystems.get("network") != "host":
        return None
    try:
        fd = os.open(f"self/net/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=kernel.platform.proc)
        with open(fd, "rb") as file:
            return file.read(_LIMIT)
    except OSError:
        return None


def tree() -> Tree:
    """All of ``/proc/PID/net``."""
    files = _loopback()
    for name in _OF_THE_NETWORK:
        own = files[name]
        files[name] = Namespace(name, own if callable(own) else Constant(own + b"\n"))
    return files


def _loopback() -> Tree:
    return {
        "dev": lambda task: _DEV,
        "if_inet6": lambda task: _IF_INET6,
        "route": lambda task: _ROUTE.ljust(127) + b"\n",
        "ipv6_route": lambda task: b"",
        "arp": b"IP address       HW type     Flags       HW address            Mask     Device",
        "unix": Sockets("unix", b"Num       RefCount Protocol Flags    Type St Inode Path\n"),
        "tcp": Sockets("tcp", _INET),
        "tcp6": Sockets("tcp6", _INET6),
        "udp": Sockets("udp", _UDP),
        "udp6": Sockets("udp6", _INET6),
        "raw": lambda task: _UDP,
        "raw6": lambda task: _INET6,
        "packet": b"sk       RefCnt Type Proto  Iface R Rmem   User   Inode",
        "netlink": b"sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode",
        "protocols": "protocol  size sockets  memory press maxhdr  slab module"
        + "".join(f"\n{name:<9} 1024       0       0   no        0   yes  kernel" for name in _PROTOCOLS),
        "sockstat": b"sockets: used 0\nTCP: inuse 0 orphan 0 tw 0 alloc 0 mem 0\nUDP: inuse 0 mem 0",
        "snmp": b"Ip: Forwarding DefaultTTL\nIp: 2 64",
        "netstat": b"TcpExt: SyncookiesSent\nTcpExt: 0",
    }
