"""A sandbox's keeper: the states of its containers, their processes, and in which order ends are told."""

from __future__ import annotations

import os
import pty
import socket
import threading
from pathlib import Path

import pytest

from casemate.errors import (
    AgentError,
    CommandNotFound,
    ContainerError,
    NoSuchContainer,
    NotRunning,
    StillRunning,
)
from casemate.keeper.control import Connection
from casemate.pod import removal, service
from casemate.pod.cgroup import machine_mib
from casemate.pod.client import PodClient
from casemate.pod.model import Record
from casemate.pod.server import Server
from casemate.sandbox import ProcessExit
from tests.unit.pod.keepers import SPEC, House, Peer, follow, opened, wait_until

TERMINAL = {**SPEC, "process": {"args": ["sh"], "terminal": True}}


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


def test_a_member_may_ask_before_the_keeper_listens(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    listen, connect = Server.listen, PodClient._connect
    come, asked = threading.Event(), threading.Event()

    def late(server: Server, path: Path) -> None:
        assert come.wait(30)
        listen(server, path)

    def note(client: PodClient, timeout: float | None = None) -> Connection:
        try:
            return connect(client, timeout)
        except NotRunning:
            asked.set()
            raise

    monkeypatch.setattr(Server, "listen", late)
    monkeypatch.setattr(PodClient, "_connect", note)
    connection = house.launch()
    peer, other = house.record("one"), house.record("two")
    thread = threading.Thread(target=house.ask, args=("two", other, None))
    thread.start()
    assert asked.wait(30)
    come.set()
    house.ask("one", peer, connection)
    thread.join(30)
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


def test_who_starts_it_may_be_gone_when_it_is_started(house: House) -> None:
    """Its engine believes that it has not started, and would delete it as such."""
    house.running("one")
    peer = house.create("two")
    house.sandbox.block["start"] = threading.Event()
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(house.pod.run_path / "control.sock"))  # type: ignore[union-attr]
    connection = Connection(sock)
    connection.send({"op": "start", "id": "two", "fds": []})
    assert wait_until(lambda: ("start", "two") in house.sandbox.calls)
    connection.close()
    house.sandbox.block["start"].set()
    assert peer.wait() == 137
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
