"""An agent in a process of its own and the host's end of its link."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from casemate.protocol.link import Link, Stream

HERE = Path(__file__).parent
SOURCE = HERE.parents[2] / "src"


class Ended:
    """Collects process.exited events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()

    def __call__(self, name: str, params: dict[str, Any]) -> None:
        assert name == "process.exited"
        with self._changed:
            self.events.append(params)
            self._changed.notify_all()

    def wait(self, identifier: str, exec_id: str | None = None) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            return next((e for e in self.events if e["id"] == identifier and e["exec_id"] == exec_id), None)

        with self._changed:
            assert self._changed.wait_for(found, 20), f"no exit of {identifier} {exec_id}"
            event = found()
        assert event is not None
        return event


class Started:
    """A started process: its streams and number."""

    def __init__(self, pid: int, stdin: Stream | None, stdout: Stream, stderr: Stream | None) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr

    def output(self) -> bytes:
        return read_all(self.stdout)


def read_all(stream: Stream) -> bytes:
    got = bytearray()
    while chunk := stream.recv():
        got += chunk
    return bytes(got)


class Box:
    """Arguments: a directory of its own, the runtime's command, what to put before the agent's command."""

    def __init__(self, path: Path, crun: Sequence[str] = (), before: Sequence[str] = (), cgroups: str = "") -> None:
        self.path = path
        self.share = path / "share"
        self.cgroups = Path(cgroups) if cgroups else path / "cgroups"
        self.root = self.share / "rootfs"
        self.root.mkdir(parents=True, exist_ok=True)
        if not cgroups:
            self.cgroups.mkdir()
        crun = crun or (sys.executable, str(HERE / "fake_crun.py"), f"--cgroups={self.cgroups}")
        self.ended = Ended()
        self.closed: list[str] = []
        self.mounts = [("proc", "proc")]
        self._channel = 0
        ours, theirs = socket.socketpair()
        arguments = [
            *before, sys.executable, str(HERE / "run_agent.py"), str(theirs.fileno()), str(SOURCE),
            str(path / "run"), str(self.share), str(self.cgroups), *crun,
        ]  # fmt: skip
        self.process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
        theirs.close()
        fd = ours.detach()
        self.link = Link(fd, fd, role="host", version="0", on_event=self.ended, on_closed=self.closed.append)
        self.link.start(20)

    def channel(self) -> tuple[int, Stream]:
        self._channel += 1
        return self._channel, self.link.stream(self._channel)

    def spec(self, *args: str, **process: Any) -> dict[str, Any]:
        return {
            "ociVersion": "1.0.2",
            "process": {"args": list(args), "env": [f"PATH={os.environ['PATH']}"], "cwd": "/", **process},
            "root": {"path": str(self.root)},
            "mounts": [{"destination": f"/{name}", "type": kind, "source": kind} for name, kind in self.mounts],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
        }

    def begin(self, method: str, stdin: bool, terminal: bool, params: dict[str, Any]) -> Started:
        out_number, out = self.channel()
        params = {"user": "", "stdin": None, "stderr": None, "size": None, **params, "stdout": out_number}
        into = err = None
        if stdin:
            params["stdin"], into = self.channel()
        if not terminal:
            params["stderr"], err = self.channel()
        return Started(self.link.call(method, params, 30)["pid"], into, out, err)

    def create(self, identifier: str, *args: str, **more: Any) -> Started:
        return self.start(identifier, *args, method="container.create", **more)

    def start(
        self,
        identifier: str,
        *args: str,
        stdin: bool = False,
        terminal: bool = False,
        method: str = "container.run",
        **more: Any,
    ) -> Started:
        spec = more.pop("spec", None) or self.spec(*args, terminal=terminal)
        params = {"id": identifier, "spec": spec, "files": [], "memory": None, "sandbox": None, **more}
        return self.begin(method, stdin, terminal, params)

    def exec(
        self, identifier: str, exec_id: str, *args: str, stdin: bool = False, terminal: bool = False, **more: Any
    ) -> Started:
        process = self.spec(*args, terminal=terminal)["process"]
        params = {"id": identifier, "exec_id": exec_id, "process": process, **more}
        return self.begin("container.exec", stdin, terminal, params)

    def close(self) -> str:
        """End it and return what it wrote to its console."""
        self.link.close("test over")
        _, errors = self.process.communicate(timeout=20)
        assert self.process.returncode == 0
        return errors.decode()
