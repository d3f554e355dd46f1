"""Processes that use sockets, without a host."""

from __future__ import annotations

import socket
import struct

from tests.unit.sentry.vfs.calls import SCRATCH, Caller

ADDRESS = SCRATCH + 0x10000
CONTROL = SCRATCH + 0x20000
HEADER = SCRATCH + 0x30000
LOOPBACK = b"\x7f\0\0\1"


class Peer(Caller):
    """A process with the calls that tests of sockets make."""

    def __init__(self, like: Caller | None = None, pid: int = 1, uid: int = 0) -> None:
        super().__init__(uid, uid, like, pid)
        self.task.group.pid = pid

    def pair(self, kind: int = socket.SOCK_STREAM, nonblocking: bool = True) -> tuple[int, int]:
        """socketpair(2)."""
        flags = socket.SOCK_NONBLOCK if nonblocking else 0
        assert self("socketpair", socket.AF_UNIX, kind | flags, 0, SCRATCH) == 0
        one, other = struct.unpack("<ii", self.memory.read(SCRATCH, 8))
        return one, other

    def inet(self, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> int:
        """A socket that does not wait."""
        return self("socket", family, kind | socket.SOCK_NONBLOCK, 0)

    def address(self, port: int, ip: bytes = LOOPBACK) -> int:
        """Put a ``struct sockaddr_in`` into memory: its length."""
        self.memory.write(ADDRESS, struct.pack("<H", socket.AF_INET) + port.to_bytes(2, "big") + ip + bytes(8))
        return 16

    def bind(self, fd: int, port: int, ip: bytes = LOOPBACK) -> int:
        return self("bind", fd, ADDRESS, self.address(port, ip))

    def connect(self, fd: int, port: int, ip: bytes = LOOPBACK) -> int:
        return self("connect", fd, ADDRESS, self.address(port, ip))

    def port(self, fd: int) -> int:
        """The port that a socket has."""
        self.memory.write(ADDRESS - 4, struct.pack("<I", 128))
        assert self("getsockname", fd, ADDRESS, ADDRESS - 4) == 0
        return int.from_bytes(self.memory.read(ADDRESS + 2, 2), "big")

    def send(self, fd: int, data: bytes, flags: int = socket.MSG_NOSIGNAL) -> int:
        self.memory.write(SCRATCH, data)
        return self("sendto", fd, SCRATCH, len(data), flags, 0, 0)

    def receive(self, fd: int, size: int = 65536, flags: int = 0) -> bytes | int:
        """What came, or ``-errno``."""
        result = self("recvfrom", fd, SCRATCH, size, flags, 0, 0)
        return result if result < 0 else self.memory.read(SCRATCH, result)

    def connected(self) -> tuple[int, int]:
        """Both ends of a new TCP connection."""
        listener = self.inet()
        assert self("listen", listener, 5) == 0
        client = self.inet()
        self.connect(client, self.port(listener))
        server = self("accept4", listener, 0, 0, socket.SOCK_NONBLOCK)
        assert server >= 0
        self("close", listener)
        return client, server

    def pass_files(self, fd: int, data: bytes, files: list[int]) -> int:
        """sendmsg(2) with ``SCM_RIGHTS``."""
        self.memory.write(SCRATCH, data)
        control = struct.pack("<Qii", 16 + 4 * len(files), socket.SOL_SOCKET, socket.SCM_RIGHTS)
        control += struct.pack(f"<{len(files)}i", *files)
        self.memory.write(CONTROL, control)
        self.memory.write(HEADER + 64, struct.pack("<QQ", SCRATCH, len(data)))
        self.memory.write(HEADER, struct.pack("<QQQQQQQ", 0, 0, HEADER + 64, 1, CONTROL, len(control), 0))
        return self("sendmsg", fd, HEADER, 0)

    def take_files(self, fd: int, size: int = 4096, room: int = 4096) -> tuple[int, list[int], int]:
        """recvmsg(2): its result, the descriptors and the flags."""
        self.memory.write(HEADER + 64, struct.pack("<QQ", SCRATCH, size))
        self.memory.write(HEADER, struct.pack("<QQQQQQQ", 0, 0, HEADER + 64, 1, CONTROL, room, 0))
        result = self("recvmsg", fd, HEADER, 0)
        used, flags = struct.unpack("<Qi", self.memory.read(HEADER + 40, 12))
        files: list[int] = []
        if result >= 0 and used >= 16:
            (length,) = struct.unpack("<Q", self.memory.read(CONTROL, 8))
            data = self.memory.read(CONTROL + 16, length - 16)
            files = [number for (number,) in struct.iter_unpack("<i", data)]
        return result, files, flags
