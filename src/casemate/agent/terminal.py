"""Pseudo terminals: taking the controlling end from the runtime, and its size."""

from __future__ import annotations

import fcntl
import os
import struct
from _socket import AF_UNIX, CMSG_SPACE, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket

from casemate.agent.processes import wait_readable
from casemate.protocol.wire import RequestFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIOCSWINSZ = 0x5414
MSG_CMSG_CLOEXEC = 0x40000000
MAX_FDS = 4
PATIENCE = 10.0


class ConsoleSocket:
    """A socket that the runtime sends a terminal's controlling end to (runtime specification, "--console-socket")."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        try:
            self._socket.bind(path)
            self._socket.listen(1)
        except OSError:
            self._socket.close()
            raise

    def receive(self) -> int:
        """The descriptor; the runtime has ended already, so it is there.

        Raises:
            RequestFailed: ``failed``: the runtime did not send one.
        """
        fds: list[int] = []
        if wait_readable(self._socket.fileno(), PATIENCE):
            number = accept(self._socket)[0]
            connection = socket(AF_UNIX, SOCK_STREAM, 0, number)
            try:
                if wait_readable(number, PATIENCE):
                    _, ancillary, _, _ = connection.recvmsg(4096, CMSG_SPACE(4 * MAX_FDS), MSG_CMSG_CLOEXEC)
                    for level, kind, data in ancillary:
                        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                            fds += struct.unpack(f"={len(data) // 4}i", data[: len(data) // 4 * 4])
            finally:
                connection.close()
        for extra in fds[1:]:
            os.close(extra)
        if not fds:
            raise RequestFailed("failed", "the container runtime sent no terminal")
        return fds[0]

    def close(self) -> None:
        """Close and remove the socket; the container may have ended, and its directory be gone."""
        self._socket.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return


def accept(listener: socket) -> tuple[int, Any]:
    """accept(2): the new descriptor and the peer. Raises OSError."""
    fd, peer = listener._accept()  # type: ignore[attr-defined]  # what socket.socket.accept() calls
    os.set_inheritable(fd, False)
    return fd, peer


def set_size(fd: int, rows: int, columns: int) -> None:
    """Tell a terminal its size; its foreground processes get SIGWINCH. Raises OSError."""
    fcntl.ioctl(fd, TIOCSWINSZ, struct.pack("=HHHH", rows, columns, 0, 0))
