"""Processes behind the sentry: C cases that succeed natively first, in each way that programs are linked."""

from __future__ import annotations

import os

import pytest

from tests.sentry.lab import C, both, sentry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the sentry is started by root")
CASES = sorted(path.name for path in (C / "process").glob("*.c"))


@pytest.mark.parametrize("case", CASES)
def test_case(case: str) -> None:
    both(f"process/{case}")


@pytest.mark.parametrize("linking", ["-pie", "-no-pie", "-static-pie"])
def test_linking(linking: str) -> None:
    """A program with a dynamic loader or without, at a fixed address or anywhere."""
    both("process/exec.c", flags=["-fPIE" if linking != "-no-pie" else "-fno-pie", linking])


@pytest.mark.parametrize(("command", "signum"), [(0x4321FEDC, 2), (0x01234567, 1)])
def test_turning_off_ends_the_sandbox(command: int, signum: int) -> None:
    """The first process is not the one that calls: it ends all the same, by a signal that says why."""
    call = f"import ctypes; ctypes.CDLL(None).syscall(169, 0xFEE1DEAD, 0x28121969, {command}, 0)"
    done = sentry(["sh", "-c", f"/usr/bin/python3 -c '{call}'; echo still there"])
    assert (done.returncode, done.stdout) == (128 + signum, b"")
