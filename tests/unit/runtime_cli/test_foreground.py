"""Waiting for a process: its status, signals for it, its terminal."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys

import pytest

from casemate.runtime_cli import console
from casemate.runtime_cli.foreground import Foreground


def _child(*words: str, **rest: object) -> int:
    return os.posix_spawn(words[0], list(words), os.environ, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("exit 0", 0)])
def test_the_status_is_the_processs(script: str, status: int) -> None:
    with Foreground(None) as foreground:
        assert foreground.wait(_child("/bin/sh", "-c", script), lambda number: None) == status


def test_signals_are_forwarded_and_those_before_the_wait_are_not_lost() -> None:
    seen: list[int] = []
    pid = 0

    def forward(number: int) -> None:
        seen.append(number)
        os.kill(pid, signal.SIGKILL if len(seen) == 3 else 0)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTSTP)

    with Foreground(None) as foreground:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        pid = _child("/bin/sleep", "100")
        assert foreground.wait(pid, forward) == 137
    assert seen == [signal.SIGTERM, signal.SIGINT, signal.SIGTSTP]


def test_handlers_are_put_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with Foreground(None):
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_terminals_output_is_carried_to_its_last_byte(capfd: pytest.CaptureFixture[str]) -> None:
    made = console.Console((24, 80))
    actions = [(os.POSIX_SPAWN_DUP2, made.slave, number) for number in (0, 1, 2)]
    pid = _child("/bin/sh", "-c", "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done", file_actions=actions)
    made.close_slave()
    with Foreground(made) as foreground:
        assert foreground.wait(pid, lambda number: None) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines == [f"line {number}" for number in range(5000)]


def test_input_is_carried_to_the_terminal(tmp_path: object) -> None:
    script = (
        "import os, sys\n"
        "from casemate.runtime_cli import console\n"
        "from casemate.runtime_cli.foreground import Foreground\n"
        "made = console.Console(None)\n"
        "actions = [(os.POSIX_SPAWN_DUP2, made.slave, n) for n in (0, 1, 2)]\n"
        "pid = os.posix_spawn('/bin/sh', ['sh', '-c', 'head -c 100000 | cksum'], os.environ, file_actions=actions)\n"
        "made.close_slave()\n"
        "with Foreground(made) as f: sys.exit(f.wait(pid, lambda n: None))\n"
    )
    data = bytes(range(256)) * 400
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, timeout=60)
    expected = subprocess.run(["cksum"], input=data[:100000], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, expected.stdout)


def test_output_is_not_lost_where_standard_output_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(writer, bytes(4096))
    poll = select.poll

    def poll_when_there_is_room() -> select.poll:
        assert len(os.read(reader, filled)) == filled
        return poll()

    made = console.Console(None)
    saved = os.dup(1)
    try:
        os.write(made.slave, b"hello")
        os.dup2(writer, 1)
        monkeypatch.setattr(select, "poll", poll_when_there_is_room)
        shown = Foreground(made)._show()
    finally:
        os.dup2(saved, 1)
        monkeypatch.undo()
        os.close(saved)
        os.close(writer)
        made.close()
    assert shown and os.read(reader, 100) == b"hello"
    os.close(reader)
