"""kill -9 of anybody at any moment of the OCI command line, behind the sentry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kills import Kills
from tests.vm import oci
from tests.vm.support import Environment
from tests.vm.test_runtime_kill_anywhere import STEPS, CommandLine


class BehindTheSentry(CommandLine):
    """Of the same parts as with a machine, but for that."""

    name = "the OCI command line, behind the sentry"
    sentry = True
    pairs = (
        *(
            (victim, step)
            for victim in ("client", "stand-in", "keeper", "machine", "file server", "program")
            for step in STEPS
        ),
        ("exec stand-in", "exec"),
    )


@pytest.fixture
def kills(env: Environment, tmp_path: Path) -> Iterator[Kills]:
    """Rounds with our runtime."""
    with oci.runtime("casemate", env, tmp_path) as made:
        yield Kills(BehindTheSentry(made))


def test_anybody_at_any_moment(kills: Kills) -> None:
    kills.run(5, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_anybody_at_300_moments(kills: Kills) -> None:
    kills.run(300)
