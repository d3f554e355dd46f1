"""Turns at booting: bounded, first come, given back by whatever end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from casemate.config import Config
from casemate.errors import HostError
from casemate.vm import boots


def config(tmp_path: Path, count: int) -> Config:
    return Config(run=tmp_path, parallel_boots=count)


def take(tmp_path: Path, count: int, waiting: threading.Event, gone: threading.Event) -> boots.Turn:
    return boots.take(config(tmp_path, count), "0" * 64, waiting.set, gone)


def test_as_many_as_slots_then_one_waits(tmp_path: Path) -> None:
    waiting, gone, got = threading.Event(), threading.Event(), threading.Event()
    held = [take(tmp_path, 2, waiting, gone) for _ in range(2)]
    assert not waiting.is_set()

    def third() -> None:
        take(tmp_path, 2, waiting, gone).end()
        got.set()

    thread = threading.Thread(target=third)
    thread.start()
    assert waiting.wait(10)
    assert not got.is_set()
    held[0].end()
    held[0].end()
    assert got.wait(10)
    thread.join()
    held[1].end()
    gone.set()


@pytest.mark.parametrize("freed", [0, 1])
def test_whichever_slot_is_free_first_is_taken_and_nothing_is_kept_of_the_other(tmp_path: Path, freed: int) -> None:
    gone, free = threading.Event(), threading.Event()
    held = [take(tmp_path, 2, free, gone) for _ in range(2)]
    orders = [threading.Event() for _ in range(3)]
    ended = threading.Semaphore(0)

    def queue(waiting: threading.Event) -> None:
        take(tmp_path, 2, waiting, gone).end()
        ended.release()

    threads = [threading.Thread(target=queue, args=(waiting,)) for waiting in orders]
    for thread, waiting in zip(threads, orders, strict=True):
        thread.start()
        assert waiting.wait(10)
    held[freed].end()  # all have it, one after the other, while the other slot stays where it is
    for _ in threads:
        assert ended.acquire(timeout=10)
    held[1 - freed].end()
    assert not free.is_set()
    deadline = time.monotonic() + 10
    while boots.busy(config(tmp_path, 2)):
        assert time.monotonic() < deadline, "a slot is kept by who has had his turn"
        time.sleep(0.01)


def test_who_is_not_wanted_any_more_stops_waiting(tmp_path: Path) -> None:
    waiting, gone = threading.Event(), threading.Event()
    held = take(tmp_path, 1, waiting, gone)
    errors: list[HostError] = []

    def second() -> None:
        with pytest.raises(HostError, match="waited") as caught:
            take(tmp_path, 1, waiting, gone)
        errors.append(caught.value)

    thread = threading.Thread(target=second)
    thread.start()
    assert waiting.wait(10)
    gone.set()
    thread.join(10)
    assert len(errors) == 1
    held.end()


def test_one_slot_for_each_processor(tmp_path: Path) -> None:
    assert boots.slots(config(tmp_path, 0)) >= boots.LEAST
    assert boots.slots(config(tmp_path, 7)) == 7


def test_unusable_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "boots").write_text("in the way")
    with pytest.raises(HostError, match="boots"):
        take(tmp_path, 1, threading.Event(), threading.Event())
