"""Defects of the sentry's own, brought in: they are kept to what they concern, told once, and never let anything by."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("defective_do.py")
NAMED = "import ctypes; ctypes.CDLL(None).prctl(15, b'victim'); "


WAITS = (
    "import os; r, w = os.pipe(); own = os.getpid(); state = lambda: open(f'/proc/{own}/stat').read().split()[2]; "
    "waits = lambda: next(True for _ in iter(int, 1) if state() == 'S')"
)
"""A pipe, and how a child waits for its parent to wait for it."""


def run(which: str, script: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script of bash's behind a sentry with that defect."""
    return subprocess.run(
        [sys.executable, "-P", DRIVER, which, "bash", "-c", script],
        input=b"", capture_output=True, timeout=100, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip


def told(done: subprocess.CompletedProcess[bytes]) -> int:
    """How many traces there are in the log."""
    return done.stderr.count(b"ZeroDivisionError")


@pytest.mark.parametrize(
    ("which", "code"),
    [
        ("deadline", "import time; time.sleep(0.05)"),
        ("timer", "import signal; signal.setitimer(signal.ITIMER_REAL, 0.05); signal.pause()"),
        ("wake", f"{WAITS}; os.fork() and os.read(r, 1) or (waits(), os.write(w, b'x'), os._exit(0))"),
    ],
)
def test_the_program_is_killed_and_the_others_go_on(which: str, code: str) -> None:
    victim = f'/usr/bin/python3 -c "{NAMED}{code}; print()"; echo $?'
    done = run(which, f"{victim}; {victim}; echo all | cat")
    assert done.stdout == b"137\n137\nall\n", done.stderr
    assert done.returncode == 0
    assert told(done) == 1, done.stderr
    assert done.stderr.count(b"is killed for it") == 2


def test_a_descriptor_is_told_no_more_and_looked_at_again() -> None:
    """The first time that input is ready the sentry's reader fails: the program still gets it."""
    told_of = "(waits(), os.write(1, b'waits\\n'), os._exit(0))"
    code = f"{WAITS}; os.fork() and os.write(1, os.read(0, 100)) or {told_of}"
    process = subprocess.Popen(
        [sys.executable, "-P", DRIVER, "ready", "/usr/bin/python3", "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waits\n"
        out, err = process.communicate(b"words\n", timeout=60)
        assert out == b"words\n" and process.returncode == 0, err
        assert err.count(b"ZeroDivisionError") == 1, err
    finally:
        process.kill()
        process.communicate()


def test_a_handler_fails_its_call_alone() -> None:
    code = "import select\nfor _ in range(3):\n try: select.epoll()\n except OSError as e: print(e.errno)"
    done = run("handler", f'/usr/bin/python3 -c "{code}"')
    assert done.stdout.split() == [b"14"] * 3, done.stderr
    assert told(done) == 1


def test_without_what_it_needs_the_sandbox_ends() -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", DRIVER, "signals", "bash", "-c", "echo up; sleep 60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGUSR1)
        said = process.communicate(timeout=30)[1]
        assert b"cannot do without: it ends" in said and b"ZeroDivisionError" in said
    finally:
        process.kill()
        process.communicate()
