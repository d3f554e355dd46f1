"""Threads that race with each other on sockets: the sentry goes on, and no defect shows."""

from __future__ import annotations

import pytest

from tests.sentry.lab import C, build, native, sentry


@pytest.mark.parametrize("network", ["none", "host"])
@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_storm_of_calls(seed: str, network: str) -> None:
    program = str(build(C / "hostile" / "sockets.c"))
    assert native([program, seed]).stdout == b"ends\n"
    done = sentry([program, seed], options=["--debug", "--network", network])
    told = done.stderr[-6000:].decode(errors="replace")
    assert (done.returncode, done.stdout) == (0, b"ends\n") and b"Traceback" not in done.stderr, told
