"""A shim for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.shim.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A shim with a fake runtime, a fake containerd, and a client."""
    made = World(tmp_path)
    try:
        yield made
    finally:
        made.close()
