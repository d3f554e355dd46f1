"""Containers of an engine, which are created, started and changed one by one and share what they have."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from casemate.agent.container import Container, Places
from casemate.agent.process import Streams
from casemate.agent.processes import Reaper
from casemate.protocol.wire import RequestFailed
from tests.unit.agent.box import Box, read_all


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    one = Box(tmp_path)
    yield one
    console = one.close()
    assert "Traceback" not in console


def refused(box: Box, method: str, **params: Any) -> tuple[str, str]:
    with pytest.raises(RequestFailed) as caught:
        box.link.call(method, params, 20)
    return caught.value.code, caught.value.message


def config(box: Box, identifier: str) -> dict[str, Any]:
    """What the runtime was told."""
    value: dict[str, Any] = json.loads((box.cgroups / f"casemate/{identifier}/config.json").read_text())
    return value


def test_a_created_container_waits_for_its_start(box: Box) -> None:
    created = box.create("c", "sh", "-c", "cat; exit 4", stdin=True)
    assert created.pid > 1 and created.stdin is not None
    assert (box.cgroups / "casemate/c/exec.fifo").exists()
    created.stdin.send(b"early")
    created.stdin.send_eof()
    assert box.link.call("container.start", {"id": "c"}, 20) == {}
    assert created.output() == b"early"
    assert box.ended.wait("c") == {"id": "c", "exec_id": None, "status": 4, "signal": None, "oom": False}
    assert refused(box, "container.start", id="c")[0] in ("failed", "no-such-container")


@pytest.mark.parametrize(("more", "synced"), [({}, True), ({"keeps": True}, True), ({"keeps": False}, None)])
def test_the_last_container_writes_back_what_outlives_it(
    box: Box, more: dict[str, Any], synced: bool | None
) -> None:
    """And takes nothing away: the machine ends with it."""
    box.start("c", "true", last=True, **more)
    assert box.ended.wait("c").get("synced") is synced
    assert os.listdir(box.path / "run/containers")


def test_start_has_its_time(box: Box) -> None:
    assert refused(box, "container.start", id="none")[0] == "no-such-container"
    assert refused(box, "container.start", id=3)[0] == "bad-spec"
    box.create("c", "sleep", "60")
    box.link.call("container.start", {"id": "c"}, 20)
    assert refused(box, "container.start", id="c") == ("failed", "the container was started before")
    box.start("r", "sleep", "60")
    assert refused(box, "container.start", id="r") == ("failed", "the container was started before")


def test_a_created_container_that_never_starts(box: Box) -> None:
    box.create("killed", "sleep", "60")
    box.link.call("process.signal", {"id": "killed", "exec_id": None, "signal": 9, "all": False}, 20)
    assert box.ended.wait("killed")["signal"] == 9
    assert refused(box, "container.start", id="killed")[0] == "no-such-container"
    box.create("deleted", "sleep", "60")
    assert box.link.call("container.delete", {"id": "deleted"}, 20) == {}
    assert box.ended.wait("deleted")["signal"] == 9
    assert os.listdir(box.path / "run/containers") == []
    assert os.listdir(box.path / "run/files") == []


def test_a_failure_to_create_leaves_nothing(box: Box) -> None:
    for args, code in ((("nosuch",), "not-found"), (("forbidden",), "not-executable")):
        with pytest.raises(RequestFailed) as caught:
            box.create("c", *args)
        assert caught.value.code == code
    assert os.listdir(box.path / "run/containers") == []
    created = box.create("c", "echo", "now")
    box.link.call("container.start", {"id": "c"}, 20)
    assert created.output() == b"now\n"


def test_terminal_of_a_created_container(box: Box) -> None:
    created = box.create("t", "sh", "-c", "stty size; exit 4", stdin=True, terminal=True, size=[33, 77])
    box.link.call("process.resize", {"id": "t", "exec_id": None, "rows": 50, "cols": 100}, 20)
    box.link.call("container.start", {"id": "t"}, 20)
    assert created.output().strip() == b"50 100"


def test_sixty_four_and_not_one_more(box: Box) -> None:
    for number in range(64):
        box.create(f"c{number}", "sleep", "60")
    with pytest.raises(RequestFailed, match="64 containers, the most"):
        box.create("more", "true")
    box.link.call("container.delete", {"id": "c7"}, 20)
    box.ended.wait("c7")
    created = box.create("more", "echo", "room")
    box.link.call("container.start", {"id": "more"}, 20)
    assert created.output() == b"room\n"
    for number in range(64):
        box.link.call("container.delete", {"id": f"c{number}"}, 20)


def test_what_does_not_concern_a_container_leaves_it_alone(box: Box) -> None:
    """Ends and bad requests of others."""
    quiet = box.create("quiet", "sh", "-c", "cat; exit 5", stdin=True)
    box.link.call("container.start", {"id": "quiet"}, 20)
    for number in range(5):
        box.create(f"x{number}", "sleep", "60")
        box.link.call("process.signal", {"id": f"x{number}", "exec_id": None, "signal": 9, "all": False}, 20)
        box.link.call("container.delete", {"id": f"x{number}"}, 20)
        with pytest.raises(RequestFailed):
            box.create("quiet", "true")
        with pytest.raises(RequestFailed):
            box.create(f"bad{number}", "nosuch")
        assert box.exec("quiet", f"e{number}", "sh", "-c", "exit 3").stdout.recv() == b""
        assert box.ended.wait("quiet", f"e{number}")["status"] == 3
        refused(box, "container.update", id="quiet", resources=3)
        refused(box, "container.start", id="quiet")
    assert quiet.stdin is not None
    quiet.stdin.send(b"still here")
    quiet.stdin.send_eof()
    assert quiet.output() == b"still here"
    assert box.ended.wait("quiet")["status"] == 5


def test_the_number_of_a_process_that_has_ended_is_nobody_elses(tmp_path: Path) -> None:
    """Its status has been taken, and the kernel has given its number to another process: this one, say."""
    (tmp_path / "containers/1").mkdir(parents=True)
    places = Places(str(tmp_path), str(tmp_path), str(tmp_path), ("false",))
    container = Container("c", 1, places, Reaper(), cast(Any, None), dict)
    container._init.pid = os.getpid()
    for ask in (
        lambda: container.namespace("mnt"),
        lambda: container.exec(
            {"exec_id": "e", "user": "", "process": {"args": ["true"], "cwd": "/"}}, Streams(cast(Any, None), {})
        ),
    ):
        with pytest.raises(RequestFailed) as caught:
            ask()
        assert caught.value.code == "no-such-container"


def test_the_end_of_a_container_ends_its_other_processes_first(box: Box) -> None:
    """Here they share a process namespace, so nothing but the agent ends them."""
    box.create("c", "sleep", "60")
    box.link.call("container.start", {"id": "c"}, 20)
    pids = [box.exec("c", f"e{number}", "sleep", "60").pid for number in range(3)]
    group = box.cgroups / "casemate/c"
    (group / "cgroup.kill").touch()
    thread = threading.Thread(target=_kill_when_told, args=(group / "cgroup.kill", pids))
    thread.start()
    box.link.call("process.signal", {"id": "c", "exec_id": None, "signal": 15, "all": False}, 20)
    box.ended.wait("c")
    thread.join()
    assert [event["exec_id"] for event in box.ended.events][-1] is None
    assert len(box.ended.events) == 4


def _kill_when_told(path: Path, pids: list[int]) -> None:
    while path.read_text() != "1":
        pass
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


# ---- namespaces


def namespaces_of(box: Box, identifier: str) -> dict[str, str]:
    value: dict[str, str] = json.loads((box.cgroups / f"casemate/{identifier}/joined.json").read_text())
    return value


def sharing(box: Box, other: object, *kinds: str) -> dict[str, Any]:
    spec = box.spec("sleep", "60")
    spec["linux"]["namespaces"] = [{"type": kind, "container": other} for kind in kinds] + [{"type": "mount"}]
    return spec


def test_a_container_joins_namespaces_of_another(box: Box) -> None:
    first = box.create("first", "sleep", "60")
    box.create("second", spec=sharing(box, "first", "pid", "ipc", "uts", "network"))
    joined = namespaces_of(box, "second")
    assert joined.keys() == {"pid", "ipc", "uts", "network"}
    for kind, name in (("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("network", "net")):
        assert joined[kind] == f"/proc/{box.process.pid}/fd/{joined[kind].rpartition('/')[2]}" or joined[
            kind
        ] == os.readlink(f"/proc/{first.pid}/ns/{name}")
    assert not any(
        os.readlink(f"/proc/{box.process.pid}/fd/{fd}").startswith(("pid:", "ipc:", "uts:", "net:"))
        for fd in os.listdir(f"/proc/{box.process.pid}/fd")
    ), "they are not held longer than needed"


def test_who_cannot_be_joined(box: Box) -> None:
    box.create("gone", "sleep", "60")
    box.link.call("container.delete", {"id": "gone"}, 20)
    for other in ("none", "gone", "me"):
        with pytest.raises(RequestFailed) as caught:
            box.create("me", spec=sharing(box, other, "pid"))
        assert caught.value.code == "no-such-container", other
    box.create("there", "sleep", "60")
    bad: list[tuple[object, str]] = [
        ("there", "mount"), ("there", "user"), ("there", "time"), ("../x", "pid"), (3, "pid")
    ]  # fmt: skip
    for name, kind in bad:
        with pytest.raises(RequestFailed) as caught:
            box.create("me", spec=sharing(box, name, kind))
        assert caught.value.code == "bad-spec", (name, kind)


# ---- what the runtime is told


def test_what_belongs_to_the_host_stays_there(box: Box) -> None:
    spec = box.spec("sleep", "60", apparmorProfile="docker-default", selinuxLabel="x:y:z")
    spec["ociVersion"] = "1.2.1"
    spec["linux"].update(mountLabel="x", intelRdt={"closID": "x"})
    spec["annotations"] = {"run.oci.handler": "krun"}
    spec["hooks"] = {"prestart": [{"path": "/bin/false"}], "poststop": [{"path": "/bin/false"}]}
    box.create("c", spec=spec)
    told = config(box, "c")
    assert told["ociVersion"] == "1.0.2"
    assert not {"apparmorProfile", "selinuxLabel"} & told["process"].keys()
    assert not {"mountLabel", "intelRdt"} & told["linux"].keys()
    assert "hooks" not in told and "annotations" not in told
    spec = box.spec("sleep", "60")
    hook = [{"path": "/bin/true"}]
    spec["hooks"] = {"startContainer": hook, "createRuntime": [{"path": "/bin/false"}]}
    spec["annotations"] = {"run.oci.hooks.stdout": "/x", "module.wasm.image/variant": "x", "mine": "kept"}
    box.create("d", spec=spec)
    told = config(box, "d")
    assert told["hooks"] == {"startContainer": hook}
    assert told["annotations"] == {"mine": "kept"}


def test_open_files_begin_with_the_usual_bound(box: Box) -> None:
    box.create("c", "sleep", "60")
    (limit,) = config(box, "c")["process"]["rlimits"]
    assert limit["type"] == "RLIMIT_NOFILE" and limit["soft"] == 1024 <= limit["hard"]
    own = [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}, {"type": "RLIMIT_CORE", "soft": 1, "hard": 2}]
    box.create("d", spec=box.spec("sleep", "60", rlimits=own))
    assert config(box, "d")["process"]["rlimits"] == own


def test_bounds_of_the_specification(box: Box) -> None:
    spec = box.spec("sleep", "60")
    spec["linux"]["resources"] = {
        "memory": {"limit": 64 << 20, "reservation": 99 << 20, "swap": 1 << 30, "swappiness": 3},
        "cpu": {"shares": 12, "quota": -1, "period": 100000, "realtimeRuntime": 5, "mems": "0-1"},
        "pids": {"limit": 40},
    }
    box.create("c", spec=spec)
    told = config(box, "c")["linux"]["resources"]
    assert told["memory"] == {"limit": 64 << 20, "reservation": 64 << 20}
    assert told["cpu"] == {"shares": 12, "period": 100000}
    assert told["pids"] == {"limit": 40}
    spec = box.spec("sleep", "60")
    spec["linux"]["resources"] = {"memory": {"limit": 1 << 60}}
    box.create("d", spec=spec, memory=128 << 20)
    assert config(box, "d")["linux"]["resources"]["memory"]["limit"] == 128 << 20


def test_update(box: Box) -> None:
    box.create("c", "sleep", "60")
    group = box.cgroups / "casemate/c"
    asked = {"memory": {"limit": 50 << 20, "swap": -1}, "cpu": {"shares": 7, "quota": 0}, "pids": {"limit": -1},
             "devices": [], "blockIO": {"weight": 0}}  # fmt: skip
    assert box.link.call("container.update", {"id": "c", "resources": asked}, 20) == {}
    made = json.loads((group / "resources.json").read_text())
    assert made.keys() == {"memory", "cpu", "pids"}
    assert made["memory"] == {"limit": 50 << 20} and made["cpu"] == {"shares": 7}
    assert 0 < made["pids"]["limit"] < int(Path("/proc/sys/kernel/pid_max").read_text())
    (group / "cpu.max").write_text("5 10")
    (group / "resources.json").unlink()
    assert box.link.call("container.update", {"id": "c", "resources": {"cpu": {"quota": -1}}}, 20) == {}
    assert (group / "cpu.max").read_text().startswith("max")
    assert not (group / "resources.json").exists(), "there was nothing for the runtime to do"
    assert [name for name in os.listdir(box.path / "run/containers/1") if name.startswith("update")] == []
    assert refused(box, "container.update", id="c", resources={"memory": {"limit": "x"}})[0] == "bad-spec"
    assert refused(box, "container.update", id="c")[0] == "bad-spec"
    assert refused(box, "container.update", id="none", resources={})[0] == "no-such-container"


def test_settings_of_the_network_are_not_the_runtimes(box: Box, tmp_path: Path) -> None:
    spec = box.spec("sleep", "60")
    spec["linux"]["sysctl"] = {"kernel.shmmax": "5", "net.no.such.setting": "1"}
    with pytest.raises(RequestFailed, match="/proc/sys/net/no/such/setting cannot be set"):
        box.create("c", spec=spec)
    for name in ("net..x", "net.../x", "net/../kernel/x", "net.\nx"):
        spec = box.spec("sleep", "60")
        spec["linux"]["sysctl"] = {name: "1"}
        with pytest.raises(RequestFailed) as caught:
            box.create("c", spec=spec)
        assert caught.value.code == "bad-spec", name
    spec = box.spec("sleep", "60")
    spec["linux"]["sysctl"] = {"net.x": "1", "kernel.shmmax": "5"}
    spec["linux"]["namespaces"].append({"type": "network"})
    box.create("own", spec=spec)
    assert config(box, "own")["linux"]["sysctl"] == {"net.x": "1", "kernel.shmmax": "5"}


def test_priorities(box: Box) -> None:
    wanted = {"scheduler": {"policy": "SCHED_BATCH", "nice": 7}, "ioPriority": {"class": "IOPRIO_CLASS_IDLE"}}
    pid = box.create("c", spec=box.spec("sleep", "60", **wanted)).pid
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, pid) == 7
    assert not wanted.keys() & config(box, "c")["process"].keys()
    pid = box.exec("c", "e", process=box.spec("sleep", "60", **wanted)["process"]).pid
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    for bad in (
        {"scheduler": 1}, {"scheduler": {"policy": "SCHED_DEADLINE"}},
        {"scheduler": {"policy": "SCHED_RR", "nice": 20}},
        {"scheduler": {"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_RECLAIM"]}}, {"ioPriority": {"class": "x"}},
        {"ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 8}},
    ):  # fmt: skip
        with pytest.raises(RequestFailed) as caught:
            box.create("d", spec=box.spec("sleep", "60", **bad))
        assert caught.value.code == "bad-spec", bad


def test_output_of_processes_that_were_asked_for_with_exec(box: Box) -> None:
    box.create("c", "sleep", "60")
    started = box.exec("c", "e", "sh", "-c", "echo out; echo err >&2")
    assert started.output() == b"out\n"
    assert started.stderr is not None and read_all(started.stderr) == b"err\n"
