"""The daemon with keepers that have no machine: what it makes, hands out, refuses and leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casemate.config import Config
from casemate.errors import HostError
from casemate.keeper import client as keeper_client
from casemate.keeper import reap
from casemate.keeper.store import Store
from casemate.pool import client, daemon, homes
from casemate.pool.pace import Pace
from casemate.pool.supply import Supply
from tests.unit.keeper.helpers import make_spec

FAKE = (sys.executable, str(Path(__file__).with_name("fake_keeper.py")))


class FakeSupply(Supply):
    """What members are made of is what a test says."""

    name = "first"
    patience = 0.05

    def key(self) -> str:
        return self.name


class Running:
    """A pool in a thread, as if it had a process of its own."""

    def __init__(self, config: Config, size: int) -> None:
        self.config = config
        self.said: list[str] = []
        self.supply = FakeSupply(config)
        self.available = 1 << 20
        pace = Pace(config, available=lambda: self.available, busy=lambda: False)
        self.pool = daemon.Pool(config, size, self.said.append, FAKE, pace, self.supply)
        self.thread = threading.Thread(target=self.pool.run)

    def until(self, good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(HostError):
                found = client.status(self.config)
                if good(found):
                    return found
                assert time.monotonic() < deadline, found
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def ready(self, count: int) -> dict[str, Any]:
        return self.until(lambda found: sum(one["state"] == "ready" for one in found["members"]) >= count)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "mood").write_text("ready")
    (tmp_path / "root" / "containers").mkdir(parents=True)
    (tmp_path / "root" / "names").mkdir()
    return replace(Config(), root=tmp_path / "root", run=tmp_path / "run", pool_interval=0)


@pytest.fixture
def started(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Running]]:
    """Starts a pool; all are drained at the end."""
    wakes: list[Any] = []

    @contextlib.contextmanager
    def signals(*more: Any) -> Iterator[Any]:  # a thread gets none
        import socket

        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        wakes.append(theirs)
        yield ours
        ours.close()

    monkeypatch.setattr(daemon, "signals", signals)
    monkeypatch.setattr(reap, "clean_host", lambda container: None)
    running: list[Running] = []

    def start(size: int) -> Running:
        running.append(Running(config, size))
        running[-1].thread.start()
        return running[-1]

    yield start
    for one, wake in zip(running, wakes, strict=True):
        wake.send(bytes([signal.SIGTERM]))
        one.thread.join(20)
        assert not one.thread.is_alive()
        wake.close()
    assert [name for name in os.listdir(homes.home(config)) if name != ".lock"] == []
    assert not client.socket_path(config).exists()


def test_members_are_made_one_after_the_other_and_handed_out_once(
    started: Callable[[int], Running], config: Config
) -> None:
    pool = started(2)
    members = {one["id"] for one in pool.ready(2)["members"]}
    first, second = client.take(config, None, None, 0), client.take(config, None, None, 0)
    assert first is not None and second is not None
    assert {first.id, second.id} == members
    found = pool.ready(2)
    assert found["handed_out"] == 2 and found["made"] == 4 and not members & {one["id"] for one in found["members"]}
    for taken in (first, second):
        taken.close()


def test_a_member_becomes_a_containers_keeper(started: Callable[[int], Running], config: Config) -> None:
    started(1).ready(1)
    taken = client.take(config, None, None, 0)
    assert taken is not None
    spec = make_spec(id=taken.id)
    container = Store(config).create(spec, taken.path)
    assert container.lock_fd is None and not taken.path.exists()
    assert sorted(os.listdir(container.path)) == ["config.json", "keeper.log", "lock", "state.json", "upper", "work"]
    session = keeper_client.hand_over(config, container, taken.connection, (None, None, None), size=None)
    assert session.wait() == 7
    assert Store(config).get("one").id == taken.id


def test_where_the_member_has_died_the_door_starts_a_keeper(
    started: Callable[[int], Running], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(1).ready(1)
    taken = client.take(config, None, None, 0)
    assert taken is not None
    container = Store(config).create(make_spec(id=taken.id), taken.path)
    pid = next(int(name) for name in os.listdir("/proc") if name.isdigit() and taken.id in _command(name))
    os.kill(pid, signal.SIGKILL)
    assert container.wait_gone(10)
    asked: list[Any] = []

    def launch(*words: Any, **more: Any) -> str:
        asked.append((words, more))
        return "another"

    monkeypatch.setattr(keeper_client, "launch", launch)
    session = keeper_client.hand_over(config, container, taken.connection, (None, None, None), size=None)
    assert session == "another"  # type: ignore[comparison-overlap]
    assert asked[0][0][1] is container and container.lock_fd is not None
    os.close(container.lock_fd)


def _command(name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{name}/cmdline").read_text()
    return ""


def test_what_does_not_fit_gets_none(started: Callable[[int], Running], config: Config) -> None:
    pool = started(1)
    pool.ready(1)
    assert client.take(config, 128, None, 0) is None, "less memory than a member has"
    assert client.take(config, 1 << 20, None, 0) is None, "more than there is room for"
    assert client.take(config, None, 1.5, 0) is None
    assert client.take(config, None, None, 17) is None
    assert client.take(replace(config, stop_timeout=3), None, None, 0) is None
    assert pool.ready(1)["refused"] == 5
    taken = client.take(config, 4096, 0.5, 16)
    assert taken is not None
    taken.close()


def test_one_in_other_namespaces_gets_none(
    started: Callable[[int], Running], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(1).ready(1)
    monkeypatch.setattr(client, "namespaces", lambda: [1, 2, 3, 4, 5, 6])
    assert client.take(config, None, None, 0) is None


def test_a_stranger_is_not_answered(
    started: Callable[[int], Running], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = started(1)
    pool.ready(1)
    monkeypatch.setattr(daemon, "_peer", lambda sock: 12345)
    assert client.take(config, None, None, 0) is None
    with pytest.raises(HostError, match="does not answer"):
        client.status(config)
    monkeypatch.undo()


def test_a_door_that_goes_away_gives_its_member_back_to_nobody(
    started: Callable[[int], Running], config: Config
) -> None:
    pool = started(1)
    pool.ready(1)
    taken = client.take(config, None, None, 0)
    assert taken is not None
    taken.close()
    pool.until(lambda found: not taken.path.exists())


@pytest.mark.parametrize(("mood", "word"), [("fail", "no machine today"), ("die", "out of luck")])
def test_failures_are_told_once_and_tried_again(
    started: Callable[[int], Running], config: Config, mood: str, word: str
) -> None:
    (config.root.parent / "mood").write_text(mood)
    pool = started(1)
    found = pool.until(lambda found: found["failures"] >= 1)
    assert word in found["last_error"] and found["members"] == [] and client.take(config, None, None, 0) is None
    (config.root.parent / "mood").write_text("ready")
    pool.ready(1)
    assert sum(word in line for line in pool.said) == 1


def test_one_that_never_gets_ready_is_given_up(
    started: Callable[[int], Running], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "BIRTH_SECONDS", 0.3)
    (config.root.parent / "mood").write_text("hang")
    pool = started(1)
    assert "in time" in pool.until(lambda found: found["failures"] >= 1)["last_error"]


def test_one_that_gets_no_processor_is_waited_for(
    started: Callable[[int], Running], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def waited(pid: int) -> float:
        looked.append(pid)
        return 3600.0 if len(looked) < 4 else 0.0

    monkeypatch.setattr(daemon, "BIRTH_SECONDS", 0.1)
    monkeypatch.setattr(daemon, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(daemon, "waited", waited)
    (config.root.parent / "mood").write_text("hang")
    pool = started(1)
    pool.until(lambda found: found["failures"] >= 1)
    assert len(looked) >= 4 and len(set(looked[:4])) == 1, "it was given up at once"


def test_a_member_that_dies_is_replaced(started: Callable[[int], Running], config: Config) -> None:
    pool = started(1)
    victim = pool.ready(1)["members"][0]["id"]
    pid = next(int(name) for name in os.listdir("/proc") if name.isdigit() and victim in _command(name))
    os.kill(pid, signal.SIGKILL)
    found = pool.until(lambda found: found["failures"] == 1 and bool(found["members"]))
    assert victim not in {one["id"] for one in found["members"]}
    pool.until(lambda found: not (homes.home(config) / victim).exists())


def test_members_of_what_is_not_used_any_more_are_replaced(started: Callable[[int], Running], config: Config) -> None:
    pool = started(2)
    before = {one["id"] for one in pool.ready(2)["members"]}
    pool.supply.name = "second"
    assert client.take(config, None, None, 0) is None, "an old one must not be handed out"
    pool.until(lambda found: found["replaced"] == 2)
    assert not before & {one["id"] for one in pool.ready(2)["members"]}


def test_members_are_let_go_when_the_host_is_short_of_memory(
    started: Callable[[int], Running], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "RELEASE_SECONDS", 0.01)
    pool = started(2)
    pool.ready(2)
    pool.available = 10
    found = pool.until(lambda found: found["released"] == 2)
    assert found["failures"] == 0 and "memory" in pool.until(lambda found: bool(found["waits_for"]))["waits_for"]
    pool.available = 1 << 20
    pool.ready(2)


def test_there_is_one_pool(started: Callable[[int], Running], config: Config) -> None:
    started(1).ready(1)
    with pytest.raises(HostError, match="runs already"):
        daemon.Pool(config, 1, print, FAKE, supply=FakeSupply(config)).run()


def test_it_needs_templates(config: Config) -> None:
    with pytest.raises(HostError, match="needs templates"):
        daemon.Pool(replace(config, template="off"), 1, print).run()


def test_without_a_pool_there_is_none(config: Config) -> None:
    assert client.take(config, None, None, 0) is None
    with pytest.raises(HostError, match="no pool runs"):
        client.status(config)
