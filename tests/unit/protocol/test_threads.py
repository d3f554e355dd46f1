"""Threads that wait for something to do (``casemate.protocol.threads``)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from casemate.protocol import threads


@pytest.fixture
def two() -> Iterator[None]:
    """Two threads are kept."""
    threads.park(2)
    yield
    threads._places = 0
    while threads._parked:  # each that is given something to do ends afterwards
        threads.start(lambda: None)


def run(count: int) -> list[int]:
    """The threads on which so many things were done at once."""
    together = threading.Barrier(count + 1, timeout=10)
    seen: list[int] = []

    def task(value: int) -> None:
        seen.append(threading.get_ident())
        together.wait()

    for number in range(count):
        threads.start(task, number)
    together.wait()
    return seen


def waiting(count: int) -> None:
    """Wait until so many have nothing to do."""
    deadline = time.monotonic() + 10
    while len(threads._parked) != count:
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def test_those_that_wait_are_taken_first(two: None) -> None:
    waiting(2)
    first = run(2)
    waiting(2)
    assert set(run(2)) == set(first)


def test_there_are_more_where_more_are_needed_and_no_more_are_kept(two: None) -> None:
    waiting(2)
    assert len(set(run(5))) == 5
    waiting(2)


def test_none_is_kept_where_nobody_asked() -> None:
    run(3)
    assert not threads._parked
