"""Threads that carry a process's output into a stream and a stream into its input."""

from __future__ import annotations

import fcntl
import os
import select
import struct

from casemate.protocol import threads
from casemate.protocol.wire import StreamClosed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.protocol.stream import Stream

CHUNK = 64 * 1024
FIONREAD = 0x541B


class _Pump:
    """A thread with a descriptor of its own, which it closes, and a way to be told something while it waits."""

    def __init__(self, fd: int, stream: Stream) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._stream = stream
        self._lock = threads.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._over = False
        self._started = False

    def start(self) -> None:
        """Begin to carry. Raises RuntimeError where there can be no more threads."""
        self._started = True
        try:
            threads.start(self._run)
        except BaseException:
            self._started = False
            raise

    def discard(self) -> None:
        """Give everything back where it was not started; else its thread has it, and does so at its end."""
        if not self._started:
            self._end()

    def _run(self) -> None:
        try:
            self._carry()
        finally:
            self._end()

    def _carry(self) -> None:
        raise NotImplementedError

    def _poke(self) -> None:
        with self._lock:
            if not self._over:
                os.eventfd_write(self._wake, 1)

    def _end(self) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            os.close(self._wake)
            os.close(self._fd)
        self._stream.close()  # says EOF, after the data


class Output(_Pump):
    """From a pipe or terminal to a stream.

    Arguments:
        fd: what to read. EIO, which a terminal gives when nobody has it open any more, is its end.
        stream: where it goes.
        drop: when the host reads no more of it, the output is taken and thrown away, for a container must not be
            blocked by a host that is not interested. Else that is the end.
    """

    def __init__(self, fd: int, stream: Stream, drop: bool = True) -> None:
        super().__init__(fd, stream)
        self._drop = drop
        self._process_over = False
        self.drained = threads.Event()
        """Set when all that an ended process wrote has been sent."""
        stream.on_unwanted = self._poke

    def process_ended(self) -> None:
        """What is in the pipe now is all of the process's own output: a process's descriptors are closed before its
        end can be seen. Whoever else holds it may go on writing as long as the host reads. Then it is closed, or such
        pipes, and threads and streams with them, would be hoarded until nobody could have one."""
        self._process_over = True
        self._poke()

    def _carry(self) -> None:
        _yield_to_writers()
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        heard = True
        own: int | None = None  # of the bytes in the pipe, how many can be the ended process's
        while True:
            ready = [fd for fd, _ in poller.poll()]
            if self._process_over and own is None:
                own = _waiting(self._fd)
            if self._fd not in ready:
                os.eventfd_read(self._wake)
                if self._process_over:
                    self.drained.set()
                if self._stream.unwanted and (self._process_over or not self._drop):
                    return
                continue
            try:
                data = os.read(self._fd, CHUNK)
            except BlockingIOError:
                continue
            except OSError:  # EIO of a terminal
                return
            if not data:
                return
            if heard:
                try:
                    self._stream.send(data)
                except StreamClosed:
                    if not self._drop:
                        return
                    heard = False
            if own is not None:
                own -= len(data)
                if own <= 0:
                    self.drained.set()
                    if not heard:
                        return

    def _end(self) -> None:
        super()._end()
        self.drained.set()


def _waiting(fd: int) -> int:
    """How many bytes can be read at once (ioctl_pipe(2), ioctl_tty(2))."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, FIONREAD, b"\0\0\0\0"))[0])
    except OSError:
        return 0


def _yield_to_writers() -> None:
    """Let this thread's waking not interrupt whoever runs (SCHED_BATCH, sched(7)).

    A program that writes in small pieces then fills its pipe before it is read; else each piece would be a read, a
    frame and two switches of its own. Where the processor is idle the thread runs at once all the same. What it starts
    is scheduled as usual.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
    except OSError:
        return  # a matter of speed alone


class Input(_Pump):
    """From a stream to a pipe or terminal; the end of the stream closes the descriptor."""

    def process_ended(self) -> None:
        """Nobody is there to read any more."""
        self._stream.close()
        self._poke()

    def _carry(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        poller.register(self._wake, select.POLLIN)
        while data := self._stream.recv(CHUNK):
            view = memoryview(data)
            while view:
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    if any(fd == self._wake for fd, _ in poller.poll()):
                        return
                except OSError:  # EPIPE, EIO: the reader is gone
                    return
