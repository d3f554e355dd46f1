"""Throttlers that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casemate.ksm.kept import Home
from tests.unit.ksm import kernel


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "run", kernel.make(tmp_path / "kernel"))


@pytest.fixture
def throttler() -> Iterator[Callable[..., kernel.Process]]:
    made: list[kernel.Process] = []

    def make(*args: object, **more: object) -> kernel.Process:
        made.append(kernel.Process(*args, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()
