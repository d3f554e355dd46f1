"""A sandbox for several containers on a fake machine, and an agent that the test plays."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate import ids
from casemate.config import Config
from casemate.protocol.link import Link
from casemate.sandbox import Disk, Interface, Nic, ProcessStreams
from casemate.vm import files
from casemate.vm.hypervisor import base
from casemate.vm.hypervisor.fake import FakeHypervisor, FakeVm
from casemate.vm.pod import VmPod
from casemate.wall import trees
from tests.unit.vm.test_sandbox import WAIT, Guest, NoFiles

SPEC: dict[str, Any] = {"process": {"args": ["true"], "terminal": False}, "root": {"path": "/run/casemate/share/a"}}


class PodScene:
    """The sandbox, its guest, and what it tells: ``told`` has (container, exec id, end), ``(id, "oom")`` and the end of
    the machine."""

    def __init__(self, tmp_path: Path, **changes: Any) -> None:
        self.config = Config(
            root=tmp_path / "root", run=tmp_path / "run", boot_timeout=WAIT, **{"call_timeout": WAIT, **changes}
        )
        self.directory = tmp_path / "pod"
        self.directory.mkdir(exist_ok=True)
        self.guest = Guest()
        self.told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.hypervisor = FakeHypervisor(on_start=self.guest.start)
        self.id = ids.new_id()
        self.run_path = tmp_path / "run" / self.id[:12]
        self.pod = VmPod(
            self.config, self.directory, self.run_path, self.id, 512, 1.5, (), lambda what: None, self.hypervisor
        )
        self.pod.on_exit = lambda id, exec_id, end: self.told.put((id, exec_id, end))
        self.pod.on_oom = lambda id: self.told.put((id, "oom"))
        self.pod.on_end = self.told.put
        self.netns = os.open("/dev/null", os.O_RDONLY)

    def boot(self, nics: tuple[Nic, ...] = (), disks: tuple[Disk, ...] = ()) -> None:
        self.pod.boot(self.netns, nics, disks, "box")

    def create(self, id: str) -> ProcessStreams:
        return self.pod.create(id, SPEC, [], False, None)

    def exec(self, id: str, exec_id: str) -> ProcessStreams:
        return self.pod.exec(id, exec_id, {"args": ["true"], "terminal": False}, False, None)

    @property
    def vm(self) -> FakeVm:
        return self.hypervisor.machines[0]

    @property
    def link(self) -> Link:
        assert self.guest.link is not None
        return self.guest.link

    def exited(self, id: str, exec_id: str | None, status: int | None, signal: int | None = None) -> None:
        """Have the guest tell of the end of a process."""
        params = {"id": id, "exec_id": exec_id, "status": status, "signal": signal, "oom": False}
        self.link.notify("process.exited", params)

    def end(self) -> Any:
        """The next thing that it tells."""
        return self.told.get(timeout=WAIT)

    def request(self, wanted: str) -> dict[str, Any]:
        """The parameters of the next request of a kind; those before it are passed over."""
        while True:
            method, params = self.guest.requests.get(timeout=WAIT)
            if method == wanted:
                return params

    def close(self) -> None:
        self.pod.close()
        os.close(self.netns)


class Mute:
    """An agent that says hello and then reads nothing more."""

    def __init__(self, scene: PodScene) -> None:
        self.scene = scene
        scene.guest.raw = True
        scene.hypervisor.on_start = self._start
        self._held: list[socket.socket] = []

    def _start(self, vm: FakeVm) -> None:
        from casemate.protocol import wire

        self.scene.guest.start(vm)
        sock = socket.socket(fileno=os.dup(self.scene.guest.fd(base.AgentPort)))
        self._held.append(sock)
        hello = wire.pack(wire.HELLO, wire.hello("agent", "0.1.0"))
        sock.sendall(wire.header(wire.HELLO, len(hello), 0) + hello)

    def close(self) -> None:
        for sock in self._held:
            sock.close()


def interface(mac: str, name: str = "eth0") -> Interface:
    return Interface(name, mac, 1500, (f"10.1.2.{mac[-1]}/24",))


def nic(mac: str, name: str = "eth0") -> tuple[Nic, int]:
    """An interface, and the other end of what stands for its tap, which reads the end of file when that is closed."""
    ours, theirs = socket.socketpair()
    ours.settimeout(WAIT)
    return Nic(interface(mac, name), theirs.detach()), ours.detach()


def is_closed(other_end: int) -> bool:
    """Whether what :func:`nic` gave out has been closed; closes this end."""
    with socket.socket(fileno=other_end) as sock:
        sock.setblocking(False)
        try:
            return sock.recv(1) == b""
        except BlockingIOError:
            return False


@pytest.fixture
def scene(tmp_path: Path, server: NoFiles, monkeypatch: pytest.MonkeyPatch) -> Iterator[PodScene]:
    """Nothing of the host is touched."""
    made = fake_files(PodScene(tmp_path), monkeypatch)
    yield made
    made.close()


def fake_files(scene: PodScene, monkeypatch: pytest.MonkeyPatch) -> PodScene:
    """Directories instead of mounts."""

    def make(run_path: Path) -> None:
        for name in trees.PLACES:
            (run_path / name).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(trees, "make", make)
    monkeypatch.setattr(files, "start", lambda *arguments: (NoFiles(), os.open("/dev/null", os.O_RDONLY)))
    return scene


def in_thread(target: Any, *arguments: Any) -> tuple[threading.Thread, list[BaseException]]:
    """Call something on a thread; what it raises."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            target(*arguments)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread, raised
