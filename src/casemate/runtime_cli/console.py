"""Terminals: a pseudo terminal on the host for each process that has one in the guest.

The guest's own terminal does what a terminal does: echo, line editing, signals for control characters. The one on the
host only carries bytes, so it is raw. Its slave end is the controlling terminal of the stand-in, which gets SIGWINCH
when the engine sets a size on the master end.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
from typing import Any

from casemate.errors import UsageError
from casemate.host.terminals import make_raw

MAX_SIZE = 65535
SEND_SECONDS = 10.0
"""How long whoever listens on a console socket may leave us waiting: its queue may be full, and stay so."""


class Console:
    """A pseudo terminal. ``slave`` belongs to the process's side, ``master`` to the engine's.

    Arguments:
        size: rows and columns, if they are known.
    """

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.master, self.slave = os.openpty()
        self.name = os.ttyname(self.slave)
        make_raw(self.slave)
        if size is not None:
            set_size(self.slave, *size)

    def send(self, path: str) -> None:
        """Give the master end to whoever listens on the UNIX socket ``path``, with the terminal's name as the message.

        Raises:
            UsageError: nobody listens there, or takes no more.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            try:
                # Not a timeout of Python's, which makes the socket one that does not wait: connect(2) would then fail
                # at once where the queue is full (unix(7), EAGAIN).
                seconds = struct.pack("ll", int(SEND_SECONDS), int(SEND_SECONDS % 1 * 1_000_000))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
                _connect(sock, path)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self.master]))]
                sock.sendmsg([self.name.encode()], rights)
            except OSError as error:
                raise UsageError(f"console socket {path}: {(error.strerror or str(error)).lower()}") from None

    def close(self) -> None:
        """Close both ends here."""
        for descriptor in (self.master, self.slave):
            if descriptor >= 0:
                os.close(descriptor)
        self.master = self.slave = -1

    def close_slave(self) -> None:
        """Close the end of the process's side: who reads the master is to notice when the process has gone."""
        if self.slave >= 0:
            os.close(self.slave)
        self.slave = -1


def _connect(sock: socket.socket, path: str) -> None:
    """Connect, also where the path is longer than a socket's address takes (unix(7))."""
    if len(os.fsencode(path)) < 108:
        sock.connect(path)
        return
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def check(*, terminal: bool, console_socket: str, detach: bool) -> None:
    """Refuse what cannot be: runc's rules, in its words.

    Raises:
        UsageError: a terminal that nobody would get, or a socket for one without there being one.
    """
    if detach and terminal and not console_socket:
        raise UsageError("cannot allocate tty if runc will detach without setting console socket")
    if (not detach or not terminal) and console_socket:
        raise UsageError("cannot use console socket if runc will not detach or allocate tty")


def set_size(descriptor: int, rows: int, columns: int) -> None:
    """Set a terminal's size."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def size_of(*descriptors: int) -> tuple[int, int] | None:
    """Rows and columns of the first of some descriptors that is a terminal with a size."""
    for descriptor in descriptors:
        try:
            size = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if size.lines and size.columns:
            return size.lines, size.columns
    return None


def asked_size(process: dict[str, Any]) -> tuple[int, int] | None:
    """``process.consoleSize``: rows and columns, if both are there."""
    size = process.get("consoleSize") or {}
    rows, columns = size.get("height", 0), size.get("width", 0)
    return (min(rows, MAX_SIZE), min(columns, MAX_SIZE)) if rows and columns else None
