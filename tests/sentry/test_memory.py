"""Memory and futexes, by C cases that natively succeed."""

from __future__ import annotations

import pytest

from tests.sentry.lab import C, both, build, sentry


@pytest.mark.parametrize("case", ["map", "advice", "passed", "given", "many", "shm", "vmcopy", "hostile"])
def test_memory(case: str) -> None:
    both(f"mm/{case}.c")


@pytest.mark.parametrize("platform", ["notify-python", "ptrace"])
def test_memory_is_given_alike_on_every_platform(platform: str) -> None:
    done = sentry([str(build(C / "mm" / "given.c"))], options=[f"--platform={platform}"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", ["raw", "threads"])
def test_futexes(case: str) -> None:
    both(f"futex/{case}.c")
