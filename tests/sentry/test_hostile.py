"""Programs that mean harm, or make none of the sense that Linux expects: the sentry goes on, and no defect shows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sentry.lab import C, both, build, native, sentry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the sentry is started by root")


def ends(name: str, *arguments: str) -> None:
    """A program of ``c/hostile`` comes to its end, and the sentry's log has no exception of the sentry's own."""
    done = sentry([str(build(C / "hostile" / name)), *arguments], options=["--debug"])
    told = done.stderr[-6000:].decode(errors="replace")
    assert done.returncode == 0, told
    assert b"ends" in done.stdout
    assert b"Traceback" not in done.stderr, told


def test_programs_with_wrong_headers() -> None:
    ends("programs.c", "200")


@pytest.mark.parametrize("seed", ["1", "2"])
def test_every_call_with_arguments_without_sense(seed: str) -> None:
    ends("calls.c", "60", seed)


def test_everything_ends_at_once() -> None:
    both("hostile/ends.c")


@pytest.mark.parametrize("platform", ["notify", "notify-python", "ptrace"])
@pytest.mark.parametrize("name", ["segments.c", "interrupted_forks.c", "races.c", "storms.c"])
def test_the_sandbox_goes_on(name: str, platform: str, tmp_path: Path) -> None:
    program = [str(build(C / "hostile" / name))]
    there = native(program, cwd=str(tmp_path))
    assert there.returncode == 0, there.stderr.decode()
    done = sentry(program, options=["--debug", "--platform", platform])
    assert done.returncode == 0, done
    assert b"Traceback" not in done.stderr, done.stderr.decode()


def below(pid: int) -> Iterator[int]:
    """All processes that a process has started."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # it has ended
            continue
        for child in children:
            yield int(child)
            yield from below(int(child))


def of_two_threads(pid: int) -> bool:
    """Whether it is an application's process with two threads."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) == 2 and not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize("platform", ["notify", "notify-python", "ptrace"])
def test_killed_by_the_host_at_any_moment(platform: str) -> None:
    """As for want of memory: while the sentry has the first of several threads make a call, or interrupts it."""
    program = str(build(C / "hostile" / "storm.c"))
    command = [sys.executable, "-P", "-m", "casemate", "do", "--platform", platform, "--", program, "8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        ends = []
        try:
            for line in running.stdout:
                if line != b"runs\n":
                    ends.append(line)
                    continue
                victim, until = None, time.monotonic() + 30
                while victim is None and time.monotonic() < until:
                    victim = next((pid for pid in below(running.pid) if of_two_threads(pid)), None)
                assert victim is not None
                time.sleep(0.2)
                os.kill(victim, signal.SIGKILL)
        finally:
            running.kill()
    # SIGSEGV where the sentry was writing a signal's frame into memory that was there no more.
    assert len(ends) == 8
    assert set(ends) <= {b"ended by 9\n", b"ended by 11\n"}, ends
