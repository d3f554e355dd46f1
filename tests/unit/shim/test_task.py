"""The task service, with a runtime whose containers are plain processes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from casemate.shim import messages, status, wire
from casemate.shim.status import StatusError
from tests.unit.shim.world import TABLES, World


def refused(world: World, method: str, **fields: Any) -> tuple[int, str]:
    with pytest.raises(StatusError) as caught:
        world.call(method, **fields)
    return caught.value.code, caught.value.message


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_container_from_its_creation_to_its_deletion(world: World) -> None:
    pid = world.create("box", "sh", "-c", "exit 7")["pid"]
    assert world.call("State", id="box")["status"] == messages.CREATED
    assert world.call("Connect", id="box") == {"shim_pid": world.process.pid, "task_pid": pid, "version": ""}
    assert world.call("Start", id="box") == {"pid": pid}
    answer = world.call("Wait", id="box")
    assert answer["exit_status"] == 7
    assert abs(answer["exited_at"]["seconds"] - time.time()) < 60
    state = world.call("State", id="box")
    assert (state["status"], state["exit_status"], state["pid"]) == (messages.STOPPED, 7, pid)
    assert world.call("Delete", id="box") == {"pid": pid, **answer}
    assert refused(world, "State", id="box") == (status.NOT_FOUND, "container not created: not found")
    assert world.topics(4) == ["create", "start", "exit", "delete"]
    assert world.event("create")["bundle"] == str(world.tmp / "box")
    assert world.event("exit") == {"container_id": "box", "id": "box", "pid": pid, **answer}
    assert world.event("delete") == {"container_id": "box", "id": "", "pid": pid, **answer}


def test_both_versions_of_the_service_are_served(world: World) -> None:
    world.create("box", "sleep", "60")
    future = world.ask("State", version=1, id="box")
    assert world.loop.run_until(future, 10)["status"] == messages.CREATED
    world.remove("box")


def test_death_by_signal_is_128_and_the_signal(world: World) -> None:
    world.run("box", "sleep", "60")
    world.call("Kill", id="box", signal=int(signal.SIGTERM))
    assert world.call("Wait", id="box")["exit_status"] == 128 + signal.SIGTERM


def test_the_start_is_told_before_the_end(world: World) -> None:
    for verb in ("start", "exec"):
        world.hold(verb, "after")  # the process has ended before the runtime has
    world.create("box", "sh", "-c", "exit 3")
    pid = world.call("State", id="box")["pid"]
    future = world.ask("Start", id="box")
    world.until(lambda: ended(pid))
    assert not future.done
    world.let_go("start", "after")
    assert world.loop.run_until(future, 10) == {"pid": pid}
    assert world.call("Wait", id="box")["exit_status"] == 3
    assert world.topics(3) == ["create", "start", "exit"]
    world.run("other", "sleep", "60")
    world.add("other", "more", "sh", "-c", "exit 4")
    future = world.ask("Start", id="other", exec_id="more")
    file = world.tmp / "other" / "more.pid"
    world.until(lambda: file.exists() and file.read_text() and ended(int(file.read_text())))
    assert not future.done
    world.let_go("exec", "after")
    assert world.loop.run_until(future, 10) == {"pid": int(file.read_text())}
    assert world.call("Wait", id="other", exec_id="more")["exit_status"] == 4
    assert world.topics(8)[5:] == ["exec-added", "exec-started", "exit"]


def test_a_process_that_ends_at_once(world: World) -> None:
    for number in range(5):
        name = f"box{number}"
        world.run(name, "true")
        world.call("Wait", id=name)
        world.call("Delete", id=name)
    assert world.topics(20) == ["create", "start", "exit", "delete"] * 5


def test_waiters_that_come_late_and_many(world: World) -> None:
    world.run("box", "sleep", "60")
    waiting = [world.ask("Wait", id="box", seconds=None) for _ in range(50)]
    world.call("Kill", id="box", signal=9)
    assert {world.loop.run_until(one, 10)["exit_status"] for one in waiting} == {137}
    assert world.call("Wait", id="box")["exit_status"] == 137


def test_a_waiter_with_a_deadline_is_told_that_it_passed(world: World) -> None:
    world.run("box", "sleep", "60")
    request = world.client.call(
        "containerd.task.v2.Task", "Wait", messages.WAIT_REQUEST, {"id": "box"}, messages.WAIT_RESPONSE, 0.2
    )
    with pytest.raises((TimeoutError, StatusError)):
        world.loop.run_until(request, 10)
    world.remove("box")


# --- added processes ---


def test_an_added_process(world: World) -> None:
    world.run("box", "sleep", "60")
    world.add("box", "more", "sh", "-c", "exit 3")
    assert world.call("State", id="box", exec_id="more")["status"] == messages.CREATED
    pid = world.call("Start", id="box", exec_id="more")["pid"]
    assert world.call("Wait", id="box", exec_id="more")["exit_status"] == 3
    answer = world.call("Delete", id="box", exec_id="more")
    assert (answer["pid"], answer["exit_status"]) == (pid, 3)
    assert refused(world, "State", id="box", exec_id="more") == (
        status.NOT_FOUND, "process does not exist more: not found"
    )
    assert world.topics(5) == ["create", "start", "exec-added", "exec-started", "exit"]
    assert world.event("exit")["id"] == "more"
    assert not [path.name for path in (world.tmp / "box").iterdir() if path.name.startswith("more")]
    world.remove("box")


def test_an_added_process_is_killed_alone(world: World) -> None:
    world.run("box", "sleep", "60")
    world.add("box", "more", "sleep", "60")
    assert refused(world, "Kill", id="box", exec_id="more", signal=9)[0] == status.FAILED_PRECONDITION
    world.call("Start", id="box", exec_id="more")
    world.call("Kill", id="box", exec_id="more", signal=9)
    assert world.call("Wait", id="box", exec_id="more")["exit_status"] == 137
    assert refused(world, "Kill", id="box", exec_id="more", signal=9) == (
        status.NOT_FOUND, "process already finished: not found"
    )
    assert world.call("State", id="box")["status"] == messages.RUNNING
    world.remove("box")


def test_a_command_that_is_not_there(world: World) -> None:
    world.run("box", "sleep", "60")
    world.add("box", "more", "no-such-command")
    code, message = refused(world, "Start", id="box", exec_id="more")
    assert (code, message) == (
        status.UNKNOWN,
        'OCI runtime exec failed: exec failed: exec: "no-such-command": executable file not found in $PATH',
    )
    world.call("Wait", id="box", exec_id="more")
    world.call("Delete", id="box", exec_id="more")
    world.remove("box")


def test_ids_of_added_processes(world: World) -> None:
    world.run("box", "sleep", "60")
    world.add("box", "more", "true")
    with pytest.raises(StatusError) as caught:
        world.add("box", "more", "true")
    assert (caught.value.code, caught.value.message) == (status.ALREADY_EXISTS, "id more: already exists")
    for bad in ("../up", "", ".hidden", "x" * 300):
        with pytest.raises(StatusError) as caught:
            world.add("box", bad, "true")
        assert caught.value.code == status.INVALID_ARGUMENT
    world.remove("box")


def test_the_ends_of_added_processes_are_told_before_the_containers(world: World) -> None:
    world.run("box", "sleep", "60")
    world.add("box", "more", "sleep", "60")
    world.call("Start", id="box", exec_id="more")
    pid = world.call("State", id="box", exec_id="more")["pid"]
    world.call("Kill", id="box", signal=9)
    world.until(lambda: not os.path.exists(f"/proc/{world.call('State', id='box')['pid']}"))
    os.kill(pid, signal.SIGKILL)
    assert world.topics(6)[4:] == ["exit", "exit"]
    assert [event["id"] for topic, event in world.containerd.events if topic == "/tasks/exit"] == ["more", "box"]
    world.call("Delete", id="box")


def test_what_a_specification_must_be(world: World) -> None:
    world.run("box", "sleep", "60")
    for value in (b"", b"[1]", b"{"):
        assert refused(world, "Exec", id="box", exec_id="x", spec={"value": value})[0] == status.INVALID_ARGUMENT
    assert refused(world, "Exec", id="box", exec_id="x")[0] == status.INVALID_ARGUMENT
    world.remove("box")


# --- states ---


def test_pausing(world: World) -> None:
    world.run("box", "sleep", "60")
    world.add("box", "more", "sleep", "60")
    world.call("Start", id="box", exec_id="more")
    world.call("Pause", id="box")
    assert world.call("State", id="box")["status"] == messages.PAUSED
    assert world.call("State", id="box", exec_id="more")["status"] == messages.PAUSED
    for method, words in (
        ("Pause", "cannot pause a paused process"), ("Start", "cannot start a paused process"),
        ("Delete", "cannot delete a paused process"),
    ):
        assert refused(world, method, id="box") == (status.FAILED_PRECONDITION, f"{words}: failed precondition")
    assert refused(world, "Exec", id="box", exec_id="x", spec={"value": b"{}"}) == (
        status.FAILED_PRECONDITION, "cannot exec in a paused state: failed precondition"
    )
    world.call("Resume", id="box")
    assert world.call("State", id="box")["status"] == messages.RUNNING
    assert refused(world, "Resume", id="box")[0] == status.FAILED_PRECONDITION
    assert world.topics(6)[-2:] == ["paused", "resumed"]
    world.call("Kill", id="box", exec_id="more", signal=9)
    world.remove("box")


def test_a_paused_container_that_is_killed_can_be_deleted(world: World) -> None:
    world.run("box", "sleep", "60")
    world.call("Pause", id="box")
    world.call("Kill", id="box", signal=9)
    world.call("Wait", id="box")
    world.call("Delete", id="box")
    assert ["resume", "box"] in [call[:2] for call in world.calls()]


def test_what_a_running_container_cannot(world: World) -> None:
    world.run("box", "sleep", "60")
    assert refused(world, "Start", id="box") == (
        status.FAILED_PRECONDITION, "cannot start a running process: failed precondition"
    )
    assert refused(world, "Delete", id="box")[0] == status.FAILED_PRECONDITION
    assert refused(world, "Checkpoint", id="box")[0] == status.UNIMPLEMENTED
    world.remove("box")


def test_what_a_stopped_container_cannot(world: World) -> None:
    world.run("box", "true")
    world.call("Wait", id="box")
    assert refused(world, "Kill", id="box", signal=9) == (
        status.NOT_FOUND, "process already finished: not found"
    )
    for method in ("Start", "Pause", "Resume"):
        assert refused(world, method, id="box")[0] == status.FAILED_PRECONDITION
    assert refused(world, "Update", id="box", resources={"value": b"{}"})[0] == status.FAILED_PRECONDITION
    assert refused(world, "Exec", id="box", exec_id="x", spec={"value": b"{}"})[0] == status.FAILED_PRECONDITION


def test_a_container_that_was_never_started_is_deleted(world: World) -> None:
    world.create("box", "sleep", "60")
    assert world.call("Delete", id="box")["exit_status"] == 137
    assert world.topics(3) == ["create", "exit", "delete"]


def test_containers_that_are_not_there(world: World) -> None:
    for method in TABLES.keys() - {"Create", "Connect", "Shutdown"}:
        assert refused(world, method, id="nobody") == (status.NOT_FOUND, "container not created: not found")
    assert world.call("Connect", id="nobody")["task_pid"] == 0


def test_a_container_that_is_there_already(world: World) -> None:
    world.create("box", "sleep", "60")
    with pytest.raises(StatusError) as caught:
        world.create("box", "sleep", "60")
    assert caught.value.code == status.ALREADY_EXISTS
    world.remove("box")


def test_bad_creations(world: World, tmp_path: Path) -> None:
    good = {"id": "a", "bundle": str(tmp_path)}
    for bad in (
        {"id": ""}, {"id": "a/b"}, {"bundle": "relative"}, {"options": {"type_url": "some.Other", "value": b""}},
        {"options": {"type_url": "containerd.runc.v1.Options", "value": b"\xff"}}, {"stdin": "file:///tmp/x"},
    ):
        assert refused(world, "Create", **{**good, **bad})[0] == status.INVALID_ARGUMENT
    assert refused(world, "Create", **{**good, "bundle": "/no/such/bundle"})[0] == status.UNKNOWN
    assert world.containerd.events == []


def test_checkpoints_cannot_be_restored(world: World, tmp_path: Path) -> None:
    assert refused(world, "Create", id="a", bundle=str(tmp_path), checkpoint="/x")[0] == status.UNIMPLEMENTED


# --- the runtime ---


def test_a_runtimes_error_is_told(world: World) -> None:
    world.trouble("create")
    with pytest.raises(StatusError) as caught:
        world.create("box", "true")
    assert (caught.value.code, caught.value.message) == (status.UNKNOWN, "OCI runtime create failed: it went wrong")
    assert world.containerd.events == []
    (world.root / "tests" / "fail-create").unlink()
    world.create("box", "true")
    world.trouble("start")
    assert refused(world, "Start", id="box") == (status.UNKNOWN, "OCI runtime start failed: it went wrong")
    for verb in ("pause", "update", "ps"):
        world.trouble(verb)
    (world.root / "tests" / "fail-start").unlink()
    world.remove("box")


def test_a_runtime_that_is_not_there(world: World, tmp_path: Path) -> None:
    world.options.write_text(f'BinaryName = "/no/such/runtime"\nRoot = "{tmp_path}/r"\n')
    with pytest.raises(StatusError) as caught:
        world.create("box", "true")
    assert caught.value.message == "OCI runtime create failed: exec: /no/such/runtime: No such file or directory"


def test_a_runtime_that_is_late_is_killed_and_cleared_up_after(world: World) -> None:
    world.hold("create")
    options = world.tmp / "box"
    options.mkdir()
    world.bundle("box", "true")
    value = b"\x12" + bytes([len(str(world.options))]) + str(world.options).encode()
    request = {
        "id": "box", "bundle": str(options), "options": {"type_url": "runtimeoptions.v1.Options", "value": value},
    }
    call = world.client.call(
        "containerd.task.v2.Task", "Create", messages.CREATE_REQUEST, request, messages.CREATE_RESPONSE, 0.5
    )
    with pytest.raises((TimeoutError, StatusError)):
        world.loop.run_until(call, 20)
    world.until(lambda: ["delete", "--force", "box"] in [one[:3] for one in world.calls()])
    world.until(lambda: refused(world, "State", id="box")[0] == status.NOT_FOUND)


def test_the_command_lines(world: World) -> None:
    more = "".join(f"{key} = true\n" for key in ("SystemdCgroup", "NoPivotRoot", "NoNewKeyring"))
    world.options.write_text(world.options.read_text() + more)
    world.run("box", "sleep", "60")
    world.add("box", "more", "true")
    world.call("Start", id="box", exec_id="more")
    world.call("Wait", id="box", exec_id="more")
    pid = world.call("State", id="box")["pid"]
    assert world.call("Pids", id="box") == {"processes": [{"pid": pid, "info": None}]}
    limits = {"memory": {"limit": 1 << 26}}
    world.call("Update", id="box", resources={"value": json.dumps(limits).encode()})
    assert json.loads((world.root / "tests" / "box" / "resources").read_text()) == limits
    world.remove("box")
    bundle = str(world.tmp / "box")
    flags = "--no-pivot --no-new-keyring"
    assert [" ".join(call) for call in world.calls()] == [f"{line} --log-format --systemd-cgroup" for line in (
        f"create --bundle {bundle} {flags} --pid-file {bundle}/init.pid box",
        "start box",
        f"exec --process {bundle}/more.process.json --detach --pid-file {bundle}/more.pid box",
        "ps --format json box", "update --resources - box", "kill --all box 9", "delete box",
    )]


def test_a_cgroups_path_in_systemds_form_is_enough(world: World) -> None:
    spec = {"linux": {"cgroupsPath": "pods.slice:cri:box", "namespaces": [{"type": "pid"}]}}
    world.create("box", "sleep", "60", spec=spec)
    assert "--systemd-cgroup" in world.calls()[0]
    world.remove("box")


def test_without_pids_of_its_own_everything_is_killed_at_the_end(world: World) -> None:
    world.run("box", "true", spec={"linux": {"namespaces": []}})
    world.call("Wait", id="box")
    assert ["kill", "--all", "box", "9"] in [call[:4] for call in world.calls()]


# --- the shim's end ---


def test_shutdown_waits_for_the_last_container(world: World) -> None:
    world.run("box", "sleep", "60")
    world.call("Shutdown", id="box")
    assert world.call("State", id="box")["status"] == messages.RUNNING
    world.remove("box")
    world.call("Shutdown", id="box")
    assert world.until(lambda: world.process.poll() is not None)
    assert world.process.returncode == 0
    assert not world.socket.exists()
    assert world.topics(4)[-1] == "delete"


def test_shutdown_in_the_middle_of_a_creation_that_fails_ends_the_shim_after_it(world: World) -> None:
    """containerd's client died: it gives the shim up at once, and does not ask again."""
    world.hold("create")
    world.trouble("create")
    value = wire.encode(messages.RUNTIME_OPTIONS, {"config_path": str(world.options)})
    options = {"type_url": messages.RUNTIME_OPTIONS.name, "value": value}
    creation = world.ask("Create", id="box", bundle=str(world.bundle("box", "true")), options=options)
    world.held("create")
    world.call("Shutdown", id="box")
    assert world.process.poll() is None
    world.let_go("create")
    with pytest.raises(StatusError):
        world.loop.run_until(world.loop.bounded(creation, 20), 20)
    assert world.until(lambda: world.process.poll() is not None)
    assert not world.socket.exists()


def test_what_is_being_made_is_deleted_when_it_is_there(world: World) -> None:
    """containerd's client went away: it is not there yet, and a deletion that says so would leave it behind."""
    world.hold("create")
    value = wire.encode(messages.RUNTIME_OPTIONS, {"config_path": str(world.options)})
    options = {"type_url": messages.RUNTIME_OPTIONS.name, "value": value}
    creation = world.ask("Create", id="box", bundle=str(world.bundle("box", "true")), options=options)
    world.held("create")
    with pytest.raises(StatusError, match="not created"):
        world.call("State", id="box")
    assert not creation.done
    deletion = world.ask("Delete", id="box")
    world.call("Connect", id="box")  # which is answered after the deletion was asked for
    world.let_go("create")
    world.loop.run_until(deletion, 20)
    assert creation.done
    assert "delete" in [one[0] for one in world.calls()]


def test_what_nobody_hears_of_any_more_is_deleted(world: World) -> None:
    """containerd died in a creation. The one that is started anew does not know of the container."""
    world.hold("create")
    value = wire.encode(messages.RUNTIME_OPTIONS, {"config_path": str(world.options)})
    options = {"type_url": messages.RUNTIME_OPTIONS.name, "value": value}
    other = world.connect()
    request = {"id": "box", "bundle": str(world.bundle("box", "true")), "options": options}
    task = "containerd.task.v2.Task"
    other.call(task, "Create", messages.CREATE_REQUEST, request, messages.CREATE_RESPONSE, 20)
    world.held("create")
    other.close()
    world.let_go("create")
    assert world.until(lambda: "delete" in [one[0] for one in world.calls()])
    with pytest.raises(StatusError, match="not created"):
        world.call("Delete", id="box")
    assert world.until(lambda: world.process.poll() is not None, 30)


@pytest.mark.parametrize("name", ["box", "other"])
def test_shutdown_in_the_name_of_what_is_being_made_gives_that_up(world: World, name: str) -> None:
    """containerd was started anew, and found a shim without a container."""
    world.hold("create")
    value = wire.encode(messages.RUNTIME_OPTIONS, {"config_path": str(world.options)})
    options = {"type_url": messages.RUNTIME_OPTIONS.name, "value": value}
    creation = world.ask("Create", id="box", bundle=str(world.bundle("box", "true")), options=options)
    world.held("create")
    world.call("Shutdown", id=name)
    world.let_go("create")
    if name == "box":
        with pytest.raises(StatusError, match="given up"):
            world.loop.run_until(world.loop.bounded(creation, 20), 20)
        assert world.until(lambda: world.process.poll() is not None)
        assert "delete" in [one[0] for one in world.calls()]
        assert not world.containerd.events, "of what is not there nothing is told"
        assert "not heard of" not in (world.tmp / "shim.log").read_text()
    else:
        world.loop.run_until(world.loop.bounded(creation, 20), 20)
        assert world.call("State", id="box")["status"] == messages.CREATED
        world.call("Delete", id="box")


def test_a_shim_that_is_forgotten_after_its_last_container_ends(world: World) -> None:
    """containerd's client died in a deletion: it forgets the task, and tells the shim nothing."""
    for name in ("box", "other"):
        world.run(name, "sleep", "60")
    for name in ("box", "other"):
        world.remove(name)
    assert world.process.poll() is None
    assert world.until(lambda: world.process.poll() is not None, 30)
    assert world.process.returncode == 0
    assert not world.socket.exists()


def test_a_shim_that_is_never_told_what_for_ends(world: World) -> None:
    """containerd died between the shim's start and the creation; the next one keeps its connection."""
    assert world.call("Connect", id="box")["task_pid"] == 0
    with pytest.raises(StatusError, match="container not created"):
        world.call("Pids", id="box")
    assert world.process.poll() is None
    assert world.until(lambda: world.process.poll() is not None, 60)
    assert world.process.returncode == 0
    assert not world.socket.exists()


def test_sigterm_ends_the_shim_and_no_container(world: World) -> None:
    world.run("box", "sleep", "60")
    pid = world.call("State", id="box")["pid"]
    world.process.terminate()
    assert world.until(lambda: world.process.poll() is not None)
    os.kill(pid, 0)
    assert not world.socket.exists()


def test_unknown_methods_and_services(world: World) -> None:
    for service, method in (("containerd.task.v2.Task", "Fly"), ("some.Service", "State")):
        future = world.client.call(service, method, messages.STATE_REQUEST, {}, messages.EMPTY, 10)
        with pytest.raises(StatusError) as caught:
            world.loop.run_until(future, 10)
        assert caught.value.code == status.UNIMPLEMENTED


# --- containerd's restarts ---


def test_events_wait_for_containerd(world: World) -> None:
    world.create("box", "true")
    assert world.topics(1) == ["create"]
    world.containerd.close()
    world.call("Start", id="box")
    world.call("Wait", id="box")
    world.call("Delete", id="box")
    assert len(world.containerd.events) == 1
    world.containerd.open()
    assert world.topics(4) == ["create", "start", "exit", "delete"]


def test_an_event_that_containerd_refuses_holds_up_no_other(world: World) -> None:
    def refuse(topic: str) -> None:
        if topic == "/tasks/start":
            raise StatusError(status.INVALID_ARGUMENT, "not this one")

    world.containerd.refuse = refuse
    world.run("box", "true")
    world.call("Wait", id="box")
    assert world.topics(2) == ["create", "exit"]


def test_a_shim_serves_whoever_connects_again(world: World) -> None:
    world.run("box", "sleep", "60")
    waiting = world.ask("Wait", id="box", seconds=None)
    world.client.close()
    assert waiting.error is not None
    world.client = world.connect()
    assert world.call("State", id="box")["status"] == messages.RUNNING
    world.remove("box")


def test_signals_that_somebody_has_blocked_come_all_the_same(tmp_path: Path) -> None:
    blocked = (signal.SIGCHLD, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        world = World(tmp_path)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    try:
        world.run("box", "sh", "-c", "exit 3")
        assert world.call("Wait", id="box")["exit_status"] == 3
        world.call("Delete", id="box")
        world.process.terminate()
        assert world.process.wait(20) == 0
    finally:
        world.close()
