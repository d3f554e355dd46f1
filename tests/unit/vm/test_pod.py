"""The vm wall's sandbox for several containers, on a fake machine with an agent played by the test."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import (
    AgentError,
    CommandNotFound,
    HypervisorError,
    NameInUse,
    NetworkError,
    NotRunning,
    UsageError,
)
from casemate.host import uids
from casemate.protocol.wire import RequestFailed
from casemate.sandbox import Disk, Nic, ProcessExit
from casemate.vm import pod as pod_module
from casemate.vm.hypervisor import base
from casemate.wall import asking
from tests.unit.vm.pod_scene import Mute, PodScene, fake_files, in_thread, interface, is_closed, nic
from tests.unit.vm.pod_scene import scene as scene  # a fixture
from tests.unit.vm.test_sandbox import WAIT, NoFiles
from tests.unit.vm.test_sandbox import server as server  # a fixture

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


# ---- processes


def test_the_first_container_comes_with_what_makes_the_guest_this_sandboxs(scene: PodScene) -> None:
    first, other = nic(A)
    scene.boot((first,))
    streams = scene.pod.create("a", SPEC := {"process": {"args": ["sh"], "terminal": False}}, [], True, None)
    params = scene.request("container.create")
    assert params["id"] == "a" and params["spec"] == SPEC
    assert params["sandbox"]["hostname"] == "box"
    assert params["sandbox"]["interfaces"] == [
        {
            "name": "eth0", "mac": A, "mtu": 1500, "addresses": ["10.1.2.a/24"], "routes": [], "neighbours": [],
        }
    ]  # fmt: skip
    assert len(params["sandbox"]["entropy"]) >= 64
    out = scene.link.stream(params["stdout"])
    out.send(b"hello")
    out.send_eof()
    assert streams.stdout is not None and streams.stderr is not None and streams.stdin is not None
    assert streams.stdout.recv(100) == b"hello"
    scene.create("b")
    assert scene.request("container.create")["sandbox"] is None
    scene.pod.start("a")
    assert scene.request("container.start") == {"id": "a"}
    os.close(other)


def test_the_guest_is_told_what_it_would_look_up(scene: PodScene) -> None:
    """And asked what it is with the first container only; its answer is believed as far as it goes."""
    scene.boot()
    root = scene.run_path / "share" / "a"
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("me:x:7:7::/home/me:/bin/sh\n")
    (root / "bin/sh").write_text("#!\n")  # the kernel executes it, whatever comes of that
    (root / "bin/sh").chmod(0o755)
    scene.guest.answer = lambda method, params: {"pid": 1, "guest": {"kernel": "6.1.0", "mem_total": 5, "odd": "x"}}
    process = {"args": ["sh"], "env": ["PATH=/usr/bin:/bin"], "cwd": "/"}
    scene.pod.create("a", {"process": process}, [], False, None)
    params = scene.request("container.create")
    assert params["looked"] == {"passwd": "me:x:7:7::/home/me:/bin/sh\n", "group": "", "place": "/bin/sh"}
    assert params["info"] is True
    facts = scene.pod.info()
    assert facts["kernel"] == "6.1.0" and "odd" not in facts
    scene.pod.create("b", {}, [], False, None)
    params = scene.request("container.create")
    assert params["looked"] == {} and "info" not in params
    assert scene.guest.requests.empty(), "nothing else was asked"


def test_a_terminal_has_one_stream_of_output_and_a_size(scene: PodScene) -> None:
    scene.boot()
    streams = scene.pod.create("a", {"process": {"terminal": True}}, [], False, (24, 80))
    params = scene.request("container.create")
    assert params["size"] == [24, 80] and params["stderr"] is None and params["stdin"] is None
    assert streams.stderr is None and streams.stdin is None


def test_ends_are_told_by_container_and_exec_id(scene: PodScene) -> None:
    scene.boot()
    for id in ("a", "b"):
        scene.create(id)
        scene.exec(id, "same")
    scene.exited("b", "same", 3)
    scene.exited("a", "same", None, 15)
    scene.exited("c", None, 0)  # nobody's
    scene.exited("a", None, 0)
    scene.exited("a", None, 1)  # a second end does not count
    scene.exited("b", None, None, 9)
    assert [scene.end() for _ in range(4)] == [
        ("b", "same", ProcessExit(3)),
        ("a", "same", ProcessExit(143, signal=15)),
        ("a", None, ProcessExit(0)),
        ("b", None, ProcessExit(137, signal=9)),
    ]
    assert scene.told.empty()


def test_no_two_living_processes_have_one_name(scene: PodScene) -> None:
    scene.boot()
    scene.create("a")
    with pytest.raises(NameInUse):
        scene.create("a")
    scene.exec("a", "one")
    with pytest.raises(NameInUse):
        scene.exec("a", "one")
    scene.exited("a", "one", 0)
    assert scene.end()[1] == "one"
    scene.exec("a", "one")


def test_an_end_before_the_answer_is_told_after_it_and_only_if_it_began(scene: PodScene) -> None:
    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "container.exec":
            scene.exited("a", params["exec_id"], 5)
            scene.link.notify("container.oom", {"id": "a"})
            assert scene.end() == ("a", "oom")  # so the end, which was sent before it, has been handled
            if params["exec_id"] == "bad":
                raise RequestFailed("not-found", "no such command")
        return {}

    scene.guest.answer = answer
    scene.boot()
    scene.create("a")
    with pytest.raises(CommandNotFound):
        scene.exec("a", "bad")
    scene.exec("a", "good")
    assert scene.end() == ("a", "good", ProcessExit(5))
    assert scene.told.empty()


def test_a_container_that_failed_is_none(scene: PodScene) -> None:
    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "container.create" and params["id"] == "bad":
            raise RequestFailed("bad-spec", "what is this")
        return {}

    scene.guest.answer = answer
    scene.boot()
    with pytest.raises(UsageError, match="what is this"):
        scene.create("bad")
    scene.create("good")
    assert scene.request("container.create")["id"] == "bad"
    assert scene.request("container.create")["sandbox"] is not None, "the guest may not have got so far"
    scene.link.notify("container.oom", {"id": "bad"})
    scene.link.notify("container.oom", {"id": ["good"]})
    scene.link.notify("container.oom", {"id": "good"})
    assert scene.end() == ("good", "oom")


def test_requests_are_what_they_should_be(scene: PodScene) -> None:
    scene.guest.answer = lambda method, params: {"memory": {"current": 5}} if method == "container.stats" else {}
    scene.boot()
    scene.create("a")
    scene.pod.signal("a", None, 10)
    scene.pod.signal("a", "e", 12, everyone=True)
    assert scene.request("process.signal") == {"id": "a", "exec_id": None, "signal": 10, "all": False}
    assert scene.request("process.signal") == {"id": "a", "exec_id": "e", "signal": 12, "all": True}
    scene.pod.resize("a", "e", 3, 4)
    assert scene.request("process.resize") == {"id": "a", "exec_id": "e", "rows": 3, "cols": 4}
    scene.pod.pause("a")
    scene.pod.resume("a")
    scene.pod.update("a", {"pids": {"limit": 5}})
    assert scene.request("container.pause") == scene.request("container.resume") == {"id": "a"}
    assert scene.request("container.update") == {"id": "a", "resources": {"pids": {"limit": 5}}}
    assert scene.pod.stats("a") == {"memory": {"current": 5}, "limit": 512 << 20, "host": scene.pod.stats("a")["host"]}
    assert scene.vm.status() is base.VmStatus.RUNNING, "a container is paused, not the machine"


def test_unknown_processes_do_not_run(scene: PodScene) -> None:
    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "process.signal":
            raise RequestFailed("no-such-process" if params["exec_id"] else "no-such-container", "gone")
        return {}

    scene.guest.answer = answer
    scene.boot()
    for exec_id in (None, "e"):
        with pytest.raises(NotRunning, match="gone"):
            scene.pod.signal("a", exec_id, 9)


# ---- the end of containers


def test_a_deleted_containers_ends_are_told_before_delete_returns(scene: PodScene) -> None:
    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "container.delete":
            scene.exited("a", None, None, 9)
        return {}

    scene.guest.answer = answer
    scene.boot()
    scene.create("a")
    scene.create("b")
    scene.pod.delete("a")
    assert scene.told.get_nowait() == ("a", None, ProcessExit(137, signal=9))
    scene.create("a")  # the name is free again


def test_a_guest_that_keeps_silent_of_ends_does_not_keep_them(
    scene: PodScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LAST_ENDS_SECONDS", 0.1)
    scene.boot()
    scene.create("a")
    scene.exec("a", "e")
    scene.create("b")
    scene.pod.delete("a")
    ends = [scene.end() for _ in range(2)]
    assert [(id, exec_id, end.status, end.signal) for id, exec_id, end in ends] == [
        ("a", "e", 137, 9), ("a", None, 137, 9),
    ]  # fmt: skip
    assert scene.told.empty()
    scene.pod.delete("never-there")


def test_delete_after_the_end_of_the_machine_is_no_error(scene: PodScene) -> None:
    scene.boot()
    scene.create("a")
    scene.vm.end(base.VmExit(base.ExitCause.FAILED, 1, None, "QEMU ended"))
    scene.pod.delete("a")
    assert scene.end()[0] == "a"


# ---- the end of the machine


def test_a_machine_that_dies_ends_everything_and_itself_last(scene: PodScene) -> None:
    scene.boot()
    for id in ("a", "b"):
        scene.create(id)
        scene.exec(id, "e")
    scene.exited("a", "e", 7)
    scene.vm.end(base.VmExit(base.ExitCause.FAILED, None, 9, "killed by signal SIGKILL"))
    ends = [scene.end() for _ in range(5)]
    assert ends[0] == ("a", "e", ProcessExit(7)), "what was told before the end is true"
    assert ends[1][:2] == ("b", "e")
    assert {ends[2][:2], ends[3][:2]} == {("a", None), ("b", None)}
    assert {end[2].status for end in ends[1:4]} == {137} and {end[2].signal for end in ends[1:4]} == {9}
    assert isinstance(ends[4], ProcessExit) and "SIGKILL" in ends[4].error
    with pytest.raises(NotRunning):
        scene.pod.stats("a")


def test_close_and_flush_are_no_end_by_itself(scene: PodScene) -> None:
    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "sandbox.shutdown":
            scene.exited("a", None, None, 9)
            scene.vm.end(base.VmExit(base.ExitCause.GUEST_SHUTDOWN, 0, None, "the guest powered off"))
        return {}

    scene.guest.answer = answer
    scene.boot()
    scene.create("a")
    scene.pod.flush()
    scene.pod.close()
    scene.pod.close()
    assert scene.end() == ("a", None, ProcessExit(137, signal=9))
    assert scene.told.empty()


def test_a_machine_that_dies_while_it_boots_is_an_error_and_no_end(scene: PodScene) -> None:
    scene.guest.raw = True
    scene.hypervisor.on_start = lambda vm: vm.end(base.VmExit(base.ExitCause.GUEST_PANIC, 1, None, "it panicked"))
    with pytest.raises(HypervisorError, match="it panicked"):
        scene.boot()
    assert scene.told.empty()


def test_closing_gives_back_the_user_and_the_turn(
    tmp_path: Path, server: NoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    monkeypatch.setattr(uids, "release", lambda id, config: released.append(id))
    scene = fake_files(PodScene(tmp_path, parallel_boots=1), monkeypatch)
    scene.boot()
    second = fake_files(PodScene(tmp_path, parallel_boots=1), monkeypatch)
    thread, raised = in_thread(second.boot)
    thread.join(0.2)
    assert thread.is_alive(), "it waits for its turn"
    scene.close()
    thread.join(WAIT)
    assert not thread.is_alive() and not raised
    second.close()
    assert released == [scene.id, second.id]
    assert not (scene.run_path / "share").exists()


# ---- deadlines


def test_a_guest_that_does_not_answer_is_an_error_in_time(
    tmp_path: Path, server: NoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = fake_files(PodScene(tmp_path, call_timeout=1), monkeypatch)
    never = threading.Event()
    scene.guest.answer = lambda method, params: {"x": never.wait(WAIT)}
    scene.boot()
    calls = (
        lambda: scene.create("a"), lambda: scene.exec("a", "e"), lambda: scene.pod.signal("a", None, 9),
        lambda: scene.pod.delete("a"), lambda: scene.pod.connect(80), lambda: scene.pod.serve_dns(["127.0.0.11"]),
        lambda: scene.pod.stats("a"), lambda: scene.pod.configure([]),
    )  # fmt: skip
    for thread, raised in [in_thread(call) for call in calls]:
        thread.join(WAIT)
        assert isinstance(raised[0], AgentError) and "does not answer" in str(raised[0])
    scene.close()
    never.set()


def test_a_guest_that_reads_nothing_cannot_hold_anybody(
    tmp_path: Path, server: NoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = fake_files(PodScene(tmp_path, call_timeout=1), monkeypatch)
    mute = Mute(scene)
    scene.boot()
    big = [{"path": "/x", "mode": 0o644, "content": "x" * 900_000}]
    for id in ("a", "b"):  # more than fits into a socket's buffer
        with pytest.raises((AgentError, NotRunning)):
            scene.pod.create(id, {"process": {}}, big, True, None)
    thread, raised = in_thread(scene.pod.update, "a", {"x": "y" * 900_000})
    began = time.monotonic()
    scene.close()
    assert time.monotonic() - began < WAIT / 2
    thread.join(WAIT)
    assert not thread.is_alive() and isinstance(raised[0], AgentError | NotRunning)
    mute.close()


def test_close_while_requests_wait(scene: PodScene) -> None:
    waiting, never = threading.Event(), threading.Event()

    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        waiting.set()
        never.wait(WAIT)
        return {}

    scene.guest.answer = answer
    scene.boot()
    thread, raised = in_thread(scene.create, "a")
    assert waiting.wait(WAIT)
    scene.pod.close()
    thread.join(WAIT)
    assert not thread.is_alive() and isinstance(raised[0], NotRunning)
    never.set()


# ---- devices


def test_interfaces_come_and_go(scene: PodScene) -> None:
    first, first_end = nic(A)
    scene.boot((first,))
    assert scene.vm.spec.hotplug_slots == base.MAX_SLOTS
    second, second_end = nic(B, "eth1")
    scene.pod.plug(second)
    assert [one["name"] for one in scene.request("sandbox.network")["interfaces"]] == ["eth0", "eth1"]
    device = scene.vm.devices["net1"]
    assert isinstance(device, base.Net) and device.mac == B
    scene.pod.configure([interface(B, "renamed"), interface("02:00:00:00:00:0c", "unknown")])
    assert [one["name"] for one in scene.request("sandbox.network")["interfaces"]] == ["eth0", "renamed"]
    for mac in (A, B):  # that of the start, too
        scene.pod.unplug(mac)
        scene.pod.unplug(mac)
    assert not [device for device in scene.vm.devices.values() if isinstance(device, base.Net)]
    assert is_closed(first_end) and is_closed(second_end)


def test_an_interface_that_the_guest_does_not_take_is_taken_out_again(scene: PodScene) -> None:
    scene.boot()

    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        raise RequestFailed("failed", "no such interface came")

    scene.guest.answer = answer
    made, end = nic(A)
    with pytest.raises(AgentError, match="no such interface came"):
        scene.pod.plug(made)
    assert "net0" not in scene.vm.devices
    assert is_closed(end)
    scene.guest.answer = lambda method, params: {}
    again, other = nic(A)
    scene.pod.plug(again)
    os.close(other)


def test_descriptors_of_what_cannot_be_plugged_are_closed(scene: PodScene) -> None:
    early, end = nic(A)
    with pytest.raises(HypervisorError, match="not been booted"):
        scene.pod.plug(early)
    assert is_closed(end)
    scene.boot()
    good, other = nic(A)
    scene.pod.plug(good)
    double, end = nic(A)
    with pytest.raises(UsageError, match="already"):
        scene.pod.plug(double)
    assert is_closed(end)
    bad, end = nic("03:00:00:00:00:01")
    with pytest.raises(HypervisorError, match="hardware address"):
        scene.pod.plug(bad)
    assert is_closed(end)
    os.close(other)


@pytest.mark.parametrize("step", ["nic", "disk", "step", "start"])
def test_a_boot_that_fails_closes_all_descriptors(scene: PodScene, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    first, end = nic(A)
    nics: list[Nic] = [first]
    reader, writer = os.pipe()
    disks = [Disk("cm-7-0", writer)]
    if step == "nic":
        nics.append(Nic(interface("bad"), os.open("/dev/null", os.O_RDONLY)))
    if step == "disk":
        disks.append(Disk("x" * 30, os.open("/dev/null", os.O_RDONLY)))
    if step == "step":
        scene.pod.close()
    if step == "start":
        scene.hypervisor.fail_start = "no"
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HypervisorError):
        scene.boot(tuple(nics), tuple(disks))
    scene.pod.close()
    assert is_closed(end)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert len(os.listdir("/proc/self/fd")) < before


def test_disks_are_open_as_the_device_is(scene: PodScene, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(b"\0" * 4096)
    scene.boot((), (Disk("cm-7-1", os.open(image, os.O_RDWR), read_only=True),))
    scene.pod.plug_disk(Disk("cm-7-2", os.open(image, os.O_RDONLY), read_only=False))
    for id, mode, read_only in (("cm-7-1", os.O_RDONLY, True), ("cm-7-2", os.O_RDWR, False)):
        device = scene.vm.devices[id]
        assert isinstance(device, base.Block) and isinstance(device.source, int)
        flags = Path(f"/proc/self/fdinfo/{device.source}").read_text().split("flags:\t")[1].split()[0]
        assert int(flags, 8) & os.O_ACCMODE == mode and device.read_only is read_only and not device.host_device
    # A second container with the same disk, which cannot write to it where the first could not.
    for serial, read_only in (("cm-7-2", False), ("cm-7-2", True), ("cm-7-1", True), ("cm-7-1", False)):
        fd = os.open(image, os.O_RDONLY)
        disk = Disk(serial, fd, read_only)
        if serial == "cm-7-1" and not read_only:
            with pytest.raises(UsageError, match="read only"):
                scene.pod.plug_disk(disk)
        else:
            scene.pod.plug_disk(disk)
        with pytest.raises(OSError):
            os.fstat(fd)


# ---- streams


def test_a_connection_to_a_port(scene: PodScene) -> None:
    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "sandbox.connect" and params["port"] != 80:
            raise RequestFailed("refused", "nobody listens on port 81")
        return {}

    scene.guest.answer = answer
    scene.boot()
    streams = scene.pod.connect(80)
    params = scene.request("sandbox.connect")
    assert streams.stdin is not None and streams.stdout is not None
    streams.stdin.send(b"GET")
    assert scene.link.stream(params["stdin"]).recv() == b"GET"
    scene.link.stream(params["stdout"]).send(b"200")
    assert streams.stdout.recv() == b"200"
    with pytest.raises(NetworkError, match="nobody listens"):
        scene.pod.connect(81)
    scene.pod.serve_dns(["127.0.0.11"])
    params = scene.request("sandbox.dns")
    assert params["addresses"] == ["127.0.0.11"] and params["stdin"] != params["stdout"]


# ---- the host's side


def test_a_control_group_is_known_by_its_files(tmp_path: Path) -> None:
    for name, files in (
        ("memory", {"memory.usage_in_bytes": "7000\n", "memory.oom_control": "oom_kill_disable 0\noom_kill 2\n"}),
        ("cpu", {"cpuacct.usage": "5000\n", "cpu.shares": "1024\n"}),
        ("unified", {"cgroup.controllers": "\n"}),
        ("devices", {}),
    ):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(content)
    names = ("memory", "cpu", "unified", "devices", "missing")
    group = pod_module._group([tmp_path / name / "cgroup.procs" for name in names])
    assert (group.usage().memory, group.usage().cpu_us, group.oom_kills()) == (7000, 5, 2)
    new = tmp_path / "new"
    new.mkdir()
    for file, content in (
        ("cgroup.controllers", "cpu memory pids\n"), ("memory.current", "9\n"), ("memory.events", "oom_kill 1\n"),
        ("cpu.stat", "usage_usec 11\n"),
    ):  # fmt: skip
        (new / file).write_text(content)
    group = pod_module._group([new / "cgroup.procs"])
    assert (group.usage().memory, group.usage().cpu_us, group.oom_kills()) == (9, 11, 1)


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "../x", "a\0", "x" * 256])
def test_trees_go_nowhere_else(scene: PodScene, id: str) -> None:
    scene.boot()
    fd = os.open("/", os.O_PATH)
    with pytest.raises(UsageError):
        scene.pod.attach(id, fd, None)
    with pytest.raises(OSError):
        os.fstat(fd)
    with pytest.raises(UsageError):
        scene.pod.detach(id)
