"""A sandbox's keeper when there is much of something, or too little: words, execs, disks, memory, requests that make no
sense."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.errors import (
    AgentError,
    CasemateError,
    ContainerError,
    NameInUse,
    NoSuchContainer,
    Unsupported,
    UsageError,
)
from casemate.keeper.control import Connection, ControlClosed
from casemate.pod import operations, service
from casemate.pod.cgroup import machine_mib
from casemate.pod.container import MAX_SIGNALS, Container, StandIn
from casemate.pod.devices import MAX_DISKS
from casemate.pod.service import machine_memory
from tests.unit.pod.keepers import SPEC, House, Peer, opened, wait_until

TERMINAL = {**SPEC, "process": {"args": ["sh"], "terminal": True}}


def test_the_end_of_a_stand_in_is_heard_beside_its_words(house: House) -> None:
    connection = house.launch()
    peer = house.record("one")
    peer.socket.close()
    peer.socket, mine = socket.socketpair()
    house.ask("one", peer, connection)
    house.client.start("one")
    reached = house.sandbox.reached["resize"] = threading.Event()
    house.sandbox.block["resize"] = threading.Event()
    mine.sendall(b"".join(b"size 24 %d\n" % columns for columns in range(1, 500)))
    assert reached.wait(5)
    mine.sendall(b"signal 10\nsize 30 %s\n" % (b"9" * 100))
    mine.close()
    house.join()
    assert house.store.get("one").exit_code == 128 + 9
    assert ("signal", "one", None, 9, False) in house.sandbox.calls


def test_of_sizes_in_a_row_the_last_one_counts() -> None:
    heard: list[tuple[str, tuple[int, ...]]] = []
    first, free, gone, last = (threading.Event() for _ in range(4))

    def listen(word: str, numbers: tuple[int, ...]) -> None:
        heard.append((word, numbers))
        first.set()
        assert free.wait(10)
        if numbers == (30, 65535):
            last.set()

    ours, theirs = socket.socketpair()
    StandIn(ours.detach(), listen, gone.set)
    theirs.sendall(b"size 1 1\n")
    assert first.wait(5)
    theirs.sendall(b"size 2 2\nsignal 10\nsize 30 %s\nnonsense\nsize x\n" % (b"9" * 100) + b"signal 1\n" * 1000)
    theirs.close()
    assert gone.wait(5)
    free.set()
    assert last.wait(5)
    assert heard[0] == ("size", (1, 1)) and heard[1] == ("signal", (10,)) and heard[-1] == ("size", (30, 65535))
    assert len(heard) == 2 + MAX_SIGNALS and ("size", (2, 2)) not in heard


def test_execs_that_the_guest_does_not_end_hold_up_their_container_together(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "EXEC_SECONDS", 0.3)
    peer = house.running("one")
    execs = [house.exec("one", f"e{number}") for number in range(8)]
    house.sandbox.block["signal"] = threading.Event()
    house.sandbox.end("one", None, 3)
    assert peer.wait() == 3
    assert [one.wait() for one in execs] == [128 + 9] * 8


def test_an_exec_that_is_not_served_is_ended(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.running("one")
    assert house.keeper is not None

    def fail(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(house.keeper, "adopt", fail)
        with pytest.raises(CasemateError, match="can't start new thread"):
            house.exec("one", "e1")
    assert house.spare[-1].wait() == 255
    assert ("signal", "one", "exec-1", 9, False) in house.sandbox.calls
    assert house.store.get("one").execs == {}
    house.exec("one", "e1")


def test_an_exec_that_nobody_hears_of_is_ended(house: House) -> None:
    house.running("one")
    house.sandbox.block["exec"] = threading.Event()
    reached = house.sandbox.reached["exec"] = threading.Event()
    peer = Peer()
    house.spare.append(peer)
    connection = house.client._connect(10)
    request = {"op": "exec", "id": "one", "exec": "e", "process": {"args": ["x"]}, "fds": ["standin"]}
    connection.send(request, (peer.socket.fileno(),))
    peer.socket.close()
    assert reached.wait(5)
    connection.close()
    house.sandbox.block["exec"].set()
    assert peer.wait() == 128 + 9
    assert house.store.get("one").status == "running"


def test_no_end_depends_on_a_thread_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "EXEC_SECONDS", 0.3)
    peer = house.running("one")
    execution = house.exec("one", "e")
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name in ("oom", "kill", "words"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    house.sandbox.end("one", None, 137, oom=True, signal=9)
    assert (peer.wait(), execution.wait()) == (137, 137)
    assert house.store.get("one").oom_killed


def test_execs_are_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "MAX_EXECS", 2)
    house.running("one")
    house.running("two")
    house.exec("one", "a")
    house.exec("two", "a")
    with pytest.raises(ContainerError, match="2 execs run in this sandbox already"):
        house.exec("one", "b")
    house.sandbox.end("two", "exec-1", 0)
    house.client.wait("two", "a")
    house.exec("one", "b")


def test_as_many_disks_as_there_may_be_come_with_one_request(house: House, tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    with opened("/", os.devnull, *[str(tmp_path / "disk")] * MAX_DISKS) as (volumes, null, *disks):
        fds = {"volumes": volumes, **{f"disk{number}": descriptor for number, descriptor in enumerate(disks)}}
        stdio = dict.fromkeys(("stdin", "stdout", "stderr"), null)
        house.create("one", fds=fds, stdio=stdio, disks=[(f"d{number}", True) for number in range(MAX_DISKS)])
    assert house.sandbox.calls[0][2] == [f"d{number}" for number in range(MAX_DISKS)]


def test_a_message_too_deep_to_read_costs_no_descriptors() -> None:
    ours, theirs = socket.socketpair()
    body = b"[" * 100_000
    before = len(os.listdir("/proc/self/fd"))
    with ours, theirs, opened(os.devnull) as (null,):
        socket.send_fds(ours, [len(body).to_bytes(4, "big")], [null, null])
        ours.sendall(body)
        with pytest.raises(ControlClosed):
            Connection(theirs).receive()
        assert len(os.listdir("/proc/self/fd")) == before + 1


def test_disks_that_do_not_come_are_closed(house: House, tmp_path: Path) -> None:
    house.running("one")
    (tmp_path / "disk").touch()
    house.sandbox.fail["plug_disk"] = ContainerError("no slot")
    with opened(*[str(tmp_path / "disk")] * 3) as disks, pytest.raises(ContainerError, match="no slot"):
        fds = {f"disk{number}": descriptor for number, descriptor in enumerate(disks)}
        house.create("two", fds=fds, disks=[("a", True), ("b", True), ("c", True)])
    paths = {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name)}
    assert str(tmp_path / "disk") not in paths


def _is_open(name: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{name}")


def test_updates_reach_the_guest_as_it_knows_them(house: House) -> None:
    house.running("one")
    house.client.update("one", {"memory": {"limit": 1 << 28, "swap": 1 << 29}, "pids": {"limit": 0}})
    assert ("update", "one", {"memory": {"limit": 1 << 28}}) in house.sandbox.calls
    assert house.client.stats("one") == {"memory": {"current": 1}}


def test_more_memory_than_the_machine_has_is_refused(house: House) -> None:
    house.running("one", full={**SPEC, "linux": {"resources": {"memory": {"limit": 200 << 20}}}}, memory=200 << 20)
    with pytest.raises(Unsupported, match=f"{(200 << 20) + 1} bytes cannot be given: .* has 200 MiB"):
        house.client.update("one", {"memory": {"limit": (200 << 20) + 1}, "pids": {"limit": 5}})
    assert "update" not in house.sandbox.names()
    for limit in (100 << 20, 200 << 20, -1):
        house.client.update("one", {"memory": {"limit": limit}})
        assert house.sandbox.calls[-1] == ("update", "one", {"memory": {"limit": limit}})


def test_the_machine_grows_where_containers_may_use_more(house: House) -> None:
    house.running("one", full={**SPEC, "linux": {"resources": {"memory": {"limit": 200 << 20}}}}, memory=200 << 20)
    assert house.keeper is not None
    house.sandbox.most_mib = 1000
    house.client.update("one", {"memory": {"limit": 500 << 20}})
    assert ("grow", machine_mib(500)) in house.sandbox.calls
    assert house.sandbox.calls[-1] == ("update", "one", {"memory": {"limit": 500 << 20}})
    assert house.keeper.home.memory_mib == house.keeper.record.memory_mib == machine_mib(500)
    # What is refused leaves the machine as it is.
    with pytest.raises(Unsupported, match="has 500 MiB"):
        house.client.update("one", {"memory": {"limit": 1000 << 20}})
    assert house.keeper.home.memory_mib == house.keeper.record.memory_mib == machine_mib(500)


def test_a_member_that_may_use_more_than_there_is_has_the_machine_grow(house: House) -> None:
    house.running("one")
    assert house.keeper is not None
    has = house.keeper.home.memory_mib
    house.sandbox.most_mib = 1 << 20
    large = {"memory": {"limit": has << 20}}
    house.running("two", full={**SPEC, "linux": {"resources": large}})
    assert house.keeper.home.memory_mib == machine_mib(has)
    house.sandbox.most_mib = 2 * has
    house.running("three", full={**SPEC, "linux": {"resources": {"memory": {"limit": has << 21}}}})
    assert house.keeper.home.memory_mib == 2 * has, "as far as it can"


def test_the_hosts_bound_is_there_before_the_memory(house: House) -> None:
    """A guest that does not say that it has it may use it all the same."""
    house.running("one", full={**SPEC, "linux": {"resources": {"memory": {"limit": 200 << 20}}}}, memory=200 << 20)
    assert house.keeper is not None
    house.sandbox.fail["grow"] = AgentError("memory was to be added, and has not all come")
    with pytest.raises(AgentError, match="has not all come"):
        house.client.update("one", {"memory": {"limit": 500 << 20}})
    assert house.keeper.home.memory_mib == machine_mib(500)
    assert "update" not in house.sandbox.names()


def test_what_a_container_was_made_with_may_be_said_again(house: House) -> None:
    """It is more than the machine has where the host has less, or where another container came first."""
    large = {"memory": {"limit": 1 << 40}}
    house.running("one", full={**SPEC, "linux": {"resources": large}})
    house.client.update("one", {**large, "cpu": {"shares": 512}})
    assert house.sandbox.calls[-1] == ("update", "one", {**large, "cpu": {"shares": 512}})


def test_a_full_disk_does_not_end_a_container(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = house.create("one")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("casemate.jsonfile.write", full)
    house.client.start("one")
    house.sandbox.end("one", None, 3)
    assert peer.wait() == 3
    house.join()
    monkeypatch.undo()
    record = house.store.get("one")  # nobody could write how it ended
    assert (record.status, record.exit_code) == ("stopped", 137)


def test_a_full_disk_fails_a_creation(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    house.sandbox.created = lambda id: monkeypatch.setattr("casemate.jsonfile.write", full)
    with pytest.raises(Exception, match="No space left on device"):
        house.create("one")
    monkeypatch.undo()
    house.join()
    house.store.remove("one", force=True)
    assert os.listdir(house.store.pods_path) == []


def test_helpers_that_cannot_start_are_done_without(house: House) -> None:
    done: list[str] = []

    class Helper:
        def __init__(self, name: str) -> None:
            self.name = name

        def start(self) -> None:
            if self.name == "bad":
                raise ContainerError("not here")
            done.append(f"start {self.name}")

        def close(self) -> None:
            done.append(f"close {self.name}")

    house.helpers = [Helper("bad"), Helper("good")]
    house.running("one")
    assert done == ["close bad", "start good"]
    house.sandbox.end("one", None, 0)
    house.join()
    assert done[-1] == "close good"


def test_disks_come_at_the_start_and_later(house: House, tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    with opened(str(tmp_path / "disk")) as (disk,):
        house.create("one", disks=[("cm-7-0", True)], fds={"disk0": disk})
        house.create("two", disks=[("cm-7-1", False)], fds={"disk0": disk})
    assert house.sandbox.calls[0][2] == ["cm-7-0"] and ("plug_disk", "cm-7-1") in house.sandbox.calls


def test_requests_that_cannot_be_read_are_answered(house: House) -> None:
    house.running("one")
    before = len(os.listdir("/proc/self/fd"))
    for request in (
        {"op": "nonsense"}, {"op": "start"}, {"op": "kill", "id": "one", "signal": "x"}, {"op": "kill", "id": "one"},
        {"op": "kill", "id": "one", "signal": 77}, {"op": "resize", "id": "one"}, {"op": "exec", "id": "one"},
        {"op": "update", "id": "one", "resources": []}, {"op": "forward", "port": 0}, {"op": "create", "id": "two"},
    ):  # fmt: skip
        with pytest.raises((UsageError, NoSuchContainer)), opened("/dev/null") as (null,):
            arguments = {key: value for key, value in request.items() if key != "op"}
            house.client._request(str(request["op"]), arguments, {"standin": null})
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert house.store.get("one").status == "running" and house.store.get("one").execs == {}


_OPS = [
    "create", "start", "exec", "resize", "close_stdin", "pause", "resume", "stats", "update", "pids", "info", "forward",
    "kill", "delete", "wait", "events_", "_running", "__init__",
]  # fmt: skip
_KEYS = ["exec", "process", "pid", "size", "rows", "columns", "resources", "port", "signal", "all", "force", "spec"]
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.sampled_from(["one", "none"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(op=st.sampled_from(_OPS) | st.text(max_size=10), rest=st.dictionaries(st.sampled_from(_KEYS), _values))
def test_no_request_ends_a_keeper(house: House, op: str, rest: dict[str, Any]) -> None:
    if house.pod is None:
        house.running("one")
    # What ends "one", or waits for its end, does so.
    rest["id"] = "two" if op in ("kill", "delete", "wait") else "one"
    connection = house.client._connect(20)
    connection.send({"op": op, **rest})
    answer, _ = connection.receive()
    connection.close()
    if isinstance(answer.get("error"), dict):
        assert answer["error"]["message"]
    assert house.client.info()["containers"]["one"] in ("running", "paused")


def test_an_id_belongs_to_one_container(house: House) -> None:
    house.create("one")
    with pytest.raises(NameInUse, match="container with id exists"):
        house.record("one")


def test_a_machine_has_room_for_its_own_kernel() -> None:
    assert machine_memory(None, 1024, 128) == 1024
    assert machine_memory(6 << 20, 1024, 128) == 128
    assert machine_memory((256 << 20) + 1, 1024, 128) == machine_mib(257)
    assert machine_memory(1 << 60, 1024, 128) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def test_what_a_pod_does_not_hold_is_none_of_its_business(house: House) -> None:
    house.running("one")
    other = house.store.create_pod()
    assert house.pod is not None
    mine, house.pod = house.pod, other
    peer = house.record("two")
    house.pod = mine
    with pytest.raises(UsageError, match="of another sandbox"):
        house.ask("two", peer, None)
    os.close(other.lock_fd or -1)


def test_the_pod_is_on_record(house: House) -> None:
    house.running("one")
    assert house.pod is not None
    record = json.loads((house.pod.path / "pod.json").read_text())
    assert (record["keeper"], record["memory_mib"], record["guest"]) == (os.getpid(), 1024, {"kernel": "6.1.0"})


def test_many_come_and_go_at_once(house: House) -> None:
    house.running("keep")
    errors: list[BaseException] = []

    def live(number: int) -> None:
        try:
            for turn in range(3):
                id = f"c{number}-{turn}"
                peer = house.running(id)
                inner = house.exec(id, "e")
                house.sandbox.end(id, house.keeper._containers[id].tasks["e"].key, 1)  # type: ignore[union-attr]
                assert inner.wait() == 1
                if turn == 0:
                    house.store.remove(id, force=True)
                    assert peer.wait() == 137
                else:
                    house.sandbox.end(id, None, number)
                    assert peer.wait() == number
                    house.store.remove(id)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert house.client.info()["containers"] == {"keep": "running"} and house.store.ids() == ["keep"]
    house.sandbox.end("keep", None, 0)
    house.join()
    assert house.sandbox.names().count("flush") == 1


def test_the_last_two_may_end_at_the_same_moment(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = house.running("one"), house.running("two")
    barrier = threading.Barrier(2)
    update = Container.update

    def both(self: Container, *arguments: Any, **changes: Any) -> bool:
        if changes.get("status") == "stopped":
            barrier.wait(10)  # neither is on record as stopped when the other looks
        return update(self, *arguments, **changes)

    monkeypatch.setattr(Container, "update", both)
    threads = [threading.Thread(target=house.sandbox.end, args=(id, None, 3)) for id in ("one", "two")]
    for thread in threads:
        thread.start()
    assert (first.wait(), second.wait()) == (3, 3)
    house.join()
    assert house.sandbox.names().count("flush") == 1
    assert [(record.status, record.exit_code) for record in house.store.list()] == [("stopped", 3)] * 2
