"""Pipes, pipe(7); FIFOs are opened by :mod:`casemate.sentry.ipc.fifo`."""

from __future__ import annotations

import os
import signal
from collections import deque
from errno import EAGAIN, EBADF, EBUSY, EINVAL, ENOTTY, EPERM, EPIPE
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.ipc.anon import pipe_inode
from casemate.sentry.vfs.file import POLLERR, POLLHUP, READABLE, WRITABLE, File
from casemate.sentry.vfs.inode import Inode
from casemate.sentry.wait import Block, Waiter, WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

PIPE_BUF = 4096
"""A write of at most this many bytes is never mixed with others."""
DEFAULT_CAPACITY = 65536
MAX_CAPACITY = 1 << 20
"""``/proc/sys/fs/pipe-max-size``: more only with CAP_SYS_RESOURCE."""
LARGEST_CAPACITY = 16 << 20
"""What nobody gets more than, so that one sandbox's pipes stay within reason."""
CAP_SYS_RESOURCE = 24
FIONREAD = 0x541B


class Pipe:
    """The buffer between two ends, which may be open several times each (FIFOs).

    Chunks are kept as they were written, small ones joined: moving data costs no copy in the usual case of a read that
    takes what one write left.
    """

    __slots__ = (
        "arrivals", "capacity", "chunks", "inode", "named", "opening", "read_queue", "readers", "size", "skip", "space",
        "write_opens", "write_queue", "writers",
    )  # fmt: skip

    def __init__(self, inode: Inode, named: bool) -> None:
        self.inode = inode
        self.named = named
        """A FIFO: opening waits for the other end."""
        self.chunks: deque[tuple[bytes, bool]] = deque()
        """Data, and whether it is a packet of its own (``O_DIRECT``, pipe(2))."""
        self.skip = 0
        """How much of the first chunk has been read."""
        self.size = 0
        self.capacity = DEFAULT_CAPACITY
        self.readers = 0
        self.writers = 0
        self.write_opens = 0
        """How often it was opened for writing, ever."""
        self.opening: dict[Task, Opening] = {}
        """Those that wait in open(2)."""
        self.arrivals = WaitQueue()
        self.read_queue = WaitQueue()
        self.write_queue = WaitQueue()
        """Told when :func:`poll <PipeFile.poll>` of the writing end changes."""
        self.space = WaitQueue()
        """Told at every read: a writer may wait for less room than poll(2) asks for."""

    def put(self, data: bytes, packet: bool = False) -> None:
        """Append; the caller has seen that there is room."""
        chunks = self.chunks
        if chunks and not packet:
            last, closed = chunks[-1]
            if not closed and len(last) + len(data) <= PIPE_BUF:
                chunks[-1] = (last + data, False)
                self.size += len(data)
                self.read_queue.notify(READABLE)
                return
        chunks.append((data, packet))
        self.size += len(data)
        self.read_queue.notify(READABLE)

    def peek(self, size: int) -> bytes:
        """The next bytes, at most ``size``, which stay; tee(2)."""
        parts = []
        skip = self.skip
        for data, _ in self.chunks:
            if size <= 0:
                break
            part = data[skip : skip + size]
            parts.append(part)
            size -= len(part)
            skip = 0
        return b"".join(parts)

    def take(self, size: int) -> bytes:
        """The next bytes, at most ``size``; of a packet what does not fit is lost."""
        chunks = self.chunks
        before = self.capacity - self.size
        data, packet = chunks[0]
        skip = self.skip
        left = len(data) - skip
        if left <= size or packet:
            chunks.popleft()
            self.skip = 0
            result = data[skip : skip + size] if skip or left > size else data
            self.size -= left
            if not packet and left < size and chunks:
                result = self._more(result, size - left)
        else:
            result = data[skip : skip + size]
            self.skip = skip + size
            self.size -= size
        if packet or before < PIPE_BUF <= self.capacity - self.size:
            self.write_queue.notify(WRITABLE)
        self.space.notify()
        return result

    def _more(self, first: bytes, size: int) -> bytes:
        """Go on with the following chunks, up to the next packet."""
        parts = [first]
        chunks = self.chunks
        while size and chunks and not chunks[0][1]:
            data = chunks[0][0]
            if len(data) <= size:
                chunks.popleft()
            else:
                data = data[:size]
                self.skip = size
            parts.append(data)
            self.size -= len(data)
            size -= len(data)
        return b"".join(parts)

    def resize(self, task: Task, size: int) -> int:
        """``F_SETPIPE_SZ``, fcntl(2): rounds up to a power of two of pages. EBUSY where the data does not fit."""
        if not 0 < size <= 1 << 31:
            raise SysError(EINVAL)
        capacity = PIPE_BUF
        while capacity < size:
            capacity *= 2
        if capacity > MAX_CAPACITY and capacity > self.capacity:
            if not task.creds.capable(CAP_SYS_RESOURCE):
                raise SysError(EPERM)
            if capacity > LARGEST_CAPACITY:
                raise SysError(EPERM)
        if capacity < self.size:
            raise SysError(EBUSY)
        grown = capacity > self.capacity
        self.capacity = capacity
        if grown:
            self.write_queue.notify(WRITABLE)
            self.space.notify()
        return capacity

    def hangup(self) -> None:
        """One kind of end is gone altogether: all look again."""
        self.read_queue.notify(READABLE | POLLHUP)
        self.write_queue.notify(WRITABLE | POLLERR)
        self.space.notify()

    def waiting(self, write: bool) -> int:
        """How many wait in open(2) for this access."""
        if self.opening:
            self.prune()
        return sum(opening.write == write for opening in self.opening.values())

    def prune(self) -> None:
        """Forget opens that will not be completed: a call that a signal ended has let go of its note, and a task that
        was killed has no thread."""
        for task, opening in list(self.opening.items()):
            if task.thread is None or task.blocked.get("fifo") is not opening:
                del self.opening[task]
                if opening.file is not None:
                    opening.file.decref()

    def arrived(self, reader: bool, writer: bool) -> None:
        """An end has been opened: complete the opens that wait for it. They count from now on, not only when their
        tasks come to run: what is written meanwhile has its reader, and a reader sees no end of file."""
        if self.opening:
            for opening in self.opening.values():
                if opening.file is None and (reader if opening.write else writer):
                    opening.file = PipeFile(self, opening.flags)
            self.arrivals.notify()


class Opening:
    """What an open(2) of a FIFO that waits keeps in ``task.blocked``."""

    __slots__ = ("file", "flags", "write")

    def __init__(self, flags: int, write: bool) -> None:
        self.flags = flags
        self.write = write
        self.file: PipeFile | None = None
        """What it will return, once the other end has come."""


class _Both(WaitQueue):
    """The queue of a FIFO that is open for reading and writing: both ends' events."""

    __slots__ = ("_pipe",)

    def __init__(self, pipe: Pipe) -> None:
        super().__init__()
        self._pipe = pipe

    def add(self, waiter: Waiter) -> None:
        self._pipe.read_queue.add(waiter)
        self._pipe.write_queue.add(waiter)

    def remove(self, waiter: Waiter) -> None:
        self._pipe.read_queue.remove(waiter)
        self._pipe.write_queue.remove(waiter)

    def notify(self, mask: int = 0xFFFF) -> None:
        self._pipe.read_queue.notify(mask)
        self._pipe.write_queue.notify(mask)


class PipeFile(File):
    """An open end of a pipe, or both of them (a FIFO opened ``O_RDWR``)."""

    def __init__(self, pipe: Pipe, flags: int) -> None:
        super().__init__(flags, pipe.inode)
        self.pipe = pipe
        access = flags & os.O_ACCMODE
        self.reads = access != os.O_WRONLY
        self.writes = access != os.O_RDONLY
        self.first_writer = 0
        """How many opens for writing were before it: those do not make it see a hangup, poll(2)."""
        if self.reads:
            pipe.readers += 1
            self.queue = pipe.read_queue
        if self.writes:
            pipe.writers += 1
            pipe.write_opens += 1
            self.queue = _Both(pipe) if self.reads else pipe.write_queue

    def release(self) -> None:
        pipe = self.pipe
        if self.reads:
            pipe.readers -= 1
        if self.writes:
            pipe.writers -= 1
        if not pipe.readers and not pipe.writers:
            if pipe.named and not pipe.opening:
                pipe.inode.extra.pop("pipe", None)
        elif not pipe.readers or not pipe.writers:
            pipe.hangup()

    def read(self, task: Task, size: int) -> bytes:
        pipe = self.pipe
        if pipe.chunks:
            return pipe.take(size) if size else b""
        if pipe.opening:
            pipe.prune()
        if not pipe.writers or not size:
            return b""
        if self.flags & os.O_NONBLOCK:
            raise SysError(EAGAIN)
        self.keep(task)
        raise Block(pipe.read_queue)

    def write(self, task: Task, data: bytes) -> int:
        pipe = self.pipe
        if not pipe.readers:
            from casemate.sentry.signals.send import send_signal

            send_signal(task, signal.SIGPIPE)
            raise SysError(EPIPE)
        if self.flags & os.O_DIRECT:
            return self._write_packets(task, data)
        total = len(data)
        room = pipe.capacity - pipe.size
        if total <= room:
            if total:
                pipe.put(data)
            return total
        # Large writes go on as soon as there is room for what poll(2) calls writable, small ones as a whole.
        if total > PIPE_BUF <= room:
            pipe.put(data[:room])
            return room
        if self.flags & os.O_NONBLOCK:
            raise SysError(EAGAIN)
        self.keep(task)
        raise Block(pipe.write_queue if total > PIPE_BUF else pipe.space)

    def _write_packets(self, task: Task, data: bytes) -> int:
        """With ``O_DIRECT`` each write is read as it is, in packets of at most a page; each takes a page's room."""
        pipe = self.pipe
        done = 0
        while done < len(data):
            packet = data[done : done + PIPE_BUF]
            if len(pipe.chunks) >= pipe.capacity // PIPE_BUF or pipe.size + len(packet) > pipe.capacity:
                break
            pipe.put(packet, True)
            done += len(packet)
        if done or not data:
            return done
        if self.flags & os.O_NONBLOCK:
            raise SysError(EAGAIN)
        self.keep(task)
        raise Block(pipe.space)

    def poll(self, task: Task) -> int:
        pipe = self.pipe
        mask = 0
        if self.reads:
            if pipe.chunks:
                mask = READABLE
            if not pipe.writers and pipe.write_opens != self.first_writer:
                mask |= POLLHUP
        if self.writes:
            if pipe.capacity - pipe.size >= PIPE_BUF and (
                not self.flags & os.O_DIRECT or len(pipe.chunks) < pipe.capacity // PIPE_BUF
            ):
                mask |= WRITABLE
            if not pipe.readers:
                mask |= POLLERR
        return mask

    def ioctl(self, task: Task, command: int, argument: int) -> int:
        if command == FIONREAD:
            task.mem.put_u32(argument, self.pipe.size)
            return 0
        raise SysError(ENOTTY)

    def describe(self) -> bytes:
        return b"pipe:[%d]" % self.pipe.inode.stat().ino


def make_pipe(task: Task, flags: int) -> tuple[PipeFile, PipeFile]:
    """A new pipe: its end for reading and the one for writing, pipe2(2). ``flags``: O_NONBLOCK, O_DIRECT."""
    inode = pipe_inode(task)
    pipe = Pipe(inode, named=False)
    inode.extra["pipe"] = pipe
    return PipeFile(pipe, os.O_RDONLY | flags), PipeFile(pipe, os.O_WRONLY | flags)


def pipe_of(file: File) -> Pipe:
    """The pipe that a descriptor refers to, for ``F_SETPIPE_SZ``, splice(2) and tee(2). Raises EBADF."""
    if not isinstance(file, PipeFile):
        raise SysError(EBADF)
    return file.pipe
