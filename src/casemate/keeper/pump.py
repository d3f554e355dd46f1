"""Carry bytes between a process's streams in the sandbox and the descriptors that a client handed over."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import threading
from collections.abc import Callable

from casemate.protocol.wire import LinkError
from casemate.sandbox import Stream

CHUNK = 65536


class Cancel:
    """A flag that threads in poll(2) notice. ``drain``: what can be read without waiting is still to be carried."""

    drain = False

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()

    def set(self) -> None:
        """Raise the flag for good."""
        with self._lock:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """Free the descriptor; only when nobody polls it any more."""
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
            self.fd = -1


class Sink:
    """A descriptor to write to, without ever getting stuck in it and without changing how its owner uses it.

    Pipes and terminals are opened again (:func:`_open_again`). A socket cannot be opened again and is written with
    MSG_DONTWAIT. A regular file is written as it is: its offset is shared on purpose, and it does not block.

    Arguments:
        fd: the descriptor; the sink closes it.
        ends: whether its other side is to learn when nothing more comes, which :meth:`end` tells it. Standard output
            may have other users.
    """

    def __init__(self, fd: int, *, ends: bool = False) -> None:
        self.ends = ends
        self._cancel = Cancel()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._fd = fd
        mode = os.fstat(fd).st_mode
        self._polled = True
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=fd)
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            try:
                self._fd = _open_again(fd, os.O_WRONLY)
            except OSError:
                self._polled = False  # no reader, or not ours to open: a plain write tells
        else:
            self._polled = False

    def write(self, data: bytes) -> bool:
        """Write all of ``data``; False when the reader is gone or the sink was closed meanwhile."""
        view = memoryview(data)
        with self._lock:
            while view:
                if self._fd < 0:
                    return False
                if self._polled:
                    poll = select.poll()
                    poll.register(self._fd, select.POLLOUT)
                    poll.register(self._cancel.fd, select.POLLIN)
                    if any(fd == self._cancel.fd for fd, _ in poll.poll()):
                        return False
                try:
                    if self._socket is not None:
                        view = view[self._socket.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
                    else:
                        view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    continue
                except OSError:
                    return False
        return True

    def end(self) -> None:
        """Nothing more comes. A connection may go on in its other direction."""
        if self._socket is None:
            self.close()
            return
        with self._lock, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Stop a write under way and free the descriptor."""
        self._cancel.set()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            elif self._fd >= 0:
                os.close(self._fd)
            self._fd = -1
            self._cancel.close()


def _open_again(fd: int, mode: int) -> int:
    """A non-blocking descriptor of the pipe or terminal that ``fd`` is, in its place.

    O_NONBLOCK belongs to the open file, and the client's shell shares the one that came with ``fd``.

    Raises:
        OSError: it cannot be opened; ``fd`` stays open then.
    """
    again = os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    os.close(fd)
    return again


def copy_in(fd: int, stream: Stream, cancel: Cancel) -> None:
    """Carry ``fd`` to a process's standard input until its end, the process's end or ``cancel``; closes ``fd``."""
    blocks = True
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            # Whoever else reads it may be faster: a read that waits could not be cancelled.
            with contextlib.suppress(OSError):
                fd = _open_again(fd, os.O_RDONLY)
                blocks = False
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(cancel.fd, select.POLLIN)
        last = False
        # A pipe whose writers had gone when it was opened again tells its end to read(2) only: that is asked first.
        wait = blocks
        while True:
            ready = poll.poll(None if wait else 0)
            if any(number == cancel.fd for number, _ in ready):
                if not cancel.drain or (blocks and not any(number == fd for number, _ in ready)):
                    stream.send_eof()
                    return
                last = True
            try:
                data = os.read(fd, CHUNK)
            except BlockingIOError:
                if last:
                    stream.send_eof()
                    return
                wait = True
                continue
            except OSError:
                data = b""
            wait = blocks
            if not data:
                stream.send_eof()
                return
            stream.send(data)
    except LinkError:
        pass  # the process or the whole sandbox takes no more
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def copy_out(stream: Stream, write: Callable[[bytes], object]) -> None:
    """Carry a process's output to ``write`` until it ends. What ``write`` returns is its own matter: output must be
    taken in any case, or the process would stop for a reader that is gone."""
    while data := stream.recv(CHUNK):
        write(data)
