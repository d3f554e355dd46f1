"""A sandbox's keeper: the states of its containers, their processes, and in which order ends are told."""

from __future__ import annotations

import json
import os
import pty
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.errors import (
    AgentError,
    CasemateError,
    CommandNotFound,
    ContainerError,
    NameInUse,
    NoSuchContainer,
    NotRunning,
    StillRunning,
    Unsupported,
    UsageError,
)
from casemate.keeper.control import Connection, ControlClosed
from casemate.pod import operations, removal, service
from casemate.pod.cgroup import containers_mib, machine_mib
from casemate.pod.container import MAX_SIGNALS, Container, StandIn
from casemate.pod.devices import MAX_DISKS
from casemate.pod.model import Record
from casemate.pod.service import machine_memory
from casemate.sandbox import ProcessExit
from tests.unit.pod.keepers import SPEC, House, Peer, opened

TERMINAL = {**SPEC, "process": {"args": ["sh"], "terminal": True}}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


def follow(house: House) -> list[dict[str, Any]]:
    """The events from now on, as a list that grows."""
    events: list[dict[str, Any]] = []
    ready = threading.Event()

    def read() -> None:
        for event in house.client.events():
            events.append(event)
            ready.set()

    threading.Thread(target=read, daemon=True).start()
    assert ready.wait(5)
    return events


def test_a_container_lives_from_create_to_its_end(house: House) -> None:
    peer = house.create("one", hostname="box", memory=64 << 20, cpus=1.5)
    assert house.store.get("one").status == "created"
    assert house.walls == [(machine_mib(64), 1.5)]
    events = follow(house)
    house.client.start("one")
    record = house.store.get("one")
    assert (record.status, record.started is not None, record.pid) == ("running", True, peer.pid)
    house.sandbox.end("one", None, 7)
    assert peer.wait() == 7
    house.join()
    record = house.store.get("one")
    assert (record.status, record.exit_code, record.error, record.oom_killed) == ("stopped", 7, "", False)
    assert record.finished is not None and record.finished >= (record.started or 0)
    assert wait_until(lambda: len(events) == 3)
    assert [(event["event"], event.get("id")) for event in events] == [
        ("ready", None), ("start", "one"), ("exit", "one"),
    ]  # fmt: skip
    assert events[-1]["status"] == 7
    assert house.sandbox.names()[:3] == ["boot", "attach", "create"]
    assert house.sandbox.names()[-1] == "flush"
    assert house.sandbox.calls[0][1:] == (os.stat("/proc/self/ns/net").st_ino, [], "box")
    assert house.sandbox.closed.is_set()
    assert house.network is not None and house.network.calls == ["nics", "follow", "catch up", "close"]
    assert not house.pod.run_path.exists()  # type: ignore[union-attr]
    house.store.remove("one")
    assert house.store.ids() == [] and os.listdir(house.store.pods_path) == []


def test_it_is_on_record_as_stopped_before_its_stand_in_ends(house: House) -> None:
    seen = []
    peer = house.running("one")
    ended = threading.Event()

    def watch() -> None:
        peer.wait()
        seen.append(house.store.stored("one").status)
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    house.sandbox.end("one", None, 0)
    assert ended.wait(10)
    assert seen == ["stopped"]


def test_the_machine_is_flushed_before_the_last_end_is_told(house: House) -> None:
    house.sandbox.block["flush"] = threading.Event()
    peer = house.running("one")
    house.sandbox.end("one", None, 0)
    assert house.sandbox.reached["flush"].wait(5)
    assert peer.process.poll() is None and house.store.stored("one").status == "running"
    house.sandbox.block["flush"].set()
    assert peer.wait() == 0


def test_output_is_delivered_before_the_end(house: House) -> None:
    reader, writer = os.pipe()
    peer = house.running("one", stdio={"stdout": writer})
    os.close(writer)
    house.sandbox.end("one", None, 0, output=b"last words")
    peer.wait()
    with open(reader, "rb") as file:
        assert file.read() == b"last words"


def test_input_reaches_the_process_and_can_be_closed(house: House) -> None:
    reader, writer = os.pipe()
    house.running("one", stdio={"stdin": reader})
    stdin = house.sandbox.streams["one", None][0]
    os.write(writer, b"hello")
    house.client.close_stdin("one")
    assert stdin.eof.wait(5)
    assert stdin.sent == b"hello"
    os.close(reader)
    os.close(writer)


def test_ends_of_execs_are_told_before_that_of_the_container(house: House) -> None:
    first = house.running("one")
    events = follow(house)
    reader, writer = os.pipe()
    second = house.exec("one", "shell", stdio={"stdout": writer})
    os.close(writer)
    assert house.store.get("one").execs == {"shell": second.pid}
    house.sandbox.end("one", None, 0)
    assert house.sandbox.names()[-1] == "exec"  # nothing is flushed yet
    assert first.process.poll() is None
    house.sandbox.end("one", "exec-1", 3)
    assert (second.wait(), first.wait()) == (3, 0)
    house.join()
    assert wait_until(lambda: len(events) == 4)
    assert [(event["event"], event.get("exec")) for event in events[1:]] == [
        ("start", "shell"), ("exit", "shell"), ("exit", None),
    ]  # fmt: skip
    os.close(reader)


def test_execs_that_outlive_the_container_are_killed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.pod.service.EXEC_SECONDS", 0.1)
    first = house.running("one")
    second = house.exec("one", "shell")
    house.sandbox.end("one", None, 5)
    assert (second.wait(), first.wait()) == (137, 5)
    assert ("signal", "one", None, 9, True) in house.sandbox.calls


def test_an_exec_can_be_signalled_resized_and_waited_for(house: House) -> None:
    house.running("one")
    peer = house.exec("one", "e/1", terminal=True)
    house.client.resize("one", "e/1", 30, 90)
    house.client.kill("one", 15, exec_id="e/1")
    assert peer.wait() == 128 + 15
    result = house.client.wait("one", "e/1")
    assert (result["status"], result["signal"]) == (143, 15)
    assert ("resize", "one", "exec-1", 30, 90) in house.sandbox.calls
    with pytest.raises(NotRunning, match="process already finished"):
        house.client.kill("one", 15, exec_id="e/1")
    assert house.store.get("one").execs == {}
    house.exec("one", "e/1")  # the name is free again
    with pytest.raises(ContainerError, match="exists already"):
        house.exec("one", "e/1")


def test_an_exec_that_cannot_be_started_leaves_nothing(house: House) -> None:
    house.running("one")
    house.sandbox.fail["exec"] = CommandNotFound('exec: "x": executable file not found in $PATH')
    with pytest.raises(CommandNotFound, match="executable file not found"):
        house.exec("one", "e1")
    assert house.store.get("one").execs == {}
    assert house.spare[-1].wait() == 255
    with pytest.raises(NotRunning, match="process already finished"):
        house.client.wait("one", "e1")


def test_the_death_of_a_stand_in_kills_its_process(house: House) -> None:
    first = house.running("one")
    second = house.exec("one", "shell")
    second.process.kill()
    assert house.client.wait("one", "shell")["status"] == 137
    assert house.store.get("one").status == "running"
    first.process.kill()
    house.join()
    assert house.store.get("one").exit_code == 137
    assert [call[1:4] for call in house.sandbox.calls if call[0] == "signal"] == [
        ("one", "exec-1", 9), ("one", None, 9),
    ]  # fmt: skip


def test_states_are_those_of_runc(house: House) -> None:
    house.create("one")
    with pytest.raises(NotRunning, match="container not paused"):
        house.client.resume("one")
    house.client.pause("one")
    assert house.store.get("one").status == "paused"
    with pytest.raises(ContainerError, match="cannot start a container in the paused state"):
        house.client.start("one")
    house.client.resume("one")
    assert house.store.get("one").status == "created"
    house.client.start("one")
    with pytest.raises(ContainerError, match="cannot start an already running container"):
        house.client.start("one")
    house.client.pause("one")
    with pytest.raises(NotRunning, match="cannot exec in a paused container"):
        house.exec("one", "e1")
    with pytest.raises(StillRunning, match="cannot delete container one that is not stopped: paused"):
        house.client.delete("one")
    house.client.resume("one")
    assert house.store.get("one").status == "running"
    house.create("two")
    house.sandbox.end("one", None, 0)
    house.client.wait("one")
    for step in (house.client.pause, house.client.stats):
        with pytest.raises(NotRunning, match="container not running"):
            step("one")
    with pytest.raises(NotRunning, match="cannot start a container that has stopped"):
        house.client.start("one")
    with pytest.raises(NotRunning, match="container not running"):
        house.client.kill("one", 15)
    with pytest.raises(NotRunning, match="cannot exec in a stopped container"):
        house.exec("one", "e1")
    with pytest.raises(NoSuchContainer, match="does not exist"):
        house.client.start("three")


def test_a_terminal_passes_everything_on(house: House) -> None:
    master, slave = pty.openpty()
    house.create("one", spec=TERMINAL, stdio={"stdin": slave, "stdout": slave}, size=(24, 80))
    os.close(slave)
    assert house.sandbox.calls[2][3] == (24, 80)
    stdin, stdout, _ = house.sandbox.streams["one", None]
    os.write(master, b"a\x03\n")  # neither a signal nor an edited line here
    assert wait_until(lambda: stdin.sent == b"a\x03\n")
    stdout.out.put(b"x\n")
    assert os.read(master, 16) == b"x\n"
    house.sandbox.end("one", None, 0)
    house.join()
    with pytest.raises(OSError):  # hung up: nobody holds the other end
        os.read(master, 16)
    os.close(master)


def wait_until(holds: Any) -> bool:
    """Look at something that tells of no change, for at most ten seconds."""
    clock = threading.Event()
    for _ in range(1000):
        if holds():
            return True
        clock.wait(0.01)
    return False


def test_what_a_stand_in_says_reaches_the_process(house: House) -> None:
    house.sandbox.deaf = True
    connection = house.launch()
    assert house.pod is not None
    peer = house.record("one")
    peer.socket.close()
    ours, theirs = socket.socketpair()
    peer.socket = ours
    theirs.send(b"size 10 20\nsize 11")
    house.ask("one", peer, connection, spec=TERMINAL)
    theirs.send(b" 21\nsignal 1\nnoise\nsize 1 2 3 4\nsize x y\nsignal 99\n" + b"y" * 5000 + b"\nsignal 10\n")
    assert wait_until(lambda: ("signal", "one", None, 10, False) in house.sandbox.calls)
    said = [call for call in house.sandbox.calls if call[0] in ("resize", "signal")]
    assert said == [
        ("resize", "one", None, 10, 20), ("resize", "one", None, 11, 21), ("signal", "one", None, 1, False),
        ("signal", "one", None, 10, False),
    ]  # fmt: skip
    theirs.close()


def test_a_reader_that_takes_nothing_does_not_keep_a_container(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.pod.container.STUCK_SECONDS", 0.1)
    reader, writer = os.pipe()
    peer = house.running("one", stdio={"stdout": writer})
    os.close(writer)
    house.sandbox.streams["one", None][1].out.put(b"x" * (1 << 20))
    house.sandbox.end("one", None, 4)
    assert peer.wait() == 4
    os.close(reader)


def test_several_containers_share_the_machine_and_the_last_ends_it(house: House) -> None:
    first = house.running("pause")
    second = house.running("two+", stdio={})
    name = house.sandbox.calls[-1][1]
    assert name != "two+" and len(name) == 64  # the guest takes fewer characters
    house.sandbox.end("pause", None, 0)
    assert first.wait() == 0
    assert not house.sandbox.closed.is_set() and "flush" not in house.sandbox.names()
    house.store.remove("pause")
    assert ("delete", "pause") in house.sandbox.calls and ("detach", "pause") in house.sandbox.calls
    assert house.store.ids() == ["two+"] and house.client.info()["containers"] == {"two+": "running"}
    third = house.running("pause")
    house.sandbox.end("two+", None, 1)
    assert second.wait() == 1
    house.sandbox.end("pause", None, 2)
    assert third.wait() == 2
    house.join()
    assert house.sandbox.names().count("boot") == 1 and house.sandbox.names().count("flush") == 1
    for id in house.store.ids():
        house.store.remove(id)
    assert os.listdir(house.store.pods_path) == []


def test_a_member_waits_until_the_machine_is_up(house: House) -> None:
    house.sandbox.block["boot"] = threading.Event()
    connection = house.launch()
    peer, other = house.record("one"), house.record("two")
    threads = [
        threading.Thread(target=house.ask, args=("one", peer, connection)),
        threading.Thread(target=house.ask, args=("two", other, None)),
    ]
    threads[0].start()
    assert house.sandbox.reached["boot"].wait(5)
    threads[1].start()
    assert wait_until(lambda: house.client.info()["containers"] == {"one": "creating", "two": "creating"})
    house.sandbox.block["boot"].set()
    for thread in threads:
        thread.join(10)
    assert [record.status for record in house.store.list()] == ["created", "created"]


def test_a_member_may_ask_before_the_first(house: House) -> None:
    connection = house.launch()
    peer, other = house.record("one"), house.record("two")
    thread = threading.Thread(target=house.ask, args=("two", other, None))
    thread.start()
    assert wait_until(lambda: house.client.info()["containers"] == {"two": "creating"})
    assert house.sandbox.calls == []
    house.ask("one", peer, connection)
    thread.join(10)
    assert [record.status for record in house.store.list()] == ["created", "created"]


def test_a_member_hears_when_the_machine_does_not_come_up(house: House) -> None:
    house.sandbox.block["boot"] = threading.Event()
    house.sandbox.fail["boot"] = ContainerError("no machine today")
    connection = house.launch()
    peer, other = house.record("one"), house.record("two")
    errors: list[str] = []

    def ask(id: str, peer: Peer, connection: Connection | None) -> None:
        try:
            house.ask(id, peer, connection)
        except (ContainerError, NotRunning) as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask, args=("one", peer, connection))]
    threads.append(threading.Thread(target=ask, args=("two", other, None)))
    threads[0].start()
    assert house.sandbox.reached["boot"].wait(5)
    threads[1].start()
    assert wait_until(lambda: len(house.client.info()["containers"]) == 2)
    house.sandbox.block["boot"].set()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 2 and any("no machine today" in error for error in errors)
    house.join()
    assert peer.wait() == 255 and other.wait() == 255
    for id in ("one", "two"):
        house.store.remove(id, force=True)
    assert os.listdir(house.store.root) == [".pods"] and os.listdir(house.store.pods_path) == []


def test_a_failed_create_of_the_first_ends_everything(house: House) -> None:
    house.sandbox.fail["create"] = CommandNotFound('exec: "x": executable file not found in $PATH')
    with pytest.raises(CommandNotFound):
        house.create("one")
    house.join()
    assert house.sandbox.closed.is_set()
    assert house.peers["one"].wait() == 255
    house.store.remove("one", force=True)
    assert os.listdir(house.store.pods_path) == []


def test_a_failed_create_of_a_member_leaves_the_others(house: House) -> None:
    house.running("one")
    house.sandbox.fail["create"] = CommandNotFound("no x")
    with pytest.raises(CommandNotFound):
        house.create("two")
    del house.sandbox.fail["create"]
    assert ("delete", "two") in house.sandbox.calls and ("detach", "two") in house.sandbox.calls
    house.store.remove("two", force=True)
    house.create("two")
    assert {record.id: record.status for record in house.store.list()} == {"one": "running", "two": "created"}


def test_a_member_that_fails_last_ends_the_machine(house: House) -> None:
    first = house.running("one")
    house.sandbox.block["create"] = threading.Event()
    house.sandbox.fail["create"] = CommandNotFound("no x")
    peer = house.record("two")
    house.sandbox.reached["create"].clear()
    thread = threading.Thread(target=lambda: pytest.raises(CommandNotFound, house.ask, "two", peer, None))
    thread.start()
    assert house.sandbox.reached["create"].wait(5)
    house.sandbox.end("one", None, 0)
    assert first.wait() == 0
    assert not house.sandbox.closed.is_set()
    house.sandbox.block["create"].set()
    thread.join(10)
    house.join()
    assert house.sandbox.names()[-1] == "flush"


def test_its_process_may_not_end_before_it_is_created(house: House) -> None:
    house.sandbox.created = lambda id: house.sandbox.end(id, None, 1)
    with pytest.raises(ContainerError, match="ended before it was started"):
        house.create("one")
    house.join()


def test_who_makes_it_may_go_away_at_any_time(house: House) -> None:
    house.sandbox.block["boot"] = threading.Event()
    connection = house.launch()
    peer = house.record("one")
    with opened("/", "/proc/self/ns/net") as (root, netns):
        fds = (peer.socket.fileno(), root, netns)
        connection.send({"op": "create", "id": "one", "spec": SPEC, "fds": ["standin", "root", "netns"]}, fds)
        assert house.sandbox.reached["boot"].wait(5)
        connection.close()
        peer.socket.close()
        house.join()
    assert peer.wait() == 255
    house.store.remove("one", force=True)
    assert os.listdir(house.store.pods_path) == []


def test_it_ends_when_nobody_asks_for_a_container(house: House) -> None:
    house.launch().close()
    house.join()
    assert house.walls == []
    house.store.sweep()
    assert os.listdir(house.store.pods_path) == []


def test_who_makes_it_may_be_gone_when_it_is_made(house: House) -> None:
    house.running("one")
    house.sandbox.reached["create"].clear()
    house.sandbox.block["create"] = threading.Event()
    peer = house.record("two")
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(house.pod.run_path / "control.sock"))  # type: ignore[union-attr]
    connection = Connection(sock)
    with opened("/") as (root,):
        request = {"op": "create", "id": "two", "spec": SPEC, "fds": ["standin", "root"]}
        connection.send(request, (peer.socket.fileno(), root))
    peer.socket.close()
    assert house.sandbox.reached["create"].wait(5)
    connection.close()
    house.sandbox.block["create"].set()
    assert peer.wait() == 137
    assert house.client.wait("two")["status"] == 137
    assert house.store.get("two").status == "stopped" and house.store.get("one").status == "running"


def test_a_stand_in_killed_while_the_machine_boots_stops_it(house: House) -> None:
    house.sandbox.block["boot"] = threading.Event()
    connection = house.launch()
    peer = house.record("one")
    peer.socket.set_inheritable(False)
    thread = threading.Thread(
        target=lambda: pytest.raises(ContainerError, house.ask, "one", peer, connection).match("was killed")
    )
    thread.start()
    assert house.sandbox.reached["boot"].wait(5)
    peer.process.kill()
    thread.join(10)
    house.join()
    assert house.sandbox.closed.is_set()


def test_sigkill_does_not_wait_for_a_guest_that_does_not_answer(house: House) -> None:
    peer = house.running("one")
    house.sandbox.deaf = True
    house.client.kill("one", 9)
    assert peer.wait() == 137
    house.join()
    record = house.store.get("one")
    assert record.exit_code == 137 and "the whole sandbox was killed" in record.error


def test_a_deaf_member_is_deleted_before_the_machine_is_given_up(house: House) -> None:
    house.running("one")
    house.running("two")
    house.sandbox.deaf = True
    house.client.kill("two", 9)
    assert house.client.wait("two", timeout=20)["status"] == 137
    assert ("delete", "two") in house.sandbox.calls
    house.join()  # which did not help here
    assert "the whole sandbox was killed" in house.store.get("one").error


def test_the_end_of_the_machine_ends_all(house: House) -> None:
    first, second = house.running("one"), house.running("two")
    end = ProcessExit(255, error="the virtual machine ended: signal 9")
    for id in ("one", "two"):
        house.sandbox.end(id, None, 255, error=end.error)
    house.sandbox.on_end(end)
    assert (first.wait(), second.wait()) == (255, 255)
    house.join()
    assert [record.error for record in house.store.list()] == [end.error] * 2
    assert "flush" not in house.sandbox.names()


def test_a_kill_for_memory_is_told_and_recorded(house: House) -> None:
    house.running("one")
    events = follow(house)
    house.sandbox.on_oom("one")
    assert wait_until(lambda: house.store.stored("one").oom_killed)
    assert house.store.get("one").status == "running"
    house.sandbox.on_oom("one")
    house.sandbox.end("one", None, 137, oom=True, signal=9)
    house.join()
    assert wait_until(lambda: len(events) == 3)
    assert [event["event"] for event in events[1:]] == ["oom", "exit"]
    record = house.store.get("one")
    assert (record.exit_code, record.oom_killed) == (137, True)


def test_the_host_group_hears_of_it_before_the_end_is_told(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    struck, go_on = threading.Event(), threading.Event()

    def strike(group: object, *, shared: bool) -> None:
        struck.set()
        assert shared and go_on.wait(10)

    monkeypatch.setattr("casemate.pod.oom.strike", strike)
    peer = house.running("one")
    house.sandbox.end("one", None, 137, oom=True)
    assert struck.wait(5)
    assert peer.process.poll() is None
    go_on.set()
    assert peer.wait() == 137


def test_told_to_end_it_ends_all(house: House) -> None:
    peer = house.running("one")
    assert house.keeper is not None
    house.keeper.abort("the keeper was told to end", 143)
    assert peer.wait() == 143
    house.join()
    assert house.store.get("one").error == "the keeper was told to end"


def test_deletion_by_force_kills_first(house: House) -> None:
    first, second = house.running("one"), house.running("two")
    with pytest.raises(StillRunning):
        house.store.remove("one")
    house.store.remove("one", force=True)
    assert first.wait() == 137
    house.store.remove("two", force=True)
    assert second.wait() == 137
    house.join()
    assert os.listdir(house.store.root) == [".pods"] and os.listdir(house.store.pods_path) == []


def test_a_created_container_is_deleted_without_force(house: House) -> None:
    peer = house.create("one")
    house.store.remove("one")
    assert peer.wait() == 137 and house.store.ids() == []


def test_deletion_by_force_of_one_that_is_just_made(house: House) -> None:
    house.sandbox.block["boot"] = threading.Event()
    connection = house.launch()
    peer = house.record("one")
    thread = threading.Thread(target=lambda: pytest.raises(ContainerError, house.ask, "one", peer, connection))
    thread.start()
    assert house.sandbox.reached["boot"].wait(5)
    house.store.remove("one", force=True)
    thread.join(10)
    house.join()
    assert house.store.ids() == [] and peer.wait() != 0


def test_removing_a_damaged_record_ends_its_own_sandbox_and_no_other(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(removal, "FORCE_SECONDS", 0.5)
    monkeypatch.setattr("casemate.pod.reap.end_keeper", lambda pod: ended.append(pod.id))
    house.sandbox.block["boot"] = threading.Event()
    maker = threading.Thread(target=house.running, args=("one",))
    maker.start()
    assert house.sandbox.reached["boot"].wait(5)
    house.store.create_record(Record("lost", "", "/bundle"), SPEC)
    (house.store.path("lost") / "record.json").write_text("{")
    house.store.remove("lost", force=True)
    assert ended == [] and house.store.ids() == ["one"]
    house.sandbox.block["boot"].set()
    maker.join(10)
    (house.store.path("one") / "record.json").write_text("{")
    house.store.remove("one", force=True)
    house.join()
    assert house.store.ids() == []


def test_deletion_by_force_of_a_member_that_is_just_made(house: House) -> None:
    house.running("one")
    house.sandbox.reached["create"].clear()
    house.sandbox.block["create"] = threading.Event()
    peer = house.record("two")
    thread = threading.Thread(target=lambda: pytest.raises(ContainerError, house.ask, "two", peer, None))
    thread.start()
    assert house.sandbox.reached["create"].wait(5)
    removal = threading.Thread(target=house.store.remove, args=("two",), kwargs={"force": True})
    removal.start()
    assert wait_until(lambda: house.keeper._containers["two"].aborted)  # type: ignore[union-attr]
    house.sandbox.block["create"].set()
    removal.join(20)
    thread.join(10)
    assert house.store.ids() == ["one"] and house.store.get("one").status == "running"


def test_a_stopped_member_is_deleted_whatever_the_guest_does(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "DELETE_SECONDS", 0.2)
    house.running("one")
    for name in ("two", "three"):
        house.running(name)
        house.sandbox.end(name, None, 0)
        house.client.wait(name)
    house.sandbox.fail["delete"] = AgentError("no")
    assert house.client.delete("two", timeout=10)
    del house.sandbox.fail["delete"]
    house.sandbox.block["delete"] = threading.Event()
    assert house.client.delete("three", timeout=10)
    assert [call for call in house.sandbox.calls if call[0] == "detach"] == [("detach", "two"), ("detach", "three")]
    assert set(house.client.info()["containers"]) == {"one"}


def test_a_guest_that_does_not_listen_keeps_no_keeper(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CLOSE_SECONDS", 0.2)

    class Helper:
        """Has something to tell the guest at its end."""

        def start(self) -> None:
            pass

        def close(self) -> None:
            assert house.sandbox.closed.wait(30)

    house.helpers.append(Helper())
    house.running("one")
    house.sandbox.end("one", None, 0)
    house.join()


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
    with pytest.raises(Unsupported, match=f"has {containers_mib(1000)} MiB"):
        house.client.update("one", {"memory": {"limit": 1000 << 20}})


def test_a_member_that_may_use_more_than_there_is_has_the_machine_grow(house: House) -> None:
    house.running("one")
    assert house.keeper is not None
    has = house.keeper.home.memory_mib
    house.sandbox.most_mib = 1 << 20
    large = {"memory": {"limit": has << 20}}
    house.running("two", full={**SPEC, "linux": {"resources": large}})
    assert house.keeper.home.memory_mib == machine_mib(has)


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
