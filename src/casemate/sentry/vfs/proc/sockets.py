"""The tables of sockets in ``/proc/net``, proc_pid_net(5)."""

from __future__ import annotations

from socket import AF_INET6
from typing import TYPE_CHECKING

from casemate.sentry.net.inet import InetSocket
from casemate.sentry.net.ports import Ports, Stack
from casemate.sentry.net.tcp import TcpSocket
from casemate.sentry.net.udp import UdpSocket
from casemate.sentry.net.unix import Names, UnixSocket

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel

_ACCEPTS = 0x10000
"""``__SO_ACCEPTCON``: it listens."""
_UNCONNECTED, _CONNECTED = 1, 3
_BOUND = 7
"""``TCP_CLOSE``, which is what a datagram socket without a peer is."""
_ESTABLISHED = 1


def unix(kernel: Kernel) -> bytes:
    """``/proc/net/unix``."""
    names = kernel.subsystems.get("unix")
    if not isinstance(names, Names):
        return b""
    return b"".join(_unix_row(sock) for sock in names.sockets)


def _unix_row(sock: UnixSocket) -> bytes:
    connected = getattr(sock, "peer", None) is not None
    flags = _ACCEPTS if sock.listening else 0
    state = _CONNECTED if connected else _UNCONNECTED
    row = f"{0:016x}: {sock.refs:08X} {0:08X} {flags:08X} {sock.kind:04X} {state:02X} {sock.ino:5}"
    path = sock.address[2:]
    if path[:1] == b"\0":
        path = path.replace(b"\0", b"@")
    path = path.rstrip(b"\0")
    return row.encode() + (b" " + path if path else b"") + b"\n"


def _address(ip: bytes, port: int, wide: bool) -> str:
    if wide and len(ip) == 4:
        ip = bytes(10) + b"\xff\xff" + ip
    elif not ip:
        ip = bytes(16 if wide else 4)
    words = (f"{int.from_bytes(ip[at : at + 4], 'little'):08X}" for at in range(0, len(ip), 4))
    return f"{''.join(words)}:{port:04X}"


def _row(number: int, sock: InetSocket, state: int, queued: int, wide: bool, tail: str) -> str:
    local = _address(sock.local_ip, sock.local_port, wide)
    remote = _address(sock.remote_ip, sock.remote_port, wide)
    return (
        f"{number:4}: {local} {remote} {state:02X} 00000000:{queued:08X} 00:00000000 00000000 {sock.uid:5} {0:8}"
        f" {sock.ino} {max(1, sock.refs)} {0:016x}{tail}"
    )


def tcp(kernel: Kernel, wide: bool) -> bytes:
    """``/proc/net/tcp``, or ``tcp6`` with ``wide``."""
    stack = kernel.subsystems.get("inet")
    if not isinstance(stack, Stack):
        return b""
    found: dict[InetSocket, None] = dict.fromkeys([*stack.tcp.all(), *stack.connections.values()])
    rows: list[str] = []
    for sock in found:
        if isinstance(sock, TcpSocket) and (sock.family == AF_INET6) is wide and (sock.listening or sock.remote_ip):
            queued = len(sock.backlog) if sock.listening else sock.buffer.size
            row = _row(len(rows), sock, sock.state, queued, wide, " 100 0 0 10 0")
            rows.append(row.ljust(0 if wide else 149) + "\n")
    return "".join(rows).encode()


def udp(kernel: Kernel, wide: bool) -> bytes:
    """``/proc/net/udp``, or ``udp6`` with ``wide``."""
    stack = kernel.subsystems.get("inet")
    if not isinstance(stack, Stack):
        return b""
    ports: Ports = stack.udp
    rows: list[str] = []
    for sock in ports.all():
        if isinstance(sock, UdpSocket) and (sock.family == AF_INET6) is wide:
            state = _ESTABLISHED if sock.remote_ip else _BOUND
            row = _row(len(rows), sock, state, sock.used, wide, f" {sock.dropped}")
            rows.append(row.ljust(0 if wide else 127) + "\n")
    return "".join(rows).encode()


def rows(kernel: Kernel, name: str) -> bytes:
    """The rows of a file of ``/proc/net``, without its heading."""
    if name == "unix":
        return unix(kernel)
    wide = name.endswith("6")
    return tcp(kernel, wide) if name.startswith("tcp") else udp(kernel, wide)
