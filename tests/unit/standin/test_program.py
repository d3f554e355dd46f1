"""The stand-in's program, with the calls that need root replaced."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.standin import main

DRIVER = """
import sys, runpy
sys.path.insert(0, {source!r})
import posix
for name in ("chroot", "setgroups", "setresuid", "setresgid"):
    setattr(posix, name, lambda *a: None)
sys.argv = ["x", *sys.argv[1:]]
runpy.run_path({program!r}, run_name="__main__")
"""


class Program:
    """A running one; ``sock`` is the keeper's end."""

    def __init__(self, *words: str, terminal: int | None = None) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(30)
        root = os.open("/", os.O_PATH)
        driver = DRIVER.format(source=str(Path(main.__file__).parents[2]), program=main.__file__)
        actions = [
            (os.POSIX_SPAWN_DUP2, os.open(os.devnull, os.O_RDWR) if terminal is None else terminal, 0),
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), 20),
            (os.POSIX_SPAWN_DUP2, root, 21),
            (os.POSIX_SPAWN_DUP2, 20, main.SOCKET),
            (os.POSIX_SPAWN_DUP2, 21, main.ROOT),
        ]
        argv = [sys.executable, "-I", "-S", "-c", driver, "0", "0", str(int(terminal is not None)), *words]
        self.pid = os.posix_spawn(sys.executable, argv, {}, file_actions=actions)
        theirs.close()
        os.close(root)
        self._heard = b""
        self.ended = False

    def line(self) -> str:
        """What it says next."""
        while b"\n" not in self._heard:
            self._heard += self.sock.recv(4096) or pytest.fail("it has ended")
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        self.ended = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def end(self) -> None:
        """Take it away."""
        self.sock.close()
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


@pytest.fixture
def program() -> Iterator[Program]:
    made = Program("/bin/some-command", "a b", "c")
    assert made.line() == "ready"
    yield made
    made.end()


@pytest.mark.parametrize("status", [0, 1, 137, 255])
def test_it_ends_with_the_status_that_the_keeper_tells(program: Program, status: int) -> None:
    program.sock.sendall(b"exit %d\n" % status)
    assert program.wait() == status


def test_a_line_may_come_in_pieces(program: Program) -> None:
    for piece in (b"ex", b"it 4", b"2\n"):
        program.sock.sendall(piece)
    assert program.wait() == 42


def test_it_ends_when_the_keeper_is_gone(program: Program) -> None:
    program.sock.close()
    assert program.wait() == main.GONE


def test_what_it_does_not_know_is_nothing_to_it(program: Program) -> None:
    program.sock.sendall(b"hello\nexit\nexit x\nexit -1\n" + b"x" * 1000 + b"\nexit 3\n")
    assert program.wait() == 3


def test_signals_are_told_to_the_keeper(program: Program) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGWINCH, signal.SIGRTMIN + 2):
        os.kill(program.pid, number)
        assert program.line() == f"signal {int(number)}"


def test_it_shows_the_containers_command(program: Program) -> None:
    with open(f"/proc/{program.pid}/cmdline", "rb") as file:
        assert file.read().rstrip(b"\0") == b"/bin/some-command\0a b\0c"
    assert Path(f"/proc/{program.pid}/comm").read_text() == "some-command\n"


def test_a_terminals_size_is_told_at_once_and_when_it_changes() -> None:
    from casemate.runtime_cli import console

    made = console.Console((24, 80))
    program = Program("sh", terminal=made.slave)
    try:
        assert program.line() == "ready"
        assert program.line() == "size 24 80"
        console.set_size(made.slave, 50, 132)
        os.kill(program.pid, signal.SIGWINCH)  # the kernel does so where it is the controlling terminal
        assert program.line() == "size 50 132"
    finally:
        program.end()
        made.close()


def test_a_terminal_without_a_size_is_not_told() -> None:
    from casemate.runtime_cli import console

    made = console.Console(None)
    program = Program("sh", terminal=made.slave)
    try:
        assert program.line() == "ready"
        os.kill(program.pid, signal.SIGUSR1)
        assert program.line() == f"signal {int(signal.SIGUSR1)}"
    finally:
        program.end()
        made.close()


def test_it_asks_for_nothing_but_parts_of_the_interpreter() -> None:
    script = (
        "import sys; before = set(sys.modules)\n"
        f"exec(compile(open({main.__file__!r}).read(), 'm', 'exec'), {{'__name__': 'other'}})\n"
        "print(sorted(set(sys.modules) - before - set(sys.builtin_module_names)))"
    )
    words = [sys.executable, "-I", "-S", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
