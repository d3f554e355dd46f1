"""The loop: steps, timers, threads, children."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from casemate.shim import shim as shim_module
from casemate.shim.loop import READ, Future, Lock, Loop
from casemate.shim.pumps import OutputPump


@pytest.fixture
def loop() -> Iterator[Loop]:
    complaints: list[str] = []
    made = Loop(complaints.append)
    yield made
    made.close()


def test_steps_wait_and_return(loop: Loop) -> None:
    first = Future()

    def inner() -> Any:
        return (yield first) + 1

    def outer() -> Any:
        value = yield from inner()
        return value * 2

    result = loop.start(outer())
    assert not result.done
    first.set(20)
    assert loop.run_until(result) == 42


def test_errors_are_raised_where_they_are_waited_for(loop: Loop) -> None:
    failing = Future()

    def steps() -> Any:
        try:
            yield failing
        except KeyError:
            raise ValueError("inside") from None

    result = loop.start(steps())
    failing.fail(KeyError("x"))
    with pytest.raises(ValueError, match="inside"):
        loop.run_until(result)


def test_many_steps_that_need_not_wait_do_not_fill_the_stack(loop: Loop) -> None:
    def steps() -> Any:
        for _ in range(100_000):
            done = Future()
            done.set(1)
            yield done
        return "end"

    assert loop.run_until(loop.start(steps())) == "end"


def test_an_error_that_nobody_waits_for_is_told() -> None:
    told: list[str] = []
    loop = Loop(told.append)

    def steps() -> Any:
        yield loop.pause(0)
        raise RuntimeError("alone")

    loop.spawn(steps())
    while not told:
        loop.turn(1)
    assert told == ["RuntimeError: alone"]
    loop.close()


def test_timers_fire_in_order_and_can_be_cancelled(loop: Loop) -> None:
    seen: list[int] = []
    for number, seconds in ((3, 0.03), (1, 0.01), (2, 0.02)):
        loop.later(seconds, lambda number=number: seen.append(number))  # type: ignore[misc]
    loop.later(0.005, lambda: seen.append(0)).cancel()
    loop.run_until(loop.pause(0.05))
    assert seen == [1, 2, 3]


def test_a_bound_on_waiting(loop: Loop) -> None:
    never, soon = Future(), loop.pause(0.01)
    with pytest.raises(TimeoutError):
        loop.run_until(never, 0.02)
    loop.run_until(soon, 10)
    assert never._then == []


def test_locks_are_given_in_turn(loop: Loop) -> None:
    lock, seen = Lock(), []

    def steps(number: int) -> Any:
        yield lock.take()
        seen.append(number)
        yield loop.pause(0.001)
        seen.append(number)
        lock.give()

    loop.run_until([loop.start(steps(number)) for number in range(5)][-1])
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_threads_give_back_what_they_return_or_raise(loop: Loop) -> None:
    assert loop.run_until(loop.thread(lambda: threading.get_ident()), 10) != threading.get_ident()

    def fails() -> None:
        raise OSError(5, "it broke")

    with pytest.raises(OSError, match="it broke"):
        loop.run_until(loop.thread(fails), 10)


def test_one_callbacks_error_is_no_others(loop: Loop) -> None:
    reader, writer = os.pipe()
    seen: list[bytes] = []

    def read(_: int) -> None:
        seen.append(os.read(reader, 1))
        if len(seen) == 1:
            raise RuntimeError("once")

    loop.watch(reader, READ, read)
    os.write(writer, b"ab")
    while len(seen) < 2:
        loop.turn(1)
    loop.unwatch(reader)
    assert seen == [b"a", b"b"]
    os.close(reader)
    os.close(writer)


def test_only_so_many_slow_readers_are_waited_for(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that are there and never read would have a shim grow with each process that is deleted."""
    monkeypatch.setenv("CASEMATE_RUN", str(tmp_path))
    monkeypatch.setattr(shim_module, "MAX_LINGERING", 2)
    nobody = cast(Any, None)
    shim = shim_module.Shim(loop, nobody, nobody, "tests", socket_directory=str(tmp_path))
    pumps, readers = [], []
    for _ in range(3):
        source, process = os.pipe()
        reader, sink = os.pipe()
        for fd in (source, sink):
            os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(sink, bytes(4096))
        os.write(process, b"last words")
        os.close(process)
        pumps.append(OutputPump(loop, shim.arrivals, source, sink))
        readers.append(reader)
    loop.turn(0)
    loop.turn(0)
    for pump in pumps:
        assert not pump.done.done
        shim.keep_writing([pump])
    assert [pump.done.done for pump in pumps] == [True, False, False]
    for pump, reader in zip(pumps[1:], readers[1:], strict=True):
        while not pump.done.done:
            os.read(reader, 4096)
            loop.turn(0)
        assert os.read(reader, 1 << 16).endswith(b"last words")
    for reader in readers:
        os.close(reader)
