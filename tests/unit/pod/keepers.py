"""A fake sandbox for several containers, and a keeper over it with real sockets and real processes as stand-ins."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from casemate.config import Config
from casemate.errors import CasemateError, NotRunning
from casemate.host import processes
from casemate.keeper.control import Connection
from casemate.pod.client import PodClient
from casemate.pod.model import Record, guest_name
from casemate.pod.service import PodKeeper
from casemate.pod.store import Pod, PodStore
from casemate.protocol.wire import StreamClosed
from casemate.sandbox import Disk, Interface, Nic, PodSandbox, ProcessExit, ProcessStreams

SPEC: dict[str, Any] = {"ociVersion": "1.0.2", "process": {"args": ["true"], "terminal": False}, "linux": {}}
STANDIN = """
import os
heard = b""
while b"\\n" not in heard:
    data = os.read(3, 64)
    if not data:
        os._exit(255)
    heard += data
os._exit(int(heard.split()[1]))
"""


class FakeStream:
    """What the guest's side puts in comes out of recv; what is sent is kept."""

    def __init__(self) -> None:
        self.out: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.sent = b""
        self.eof = threading.Event()
        self.closed = False

    def send(self, data: bytes, /) -> None:
        if self.closed:
            raise StreamClosed("closed")
        self.sent += data

    def send_eof(self) -> None:
        self.eof.set()

    def recv(self, limit: int = 65536, /) -> bytes:
        return self.out.get()

    def close(self) -> None:
        self.closed = True
        self.out.put(b"")


class FakePod(PodSandbox):
    """Runs nothing; the test ends its processes. ``fail`` maps a method to the error that it raises."""

    def __init__(self) -> None:
        self.on_exit = lambda id, exec_id, end: None
        self.calls: list[tuple[Any, ...]] = []
        self.streams: dict[tuple[str, str | None], tuple[FakeStream, FakeStream, FakeStream]] = {}
        self.fail: dict[str, CasemateError] = {}
        self.block: dict[str, threading.Event] = {}
        self.reached: dict[str, threading.Event] = {name: threading.Event() for name in ("boot", "create", "flush")}
        self.closed = threading.Event()
        self.deaf = False
        self.most_mib = self.has_mib = 0
        self.kept: tuple[tuple[FakeStream | None, FakeStream | None], ...] = ()
        self.created: Callable[[str], None] = lambda id: None

    def _do(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        if name in self.reached:
            self.reached[name].set()
        if name in self.block:
            self.block[name].wait(30)
        if name in self.fail:
            raise self.fail[name]

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def boot(self, netns: int, nics: Sequence[Nic], disks: Sequence[Disk], hostname: str) -> None:
        for disk in disks:
            os.close(disk.fd)
        self._do("boot", os.fstat(netns).st_ino, [disk.serial for disk in disks], hostname)
        if self.closed.is_set():
            raise CasemateError("the sandbox was closed while it came up")

    def attach(self, id: str, root_fd: int, volumes_fd: int | None) -> None:
        os.close(root_fd)
        if volumes_fd is not None:
            os.close(volumes_fd)
        self._do("attach", id, volumes_fd is not None)

    def detach(self, id: str) -> None:
        self._do("detach", id)

    def grow(self, memory_mib: int, *, partly: bool) -> int:
        self._do("grow", memory_mib)
        return min(memory_mib, self.most_mib) if partly or memory_mib <= self.most_mib else self.has_mib

    def _begin(self, id: str, key: str | None, stdin: bool) -> ProcessStreams:
        streams = (FakeStream(), FakeStream(), FakeStream())
        self.streams[id, key] = streams
        return ProcessStreams(streams[0] if stdin else None, streams[1], streams[2], self.kept)

    def create(
        self, id: str, spec: dict[str, Any], files: list[dict[str, Any]], stdin: bool, size: tuple[int, int] | None,
        kept: Sequence[str] = (),
    ) -> ProcessStreams:
        self._do("create", id, spec, size)
        streams = self._begin(id, None, stdin)
        self.created(id)
        return streams

    def start(self, id: str) -> None:
        self._do("start", id)

    def exec(
        self, id: str, exec_id: str, process: dict[str, Any], stdin: bool, size: tuple[int, int] | None,
        kept: Sequence[str] = (),
    ) -> ProcessStreams:
        self._do("exec", id, exec_id, process, size)
        return self._begin(id, exec_id, stdin)

    def end(self, id: str, key: str | None, status: int, output: bytes = b"", **how: Any) -> None:
        """A process in the guest ends."""
        _, out, err = self.streams[guest_name(id), key]
        if output:
            out.out.put(output)
        out.out.put(b"")
        err.out.put(b"")
        self.on_exit(guest_name(id), key, ProcessExit(status, **how))

    def signal(self, id: str, exec_id: str | None, signum: int, everyone: bool = False) -> None:
        self._do("signal", id, exec_id, signum, everyone)
        if signum and not self.deaf:
            for key in [key for name, key in self.streams if name == id] if everyone else [exec_id]:
                self.end(id, key, 128 + signum, signal=signum)

    def resize(self, id: str, exec_id: str | None, rows: int, columns: int) -> None:
        self._do("resize", id, exec_id, rows, columns)

    def pause(self, id: str) -> None:
        self._do("pause", id)

    def resume(self, id: str) -> None:
        self._do("resume", id)

    def stats(self, id: str) -> dict[str, Any]:
        self._do("stats", id)
        return {"memory": {"current": 1}}

    def update(self, id: str, resources: dict[str, Any]) -> None:
        self._do("update", id, resources)

    def delete(self, id: str) -> None:
        self._do("delete", id)

    def plug(self, nic: Nic) -> None:
        self._do("plug")

    def unplug(self, mac: str) -> None:
        self._do("unplug", mac)

    def configure(self, interfaces: Sequence[Interface]) -> None:
        self._do("configure")

    def plug_disk(self, disk: Disk) -> None:
        os.close(disk.fd)
        self._do("plug_disk", disk.serial)

    def connect(self, port: int) -> ProcessStreams:
        self._do("connect", port)
        return ProcessStreams(FakeStream(), FakeStream(), None)

    def serve_dns(self, addresses: Sequence[str]) -> ProcessStreams:
        self._do("serve_dns", tuple(addresses))
        return ProcessStreams(FakeStream(), FakeStream(), None)

    def info(self) -> dict[str, Any]:
        return {"kernel": "6.1.0", "processes": {}}

    def flush(self) -> None:
        self._do("flush")

    def close(self) -> None:
        self.closed.set()
        for event in self.block.values():
            event.set()
        for streams in list(self.streams.values()):
            for stream in streams:
                stream.close()


class FakeNetwork:
    """Says what was done with it."""

    def __init__(self, sandbox: PodSandbox, netns: int) -> None:
        self.calls: list[str] = []

    def nics(self) -> list[Nic]:
        self.calls.append("nics")
        return []

    def follow(self) -> None:
        self.calls.append("follow")

    def catch_up(self, seconds: float) -> None:
        self.calls.append("catch up")

    def close(self) -> None:
        self.calls.append("close")


class Peer:
    """A real process that waits for its status, as a stand-in does; ``socket`` is the keeper's end."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        script = f"import os; os.dup2({theirs.fileno()}, 3){STANDIN}"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", script], pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL
        )
        theirs.close()
        self.pid = self.process.pid
        self.start = processes.start_time(self.pid) or 0

    def wait(self, timeout: float = 10.0) -> int:
        return self.process.wait(timeout)

    def close(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()


class House:
    """A store, a keeper that runs in a thread of this process, and what a maker of containers does."""

    def __init__(self, path: Path) -> None:
        self.config = Config(root=path / "root", run=path / "run", stop_timeout=1)
        self.store = PodStore(self.config, path / "rt")
        self.sandbox = FakePod()
        self.network: FakeNetwork | None = None
        self.peers: dict[str, Peer] = {}
        self.walls: list[tuple[int, float | None]] = []
        self.helpers: list[Any] = []
        self.spare: list[Peer] = []
        self.pod: Pod | None = None
        self.keeper: PodKeeper | None = None
        self.thread: threading.Thread | None = None
        self._lock_fd = -1

    def launch(self) -> Connection:
        """As :func:`casemate.pod.client.launch`, in a thread."""
        self.pod = self.store.create_pod()
        ours, theirs = socket.socketpair()
        self._lock_fd, self.pod.lock_fd = self.pod.lock_fd or -1, None

        def wall(
            wall: str, pod: Pod, memory_mib: int, cpus: float | None, procs: tuple[Path, ...], oom_score: int
        ) -> PodSandbox:
            self.walls.append((memory_mib, cpus))
            return self.sandbox

        def network(sandbox: PodSandbox, netns: int) -> FakeNetwork:
            self.network = FakeNetwork(sandbox, netns)
            return self.network

        self.keeper = PodKeeper(self.store, self.pod, wall, network, lambda sandbox, netns, spec: self.helpers)

        def run() -> None:
            assert self.keeper is not None
            try:
                self.keeper.run(Connection(theirs))
            finally:
                os.close(self._lock_fd)  # as the end of the process would
                self._lock_fd = -1

        self.thread = threading.Thread(target=run, name="keeper", daemon=True)
        self.thread.start()
        return Connection(ours)

    @property
    def client(self) -> PodClient:
        assert self.pod is not None
        return PodClient(self.store, self.pod.id)

    def record(self, id: str, spec: dict[str, Any] | None = None, **values: Any) -> Peer:
        """Put a container on record, with its stand-in."""
        assert self.pod is not None
        record = self.store.create_record(Record(id, self.pod.id, "/bundle", **values), spec or SPEC)
        peer = self.peers[id] = Peer()
        self.store.write(replace(record, pid=peer.pid, pid_start=peer.start))
        return peer

    def create(
        self, id: str, connection: Connection | None = None, stdio: dict[str, int] | None = None, **more: Any
    ) -> Peer:
        """Make a container, as the first one of a keeper where there is none."""
        if self.pod is None:
            connection = self.launch()
        peer = self.record(id, spec=more.pop("full", None))
        self.ask(id, peer, connection, stdio, **more)
        return peer

    def ask(
        self, id: str, peer: Peer, connection: Connection | None, stdio: dict[str, int] | None = None, **more: Any
    ) -> None:
        spec = more.pop("spec", SPEC)
        with opened("/", "/proc/self/ns/net") as (root, netns):
            fds = {
                "standin": peer.socket.fileno(),
                "root": root,
                "netns": netns,
                **(stdio or {}),
                **more.pop("fds", {}),
            }
            try:
                self.client.create(id, spec=spec, fds=fds, connection=connection, **more)
            finally:
                peer.socket.close()

    def exec(self, id: str, exec_id: str, stdio: dict[str, int] | None = None, **process: Any) -> Peer:
        peer = Peer()
        self.spare.append(peer)
        try:
            self.client.exec(
                id, exec_id, {"args": ["x"], **process}, pid=peer.pid,
                fds={"standin": peer.socket.fileno(), **(stdio or {})},
            )  # fmt: skip
        finally:
            peer.socket.close()
        return peer

    def running(self, id: str, **more: Any) -> Peer:
        peer = self.create(id, **more)
        self.client.start(id)
        return peer

    def join(self) -> None:
        """Wait for the keeper's end."""
        assert self.thread is not None
        self.thread.join(15)
        assert not self.thread.is_alive()

    def close(self) -> None:
        if self.thread is not None and self.thread.is_alive() and self.keeper is not None:
            self.keeper.abort("the test is over")
            for peer in (*self.peers.values(), *self.spare):
                peer.close()
            with contextlib.suppress(CasemateError):
                for id in self.client.info()["containers"]:
                    with contextlib.suppress(NotRunning):
                        self.client.delete(id, force=True, timeout=10)
            self.join()
        for peer in (*self.peers.values(), *self.spare):
            peer.close()


@contextlib.contextmanager
def opened(*paths: str) -> Iterator[list[int]]:
    """Descriptors of files."""
    found = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
    try:
        yield found
    finally:
        for descriptor in found:
            os.close(descriptor)


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


def wait_until(holds: Any) -> bool:
    """Look at something that tells of no change, for at most thirty seconds."""
    clock = threading.Event()
    for _ in range(3000):
        if holds():
            return True
        clock.wait(0.01)
    return False
