"""What a pod's keeper is asked instead of the command line, with a keeper made up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from casemate.errors import NotRunning
from casemate.keeper.control import Connection, ControlClosed, error_message
from casemate.shim import messages, metrics, pods, status, wire
from casemate.shim.status import StatusError
from tests.unit.shim.world import World

POD = "0123456789abcdef" * 4


class FakeKeeper:
    """Answers at a control socket; kills what it is told to kill."""

    def __init__(self, run: Path) -> None:
        self.directory = run / POD[: pods.SHORT_ID]
        self.directory.mkdir()
        self.requests: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.subscribers: list[Connection] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.directory / "control.sock"))
        self.listener.listen(16)
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            connection = Connection(sock)
            try:
                request, _ = connection.receive()
            except ControlClosed:
                continue
            self.requests.append(request)
            if request["op"] == "events":
                connection.send({"event": "ready"})
                self.subscribers.append(connection)
                continue
            answer = self.answers.get(request["op"], {})
            try:
                found = answer(request) if callable(answer) else answer
            except Exception as error:
                found = error_message(error)
            connection.send(found)
            connection.close()

    def tell(self, **event: Any) -> None:
        for connection in self.subscribers:
            connection.send(event)

    def asked(self) -> list[str]:
        return [request["op"] for request in self.requests]

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.subscribers:
            connection.close()
        self.subscribers.clear()
        self.thread.join(10)


@pytest.fixture(params=["environment"])
def keeper(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[FakeKeeper]:
    run = Path(tempfile.mkdtemp(prefix="cm"))
    if request.param == "environment":
        monkeypatch.setenv("CASEMATE_RUN", str(run))
    else:
        monkeypatch.delenv("CASEMATE_RUN", raising=False)
        monkeypatch.setenv("CASEMATE_CONFIG", str(run / "config.toml"))
        (run / "config.toml").write_text(f'run = "{run}"\n' if request.param == "file" else "run = 5\n")
    made = FakeKeeper(run)
    yield made
    made.close()
    shutil.rmtree(run)


@pytest.fixture
def pod(keeper: FakeKeeper, world: World) -> World:
    """A world whose runtime's containers are in the keeper's pod."""
    (world.root / "tests").mkdir(parents=True)
    (world.root / "tests" / "pod").write_text(POD)
    return world


def verbs(world: World) -> list[str]:
    return [call[0] for call in world.calls()]


def test_the_keeper_is_asked_and_no_program_started(keeper: FakeKeeper, pod: World) -> None:
    pod.run("box", "sleep", "60")
    pid = pod.call("State", id="box")["pid"]
    usage = {"memory": {"current": 5 << 20, "max": None}, "cpu": {"usage_us": 7}}
    keeper.answers = {"pids": {"pid": pid, "execs": {}}, "stats": usage}
    pod.call("Pause", id="box")
    pod.call("Resume", id="box")
    assert pod.call("Pids", id="box")["processes"] == [{"pid": pid, "info": None}]
    stats = pod.call("Stats", id="box")["stats"]
    assert stats["type_url"] in (metrics.METRICS_V1.name, metrics.METRICS_V2.name)
    keeper.answers["kill"] = lambda request: _kill(pod, request)
    pod.call("Kill", id="box", signal=int(signal.SIGTERM))
    assert pod.call("Wait", id="box")["exit_status"] == 128 + signal.SIGTERM
    pod.call("Delete", id="box")
    assert keeper.asked() == ["events", "pause", "resume", "pids", "stats", "kill"]
    kill: dict[str, Any] = {"op": "kill", "id": "box", "exec": None, "signal": 15, "all": False, "fds": []}
    assert keeper.requests[-1] == kill
    assert verbs(pod) == ["create", "start", "delete"]


@pytest.mark.parametrize("keeper", ["file"], indirect=True)
def test_the_configuration_says_where_keepers_are(keeper: FakeKeeper, pod: World) -> None:
    pod.run("box", "sleep", "60")
    pod.until(lambda: keeper.subscribers)
    keeper.answers["kill"] = lambda request: _kill(pod, request)
    pod.remove("box")
    assert verbs(pod) == ["create", "start", "delete"]


@pytest.mark.parametrize("keeper", ["broken"], indirect=True)
def test_with_a_broken_configuration_the_command_line_is_asked(keeper: FakeKeeper, pod: World) -> None:
    pod.run("box", "sleep", "60")
    pod.remove("box")
    assert verbs(pod) == ["create", "start", "kill", "delete"]
    assert keeper.requests == []


def _kill(world: World, request: dict[str, Any]) -> dict[str, Any]:
    os.kill(int((world.root / "tests" / request["id"] / "pid").read_text()), request["signal"])
    return {}


def test_an_added_process_is_known_to_the_keeper_by_its_number(keeper: FakeKeeper, pod: World) -> None:
    pod.run("box", "sleep", "60")
    pod.add("box", "more", "sleep", "60")
    pid = pod.call("Start", id="box", exec_id="more")["pid"]
    keeper.answers["pids"] = {"pid": 1, "execs": {"theirs": pid, "other": pid + 1}}
    pod.call("Kill", id="box", exec_id="more", signal=int(signal.SIGSTOP))
    assert keeper.requests[-1] == {"op": "kill", "id": "box", "exec": "theirs", "signal": 19, "all": False, "fds": []}
    keeper.answers["pids"] = {"pid": 1, "execs": {}}  # it knows it no more: the stand-in itself is told
    pod.call("Kill", id="box", exec_id="more", signal=9)
    assert pod.call("Wait", id="box", exec_id="more")["exit_status"] == 137
    keeper.answers["kill"] = lambda request: _kill(pod, request)
    pod.remove("box")


def test_refusals_of_a_keeper(keeper: FakeKeeper, pod: World) -> None:
    def refuse(request: dict[str, Any]) -> dict[str, Any]:
        raise NotRunning("container not running", "look why")

    pod.run("box", "sleep", "60")
    keeper.answers = {"kill": refuse, "pause": refuse, "stats": refuse}
    with pytest.raises(StatusError) as caught:
        pod.call("Kill", id="box", signal=9)
    assert (caught.value.code, caught.value.message) == (status.NOT_FOUND, "process already finished: not found")
    with pytest.raises(StatusError) as caught:
        pod.call("Pause", id="box")
    assert caught.value.message == "OCI runtime pause failed: container not running"
    with pytest.raises(StatusError) as caught:
        pod.call("Stats", id="box")
    assert caught.value.code == status.NOT_FOUND
    keeper.answers = {"kill": lambda request: _kill(pod, request)}
    pod.remove("box")


def test_without_a_keeper_the_command_line_is_asked(keeper: FakeKeeper, pod: World) -> None:
    pod.run("box", "sleep", "60")
    keeper.close()
    keeper.listener = socket.socket(socket.AF_UNIX)  # for the fixture's close
    keeper.listener.bind(str(keeper.directory / "other"))
    keeper.listener.listen(1)
    pod.call("Pause", id="box")
    pod.call("Resume", id="box")
    pod.call("Pids", id="box")
    pod.remove("box")
    assert verbs(pod) == ["create", "start", "pause", "resume", "ps", "kill", "delete"]


def test_a_keeper_that_talks_nonsense_is_left(keeper: FakeKeeper, pod: World) -> None:
    pod.run("box", "sleep", "60")
    keeper.answers["pids"] = {"pid": "x", "execs": {"a": -5, "b": 1 << 40}}
    assert pod.call("Pids", id="box") == {"processes": []}
    pod.until(lambda: keeper.subscribers)
    keeper.subscribers[0].socket.sendall(b"\xff\xff\xff\xff")
    keeper.answers["kill"] = lambda request: _kill(pod, request)
    pod.remove("box")


def test_kills_for_want_of_memory_are_told_as_they_happen(keeper: FakeKeeper, pod: World) -> None:
    pod.run("box", "sleep", "60")
    pod.until(lambda: keeper.subscribers)
    keeper.tell(event="start", id="box")
    keeper.tell(event="oom", id="nobody")
    keeper.tell(event="oom", id="box")
    assert pod.event("oom") == {"container_id": "box"}
    keeper.answers["kill"] = lambda request: _kill(pod, request)
    record = pod.root / "tests" / "box" / "record.json"
    record.write_text(json.dumps({"pod": POD, "oom_killed": True}))
    pod.remove("box")
    assert pod.topics(5) == ["create", "start", "oom", "exit", "delete"]


def test_a_kill_for_want_of_memory_is_told_before_the_end(keeper: FakeKeeper, pod: World) -> None:
    pod.run("box", "sleep", "60")
    record = pod.root / "tests" / "box" / "record.json"
    record.write_text(json.dumps({"pod": POD, "oom_killed": True}))
    keeper.answers["kill"] = lambda request: _kill(pod, request)
    pod.remove("box")
    assert pod.topics(5) == ["create", "start", "oom", "exit", "delete"]


def test_one_connection_for_events_of_a_pod(keeper: FakeKeeper, pod: World) -> None:
    keeper.answers["kill"] = lambda request: _kill(pod, request)
    for name in ("a", "b"):
        pod.run(name, "sleep", "60")
    assert keeper.asked().count("events") == 1
    pod.remove("a")
    keeper.tell(event="oom", id="b")
    assert pod.event("oom") == {"container_id": "b"}
    pod.remove("b")
    pod.run("c", "sleep", "60")
    assert keeper.asked().count("events") == 2
    pod.remove("c")


def test_records_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for text in ("", "[1]", "{", '"x"'):
        (tmp_path / "a" / "record.json").write_text(text)
        assert pods.record(str(tmp_path), "a") == {}
    assert pods.record(str(tmp_path), "b") == {}


# --- figures ---

GUEST = {
    "memory": {
        "current": 100, "max": 1000, "peak": 200, "oom_kills": 3,
        "stat": {"anon": 40, "file": 50, "inactive_file": 30, "pgfault": 7, "pgmajfault": 1},
    },
    "cpu": {"usage_us": 9, "user_us": 5, "system_us": 4, "nr_periods": 6, "nr_throttled": 2, "throttled_us": 8},
    "pids": {"current": 2, "max": 64},
    "io": [{"major": 8, "minor": 1, "rbytes": 10, "wbytes": 20, "rios": 1, "wios": 2}],
}


def test_figures_for_a_host_with_version_1() -> None:
    told = wire.decode(metrics.METRICS_V1, pods.usage(GUEST, version2=False)["value"])
    assert told["memory"]["usage"] == {"limit": 1000, "usage": 100, "max": 200, "failcnt": 3}
    assert (told["memory"]["rss"], told["memory"]["cache"], told["memory"]["total_inactive_file"]) == (40, 50, 30)
    assert told["memory"]["total_pg_maj_fault"] == 1
    assert told["cpu"]["usage"] == {"total": 9000, "kernel": 4000, "user": 5000, "per_cpu": []}
    assert told["cpu"]["throttling"] == {"periods": 6, "throttled_periods": 2, "throttled_time": 8000}
    assert told["pids"] == {"current": 2, "limit": 64}
    read, written = told["blkio"]["io_service_bytes_recursive"]
    assert read == {"op": "Read", "device": "", "major": 8, "minor": 1, "value": 10}
    assert (written["op"], written["value"]) == ("Write", 20)
    assert told["memory_oom_control"]["oom_kill"] == 3


def test_figures_for_a_host_with_version_2() -> None:
    told = wire.decode(metrics.METRICS_V2, pods.usage(GUEST, version2=True)["value"])
    assert (told["memory"]["usage"], told["memory"]["usage_limit"], told["memory"]["inactive_file"]) == (100, 1000, 30)
    assert told["cpu"]["usage_usec"] == 9
    assert (told["cpu"]["nr_throttled"], told["cpu"]["throttled_usec"]) == (2, 8)
    assert told["io"]["usage"] == [{"major": 8, "minor": 1, "rbytes": 10, "wbytes": 20, "rios": 1, "wios": 2}]
    assert told["memory_events"]["oom_kill"] == 3
    unlimited = pods.usage({"memory": {"max": None}, "pids": {"max": None}}, version2=True)["value"]
    told = wire.decode(metrics.METRICS_V2, unlimited)
    assert told["memory"]["usage_limit"] == told["pids"]["limit"] == metrics.UNLIMITED


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["memory", "cpu", "pids", "io", "stat", "max", "current", "usage_us", "rbytes", "major", "x"]),
        inner, max_size=4,
    ), max_leaves=12,
)


@example({"io": 5}, True)
@given(st.dictionaries(st.sampled_from(["memory", "cpu", "pids", "io"]), JSON), st.booleans())
def test_a_guest_may_say_anything(found: dict[str, Any], version2: bool) -> None:
    told = pods.usage(found, version2=version2)
    wire.decode(metrics.METRICS_V2 if version2 else metrics.METRICS_V1, told["value"])
    assert messages.type_name(told) == told["type_url"]
