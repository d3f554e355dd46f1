"""Memory and futexes, by C cases that natively succeed."""

from __future__ import annotations

import pytest

from tests.sentry.lab import C, both, build, sentry


@pytest.mark.parametrize("case", ["map", "advice", "passed", "given", "heap", "many", "shm", "vmcopy", "hostile"])
def test_memory(case: str) -> None:
    both(f"mm/{case}.c")


@pytest.mark.parametrize("case", ["given", "heap"])
@pytest.mark.parametrize("platform", ["notify", "notify-python", "ptrace"])
def test_memory_is_given_alike_on_every_platform(platform: str, case: str) -> None:
    """Also where nobody counts calls, so that not all of them need be told."""
    done = sentry([str(build(C / "mm" / f"{case}.c"))], options=[f"--platform={platform}"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", ["raw", "threads"])
def test_futexes(case: str) -> None:
    both(f"futex/{case}.c")
