"""The platforms: what they keep in applications' memory, ways to make calls, and that both serve the same."""

from __future__ import annotations

import os

import pytest

from casemate.sentry.platform import NAMES as PLATFORMS
from tests.sentry.lab import C, both, build, sentry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the sentry is started by root")


def test_what_the_platform_keeps_natively() -> None:
    both("platform/gate.c")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_what_the_platform_keeps_cannot_be_taken(platform: str) -> None:
    program = str(build(C / "platform" / "gate.c"))
    done = sentry([program], options=[f"--platform={platform}", "--env=HERE=1"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("platform", PLATFORMS)
def test_programs_run_on_both(platform: str) -> None:
    script = "for i in 1 2 3 4; do (echo $i; exit $i) & wait $! || echo $?; done | sort | uniq -c; kill -TERM $$"
    done = sentry(["bash", "-c", script], options=[f"--platform={platform}"])
    assert done.returncode == 143 and done.stdout.split() == [b"2", b"1", b"2", b"2", b"2", b"3", b"2", b"4"], done


def test_a_platform_that_there_is_not_is_an_error() -> None:
    done = sentry(["true"], options=["--platform=kvm"])
    assert done.returncode == 125 and b"no platform" in done.stderr
