"""Stay with a process until it ends: its terminal, the signals for it, its exit status."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
from collections.abc import Callable
from types import TracebackType
from typing import Any

from casemate.host.terminals import make_raw
from casemate.runtime_cli import console

NOT_FORWARDED = (
    signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGURG, signal.SIGPIPE, signal.SIGWINCH,
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS,
)  # fmt: skip
"""What cannot be caught, is about ourselves, or is no signal for a process but for its terminal."""
CHUNK = 65536
DRAIN_MS = 2000
"""How long the last output may take once the stand-in has ended; the keeper says so after it."""


class Foreground:
    """Signals and the terminal belong to the process from the beginning of the ``with`` on; put back at its end.

    Arguments:
        terminal: the process's console, or None.
    """

    def __init__(self, terminal: console.Console | None) -> None:
        self._console = terminal
        self._handlers: dict[int, Any] = {}
        self._mode: list[Any] | None = None
        self._reader = self._writer = -1
        self._typed = b""
        self._reads_input = terminal is not None

    def __enter__(self) -> Foreground:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        numbers = [number for number in signal.valid_signals() if number not in NOT_FORWARDED]
        if self._console is not None:
            numbers.append(signal.SIGWINCH)
            os.set_blocking(self._console.master, False)
            with contextlib.suppress(termios.error):  # what types is no terminal
                self._mode = termios.tcgetattr(0)
                make_raw(0)
        for number in numbers:
            with contextlib.suppress(OSError, ValueError):
                self._handlers[int(number)] = signal.signal(number, _noted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mode is not None:
            with contextlib.suppress(termios.error):  # the terminal may have gone
                termios.tcsetattr(0, termios.TCSADRAIN, self._mode)
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            # None: the handler was not made by Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, pid: int, forward: Callable[[int], None]) -> int:
        """Serve the process of the stand-in ``pid``, a child of ours, until that ends.

        Arguments:
            forward: sends a signal to the process.

        Returns:
            its exit status, 128 + n after signal n.
        """
        handle = os.pidfd_open(pid)
        try:
            while True:
                ready = self._poll(handle)
                if self._reader in ready:
                    self._signals(forward)
                if self._console is not None:
                    self._carry(ready)
                if handle in ready:
                    break
        finally:
            os.close(handle)
        self._drain()
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _poll(self, handle: int) -> set[int]:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.register(self._reader, select.POLLIN)
        if self._console is not None and self._console.master >= 0:
            poll.register(self._console.master, select.POLLIN | (select.POLLOUT if self._typed else 0))
            if self._reads_input and not self._typed:
                poll.register(0, select.POLLIN)
        return {descriptor for descriptor, _ in poll.poll()}

    def _signals(self, forward: Callable[[int], None]) -> None:
        for number in os.read(self._reader, 4096):
            if number == signal.SIGWINCH:
                self._resize()
            else:
                forward(number)

    def _resize(self) -> None:
        size = console.size_of(0, 1, 2)
        if size is not None and self._console is not None:
            console.set_size(self._console.master, *size)

    def _carry(self, ready: set[int]) -> None:
        """Between our standard descriptors and the terminal."""
        if self._console is None:
            return
        master = self._console.master
        if master in ready:
            self._show()
            if self._typed:
                with contextlib.suppress(OSError):
                    self._typed = self._typed[os.write(master, self._typed) :]
        if 0 in ready and self._reads_input and not self._typed:
            try:
                self._typed = os.read(0, CHUNK)
            except OSError:
                self._typed = b""
            self._reads_input = bool(self._typed)

    def _show(self) -> bool:
        """Pass output on; False when there is no more for now, or for ever."""
        if self._console is None or self._console.master < 0:
            return False
        try:
            data = os.read(self._console.master, CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # EIO: nobody has the other end any more
        if not data:
            self._console.close()
            return False
        while data:
            try:
                data = data[os.write(1, data) :]
            except BlockingIOError:  # whoever shares our standard output has made it one that does not wait
                poll = select.poll()
                poll.register(1, select.POLLOUT)
                poll.poll()
            except OSError:
                return True  # who read us is gone, which is no reason to stop the process
        return True

    def _drain(self) -> None:
        while self._console is not None and self._console.master >= 0:
            poll = select.poll()
            poll.register(self._console.master, select.POLLIN)
            if not poll.poll(DRAIN_MS):
                return
            self._show()


def _noted(number: int, frame: object) -> None:
    """The wake-up descriptor has the signal's number; there is nothing else to do."""
