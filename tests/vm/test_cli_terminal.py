"""``-t`` with a real terminal: what is typed, Ctrl-C, sizes, and that the terminal is put back."""

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
from collections.abc import Iterator

from tests.vm.support import CONSOLE_SCRIPT, Casemate, Container


class Terminal:
    """A terminal with a ``casemate`` in it, as a person has it."""

    def __init__(self, cm: Casemate, *words: str, rows: int = 24, columns: int = 80) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.process = subprocess.Popen(
            [str(CONSOLE_SCRIPT), *words], stdin=theirs, stdout=theirs, stderr=theirs, env=cm.env.variables,
            start_new_session=True,
        )  # fmt: skip
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def until(self, text: str, timeout: float = 90) -> bytes:
        """Read until ``text`` was seen; gives what came before its end and drops it."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self.seen:
            ready, _, _ = select.select([self.ours], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} did not come: {self.seen!r}"
            self.seen += os.read(self.ours, 65536)
        end = self.seen.index(text.encode()) + len(text)
        seen, self.seen = self.seen[:end], self.seen[end:]
        return seen

    def end(self, timeout: float = 60) -> int:
        status = self.process.wait(timeout)
        assert termios.tcgetattr(self.theirs) == self.before, "the terminal is not put back"
        return status


@contextlib.contextmanager
def terminal(cm: Casemate, *words: str, rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    made = Terminal(cm, *words, rows=rows, columns=columns)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.ours)
        os.close(made.theirs)


def test_a_shell_in_a_terminal(cm: Casemate) -> None:
    with terminal(cm, "run", "--rm", "-it", "busybox", "sh", rows=33, columns=99) as shell:
        shell.until("/ #")
        shell.type("stty size; tty; echo T=$TERM\n")
        assert b"33 99" in shell.until("T=xterm")
        shell.until("/ #")
        # The word comes from a process in the foreground of the terminal. Before that the shell's line editor may still
        # hold the terminal raw, and takes Ctrl-C as one more key.
        shell.type("sh -c 'echo fore''ground; exec sleep 1000'\n")
        shell.until("foreground")
        shell.type("\x03")  # goes inside and ends the sleep, not the shell
        shell.until("/ #")
        shell.type("exit 9\n")
        assert shell.end() == 9


def test_a_terminal_for_exec_and_its_size(cm: Casemate, container: Container) -> None:
    with terminal(cm, "exec", "-it", container.name, "sh") as shell:
        shell.until("/ #")
        shell.resize(40, 120)
        os.kill(shell.process.pid, signal.SIGWINCH)  # the kernel tells a session of its own only
        shell.type("while [ \"$(stty size)\" != '40 120' ]; do :; done; echo resiz''ed\n")
        shell.until("resized")
        shell.until("/ #")
        shell.type("\x04")
        assert shell.end() == 0


def test_the_terminal_is_put_back_when_the_container_is_removed(cm: Casemate) -> None:
    with terminal(cm, "run", "-it", "--name", "pulled", "busybox", "sh") as shell:
        shell.until("/ #")
        deadline = time.monotonic() + 30
        while termios.tcgetattr(shell.theirs) == shell.before:  # output may come before the client hears of the start
            assert time.monotonic() < deadline, "the terminal never became raw"
            time.sleep(0.01)
        cm("rm", "-f", "pulled", check=True)
        assert shell.end() != 0
