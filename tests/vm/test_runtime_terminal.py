"""Terminals by the OCI command line: console sockets as engines use them, and one's own, with runc as the control."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

from tests.vm.oci import PATIENCE, Bundle, Container, Runtime


class Screen:
    """The master end of a terminal."""

    def __init__(self, master: int) -> None:
        self.master = master
        self.text = ""

    def wait_for(self, text: str, count: int = 1) -> str:
        """Read until a text has come so many times; all text until then."""
        deadline = time.monotonic() + PATIENCE
        while self.text.count(text) < count:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} did not come: {self.text!r}"
            self._read()
        return self.text

    def _read(self) -> bool:
        try:
            data = os.read(self.master, 4096)
        except OSError:
            data = b""
        self.text += data.decode(errors="replace")
        return bool(data)

    def to_the_end(self) -> str:
        """Read until the other side has gone."""
        while select.select([self.master], [], [], PATIENCE)[0]:
            if not self._read():
                return self.text
        raise AssertionError(f"the terminal stays open: {self.text!r}")

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self.master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Change its size."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.contextmanager
def console_socket(runtime: Runtime) -> Iterator[tuple[str, socket.socket]]:
    path = runtime.env.base / "console.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(PATIENCE)
        try:
            yield str(path), listener
        finally:
            path.unlink()


def receive(listener: socket.socket) -> Screen:
    """What an engine does to get the master end."""
    peer, _ = listener.accept()
    with peer:
        name, ancillary, _, _ = peer.recvmsg(4096, socket.CMSG_SPACE(4))
    assert name.decode().startswith("/dev/p")
    ((level, kind, data),) = ancillary
    assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
    return Screen(array.array("i", data)[0])


def with_terminal(runtime: Runtime, *words: str, size: tuple[int, int] | None = None) -> Bundle:
    bundle = runtime.bundle(*words)
    bundle.spec["process"]["terminal"] = True
    if size is not None:
        bundle.spec["process"]["consoleSize"] = {"height": size[0], "width": size[1]}
    return bundle


def create(runtime: Runtime, bundle: Bundle) -> tuple[Container, Screen]:
    with console_socket(runtime) as (path, listener):
        container = runtime.create(bundle, "--console-socket", path)
        return container, receive(listener)


def test_a_shell_on_a_console_socket(either: Runtime) -> None:
    container, screen = create(either, with_terminal(either, "sh"))
    container.start()
    screen.type("echo $((6 * 7)); tty; exit 9\n")
    text = screen.to_the_end()
    assert container.wait() == 9
    assert "echo $((6 * 7))" in text and "\r\n42\r\n" in text and "/dev/pts/0\r\n" in text or "/dev/console\r\n" in text


def test_control_characters_are_the_terminals_of_the_container(either: Runtime) -> None:
    script = "trap 'echo stopped; exit 4' INT; echo go; cat"
    container, screen = create(either, with_terminal(either, "sh", "-c", script))
    container.start()
    screen.wait_for("go")
    screen.type("line\n")
    screen.wait_for("line", 2)  # the echo, and what cat says
    screen.type("\x03")
    assert "stopped" in screen.to_the_end()
    assert container.wait() == 4


def test_the_size_asked_for_and_every_later_one(either: Runtime) -> None:
    script = "stty size; trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done"
    container, screen = create(either, with_terminal(either, "sh", "-c", script, size=(33, 99)))
    container.start()
    assert "33 99" in screen.wait_for("ready")
    for rows, columns in ((10, 20), (50, 132)):
        screen.resize(rows, columns)
        screen.wait_for(f"{rows} {columns}")


def test_a_size_set_before_the_start_is_there(either: Runtime) -> None:
    # To a guest it is on its way, and the process may begin before it has come.
    script = "stty size; trap 'stty size' WINCH; while :; do sleep 0.1; done"
    container, screen = create(either, with_terminal(either, "sh", "-c", script))
    screen.resize(17, 71)
    container.start()
    screen.wait_for("17 71")


def test_when_the_engine_lets_go_the_process_hears_of_it(either: Runtime) -> None:
    script = "trap 'echo gone >/tmp/gone; exit 5' HUP; echo ready; while :; do sleep 0.1; done"
    bundle = with_terminal(either, "sh", "-c", script)
    container, screen = create(either, bundle)
    container.start()
    screen.wait_for("ready")
    os.close(screen.master)
    assert container.wait() == 5
    assert (bundle.rootfs / "tmp/gone").read_text() == "gone\n"


def test_much_output_is_whole(either: Runtime) -> None:
    container, screen = create(either, with_terminal(either, "sh", "-c", "seq 1 20000; echo end"))
    container.start()
    lines = screen.to_the_end().split("\r\n")
    assert lines == [*map(str, range(1, 20001)), "end", ""]
    assert container.wait() == 0


def test_an_exec_with_a_terminal(either: Runtime) -> None:
    container = either.create(either.bundle()).start()
    process = {
        "args": ["sh", "-c", "stty size; tty; read x; echo got $x; exit 3"], "cwd": "/", "env": ["PATH=/bin"],
        "terminal": True, "user": {"uid": 0, "gid": 0}, "consoleSize": {"height": 12, "width": 34},
    }  # fmt: skip
    path = either.directory / "p.json"
    path.write_text(json.dumps(process))
    with console_socket(either) as (console, listener):
        words = ["exec", "--console-socket", console, "--detach", "--process", str(path)]
        started = either.monitored(container.id, words, [container.id])
        screen = receive(listener)
    screen.wait_for("/dev/pts/")
    screen.type("it\n")
    assert "got it" in screen.to_the_end()
    assert started.wait() == 3
    assert "12 34" in screen.text


@pytest.mark.parametrize(
    ("terminal", "words", "complaint"),
    [
        (True, (), "cannot allocate tty if runc will detach without setting console socket"),
        (False, ("--console-socket", "/x"), "cannot use console socket if runc will not detach or allocate tty"),
    ],
)
def test_terminals_that_nobody_would_have(
    either: Runtime, terminal: bool, words: tuple[str, ...], complaint: str
) -> None:
    bundle = with_terminal(either, "sh") if terminal else either.bundle("sh")
    assert either.fails("create", *words, "--bundle", bundle.write(), "x").endswith(complaint)


def test_a_console_socket_that_nobody_serves(either: Runtime) -> None:
    id = either.new_id()
    bundle = with_terminal(either, "sh").write()
    assert "no such file or directory" in either.fails("create", "--console-socket", "/nope/s", "--bundle", bundle, id)
    assert either.fails("state", id) == "container does not exist"


@contextlib.contextmanager
def person(runtime: Runtime, *words: str | os.PathLike[str]) -> Iterator[tuple[Screen, int]]:
    """Somebody at a terminal who runs a command; the screen, and the command's pid."""
    command = runtime.words(*words)
    pid, master = pty.fork()
    if pid == 0:
        os.execve(command[0], command, runtime.env.variables)
    screen = Screen(master)
    screen.resize(30, 100)
    try:
        yield screen, pid
    finally:
        os.close(master)
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_person_runs_a_shell(either: Runtime) -> None:
    bundle = with_terminal(either, "sh", "-c", "echo ready; exec sh").write()
    with person(either, "run", "--bundle", bundle, either.new_id()) as (screen, pid):
        screen.wait_for("ready")
        screen.resize(41, 141)
        # A size is on its way beside the keys: the shell waits until it has come.
        screen.type("until stty size | grep '^41'; do sleep 0.1; done; echo $((40 + 2)); sleep 99\n")
        screen.wait_for("42")
        screen.type("\x03")
        screen.type("exit 11\n")
        screen.to_the_end()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 11
    assert "41 141" in screen.text


def test_a_person_looks_into_a_container(either: Runtime) -> None:
    container = either.create(either.bundle()).start()
    with person(either, "exec", "--tty", container.id, "sh", "-c", "tty; stty size; read x; exit 12") as (screen, pid):
        screen.wait_for("30 100")
        screen.type("\n")
        screen.to_the_end()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 12


def test_the_persons_terminal_is_as_before(either: Runtime) -> None:
    bundle = with_terminal(either, "sh", "-c", "echo up").write()
    command = " ".join(either.words("run", "--bundle", bundle, either.new_id()))
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        done = subprocess.run(
            ["setsid", "-c", "sh", "-c", command], stdin=slave, stdout=slave, stderr=slave, env=either.env.variables,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0
        assert termios.tcgetattr(slave) == before
        assert "up" in os.read(master, 4096).decode()
    finally:
        os.close(master)
        os.close(slave)
