"""Short containers: how they end, what goes in and comes out, and many of them at once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
from collections.abc import Iterator

import pytest

from tests.engines.engines import Client, on
from tests.engines.images import BOX
from tests.engines.terminal import eventually, terminal

pytestmark = on("docker", "podman")


@contextlib.contextmanager
def removed(cli: Client, name: str) -> Iterator[None]:
    """Where a test fails, what it has begun is not to stay: whoever comes after would be taken for its maker."""
    try:
        yield
    except BaseException:
        cli.remove(name)
        raise


@pytest.mark.feature("exit status")
def test_streams_and_exit_status(cli: Client) -> None:
    done = cli("run", "--rm", BOX, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


@pytest.mark.feature("exit status")
def test_program_missing(cli: Client) -> None:
    said = cli.fails("run", "--rm", BOX, "no-such-program", status=127)
    assert "no-such-program" in said and "not found" in said


@pytest.mark.feature("exit status")
def test_program_not_executable(cli: Client) -> None:
    said = cli.fails("run", "--rm", BOX, "/etc/passwd", status=126)
    assert "permission denied" in said.lower()


@pytest.mark.feature("exit status")
def test_engine_refuses(cli: Client) -> None:
    cli.fails("run", "--rm", "--no-such-option", BOX, "true", status=125)


@pytest.mark.feature("exit status")
def test_death_by_signal(cli: Client) -> None:
    # A first process cannot kill itself, but its kernel can.
    done = cli("run", "--rm", "--init", BOX, "sh", "-c", "kill -9 $$")
    assert done.returncode == 137, done.stderr


@pytest.mark.feature("standard input")
def test_much_in_and_out(cli: Client) -> None:
    data = random.Random(1).randbytes(8 << 20)
    done = cli("run", "--rm", "-i", BOX, "sh", "-c", "tee /dev/stderr", input=data, check=True)
    digest = hashlib.sha256(data).hexdigest()
    assert (len(done.stdout), hashlib.sha256(done.stdout).hexdigest()) == (len(data), digest)
    assert (len(done.stderr), hashlib.sha256(done.stderr).hexdigest()) == (len(data), digest)


@pytest.mark.feature("standard input")
def test_no_input_is_an_end(cli: Client) -> None:
    assert cli.out("run", "--rm", BOX, "sh", "-c", "cat; echo end", input=b"not for it") == "end"


@pytest.mark.feature("run -it")
def test_terminal(cli: Client) -> None:
    command = cli.command("run", "--rm", "-it", "--name", "typed", BOX, "sh")
    with removed(cli, "typed"), terminal(command, cli.variables, rows=31, columns=97) as screen:
        assert screen.ask("tty") == "/dev/pts/0"
        # A size is on its way beside the keys: the shell waits until it has come.
        assert screen.ask("until stty size 2>/dev/null | grep 31; do sleep 0.1; done") == "31 97"
        assert screen.resized(40, 120) == "40 120"
        screen.type("sh -c 'echo sl''eeping; exec sleep 1000'\n")
        screen.until("sleeping")
        screen.type("\x03")
        screen.type("echo status=$?\n")
        screen.until("status=130")
        screen.type("exit 7\n")
        assert screen.end() == 7


@pytest.mark.feature("many at once")
def test_ten_in_parallel(cli: Client) -> None:
    said: dict[int, str] = {}

    def one(number: int) -> None:
        said[number] = cli.out("run", "--rm", "--label", "many", BOX, "echo", str(number), timeout=240)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: str(number) for number in range(10)}
    # Docker removes one a moment after the client that waits for its output has gone.
    eventually(lambda: cli.out("ps", "-aq", "--filter", "label=many") == "", "all are removed")


@pytest.mark.feature("standard input")
def test_closing_input_ends_it(cli: Client) -> None:
    read, write = os.pipe()
    words = ("run", "--rm", "-i", "--name", "reader", BOX, "sh", "-c", "echo ready; cat; echo end")
    with removed(cli, "reader"), cli.popen(*words, stdin=read) as process:
        os.close(read)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.write(write, b"words\n")
        assert process.stdout.readline() == b"words\n"
        os.close(write)
        assert process.stdout.read() == b"end\n"
        assert process.wait(60) == 0
