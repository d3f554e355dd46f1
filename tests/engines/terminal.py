"""A terminal with a command in it, as a person has it, and waiting for what has no event."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tests.engines.host import stop

T = TypeVar("T")


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, command: Sequence[str], variables: dict[str, str], rows: int = 24, columns: int = 80) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(
            # setsid(1) makes it the controlling terminal: a resize is a signal to whoever is in its foreground.
            ["setsid", "--ctty", *command], stdin=self.theirs, stdout=self.theirs, stderr=self.theirs,
            env=variables,
        )  # fmt: skip
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        """Give the window another size."""
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.ours, text.encode())

    def until(self, text: str, timeout: float = 90, impatient: Callable[[], None] | None = None) -> str:
        """Read until ``text`` was seen; gives what came up to its end and drops it.

        Arguments:
            impatient: called when nothing has come for five seconds, and again.
        """
        deadline = time.monotonic() + timeout
        while text.encode() not in self.seen:
            left = max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([self.ours], [], [], left if impatient is None else min(left, 5))
            if ready:
                self.seen += os.read(self.ours, 65536)
            else:
                assert impatient is not None and left, f"{text!r} did not come: {self.seen!r}"
                impatient()
        end = self.seen.index(text.encode()) + len(text.encode())
        seen, self.seen = self.seen[:end], self.seen[end:]
        return seen.decode(errors="replace")

    def ask(self, command: str, timeout: float = 90, impatient: Callable[[], None] | None = None) -> str:
        """Type a shell command and give its output. The shell must not show what is typed twice in one line."""
        self.type(f"echo be''gin; {command}; echo e''nd\n")
        self.until("begin", timeout)
        return self.until("end", timeout, impatient)[: -len("end")].strip()

    def resized(self, rows: int, columns: int) -> str:
        """Give the window another size, and wait until the shell has it; what that says of its size.

        Docker's client looks at the size, has that made the container's, and only then listens for changes: one that
        comes in between, when the shell may have answered already, is lost to it. A person would pull at the window
        again.
        """

        def pull() -> None:
            os.killpg(os.tcgetpgrp(self.ours), signal.SIGWINCH)

        self.resize(rows, columns)
        command = f"until stty size 2>/dev/null | grep '^{rows} {columns}'; do sleep 0.1; done"
        return self.ask(command, impatient=pull)

    def end(self, timeout: float = 60) -> int:
        """Wait until the command has ended; its exit status. It must have put the terminal back as it was."""
        status = self.process.wait(timeout)
        assert termios.tcgetattr(self.theirs) == self.before, "the terminal is not put back"
        return status


@contextlib.contextmanager
def terminal(
    command: Sequence[str], variables: dict[str, str], rows: int = 24, columns: int = 80
) -> Iterator[Terminal]:
    """A terminal for a while; what is still in it at the end is killed."""
    made = Terminal(command, variables, rows, columns)
    try:
        yield made
    finally:
        stop(made.process)
        os.close(made.ours)
        os.close(made.theirs)


def eventually(look: Callable[[], T], what: str, patience: float = 60, every: float = 0.1) -> T:
    """Look again and again until something true comes, for states that no command waits for; give that.

    Arguments:
        what: said when it does not come in ``patience`` seconds.
        every: seconds between two looks.
    """
    deadline = time.monotonic() + patience
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {patience} s: {what} (last: {found!r})"
        time.sleep(every)
