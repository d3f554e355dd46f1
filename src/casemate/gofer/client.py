"""The sentry's side of the connection to its gofer."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from casemate.gofer import frames
from casemate.gofer.frames import FrameError
from casemate.sentry.errno import SysError

if TYPE_CHECKING:
    from casemate.gofer.launch import Tree
    from casemate.sentry.vfs.goferfs import GoferFs
    from casemate.sentry.vfs.ids import IdMap

CLUNK_BATCH = 64
"""Fids that are not needed any more are told so many at a time."""
ENDING_SECONDS = 2.0
"""How long a gofer that has closed its connection may take to be a process that has ended: its own work is done."""
_SPACE = socket.CMSG_SPACE(4 * frames.MAX_NAMES)


class GoferGone(SysError):
    """The gofer died or talks nonsense; the sandbox is ending."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EIO)
        self.reason = reason


class GoferClient:
    """Asks one gofer. Every call waits for its answer: nothing else runs in the sentry meanwhile.

    Arguments:
        sock: the ``SOCK_SEQPACKET`` socket to it.
        trees: what it serves.
        pid: of the gofer's process, which is our child; 0 for none.
    """

    vital = True

    def __init__(self, sock: socket.socket, trees: list[Tree], pid: int = 0) -> None:
        self.sock = sock
        self.trees = trees
        self.pid = pid
        self.gone: str | None = None
        """Why there is no gofer any more."""
        self.on_gone: Callable[[str], None] | None = None
        """Called once with the reason: the sandbox has to end."""
        self.ended: Callable[[int], int | None] = lambda pid: None
        """Tells how its process ended where somebody else has waited for it (a status of waitpid(2))."""
        self.calls = 0
        """How many requests were answered."""
        self._tag = 0
        self._fid = 0
        self._dead: list[int] = []
        self._buffer = bytearray(frames.MAX_FRAME + 1)
        self._view = memoryview(self._buffer)

    def filesystem(self, tree: int, device: int, root: bytes = b"", ids: IdMap | None = None) -> GoferFs:
        """One of the trees as a file system. Raises SysError.

        Arguments:
            tree: its place in the list that the gofer was started with.
            device: the number that stat(2) shows.
            root: path of what is to be shown in the tree; its components are no links.
            ids: whom the host's owners are in the sandbox, where they are not the same.
        """
        from casemate.sentry.vfs.goferfs import GoferFs

        told = self.trees[tree]
        return GoferFs(self, tree, device, told.exclusive, told.read_only, root, ids)

    # To be watched: the gofer says nothing unasked, so anything to read means that it is gone.

    def fileno(self) -> int:
        """The descriptor of the connection, for ``platform.watch``."""
        return self.sock.fileno()

    def ready(self, mask: int) -> None:
        """Something is to be read: the gofer has died."""
        self._ended()

    # Fids.

    def new_fid(self, count: int = 1) -> int:
        """The first of some numbers in a row that are not in use."""
        fid = self._fid
        if fid + count > 0xFFFF_FFFF:
            fid = 0
        self._fid = fid + count
        return fid

    def clunk(self, fid: int) -> None:
        """A fid is not needed any more."""
        self._dead.append(fid)

    # Calls.

    def call(self, kind: int, numbers: tuple[int, ...], strings: tuple[bytes, ...] = ()) -> bytes:
        """Ask, and return the body of the answer. Raises SysError with what the host said."""
        self._send(kind, numbers, strings)
        try:
            size = self.sock.recv_into(self._buffer)
        except OSError as error:
            raise self._failed(error) from None
        return self._answer(kind, size)

    def call_fds(
        self, kind: int, numbers: tuple[int, ...], strings: tuple[bytes, ...] = ()
    ) -> tuple[bytes, list[int]]:
        """The same where descriptors come along, which are the caller's then."""
        self._send(kind, numbers, strings)
        try:
            size, ancillary, flags, _ = self.sock.recvmsg_into([self._buffer], _SPACE, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise self._failed(error) from None
        fds: list[int] = []
        for level, what, data in ancillary:
            if level == socket.SOL_SOCKET and what == socket.SCM_RIGHTS:
                fds.extend(struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4]))
        try:
            if flags & socket.MSG_CTRUNC:
                # The answer is there, its descriptors are not: our own limit of open files is reached.
                raise SysError(errno.ENFILE)
            return self._answer(kind, size), fds
        except SysError:
            for fd in fds:
                os.close(fd)
            raise

    def _send(self, kind: int, numbers: tuple[int, ...], strings: tuple[bytes, ...]) -> None:
        if self.gone is not None:
            raise GoferGone(self.gone)
        try:
            if len(self._dead) >= CLUNK_BATCH:
                self.flush()
            self._tag = tag = (self._tag + 1) & 0xFFFF
            self.sock.send(frames.request(kind, tag, numbers, strings))
        except (FrameError, struct.error):
            raise SysError(errno.EINVAL) from None
        except OSError as error:
            raise self._failed(error) from None

    def flush(self) -> None:
        """Tell of all fids that are not needed any more."""
        while self._dead and self.gone is None:
            part, self._dead = self._dead[: frames.MAX_CLUNKS], self._dead[frames.MAX_CLUNKS :]
            try:
                self.sock.send(frames.request(frames.TCLUNK, 0, (), (struct.pack(f"<{len(part)}I", *part),)))
            except OSError as error:
                self._failed(error)

    def _answer(self, kind: int, size: int) -> bytes:
        if size == 0:
            raise self._ended()
        self.calls += 1
        try:
            body = frames.parse_reply(bytes(self._view[:size]), kind, self._tag)
        except FrameError as error:
            raise self._lost(f"the file server talks nonsense: {error}") from None
        if isinstance(body, int):
            raise SysError(body)
        return body

    def _failed(self, error: OSError) -> GoferGone:
        """The connection does not work."""
        if error.errno in (errno.ECONNRESET, errno.EPIPE):
            return self._ended()
        return self._lost(f"the file server cannot be asked: {error.strerror}")

    def _ended(self) -> GoferGone:
        """It has closed the connection."""
        return self._lost("the file server ended" + (self._ending() if self.gone is None else ""))

    def _lost(self, reason: str) -> GoferGone:
        """It is gone: tell once."""
        if self.gone is None:
            self.gone = reason
            if self.on_gone is not None:
                self.on_gone(self.gone)
        return GoferGone(self.gone)

    def _ending(self) -> str:
        """How its process ended, for the reason."""
        if not self.pid:
            return ""
        end = time.monotonic() + ENDING_SECONDS
        while time.monotonic() < end:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                found = self.ended(self.pid)
                if found is None:
                    return ""
                pid, status = self.pid, found
            if pid:
                self.pid = 0
                code = os.waitstatus_to_exitcode(status)
                return f" ({signal.Signals(-code).name})" if code < 0 else f" (status {code})"
            time.sleep(0.002)  # the sentry's filter has no call that waits for a child so long
        return ""

    def close(self) -> None:
        """End the gofer, and wait for that."""
        if self.gone is None:
            self.gone = "it was closed"
        self.sock.close()
        if self.pid:
            pid, self.pid = self.pid, 0
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # somebody else has waited for it
