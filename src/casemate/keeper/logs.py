"""What a container wrote: kept in two bounded files, 8-bit clean, with time and stream of each piece.

A record is ``>dBI`` — seconds since the epoch, 1 for stdout or 2 for stderr, length — and the bytes. ``log`` is written
to; at half the bound it becomes ``log.1`` and a new one begins, so that between half the bound and all of it is kept.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from casemate.keeper.store import Container

RECORD = struct.Struct(">dBI")
STREAMS = {"stdout": 1, "stderr": 2}
NAMES = {1: "stdout", 2: "stderr"}
MAX_RECORD = 1 << 20


class RotatingFile:
    """Append to a file that is renamed to ``<name>.1`` when it reaches a size.

    Arguments:
        path: the file.
        limit: bytes at which it is turned over.

    A full disk loses what comes then and nothing else: the container must not stop for its log.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.limit = limit
        self._lock = threading.Lock()
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, *parts: bytes) -> None:
        """Append ``parts`` in one piece."""
        with self._lock:
            if self._fd < 0:
                return
            if self._size >= self.limit:
                with contextlib.suppress(OSError):
                    os.replace(self.path, f"{self.path}.1")
                    os.close(self._fd)
                    self._fd = -1
                    self._fd = self._open()
                    self._size = 0
            length = sum(map(len, parts))
            try:
                written = os.writev(self._fd, parts)
            except OSError:
                return
            self._size += written
            if written != length:  # cut short by a full disk: half a record would hide all that come after it
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._size - written)
                    self._size -= written

    def close(self) -> None:
        """Close the file; later writes go nowhere."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1


class LogWriter(RotatingFile):
    """The log of one container.

    Arguments:
        path: the ``log`` file.
        size: bytes kept at most.
    """

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, size // 2)

    def record(self, stream: str, data: bytes) -> None:
        """Append what came from ``stdout`` or ``stderr`` just now."""
        self.write(RECORD.pack(time.time(), STREAMS[stream], len(data)), data)


def read(
    container: Container, *, follow: bool = False, since: float | None = None, tail: int | None = None
) -> Iterator[tuple[float, str, bytes]]:
    """The records of a container's log, oldest first.

    Arguments:
        follow: go on until the container has ended, as records come.
        since: leave out what is older; seconds since the epoch.
        tail: begin with the last so many lines.

    Yields:
        Time, ``stdout`` or ``stderr``, and the bytes.
    """
    path = container.path / "log"
    watch = _Watch(container) if follow else None
    try:
        current = _open(path)
        inode = os.fstat(current.fileno()).st_ino if current else 0
        records: Iterator[tuple[float, str, bytes]] = _older(path)
        records = _chain(records, _records(current))
        if since is not None:
            records = (record for record in records if record[0] >= since)
        yield from records if tail is None else _last_lines(records, tail)
        while watch is not None:
            ended = container.state().status == "exited"
            while True:
                yield from _records(current)
                newer = _open(path)
                if newer is None or os.fstat(newer.fileno()).st_ino == inode:
                    if newer:
                        newer.close()
                    break
                if current:
                    yield from _records(current)
                    current.close()
                current, inode = newer, os.fstat(newer.fileno()).st_ino
            if ended:
                break
            watch.wait()
    finally:
        if watch is not None:
            watch.close()


def _open(path: Path) -> BinaryIO | None:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return None


def _older(path: Path) -> Iterator[tuple[float, str, bytes]]:
    file = _open(path.with_name(path.name + ".1"))
    if file is not None:
        with file:
            yield from _records(file)


def _chain(*parts: Iterator[tuple[float, str, bytes]]) -> Iterator[tuple[float, str, bytes]]:
    for part in parts:
        yield from part


def _records(file: BinaryIO | None) -> Iterator[tuple[float, str, bytes]]:
    """Whole records from where the file stands; a half one is left for later."""
    if file is None:
        return
    while True:
        start = file.tell()
        header = file.read(RECORD.size)
        if len(header) == RECORD.size:
            when, stream, length = RECORD.unpack(header)
            if stream not in NAMES or length > MAX_RECORD:
                return  # damaged: nothing after it can be told apart
            data = file.read(length)
            if len(data) == length:
                yield when, NAMES[stream], data
                continue
        file.seek(start)
        return


def _last_lines(records: Iterator[tuple[float, str, bytes]], count: int) -> Iterator[tuple[float, str, bytes]]:
    kept: deque[tuple[float, str, bytes]] = deque()
    lines = 0
    for record in records:
        kept.append(record)
        lines += record[2].count(b"\n")
        while kept and lines - kept[0][2].count(b"\n") > count:
            lines -= kept.popleft()[2].count(b"\n")
    if count <= 0:
        return
    if kept:
        when, stream, data = kept[-1]
        wanted = count if data.endswith(b"\n") else count - 1  # an unfinished last line is a line too
        surplus = lines - wanted
        while surplus > 0 and kept:
            when, stream, data = kept.popleft()
            inside = data.count(b"\n")
            if inside < surplus:
                surplus -= inside
                continue
            for _ in range(surplus):
                data = data[data.index(b"\n") + 1 :]
            surplus = 0
            if data:
                kept.appendleft((when, stream, data))
    yield from kept


class _Watch:
    """Wait for anything to change in a container's directory (inotify(7)), or for its keeper to end."""

    MASK = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800  # MODIFY MOVED_* CREATE DELETE DELETE_SELF MOVE_SELF

    def __init__(self, container: Container) -> None:
        import ctypes

        from casemate.keeper.reap import keeper_pidfd

        libc = ctypes.CDLL(None, use_errno=True)
        self.keeper = -1
        self.fd = libc.inotify_init1(os.O_CLOEXEC)
        if self.fd < 0 or libc.inotify_add_watch(self.fd, os.fsencode(container.path), self.MASK) < 0:
            number = ctypes.get_errno()
            self.close()
            raise OSError(number, os.strerror(number), str(container.path))
        self.keeper = keeper_pidfd(container) or -1

    def wait(self) -> None:
        """Return after the next change, at once when one came since the last call, or when the keeper ends."""
        import select

        keeper = [self.keeper] if self.keeper >= 0 else []
        ready = select.select([self.fd, *keeper], [], [])[0]
        if self.fd in ready:
            os.read(self.fd, 65536)
        if self.keeper in ready:
            os.close(self.keeper)
            self.keeper = -1

    def close(self) -> None:
        for descriptor in (self.fd, self.keeper):
            if descriptor >= 0:
                os.close(descriptor)
        self.fd = self.keeper = -1
