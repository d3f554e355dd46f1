"""``--preserve-fds`` and socket activation: descriptors of the caller in the container's process, with runc beside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.vm.oci import PATIENCE, Runtime

TALK = 'cat <&3 >&4; exec 4>&-; read line <&5; echo "got $line" >&5; echo gone >&6; echo done'


class Ends:
    """A pipe that is read at 3, one that is written at 4, a connection at 5, ``/dev/null`` at 6."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.given = []
        reader, self.to_it = os.pipe()
        self.from_it, writer = os.pipe()
        self.peer, other = socket.socketpair()
        stack.enter_context(self.peer)
        self.peer.settimeout(PATIENCE)
        self.given = [reader, writer, other.detach(), os.open("/dev/null", os.O_RDWR)]

    def passed(self) -> None:
        """Somebody else has them."""
        for fd in self.given:
            os.close(fd)
        self.given = []


@pytest.fixture
def ends() -> Iterator[Ends]:
    with contextlib.ExitStack() as stack:
        yield Ends(stack)


def given(fds: list[int], setup: str = "") -> list[str]:
    """A program before another one that gives it descriptors from 3 on."""
    moves = " ".join(f"{number}<&{fd} {fd}<&-" for number, fd in enumerate(fds, 3))
    # Above the numbers that they are to have, so that none is overwritten before it is copied: bash does one by one.
    assert all(fd >= 3 + len(fds) for fd in fds)
    return ["bash", "-c", f'{setup} exec "$0" "$@" {moves}']


def high(fds: list[int]) -> list[int]:
    found: list[int] = []
    for fd in fds:
        found.append(fcntl.fcntl(fd, fcntl.F_DUPFD, 60))  # which is not closed by exec
        os.close(fd)
    return found


def begin(runtime: Runtime, fds: list[int], *words: str, setup: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*given(fds, setup), *runtime.words(*words)], pass_fds=fds, env=runtime.env.variables,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def talk(ends: Ends, process: subprocess.Popen[bytes]) -> None:
    """What :data:`TALK` says and is told."""
    ends.passed()
    data = os.urandom(1 << 16) * 20  # more than any buffer on the way holds
    with os.fdopen(ends.to_it, "wb") as to_it, os.fdopen(ends.from_it, "rb") as from_it:
        if (pid := os.fork()) == 0:
            from_it.close()
            to_it.write(data)
            to_it.close()
            os._exit(0)
        to_it.close()
        assert from_it.read(len(data)) == data
        os.waitpid(pid, 0)
        ends.peer.sendall(b"a word\n")
        ends.peer.shutdown(socket.SHUT_WR)
        assert ends.peer.recv(100) == b"got a word\n"
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (0, b"done\n"), err
        # Nobody has them any more: runc keeps its own until its end.
        assert from_it.read() == b"" and ends.peer.recv(100) == b""


def test_an_exec_has_them(either: Runtime, ends: Ends) -> None:
    container = either.create(either.bundle()).start()
    ends.given = high(ends.given)
    talk(ends, begin(either, ends.given, "exec", "--preserve-fds", "4", container.id, "sh", "-c", TALK))


def test_a_container_has_them(either: Runtime, ends: Ends) -> None:
    bundle = either.bundle("sh", "-c", TALK).write()
    ends.given = high(ends.given)
    talk(ends, begin(either, ends.given, "run", "--preserve-fds=4", "--bundle", str(bundle), either.new_id()))


def test_none_that_was_not_asked_for(either: Runtime, ends: Ends) -> None:
    container = either.create(either.bundle()).start()
    ends.given = high(ends.given)
    script = "cat <&3; ls /proc/self/fd | wc -l"
    words = ["exec", "--preserve-fds", "1", container.id, "sh", "-c", script]
    process = begin(either, ends.given, *words)
    ends.passed()
    os.write(ends.to_it, b"first\n")
    os.close(ends.to_it)
    out, _ = process.communicate(timeout=PATIENCE)
    assert out == b"first\n5\n"  # the standard three, this one, and the directory
    assert ends.peer.recv(1) == b""
    os.close(ends.from_it)


def test_those_of_socket_activation(either: Runtime, ends: Ends) -> None:
    """They come first, and the process is told of them (sd_listen_fds(3))."""
    bundle = either.bundle("sh", "-c", 'echo "$LISTEN_FDS $LISTEN_PID"; cat <&3; echo x >&4').write()
    ends.given = high(ends.given)
    words = ["run", "--preserve-fds", "1", "--bundle", str(bundle), either.new_id()]
    process = begin(either, ends.given[:2], *words, setup="export LISTEN_FDS=1 LISTEN_PID=$$;")
    ends.passed()
    os.write(ends.to_it, b"activated\n")
    os.close(ends.to_it)
    out, err = process.communicate(timeout=PATIENCE)
    assert out == b"1 1\nactivated\n", err
    with os.fdopen(ends.from_it) as from_it:
        assert from_it.read() == "x\n"


def test_a_peer_that_goes_away_ends_no_container(ours: Runtime, ends: Ends) -> None:
    container = ours.create(ours.bundle()).start()
    ends.given = high(ends.given)
    script = "trap '' PIPE; echo ready; while echo x >&5; do :; done 2>/dev/null; echo over"
    process = begin(ours, ends.given, "exec", "--preserve-fds", "4", container.id, "sh", "-c", script)
    ends.passed()
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    ends.peer.close()
    for fd in (ends.to_it, ends.from_it):
        os.close(fd)
    assert process.communicate(timeout=PATIENCE)[0] == b"over\n"
    assert container.sh("echo fine") == "fine"


def test_what_cannot_be_carried_is_refused(ours: Runtime, ends: Ends) -> None:
    container = ours.create(ours.bundle(), "--preserve-fds", "0").start()
    ends.given = high(ends.given)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
        for fd, said in (
            (os.open("/etc/hostname", os.O_RDONLY), "descriptor 3 is a file"),
            (os.open("/tmp", os.O_RDONLY), "descriptor 3 is a file"),
            (os.dup(server.fileno()), "descriptor 3 is a socket that listens"),
            (os.dup(packets.fileno()), "descriptor 3 is a socket without a connection"),
            (os.open("/dev/zero", os.O_RDONLY), "descriptor 3 cannot be given"),
        ):
            (moved,) = high([fd])
            process = begin(ours, [moved], "exec", "--preserve-fds", "1", container.id, "true")
            os.close(moved)
            _, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 255 and said in err.decode() and err.count(b"\n") == 1
    assert "descriptor 3 is to be preserved, and is not open" in ours.fails(
        "exec", "--preserve-fds", "1", container.id, "true", status=255
    )
    assert "16 can be at most" in ours.fails("exec", "--preserve-fds", "17", container.id, "true", status=255)
    assert "is negative" in ours.fails("create", "--preserve-fds=-1", "--bundle", ours.bundle().write(), "x")
