"""Fixtures for the unit tests of machines."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def nothing_leaks() -> Iterator[None]:
    """The test leaves as many descriptors open as there were."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before
