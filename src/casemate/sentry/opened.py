"""What open files are, in words: for people who look into a sandbox."""

from __future__ import annotations

import os
import socket
import stat
from errno import ENOTCONN
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.ipc.epoll import Epoll
from casemate.sentry.ipc.pipe import PipeFile
from casemate.sentry.net.socket import Socket
from casemate.sentry.vfs.hostfile import HostFile

if TYPE_CHECKING:
    from casemate.sentry.vfs.file import File

_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFLNK: "link",
}  # fmt: skip
_FLAGS = (
    (os.O_APPEND, "O_APPEND"), (os.O_NONBLOCK, "O_NONBLOCK"), (os.O_DIRECT, "O_DIRECT"), (os.O_ASYNC, "O_ASYNC"),
    (os.O_CLOEXEC, "O_CLOEXEC"), (os.O_PATH, "O_PATH"),
)  # fmt: skip
_FAMILIES: dict[int, str] = {
    socket.AF_UNIX: "unix", socket.AF_INET: "inet", socket.AF_INET6: "inet6", socket.AF_NETLINK: "netlink",
}  # fmt: skip
_SORTS: dict[int, str] = {
    socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "dgram", socket.SOCK_SEQPACKET: "seqpacket",
    socket.SOCK_RAW: "raw",
}  # fmt: skip
SHOWN = 8
"""How many of a set's descriptors are named."""


def kind_of(file: File) -> str:
    """``file``, ``directory``, ``pipe``, ``socket``, ``device``, …, or what an anonymous one calls itself."""
    if file.anonymous.startswith("anon_inode:"):
        return file.anonymous.removeprefix("anon_inode:").strip("[]")
    if isinstance(file, Socket):
        return "socket"
    if isinstance(file, PipeFile):
        return "pipe"
    mode = file.mode if isinstance(file, HostFile) else 0 if file.inode is None else file.inode.kind
    return _KINDS.get(stat.S_IFMT(mode), "other")


def shown_flags(flags: int) -> list[str]:
    """Names of status flags and of O_CLOEXEC, without the access mode."""
    return [name for bit, name in _FLAGS if flags & bit]


def what_of(file: File) -> str:
    """What there is to say beyond its name; empty for most."""
    if isinstance(file, Socket):
        return socket_words(file)
    if isinstance(file, PipeFile):
        pipe = file.pipe
        ends = f"{_count(pipe.readers, 'reader')}, {_count(pipe.writers, 'writer')}"
        return f"{pipe.size} of {pipe.capacity} bytes, {ends}"
    if isinstance(file, Epoll):
        return watched(file)
    if isinstance(file, HostFile):
        return "the host's"
    lines = file.fdinfo().decode("ascii", "replace").split("\n", SHOWN)[:SHOWN]
    return ", ".join(" ".join(line.split()) for line in lines if line)


def watched(epoll: Epoll) -> str:
    """Which descriptors a set watches."""
    numbers = list(epoll.items)
    if not numbers:
        return "watches nothing"
    return "watches " + several([f"fd {number}" for number in numbers[:SHOWN]], len(numbers))


def several(names: list[str], count: int) -> str:
    """Names with commas between them, and how many more there are."""
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


def socket_words(sock: Socket) -> str:
    """``inet stream 127.0.0.1:80 listens``, ``unix stream -> /run/x``."""
    words = [_FAMILIES.get(sock.family, str(sock.family)), _SORTS.get(sock.kind, str(sock.kind))]
    if own := address_words(_asked(sock, peer=False)):
        words.append(own)
    if getattr(sock, "listening", False):
        words.append("listens")
    elif (peer := _asked(sock, peer=True)) is not None:
        words += ["->", address_words(peer) or "a peer without a name"]
    return " ".join(words)


def _asked(sock: Socket, peer: bool) -> bytes | None:
    try:
        return sock.peer_name() if peer else sock.name()
    except SysError as error:
        # Whatever else is wrong with it: what cannot be told is left out.
        return None if error.errno == ENOTCONN or peer else b""


def address_words(address: bytes | None) -> str:
    """A ``struct sockaddr`` for people; empty for one that says nothing."""
    if not address or len(address) < 3:
        return ""
    family = int.from_bytes(address[:2], "little")
    if family == socket.AF_UNIX:
        name = address[2:]
        shown = b"@" + name[1:] if name[:1] == b"\0" else name.split(b"\0", 1)[0]
        return shown.decode("utf-8", "backslashreplace")
    port = int.from_bytes(address[2:4], "big")
    if family == socket.AF_INET and len(address) >= 8:
        return f"{socket.inet_ntop(socket.AF_INET, address[4:8])}:{port}"
    if family == socket.AF_INET6 and len(address) >= 24:
        return f"[{socket.inet_ntop(socket.AF_INET6, address[8:24])}]:{port}"
    return ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
