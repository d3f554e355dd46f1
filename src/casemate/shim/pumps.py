"""Copying between a process's pipes or terminal and the FIFOs of a client, without ever waiting for either.

What a process writes waits for a slow reader, as in any pipe. A reader that is *gone* stops nobody: up to a mebibyte is
kept for the next one, the oldest bytes give way. Nothing is dropped while somebody reads.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque

from casemate.shim.fifos import Arrivals
from casemate.shim.loop import READ, WRITE, Future, Loop

CHUNK = 1 << 16
BACKLOG = 1 << 20
"""Most bytes that are kept of a stream while nobody reads it."""


class Queue:
    """Bytes that wait for a descriptor, which is non-blocking or never blocks."""

    def __init__(self) -> None:
        self._parts: deque[memoryview] = deque()
        self.size = 0
        self.dropped = 0

    def put(self, data: bytes) -> None:
        """Add to the end."""
        self._parts.append(memoryview(data))
        self.size += len(data)

    def trim(self, most: int) -> None:
        """Drop the oldest bytes until at most that many are left."""
        while self.size > most:
            part = self._parts[0]
            surplus = self.size - most
            if len(part) <= surplus:
                self._parts.popleft()
                gone = len(part)
            else:
                self._parts[0] = part[surplus:]
                gone = surplus
            self.size -= gone
            self.dropped += gone

    def write(self, fd: int) -> None:
        """Write as much as goes.

        Raises:
            OSError: other than "would block"; what was not written stays.
        """
        while self._parts:
            try:
                written = os.write(fd, self._parts[0])
            except BlockingIOError:
                return
            self.size -= written
            if written == len(self._parts[0]):
                self._parts.popleft()
            else:
                self._parts[0] = self._parts[0][written:]

    def clear(self) -> None:
        """Drop everything."""
        self._parts.clear()
        self.size = 0


class OutputPump:
    """From a process to a client or file.

    Arguments:
        loop: where it works.
        arrivals: tells of returning readers.
        source: what the process's output is read from, non-blocking: a pipe, or the master of a terminal.
        sink: where it goes: a FIFO's writing end, a pipe's, or a file.

    Both descriptors are the pump's, and closed at its end.
    """

    def __init__(self, loop: Loop, arrivals: Arrivals, source: int, sink: int) -> None:
        self._loop = loop
        self._arrivals = arrivals
        self._source = source
        self._sink = sink
        self._queue = Queue()
        self._absent = False
        self._lost = False
        self.done = Future()
        """When everything is written and both ends are closed."""
        loop.watch(source, READ, self._readable)

    def _readable(self, _: int) -> None:
        try:
            data = os.read(self._source, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last one has closed the terminal
            data = b""
        if not data:
            self._end_of_source()
            return
        self._queue.put(data)
        self._flush()

    def _end_of_source(self) -> None:
        self._loop.unwatch(self._source)
        os.close(self._source)
        self._source = -1
        if not self._queue.size:
            self.close()

    def _flush(self) -> None:
        if not self._absent and not self._lost:
            try:
                self._queue.write(self._sink)
            except BrokenPipeError:
                self._reader_gone()
            except OSError as error:
                self._loop.complain(f"output is lost: {os.strerror(error.errno or 0)}")
                self._lost = True
        if self._lost:
            self._queue.clear()
        elif self._absent:
            self._queue.trim(BACKLOG)
        self._rearm()

    def _rearm(self) -> None:
        blocked = bool(self._queue.size) and not self._absent
        if self._source >= 0:
            if blocked:
                self._loop.unwatch(self._source)
            else:
                self._loop.watch(self._source, READ, self._readable)
        elif not self._queue.size:
            self.close()
            return
        if blocked:
            self._loop.watch(self._sink, WRITE, lambda _: self._flush())
        else:
            self._loop.unwatch(self._sink)

    def _reader_gone(self) -> None:
        self._absent = True
        self._loop.unwatch(self._sink)
        try:
            self._arrivals.expect(self._sink, self._reader_came)
        except OSError as error:
            self._loop.complain(f"output is lost: {os.strerror(error.errno or 0)}")
            self._lost = True
            return
        # One that came between the failed write and the watch has not been told of.
        with contextlib.suppress(OSError):
            self._queue.write(self._sink)
            self._present()

    def _reader_came(self) -> None:
        try:
            self._queue.write(self._sink)
        except OSError:
            return  # it was ourselves, or it is gone again
        self._present()
        self._rearm()

    def _present(self) -> None:
        self._absent = False
        self._arrivals.forget(self._sink)
        if self._queue.dropped:
            self._loop.complain(f"{self._queue.dropped} bytes of output were dropped while nobody read them")
            self._queue.dropped = 0

    def settle(self) -> None:
        """Take what the process has written so far for all there will be.

        The process is gone, and whoever else holds its output open shall not keep us. A reader that is there still
        gets everything; without one, this is the end.
        """
        while self._source >= 0 and not self.done.done and self._queue.size < BACKLOG:
            try:
                data = os.read(self._source, CHUNK)
            except OSError:
                data = b""
            if not data:
                self._end_of_source()
                break
            self._queue.put(data)
        if self.done.done:
            return
        if self._source >= 0:
            self._end_of_source()
        if not self.done.done:
            self._flush()
        if not self.done.done and self._absent:
            self.close()

    def close(self) -> None:
        """Close both ends now, whatever still waits."""
        if self.done.done:
            return
        if self._absent:
            self._arrivals.forget(self._sink)
        for fd in (self._source, self._sink):
            if fd >= 0:
                self._loop.unwatch(fd)
                os.close(fd)
        self._source = self._sink = -1
        self._queue.clear()
        self.done.set()


class InputPump:
    """From a client to a process.

    Arguments:
        loop: where it works.
        source: a FIFO's reading end, non-blocking.
        holder: a writing end of that FIFO, which keeps it from ending while no client is there; -1 for none.
        sink: the process's input, non-blocking: a pipe, or (a duplicate of) the master of a terminal.

    The descriptors are the pump's, and closed at its end.
    """

    def __init__(self, loop: Loop, source: int, holder: int, sink: int) -> None:
        self._loop = loop
        self._source = source
        self._holder = holder
        self._sink = sink
        self._queue = Queue()
        self.done = Future()
        loop.watch(source, READ, self._readable)

    def release(self) -> None:
        """Let the input end when the clients have closed it: the client will send no more."""
        if self._holder >= 0:
            os.close(self._holder)
            self._holder = -1

    def _readable(self, _: int) -> None:
        try:
            data = os.read(self._source, CHUNK)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        self._queue.put(data)
        self._flush(0)

    def _flush(self, _: int) -> None:
        try:
            self._queue.write(self._sink)
        except OSError as error:  # EPIPE, EIO: the process reads no more, so neither do we, and EPIPE tells the client
            if error.errno not in (errno.EPIPE, errno.EIO):
                self._loop.complain(f"input is lost: {os.strerror(error.errno or 0)}")
            self.close()
            return
        if self._queue.size:
            self._loop.unwatch(self._source)
            self._loop.watch(self._sink, WRITE, self._flush)
        else:
            self._loop.unwatch(self._sink)
            self._loop.watch(self._source, READ, self._readable)

    def close(self) -> None:
        """Close all ends; a process that reads from a pipe sees its end."""
        if self.done.done:
            return
        self.release()
        for fd in (self._source, self._sink):
            self._loop.unwatch(fd)
            os.close(fd)
        self._queue.clear()
        self.done.set()
