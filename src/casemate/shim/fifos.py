"""The FIFOs that containerd's clients give for a process's streams (fifo(7)).

The other end comes and goes: a client may end, containerd may be started anew. So a FIFO is opened without waiting for
the other end, and when a reader is gone, inotify(7) tells when one comes again.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct

from casemate.shim.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_EVENT = struct.Struct("iIII")
_IN_OPEN = 0x20
_IN_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC


def is_fifo(path: str) -> bool:
    """Whether it is one. False also when there is nothing."""
    with contextlib.suppress(OSError):
        return stat.S_ISFIFO(os.stat(path).st_mode)
    return False


def open_writer(path: str) -> int:
    """The writing end, non-blocking, whether or not somebody reads.

    Raises:
        OSError: it is not there, or is no FIFO.
    """
    # Opening both ends never waits, and makes us a reader for the moment in which the writer is opened.
    both = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISFIFO(os.fstat(both).st_mode):
            raise OSError(22, "no FIFO", path)
        return os.open(f"/proc/self/fd/{both}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(both)


def open_reader(path: str) -> tuple[int, int]:
    """The reading end, non-blocking, and a writing end that keeps it from ending while no client is there.

    Raises:
        OSError: it is not there, or is no FIFO.
    """
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISFIFO(os.fstat(reader).st_mode):
            raise OSError(22, "no FIFO", path)
        return reader, os.open(f"/proc/self/fd/{reader}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except BaseException:
        os.close(reader)
        raise


class Arrivals:
    """Tells when somebody opens a FIFO. One for all of them.

    Arguments:
        loop: where it is watched.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._fd = -1
        self._watches: dict[int, dict[int, Callable[[], None]]] = {}

    def expect(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever the FIFO behind descriptor ``fd`` is opened, until :meth:`forget`."""
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if self._fd < 0:
            self._fd = libc.inotify_init1(_IN_NONBLOCK_CLOEXEC)
            if self._fd < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "inotify_init1")
            self._loop.watch(self._fd, READ, self._ready)
        watch = libc.inotify_add_watch(self._fd, f"/proc/self/fd/{fd}".encode(), _IN_OPEN)
        if watch < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "inotify_add_watch")
        self._watches.setdefault(watch, {})[fd] = callback

    def forget(self, fd: int) -> None:
        """Watch it no more."""
        import ctypes

        for watch, callbacks in list(self._watches.items()):
            if callbacks.pop(fd, None) is not None and not callbacks:
                del self._watches[watch]
                ctypes.CDLL(None).inotify_rm_watch(self._fd, watch)

    def _ready(self, _: int) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        at = 0
        opened = set()
        while at + _EVENT.size <= len(data):
            watch, _mask, _cookie, length = _EVENT.unpack_from(data, at)
            opened.add(watch)
            at += _EVENT.size + length
        for watch in opened:
            for callback in list(self._watches.get(watch, {}).values()):
                callback()
