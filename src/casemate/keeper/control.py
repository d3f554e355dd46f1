"""Messages between a keeper and its clients: JSON objects with descriptors, over a UNIX stream socket.

A message is a 4-byte big-endian length and that many bytes of a JSON object. Descriptors travel with the length
(SCM_RIGHTS, unix(7)). The socket is root's alone, so both sides trust each other; the bounds keep a mistake small.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import socket
import struct
import threading

from casemate.errors import ContainerError, HostError

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

MAX_MESSAGE = 4 << 20
MAX_FDS = 32
"""For a container: standard streams, stand-in, namespace, two trees, and 16 disks."""
SOCKET_NAME = "control.sock"

_LENGTH = struct.Struct(">I")
_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EMFILE: "raise the limit of open files",
    errno.ENFILE: "raise fs.file-max",
    errno.ENOMEM: "free some memory",
    errno.EPERM: "run as root",
    errno.EROFS: "choose a directory that can be written to",
}


class ControlClosed(ContainerError):
    """The other side of a control connection is gone."""

    code = "control-closed"


class Connection:
    """One control connection. Sending is safe from several threads; receiving is for one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """The descriptor, for select."""
        return self.socket.fileno()

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send one message.

        Raises:
            ControlClosed: the peer is gone.
            ContainerError: the message is larger than 4 MiB.
        """
        body = json.dumps(message).encode()
        if len(body) > MAX_MESSAGE:
            raise ContainerError(f"a request of {len(body)} bytes is too large", f"the limit is {MAX_MESSAGE}")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            with self._lock:
                self.socket.sendmsg([_LENGTH.pack(len(body))], ancillary)
                self.socket.sendall(body)
        except OSError as error:
            raise ControlClosed(f"the keeper does not answer: {error.strerror}") from None

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The next message and the descriptors that came with it, close-on-exec.

        Raises:
            ControlClosed: the peer is gone or broke the framing.
        """
        fds: list[int] = []
        try:
            header = b""
            while len(header) < _LENGTH.size:
                data, ancillary, _, _ = self.socket.recvmsg(
                    _LENGTH.size - len(header), socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
                for level, kind, payload in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        numbers = array.array("i")
                        numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                        fds += numbers
                if not data:
                    raise ControlClosed("the keeper has ended")
                header += data
            (length,) = _LENGTH.unpack(header)
            if length > MAX_MESSAGE:
                raise ControlClosed(f"a message of {length} bytes is too large")
            body = bytearray()
            while len(body) < length:
                part = self.socket.recv(min(length - len(body), 1 << 20))
                if not part:
                    raise ControlClosed("the keeper has ended")
                body += part
            message = json.loads(body)
            if not isinstance(message, dict):
                raise ControlClosed("a message is no object")
        except (OSError, ValueError, RecursionError) as error:
            close_all(fds)
            raise ControlClosed(f"the keeper does not answer: {error}") from None
        except ControlClosed:
            close_all(fds)
            raise
        return message, fds

    def close(self) -> None:
        """End the connection; a thread that waits in :meth:`receive` is woken."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def close_all(fds: list[int]) -> None:
    """Close descriptors."""
    for descriptor in fds:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def error_message(error: Exception) -> dict[str, Any]:
    """An exception as the answer that the client turns back into one."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        error = HostError(f"{where}{error.strerror}", _ADVICE.get(error.errno or 0, ""))
    return {
        "error": {
            "code": getattr(error, "code", "error"),
            "message": getattr(error, "message", None) or f"{type(error).__name__}: {error}",
            "hint": getattr(error, "hint", ""),
        }
    }


def raise_error(message: dict[str, Any]) -> None:
    """Raise the error that an answer carries, if it carries one."""
    from casemate.errors import by_code

    error = message.get("error")
    if isinstance(error, dict):
        raise by_code(str(error.get("code")), str(error.get("message")), str(error.get("hint") or ""))
