"""The vm wall's sandbox with a fake hypervisor and an agent played by the test, kind or hostile."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casemate.config import Config
from casemate.errors import AgentError, CommandNotFound, HypervisorError, NotRunning
from casemate.host import network, uids
from casemate.host.cgroups import Cgroup
from casemate.keeper.store import Store
from casemate.protocol.link import Link
from casemate.protocol.wire import LinkClosed, RequestFailed
from casemate.sandbox import ProcessExit
from casemate.vm import files, guest, sandbox
from casemate.vm.hypervisor import base, probe
from casemate.vm.hypervisor.fake import FakeHypervisor, FakeVm
from casemate.wall import share
from tests.unit.keeper.helpers import make_spec

WAIT = 20


class NoFiles:
    """A file server that runs until it is closed."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._ended = threading.Event()

    def wait(self, timeout: float | None = None) -> int | None:
        self._ended.wait()
        return 0

    def close(self) -> None:
        self._ended.set()

    die = kill = close


class Bundle:
    digest = "d" * 64
    kernel = initrd = root = Path("/dev/null")

    def cmdline(self, accelerator: str) -> tuple[str, ...]:
        return ("quiet",)


class Guest:
    """The agent's side of a machine, on the descriptors that the fake machine holds."""

    def __init__(self) -> None:
        self.requests: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self.answer: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda method, params: {}
        self.link: Link | None = None
        self.vm: FakeVm | None = None
        self.raw = False
        self.console = b""

    def fd(self, kind: type[base.Device]) -> int:
        assert self.vm is not None
        device = next(device for device in self.vm.spec.devices if isinstance(device, kind))
        fd = base.device_fd(device)
        assert fd is not None
        return fd

    def start(self, vm: FakeVm) -> None:
        self.vm = vm
        os.write(self.fd(base.SerialConsole), self.console)
        if not self.raw:
            threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        fd = os.dup(self.fd(base.AgentPort))
        self.link = Link(fd, fd, role="agent", version="0.1.0", on_request=self._request)
        self.link.start(WAIT)

    def _request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self.requests.put((method, params))
        return self.answer(method, params)


class Scene:
    """A sandbox, its guest, and how its processes ended."""

    def __init__(self, tmp_path: Path, settings: Mapping[str, Any] | None = None, **changes: Any) -> None:
        self.config = replace(
            Config(root=tmp_path / "root", run=tmp_path / "run", boot_timeout=WAIT, call_timeout=WAIT), **settings or {}
        )
        self.container = Store(self.config).create(make_spec(network="none", hostname="box", **changes))
        self.guest = Guest()
        self.ends: queue.SimpleQueue[tuple[str | None, ProcessExit]] = queue.SimpleQueue()
        self.hypervisor = FakeHypervisor(on_start=self.guest.start)
        self.sandbox = sandbox.VmSandbox(
            self.config, self.container, lambda key, end: self.ends.put((key, end)), lambda what: None, self.hypervisor
        )

    @property
    def link(self) -> Link:
        assert self.guest.link is not None
        return self.guest.link

    def exited(self, said: dict[str, Any]) -> None:
        """Have the guest tell of the end of a process."""
        self.link.notify("process.exited", {"id": self.container.id, **said})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> NoFiles:
    """Nothing of the host is touched."""
    server = NoFiles()
    monkeypatch.setattr(guest, "find", lambda root, digest="": Bundle())
    monkeypatch.setattr(probe, "choose", lambda config: probe.Choice(base.Accelerator.TCG, "a test"))
    monkeypatch.setattr(Cgroup, "create", lambda name, **bounds: Cgroup(name))
    monkeypatch.setattr(uids, "lease", lambda identifier, config: 70000)
    monkeypatch.setattr(network, "isolated", lambda: os.open("/dev/null", os.O_RDONLY))
    monkeypatch.setattr(share, "build", lambda container: None)
    monkeypatch.setattr(files, "start", lambda *arguments: (server, os.open("/dev/null", os.O_RDONLY)))
    return server


@pytest.fixture
def scene(tmp_path: Path, server: NoFiles) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.sandbox.close()


def test_one_request_prepares_and_starts(scene: Scene) -> None:
    scene.sandbox.boot()
    streams = scene.sandbox.start(True, None)
    method, params = scene.guest.requests.get(timeout=WAIT)
    assert method == "container.run"
    assert params["spec"]["root"]["path"] == "/run/casemate/share/rootfs"
    assert params["sandbox"]["hostname"] == "box"
    assert params["sandbox"]["interfaces"] == []
    assert len(params["sandbox"]["entropy"]) >= 64
    assert {file["path"] for file in params["files"]} == {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
    out = scene.link.stream(params["stdout"])
    out.send(b"hello")
    out.send_eof()
    assert streams.stdout is not None
    assert streams.stdout.recv(100) == b"hello"
    assert streams.stdout.recv(100) == b""
    scene.link.notify(
        "process.exited", {"id": scene.container.id, "exec_id": None, "status": 3, "signal": None, "oom": False}
    )
    assert scene.ends.get(timeout=WAIT) == (None, ProcessExit(3))


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"status": None, "signal": 9}, 137),
        ({"status": 0, "signal": None}, 0),
        ({"status": 70000, "signal": None}, 255),
        ({"status": "0", "signal": -1}, 255),
        ({"status": None, "signal": 10**9}, 255),
        ({}, 255),
    ],
)
def test_an_exit_is_what_it_can_be(scene: Scene, said: dict[str, Any], status: int) -> None:
    scene.sandbox.boot()
    scene.sandbox.start(False, None)
    scene.exited({"exec_id": 5})  # nonsense is passed over
    scene.exited({"exec_id": "never-started", "status": 0})
    scene.exited({"exec_id": None, **said})
    scene.exited({"exec_id": None, "status": 99})  # a second end does not count
    assert scene.ends.get(timeout=WAIT)[1].status == status
    scene.sandbox.info()
    assert scene.ends.empty()


def test_refusals_have_their_class(scene: Scene) -> None:
    def refuse(method: str, params: dict[str, Any]) -> dict[str, Any]:
        raise RequestFailed("not-found" if method == "container.run" else "odd", "no frobnicate")

    scene.guest.answer = refuse
    scene.sandbox.boot()
    with pytest.raises(CommandNotFound, match="frobnicate"):
        scene.sandbox.start(False, None)
    with pytest.raises(AgentError, match="frobnicate"):
        scene.sandbox.stats()


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", b"\0" * 12, b"\0\0\0\x02\x01\0\0\0\0\0\0\0[]"],
    ids=["ones", "http", "zeros", "array"],
)
def test_garbage_for_a_hello_ends_the_machine(scene: Scene, garbage: bytes) -> None:
    scene.guest.raw = True

    def babble(vm: FakeVm) -> None:
        scene.guest.start(vm)
        os.write(scene.guest.fd(base.AgentPort), garbage)

    scene.hypervisor.on_start = babble
    with pytest.raises(HypervisorError, match="did not come up"):
        scene.sandbox.boot()
    scene.sandbox.close()
    assert scene.hypervisor.machines[0].status() is base.VmStatus.ENDED


def test_garbage_later_ends_the_container_with_a_reason(scene: Scene) -> None:
    scene.sandbox.boot()
    scene.sandbox.start(False, None)
    os.write(scene.guest.fd(base.AgentPort), b"\xff" * 12)
    key, end = scene.ends.get(timeout=WAIT)
    assert key is None
    assert end.status == 255
    assert "frame" in end.error
    with pytest.raises(NotRunning):
        scene.sandbox.stats()
    assert scene.hypervisor.machines[0].status() is base.VmStatus.ENDED


def test_a_panic_is_told_with_the_consoles_words(scene: Scene) -> None:
    scene.guest.console = b"ok\nKernel panic - not syncing: test\n\x1b[31m odd\n"
    scene.sandbox.boot()
    scene.sandbox.start(False, None)
    scene.hypervisor.machines[0].end(base.VmExit(base.ExitCause.GUEST_RESET, 0, None, "the guest restarted"))
    _, end = scene.ends.get(timeout=WAIT)
    assert "the guest restarted" in end.error and "Kernel panic - not syncing: test" in end.error
    assert "\x1b" not in end.error


def test_killed_machine_ends_all_processes_the_containers_last(scene: Scene) -> None:
    scene.sandbox.boot()
    scene.sandbox.start(False, None)
    scene.sandbox.exec("exec-1", {"args": ["sh"], "terminal": False}, "", False, None)
    scene.hypervisor.machines[0].end(base.VmExit(base.ExitCause.FAILED, None, 9, "killed by signal SIGKILL"))
    ends = [scene.ends.get(timeout=WAIT) for _ in range(2)]
    assert [key for key, _ in ends] == ["exec-1", None]
    assert {end.status for _, end in ends} == {137}


def test_dead_file_server_ends_the_machine(scene: Scene, server: NoFiles) -> None:
    scene.sandbox.boot()
    scene.sandbox.start(False, None)
    server.die()
    _, end = scene.ends.get(timeout=WAIT)
    assert "file server died" in end.error


def test_machine_that_does_not_start(scene: Scene) -> None:
    scene.hypervisor.fail_start = "no such machine"
    with pytest.raises(HypervisorError, match="no such machine"):
        scene.sandbox.boot()


def test_a_start_is_told_to_the_throttler_and_memory_offered(scene: Scene) -> None:
    place = scene.config.run / "ksm" / "kick"
    place.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as throttler:
        throttler.bind(str(place))
        throttler.setblocking(False)
        scene.sandbox.boot()
        assert throttler.recv(100) == b"start"
    assert scene.hypervisor.machines[0].spec.mergeable


def test_with_merging_off_nothing_is_told_or_offered(tmp_path: Path, server: NoFiles) -> None:
    made = Scene(tmp_path, settings={"ksm": "off"})
    place = made.config.run / "ksm" / "kick"
    place.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as throttler:
        throttler.bind(str(place))
        throttler.setblocking(False)
        made.sandbox.boot()
        with pytest.raises(BlockingIOError):
            throttler.recv(100)
    assert not made.hypervisor.machines[0].spec.mergeable
    made.sandbox.close()


def test_close_while_the_guest_boots(scene: Scene) -> None:
    scene.guest.raw = True
    booting = threading.Event()
    scene.hypervisor.on_start = lambda vm: booting.set()
    errors: list[Exception] = []

    def boot() -> None:
        with pytest.raises(HypervisorError) as caught:
            scene.sandbox.boot()
        errors.append(caught.value)

    thread = threading.Thread(target=boot)
    thread.start()
    assert booting.wait(WAIT)
    scene.sandbox.close()
    thread.join(WAIT)
    assert len(errors) == 1


def test_closing_twice_and_unbooted(scene: Scene) -> None:
    scene.sandbox.close()
    scene.sandbox.close()
    assert scene.hypervisor.machines == []


def test_volumes_have_guest_paths(tmp_path: Path, server: NoFiles) -> None:
    mounts: list[dict[str, Any]] = [
        {"type": "proc", "destination": "/proc", "source": "proc"},
        {"type": "bind", "destination": "/a", "source": "/srv/a", "options": ["rbind", "ro"]},
        {"type": "bind", "destination": "/b", "source": "/srv/b", "options": ["rbind"]},
    ]
    scene = Scene(tmp_path, oci={"process": {"args": ["true"]}, "mounts": mounts})
    spec = share.guest_spec(scene.container)
    sources = [mount["source"] for mount in spec["mounts"]]
    assert sources == ["proc", "/run/casemate/volumes/0", "/run/casemate/volumes/1"]
    assert mounts[1]["source"] == "/srv/a"
    volumes = share.volumes(scene.container.spec.oci)
    assert [(volume.destination, volume.read_only) for volume in volumes] == [("/a", True), ("/b", False)]


def test_no_descriptor_is_kept(scene: Scene) -> None:
    before = len(os.listdir("/proc/self/fd"))
    scene.sandbox.boot()
    scene.sandbox.close()
    link = scene.guest.link
    assert link is not None
    with pytest.raises(LinkClosed):
        link.notify("over", {})
        link.call("never.answered", {}, WAIT)
    # The test's guest holds a copy of its end, and the link's threads may be about to close theirs.
    assert len(os.listdir("/proc/self/fd")) <= before + 6
