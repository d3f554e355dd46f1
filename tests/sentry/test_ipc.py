"""Pipes, FIFOs, event files, polling and the System V and POSIX objects: C cases, natively and behind the sentry."""

from __future__ import annotations

import pytest

from tests.sentry.lab import C, both, build, sentry

CASES = ["pipe", "fifo", "eventfd", "timerfd", "signalfd", "poll", "epoll", "memfd", "sem", "msg", "mqueue", "sigio"]


@pytest.mark.parametrize("case", CASES)
def test_as_linux(case: str) -> None:
    both(f"ipc/{case}.c")


@pytest.mark.parametrize("seed", range(3))
def test_calls_without_sense_find_no_defect(seed: int) -> None:
    done = sentry([str(build(C / "ipc/random.c")), str(seed), "4000"], options=["--debug"])
    assert (done.returncode, done.stdout.strip()) == (0, b"done"), done.stderr[-3000:].decode(errors="replace")
    # What the kernel says of an exception that no call should raise.
    assert b"Traceback" not in done.stderr, done.stderr[-5000:].decode(errors="replace")
