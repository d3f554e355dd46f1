"""A container's own bound of memory, with a made-up /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from casemate.sentry import starving
from casemate.sentry.clock import Clock
from casemate.sentry.starving import LONGEST, SHORTEST, MemoryWatch
from casemate.sentry.tasks.task import State

PAGE = os.sysconf("SC_PAGE_SIZE")
LIMIT = 64 << 20


class Process(SimpleNamespace):
    """Compared by identity, as processes are."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


class Still(Clock):
    """Shows the world's time."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def monotonic(self) -> int:
        return self.world.now


class World:
    """A kernel with some processes of a container ``c``."""

    def __init__(self, proc: Path) -> None:
        self.now = 0
        self.killed: list[Any] = []
        self.proc = proc
        platform = SimpleNamespace(proc=os.open(proc, os.O_RDONLY | os.O_DIRECTORY))
        kernel: Any = SimpleNamespace(clock=Still(self), groups={}, platform=platform)
        self.kernel = kernel
        self.told = 0
        self.watch = MemoryWatch(kernel, "c", LIMIT, self._tell)

    def _tell(self) -> None:
        self.told += 1

    def process(self, pid: int, state: State = State.RUNNING, container: str = "c", score: int = 0) -> Any:
        task = SimpleNamespace(thread=SimpleNamespace(pid=pid), state=state)
        made = Process(container=container, zombie=False, any_task=task, tasks={1: task}, oom_score_adj=score)
        self.kernel.groups[pid] = made
        (self.proc / str(pid)).mkdir()
        self.size(pid, 0)
        return made

    def size(self, pid: int, anonymous: int, share: int | None = None) -> None:
        """Bytes that it has, and of those its share of what it shares."""
        pages = anonymous // PAGE
        (self.proc / str(pid) / "statm").write_text(f"99999 {pages + 7} 7 0 0 0 0\n")
        rollup = self.proc / str(pid) / "smaps_rollup"
        if share is not None:
            rollup.write_text(f"head\nRss: 1 kB\nPss: 1 kB\nPss_Anon:      {share >> 10} kB\nPss_File: 5 kB\n")

    def pause(self) -> int:
        """Until the next look, which is taken then."""
        due = self.kernel.clock.next()
        assert due is not None
        passed: int = due - self.now
        self.now = due
        self.kernel.clock.run()
        return passed


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)

    def kill(group: Any, info: Any, force: bool) -> None:
        made.killed.append(group)
        group.zombie = True

    monkeypatch.setattr(starving, "send", kill)
    yield made
    os.close(made.kernel.platform.proc)


def test_the_largest_of_it_is_killed(world: World) -> None:
    small, large = world.process(10), world.process(11)
    world.process(12, container="other")
    world.size(12, LIMIT * 9)
    world.size(10, LIMIT // 3)
    world.size(11, LIMIT // 2)
    world.watch.start()
    world.pause()
    assert not world.killed
    world.size(11, LIMIT)
    world.pause()
    assert world.killed == [large] and world.told == 1
    world.pause()
    assert world.killed == [large]
    world.size(10, LIMIT + PAGE)
    world.pause()
    assert world.killed == [large, small]


def test_one_that_says_so_goes_first(world: World) -> None:
    world.process(10)
    ready = world.process(11, score=500)
    world.size(10, LIMIT * 3 // 4)
    world.size(11, LIMIT // 2)
    world.watch.start()
    world.pause()
    assert world.killed == [ready]


def test_what_is_shared_counts_once(world: World) -> None:
    for pid in range(10, 20):
        world.process(pid)
        world.size(pid, LIMIT // 2, LIMIT // 20)
    world.watch.start()
    world.pause()
    assert not world.killed
    world.size(15, LIMIT // 2, LIMIT * 3 // 5)
    world.pause()
    assert len(world.killed) == 1


def test_it_is_looked_at_the_sooner_the_nearer(world: World) -> None:
    process = world.process(10)
    world.watch.start()
    world.pause()
    far = world.pause()
    world.size(10, LIMIT // 4)
    world.pause()
    near = world.pause()
    world.size(10, LIMIT)
    world.pause()
    assert SHORTEST == world.pause() < near < far <= LONGEST
    process.any_task.state = State.BLOCKED
    world.pause()
    assert world.pause() == LONGEST
    world.watch.stop()
    assert world.kernel.clock.next() is None
