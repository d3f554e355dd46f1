"""What couples a sandbox's terminal to descriptors of the host: the master's side of it, played by the sentry."""

from __future__ import annotations

import contextlib
import os
import select
import termios
import time
import tty
from errno import EAGAIN
from typing import TYPE_CHECKING, Any, Protocol

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.hostfile import HostFile
from casemate.sentry.vfs.tty import Terminal
from casemate.sentry.wait import Block

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel

_CHUNK = 4096


class HostTerminal:
    """The host's terminal that a program is run from: it hands every key on as it is, until :meth:`restore`.

    Arguments:
        fd: of the terminal.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._settings: list[Any] | None = None
        self.console: Console | None = None
        """Whom to tell of its size."""

    def raw(self) -> None:
        """No echo, no signals, no lines: those are the sandbox's terminal's to make."""
        self._settings = termios.tcgetattr(self._fd)
        tty.setraw(self._fd)

    def restore(self) -> None:
        """As it was before."""
        if self._settings is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._settings)
            self._settings = None

    def resized(self) -> None:
        """It has another size, SIGWINCH."""
        if self.console is not None and not self.console.closed:
            with contextlib.suppress(OSError):
                size = os.get_terminal_size(self._fd)
                self.console.resize(size.lines, size.columns)


class Ended(Protocol):
    """Who wants to know when a console is over."""

    def console_ended(self, console: Console, /) -> None:
        """All output has gone out (or nobody takes it), and the terminal is closed."""


class Console:
    """Carries what comes from a host's descriptor to a terminal, and its output to another.

    Arguments:
        kernel: whose platform tells of the descriptors.
        source: what is typed; taken over. -1 for nothing ever.
        sink: where output goes; taken over. It may be the same as ``source``.
        terminal: a pair without a master, :func:`casemate.sentry.vfs.devpts.open_pair`.
    """

    def __init__(self, kernel: Kernel, source: int, sink: int, terminal: Terminal) -> None:
        self.terminal = terminal
        if source == sink:
            source = os.dup(sink)
        flags = os.O_NONBLOCK
        self._source: HostFile | None = HostFile(source, os.O_RDONLY | flags, kernel) if source >= 0 else None
        self._sink: HostFile | None = HostFile(sink, os.O_WRONLY | flags, kernel)
        self._ended: Ended | None = None
        self._pumping = False
        self.closed = False
        terminal.master_queue.add(self)
        for file in (self._source, self._sink):
            if file is not None:
                file.queue.add(self)
        self.wake(0)

    def resize(self, rows: int, columns: int) -> None:
        """The size of what shows it has changed."""
        self.terminal.resize(rows, columns)

    def wake(self, mask: int) -> None:
        """Something can be carried, perhaps."""
        if self._pumping or self.closed:
            return
        self._pumping = True
        try:
            while self._inwards() or self._outwards():
                pass
        finally:
            self._pumping = False
        if self._ended is not None and not self.terminal.output:
            self._finish()

    def _inwards(self) -> bool:
        source = self._source
        if source is None:
            return False
        room = self.terminal.room()
        if not room:
            return False
        nobody: Any = None  # no task reads
        try:
            data = source.read(nobody, min(room, _CHUNK))
        except Block:
            return False
        except SysError as error:
            if error.errno == EAGAIN:
                return False
            data = b""
        if data:
            self.terminal.receive(data)
            return True
        # Nothing more will be typed. A terminal that is gone takes this one with it; a pipe's end means just that.
        gone = os.isatty(source.fd)
        self._drop_source()
        if gone:
            self.terminal.hang_up(gone=True)
        return True

    def _drop_source(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.queue.remove(self)
            source.release()

    def _outwards(self) -> bool:
        terminal = self.terminal
        if terminal.stopped or not terminal.output:
            return False
        sink = self._sink
        if sink is None:
            terminal.collect(_CHUNK)
            return True
        nobody: Any = None
        try:
            done = sink.write(nobody, bytes(terminal.output[:_CHUNK]))
        except Block:
            return False
        except SysError as error:
            if error.errno == EAGAIN:
                return False
            self._drop_sink()
            return True
        terminal.collect(done)
        return True

    def _drop_sink(self) -> None:
        """Nobody takes output: it is dropped from now on, so that programs do not wait for ever."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.queue.remove(self)
            sink.release()

    def end(self, ended: Ended) -> None:
        """The program has ended: close everything once its output has gone out, and say so."""
        self._ended = ended
        self.terminal.held = False
        self.terminal.start()
        self.wake(0)

    def flush(self, seconds: float = 5.0) -> None:
        """Wait until output has gone out, at most so long, and close: for the end of a sandbox, when no loop runs."""
        self.terminal.held = False
        self.terminal.start()
        limit = time.monotonic() + seconds
        while self._sink is not None and self.terminal.output and not self.closed:
            self.wake(0)
            left = limit - time.monotonic()
            if left <= 0:
                break
            if self._sink is not None and self.terminal.output:
                poller = select.poll()
                poller.register(self._sink.fd, select.POLLOUT)
                poller.poll(left * 1000)
        self._finish()

    def _finish(self) -> None:
        if self.closed:
            return
        self.closed = True
        terminal = self.terminal
        terminal.master_queue.remove(self)
        self._drop_source()
        self._drop_sink()
        terminal.master_open = False
        if terminal.fs is not None:
            terminal.fs.remove(terminal)
        terminal.hang_up(gone=True)
        ended, self._ended = self._ended, None
        if ended is not None:
            ended.console_ended(self)
