"""Fakes of a sandbox and its streams, for tests of the keeper's logic."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from casemate import ids
from casemate.config import Config
from casemate.errors import CasemateError
from casemate.keeper.store import ContainerSpec
from casemate.protocol.wire import StreamClosed
from casemate.sandbox import ProcessExit, ProcessStreams, Sandbox


def make_spec(name: str = "one", **changes: Any) -> ContainerSpec:
    values: dict[str, Any] = {
        "id": ids.new_id(), "name": name, "image": "busybox", "image_id": "0" * 64, "layers": (),
        "oci": {"process": {"args": ["true"]}, "mounts": []}, "created": 1.0, **changes,
    }  # fmt: skip
    return ContainerSpec(**values)


def make_config(path: Path) -> Config:
    return Config(root=path / "root", run=path / "run", stop_timeout=1)


class FakeStream:
    """What the sandbox's side puts in comes out of recv; what is sent is kept."""

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


class FakeSandbox(Sandbox):
    """Runs nothing; the test ends its processes."""

    def __init__(self, on_exit: Callable[[str | None, ProcessExit], None]) -> None:
        self.on_exit = on_exit
        self.calls: list[tuple[Any, ...]] = []
        self.streams: dict[str | None, tuple[FakeStream, FakeStream, FakeStream]] = {}
        self.boot_error: CasemateError | None = None
        self.start_error: CasemateError | None = None
        self.block_boot: threading.Event | None = None
        self.booting = threading.Event()
        self.closed = threading.Event()
        self.deaf = False

    def boot(self) -> None:
        self.booting.set()
        if self.block_boot is not None:
            self.block_boot.wait(30)
        if self.boot_error is not None:
            raise self.boot_error

    def _begin(self, key: str | None, stdin: bool) -> ProcessStreams:
        streams = (FakeStream(), FakeStream(), FakeStream())
        self.streams[key] = streams
        return ProcessStreams(streams[0] if stdin else None, streams[1], streams[2])

    def start(self, stdin: bool, size: tuple[int, int] | None) -> ProcessStreams:
        if self.start_error is not None:
            raise self.start_error
        return self._begin(None, stdin)

    def exec(
        self, exec_id: str, process: dict[str, Any], user: str, stdin: bool, size: tuple[int, int] | None
    ) -> ProcessStreams:
        self.calls.append(("exec", exec_id, process, user, size))
        return self._begin(exec_id, stdin)

    def end(self, key: str | None, status: int, output: bytes = b"", errors: bytes = b"", oom: bool = False) -> None:
        _, out, err = self.streams[key]
        for stream, data in ((out, output), (err, errors)):
            if data:
                stream.out.put(data)
            stream.out.put(b"")
        self.on_exit(key, ProcessExit(status, oom=oom))

    def signal(self, exec_id: str | None, signum: int) -> None:
        self.calls.append(("signal", exec_id, signum))
        if not self.deaf:
            self.end(exec_id, 128 + signum)

    def resize(self, exec_id: str | None, rows: int, columns: int) -> None:
        self.calls.append(("resize", exec_id, rows, columns))

    def pause(self) -> None:
        self.calls.append(("pause",))

    def resume(self) -> None:
        self.calls.append(("resume",))

    def stats(self) -> dict[str, Any]:
        return {"memory": {"current": 1}}

    def info(self) -> dict[str, Any]:
        return {"kernel": "6.1.0", "processes": {}}

    def refresh(self) -> None:
        self.calls.append(("refresh",))

    def flush(self) -> None:
        self.calls.append(("flush",))

    def close(self) -> None:
        if self.block_boot is not None:
            self.boot_error = self.boot_error or CasemateError("closed")
            self.block_boot.set()
        for streams in self.streams.values():
            for stream in streams:
                stream.close()
        self.closed.set()
