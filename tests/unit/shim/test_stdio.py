"""Standard streams: no byte is lost, nobody waits for someone who is gone."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from casemate.shim import status, stdio
from casemate.shim.pumps import BACKLOG
from casemate.shim.status import StatusError
from tests.unit.shim.world import World

SCRIPT = "yes 0123456789abcdef | head -c {size}"


def ended(world: World, name: str = "box", exec_id: str = "") -> dict[str, Any]:
    world.call("Wait", id=name, exec_id=exec_id)
    return world.call("Delete", id=name, exec_id=exec_id)


def test_output_and_error_are_apart(world: World) -> None:
    out, err = world.fifo("out"), world.fifo("err")
    output, errors = world.reader(out), world.reader(err)
    world.run("box", "sh", "-c", "echo to out; echo to err >&2", stdout=out, stderr=err)
    ended(world)
    assert (output.all(), errors.all()) == (b"to out\n", b"to err\n")


def test_only_the_streams_that_are_named(world: World) -> None:
    out = world.fifo("out")
    output = world.reader(out)
    world.run("box", "sh", "-c", "echo lost >&2; readlink /proc/self/fd/0 /proc/self/fd/2", stdout=out)
    ended(world)
    assert output.all() == b"/dev/null\n/dev/null\n"


def test_a_slow_reader_gets_everything_and_holds_nothing_up(world: World) -> None:
    size = 5_000_000
    out = world.fifo("out")
    fd = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    world.run("box", "sh", "-c", SCRIPT.format(size=size), stdout=out)
    time.sleep(0.3)
    assert world.call("State", id="box")["status"] == 2  # it waits for the reader, and the shim does not
    digest, count = hashlib.sha256(), 0
    while part := os.read(fd, 100_000):
        digest.update(part)
        count += len(part)
    os.close(fd)
    expected = (b"0123456789abcdef\n" * (size // 17 + 1))[:size]
    assert (count, digest.digest()) == (size, hashlib.sha256(expected).digest())
    ended(world)


def test_a_reader_that_is_slow_at_the_end_gets_everything(world: World) -> None:
    size = 100_000  # more than a FIFO holds, less than a FIFO and a pipe
    out = world.fifo("out")
    fd = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    world.run("box", "sh", "-c", SCRIPT.format(size=size), stdout=out)
    world.call("Wait", id="box")
    future = world.ask("Delete", id="box")
    world.loop.run_until(future, 15)  # which gives up waiting
    world.call("Shutdown", id="box")
    count = 0
    while part := os.read(fd, 4096):
        count += len(part)
    os.close(fd)
    assert count == size
    assert world.until(lambda: world.process.poll() is not None)


def test_a_reader_that_is_gone_stops_nobody(world: World) -> None:
    out = world.fifo("out")
    reader = world.reader(out)
    world.run("box", "sh", "-c", f"echo first; {SCRIPT.format(size=5_000_000)}; exit 5", stdout=out)
    world.until(lambda: reader.data)
    reader.stop()
    assert world.call("Wait", id="box")["exit_status"] == 5
    world.call("Delete", id="box")


def test_who_comes_back_gets_what_was_kept(world: World, tmp_path: Path) -> None:
    out, go, flag = world.fifo("out"), world.fifo("go"), tmp_path / "flag"
    first = world.reader(out)
    missed = f"echo missed; {SCRIPT.format(size=200_000)}; echo kept; touch {flag}"
    world.run("box", "sh", "-c", f"echo first; read word < {go}; {missed}; read word < {go}; echo on", stdout=out)
    world.until(lambda: bytes(first.data) == b"first\n")
    first.stop()
    with open(go, "w") as file:
        file.write("go\n")
    world.until(flag.exists)  # it has written more than the FIFO holds, although nobody reads
    second = world.reader(out)
    world.until(lambda: bytes(second.data).endswith(b"kept\n"))
    assert second.data.startswith(b"missed\n0123456789abcdef\n")
    assert len(second.data) == len("missed\nkept\n") + 200_000
    with open(go, "w") as file:
        file.write("go\n")
    ended(world)
    assert second.all().endswith(b"kept\non\n")


def test_what_nobody_reads_is_bounded(world: World) -> None:
    out = world.fifo("out")
    world.reader(out).stop()
    size = BACKLOG * 3
    world.run("box", "sh", "-c", SCRIPT.format(size=size), stdout=out)
    world.call("Wait", id="box")
    late = world.reader(out)
    world.call("Delete", id="box")
    got = late.all()
    expected = (b"0123456789abcdef\n" * (size // 17 + 1))[:size]
    assert BACKLOG // 2 < len(got) <= BACKLOG + 65536
    assert expected.endswith(got[-BACKLOG:])


def test_a_fifo_that_nobody_has_opened_yet(world: World) -> None:
    out = world.fifo("out")
    world.run("box", "sh", "-c", "echo early", stdout=out)
    world.call("Wait", id="box")
    late = world.reader(out)
    assert late.all() == b"early\n"
    world.call("Delete", id="box")


# --- input ---


def test_input_goes_in_and_ends_when_the_client_says_so(world: World) -> None:
    inn, out = world.fifo("in"), world.fifo("out")
    output = world.reader(out)
    data = os.urandom(3_000_000)
    world.run("box", "cat", stdin=inn, stdout=out)
    with open(inn, "wb") as file:
        writer = threading.Thread(target=file.write, args=(data,))
        writer.start()
        world.until(lambda: not writer.is_alive())
    assert world.call("State", id="box")["status"] == 2  # one that comes back may go on writing
    with open(inn, "wb") as file:
        file.write(b"end")
    world.call("CloseIO", id="box", stdin=True)
    ended(world)
    assert output.all() == data + b"end"


def test_input_that_ends_before_the_process_starts(world: World) -> None:
    world.run("box", "sleep", "60")
    inn, out = world.fifo("in"), world.fifo("out")
    output = world.reader(out)
    world.add("box", "more", "sh", "-c", "cat; echo done", stdin=inn, stdout=out)
    world.call("CloseIO", id="box", exec_id="more", stdin=True)
    world.call("Start", id="box", exec_id="more")
    ended(world, exec_id="more")
    assert output.all() == b"done\n"
    world.remove("box")


def test_a_process_that_does_not_read_its_input(world: World) -> None:
    inn = world.fifo("in")
    world.run("box", "sh", "-c", "exec sleep 60 <&-", stdin=inn)
    fd = os.open(inn, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(fd, False)

    def refused() -> bool:
        try:
            os.write(fd, b"x" * 1000)
        except BrokenPipeError:
            return True
        except BlockingIOError:
            pass
        return False

    world.until(refused)
    os.close(fd)
    world.remove("box")


# --- terminals ---


def test_a_terminal(world: World) -> None:
    inn, out = world.fifo("in"), world.fifo("out")
    output = world.reader(out)
    script = "stty size; read word; echo got $word; stty size"
    world.create("box", "sh", "-c", script, stdin=inn, stdout=out, terminal=True)
    world.call("ResizePty", id="box", width=91, height=33)
    world.call("Start", id="box")
    world.until(lambda: b"33 91" in output.data)
    world.call("ResizePty", id="box", width=120, height=40)
    with open(inn, "w") as file:
        file.write("hello\r")
    ended(world)
    assert output.all() == b"33 91\r\nhello\r\ngot hello\r\n40 120\r\n"


def test_a_terminals_last_bytes(world: World) -> None:
    for number in range(3):
        out = world.fifo(f"out{number}")
        output = world.reader(out)
        world.run(f"box{number}", "sh", "-c", "seq 1 2000", stdout=out, terminal=True)
        ended(world, f"box{number}")
        assert output.all() == b"".join(b"%d\r\n" % one for one in range(1, 2001))


def test_an_added_process_with_a_terminal_of_a_size_asked_for_early(world: World) -> None:
    world.run("box", "sleep", "60")
    out = world.fifo("out")
    output = world.reader(out)
    script = "while [ \"$(stty size < /dev/tty)\" = '0 0' ]; do sleep 0.05; done; stty size < /dev/tty"
    world.add("box", "more", "sh", "-c", script, stdout=out, terminal=True)
    world.call("ResizePty", id="box", exec_id="more", width=77, height=22)
    world.call("Start", id="box", exec_id="more")
    world.call("Wait", id="box", exec_id="more")
    with pytest.raises(StatusError):
        world.call("ResizePty", id="box", exec_id="more", width=1, height=1)
    world.call("Delete", id="box", exec_id="more")
    assert output.all() == b"22 77\r\n"
    world.remove("box")


def test_a_terminal_that_nobody_reads(world: World) -> None:
    world.run("box", "sh", "-c", SCRIPT.format(size=500_000), terminal=True)
    assert world.call("Wait", id="box")["exit_status"] == 0
    world.call("Delete", id="box")


# --- files and programs ---


def test_a_file(world: World, tmp_path: Path) -> None:
    log = tmp_path / "some" / "where" / "log"
    for _ in range(2):
        world.run("box", "sh", "-c", "echo one; echo two >&2", stdout=f"file://{log}", stderr=f"file://{log}")
        ended(world)
    assert sorted(log.read_text().split()) == ["one", "one", "two", "two"]
    assert stat.S_IMODE(log.stat().st_mode) == 0o644


def _logger(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "logger"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_logging_program(world: World, tmp_path: Path) -> None:
    path = _logger(tmp_path, 'exec 5>&-; { echo "$1=$2 $CONTAINER_ID $CONTAINER_NAMESPACE"; cat <&3; cat <&4; } > $2')
    log = tmp_path / "a log"
    uri = f"binary://{path}?to={str(log).replace(' ', '%20')}"
    world.run("box", "sh", "-c", "echo out; echo err >&2", stdout=uri, stderr=uri)
    ended(world)
    assert log.read_text() == f"to={log} box tests\nout\nerr\n"


def test_a_logging_program_for_a_terminal(world: World, tmp_path: Path) -> None:
    log = tmp_path / "log"
    uri = f"binary://{_logger(tmp_path, f'exec 5>&-; cat <&3 > {log}')}"
    world.run("box", "sh", "-c", "echo out", stdout=uri, terminal=True)
    ended(world)
    assert log.read_text() == "out\n" or log.read_bytes() == b"out\r\n"


def test_a_logging_program_that_ends_at_once(world: World, tmp_path: Path) -> None:
    uri = f"binary://{_logger(tmp_path, 'exit 1')}"
    world.run("box", "sh", "-c", "trap '' PIPE; echo lost; exit 9", stdout=uri, stderr=uri)
    assert ended(world)["exit_status"] == 9


def test_streams_that_cannot_be(world: World, tmp_path: Path) -> None:
    world.call("Connect")  # it has begun
    before = len(os.listdir(f"/proc/{world.process.pid}/fd"))
    for name, code in (
        ("/no/such/fifo", status.UNKNOWN), ("ftp://host/file", status.INVALID_ARGUMENT),
        ("binary:///no/such/program", status.UNKNOWN), ("file:///proc/no/file", status.UNKNOWN),
        (f"file://{world.fifo('nobody-reads')}", status.UNKNOWN), (str(tmp_path), status.UNKNOWN),
    ):
        with pytest.raises(StatusError) as caught:
            world.create("box", "true", stdin=world.fifo(f"in{code}{len(name)}"), stdout=name, stderr=name)
        assert caught.value.code == code
    assert len(os.listdir(f"/proc/{world.process.pid}/fd")) == before
    assert world.calls() == []


def test_nothing_is_left_open(world: World) -> None:
    world.run("first", "true")
    ended(world, "first")
    before = sorted(os.listdir(f"/proc/{world.process.pid}/fd"))
    for number, terminal in enumerate((False, True, False)):
        out, inn = world.fifo(f"out{number}"), world.fifo(f"in{number}")
        name = f"box{number}"
        reader = world.reader(out)
        world.run(name, "sleep", "60", stdin=inn, stdout=out, terminal=terminal)
        world.add(name, "more", "sh", "-c", "echo x", stdin=inn, stdout=out, terminal=terminal)
        world.call("Start", id=name, exec_id="more")
        ended(world, name, "more")
        if number == 2:
            world.trouble("exec")
            world.add(name, "bad", "true", stdin=inn, stdout=out)
            with pytest.raises(StatusError):
                world.call("Start", id=name, exec_id="bad")
        world.remove(name)
        reader.all()
    assert sorted(os.listdir(f"/proc/{world.process.pid}/fd")) == before


def test_output_that_somebody_else_holds_open_does_not_hold_up_the_deletion(world: World) -> None:
    out = world.fifo("out")
    output = world.reader(out)
    world.run("box", "sh", "-c", "echo before; setsid sleep 30 & exit 0", stdout=out)
    world.call("Wait", id="box")
    began = time.monotonic()
    world.call("Delete", id="box")
    assert stdio.SETTLE_SECONDS - 0.5 < time.monotonic() - began < stdio.SETTLE_SECONDS + 5
    assert output.all() == b"before\n"


@pytest.mark.parametrize(("name", "parts"), [
    ("/a/path", ("fifo", "/a/path", [])), ("fifo:///a/path", ("fifo", "/a/path", [])),
    ("file:///a%20path", ("file", "/a path", [])),
    ("binary:///bin/log?a=1&b=&c&a=2", ("binary", "/bin/log", ["a", "1", "b", "", "c", ""])),
])
def test_names_of_streams(name: str, parts: tuple[str, str, list[str]]) -> None:
    assert stdio.split(name) == parts
