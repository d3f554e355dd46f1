"""A shim in a process of its own, a containerd that listens for its events, and a client that asks it things."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from casemate.shim import events, messages, ttrpc, wire
from casemate.shim.loop import Loop
from casemate.shim.task import NAMES, Task

FAKE = Path(__file__).with_name("fake_runtime.py")
SECONDS = 60.0
TABLES = {name: method[:2] for name, method in Task(cast(Any, None)).service().items()}
"""Methods of the task service: the tables of request and answer."""
EVENT_TABLES = {table.name: table for table in vars(messages).values() if isinstance(table, wire.Table)}


class Containerd:
    """Takes events, as containerd does, at a socket that can be closed and opened again."""

    def __init__(self, loop: Loop, path: Path) -> None:
        self.loop = loop
        self.path = path
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.refuse: Callable[[str], None] | None = None
        self._server: ttrpc.Server | None = None
        self.open()

    def open(self) -> None:
        service: ttrpc.Service = {"Forward": (messages.FORWARD_REQUEST, messages.EMPTY, self._forward)}
        self._server = ttrpc.Server(self.loop, ttrpc.listen(str(self.path)), {events.SERVICE: service})

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink()

    def _forward(self, call: ttrpc.Call, request: dict[str, Any]) -> None:
        envelope = request["envelope"]
        if self.refuse is not None:
            self.refuse(envelope["topic"])
        event = wire.decode(EVENT_TABLES[messages.type_name(envelope["event"])], envelope["event"]["value"])
        assert envelope["namespace"] == "tests"
        assert abs(envelope["timestamp"]["seconds"] - time.time()) < 3600
        self.events.append((envelope["topic"], event))
        call.reply({})


class World:
    """Everything around one shim. To be closed."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.loop = Loop(lambda line: self.complaints.append(line))
        self.complaints: list[str] = []
        self.containerd = Containerd(self.loop, tmp / "containerd.ttrpc")
        self.root = tmp / "runtime"
        self.options = tmp / "options.toml"
        self.options.write_text(f'BinaryName = "{FAKE}"\nRoot = "{self.root}"\n')
        self.socket = tmp / "shim.sock"
        self.readers: list[Reader] = []
        self.log = os.open(tmp / "shim.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.process = self._launch()
        self.clients: list[ttrpc.Client] = []
        self.client = self.connect()

    def _launch(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TTRPC_ADDRESS": str(self.containerd.path)}
        command = [sys.executable, "-m", "casemate.shim.main", "-namespace", "tests", "-socket", str(self.socket)]
        return subprocess.Popen(command, cwd=self.tmp, env=environment, stdin=subprocess.DEVNULL, stderr=self.log)

    def connect(self) -> ttrpc.Client:
        """Another connection to the shim."""
        deadline = time.monotonic() + SECONDS
        while not ttrpc.answers(str(self.socket)):
            assert self.process.poll() is None, (self.tmp / "shim.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.clients.append(ttrpc.Client(self.loop, str(self.socket)))
        return self.clients[-1]

    # --- asking ---

    def ask(self, method: str, seconds: float | None = SECONDS, version: int = 0, **fields: Any) -> Any:
        """A future with the answer of the task service."""
        request, answer = TABLES[method]
        return self.client.call(NAMES[version], method, request, fields, answer, seconds)

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        """The answer of the task service."""
        answer: dict[str, Any] = self.loop.run_until(self.ask(method, **fields), SECONDS)
        return answer

    def bundle(self, name: str, *args: str, **more: Any) -> Path:
        """A bundle whose process has these arguments."""
        path = self.tmp / name
        path.mkdir(exist_ok=True)
        spec = {
            "ociVersion": "1.0.2", "process": {"args": list(args)}, "linux": {"namespaces": [{"type": "pid"}]}, **more,
        }
        (path / "config.json").write_text(json.dumps(spec))
        return path

    def create(self, name: str, *args: str, **fields: Any) -> dict[str, Any]:
        """Have a container made."""
        options = wire.encode(messages.RUNTIME_OPTIONS, {"config_path": str(self.options)})
        any_options = {"type_url": messages.RUNTIME_OPTIONS.name, "value": options}
        bundle = str(self.bundle(name, *args, **fields.pop("spec", {})))
        return self.call("Create", id=name, bundle=bundle, options=any_options, **fields)

    def run(self, name: str, *args: str, **fields: Any) -> None:
        """Have a container made and started."""
        self.create(name, *args, **fields)
        self.call("Start", id=name)

    def add(self, name: str, exec_id: str, *args: str, **fields: Any) -> None:
        """Have a process added."""
        kind = "types.containerd.io/opencontainers/runtime-spec/1/Process"
        spec = {"type_url": kind, "value": json.dumps({"args": args}).encode()}
        self.call("Exec", id=name, exec_id=exec_id, spec=spec, **fields)

    def remove(self, name: str) -> dict[str, Any]:
        """End a container and delete it."""
        self.call("Kill", id=name, signal=int(signal.SIGKILL), all=True)
        self.call("Wait", id=name)
        return self.call("Delete", id=name)

    # --- what happened ---

    def until(self, what: Callable[[], Any], seconds: float = SECONDS) -> Any:
        """Work until something is true, and return it."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline, (self.complaints, (self.tmp / "shim.log").read_text())
            self.loop.turn(0.02)
        return found

    def topics(self, count: int) -> list[str]:
        """The topics of the events, once there are that many."""
        self.until(lambda: len(self.containerd.events) >= count)
        return [topic.removeprefix("/tasks/") for topic, _ in self.containerd.events]

    def event(self, topic: str) -> dict[str, Any]:
        """The last event of a topic, once there is one."""
        def look() -> list[dict[str, Any]]:
            return [event for name, event in self.containerd.events if name == f"/tasks/{topic}"]

        found: list[dict[str, Any]] = self.until(look)
        return found[-1]

    def calls(self) -> list[list[str]]:
        """What the runtime was asked, without its globals that say where."""
        path = self.root / "tests" / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def trouble(self, verb: str) -> None:
        """Have the runtime fail."""
        (self.root / "tests").mkdir(parents=True, exist_ok=True)
        (self.root / "tests" / f"fail-{verb}").write_text("it went wrong")

    def hold(self, verb: str, when: str = "before") -> None:
        """Have the runtime wait ``before`` or ``after`` it does something, until it is let go."""
        (self.root / "tests").mkdir(parents=True, exist_ok=True)
        os.mkfifo(self.root / "tests" / f"{when}-{verb}")

    def let_go(self, verb: str, when: str = "before") -> None:
        """Let the runtime go on, once it waits there. Who comes after it is not held any more."""
        path = self.root / "tests" / f"{when}-{verb}"

        def waits() -> bool:
            try:
                fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return False
            path.unlink()
            os.close(fd)
            return True

        self.until(waits)

    def held(self, verb: str) -> None:
        """Work until the runtime was asked to do something that it is held before."""
        self.until(lambda: verb in [one[0] for one in self.calls()])

    # --- streams ---

    def fifo(self, name: str) -> str:
        """A new FIFO."""
        path = self.tmp / name
        os.mkfifo(path)
        return str(path)

    def reader(self, path: str) -> Reader:
        """Read a FIFO as a client does, on a thread."""
        self.readers.append(Reader(path))
        return self.readers[-1]

    def close(self) -> None:
        """End everything."""
        for client in self.clients:
            client.close()
        self.process.kill()
        self.process.wait()
        for pid_file in [*(self.root / "tests").glob("*/pid"), *self.tmp.glob("*/*.pid")]:
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
        for reader in self.readers:
            reader.stop()
        self.containerd.close()
        os.close(self.log)
        self.loop.close()


class Reader:
    """Reads a FIFO to its end."""

    def __init__(self, path: str) -> None:
        self.data = bytearray()
        self.ended = threading.Event()
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(self._fd, True)
        self._stop, self._stopper = socket.socketpair()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        import select

        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        wrote = False
        while True:
            ready = dict(poll.poll())
            if self._stop.fileno() in ready:
                break
            part = os.read(self._fd, 65536) if self._fd in ready else b""
            if part:
                wrote = True
                self.data += part
            elif wrote or ready.get(self._fd, 0) & select.POLLHUP:
                break
        self.ended.set()
        os.close(self._fd)

    def stop(self) -> None:
        """Read no more: the reader is gone."""
        if self.thread.is_alive():
            self._stopper.send(b"x")
        self.thread.join(SECONDS)
        self._stop.close()
        self._stopper.close()

    def all(self) -> bytes:
        """Everything, once the other side has closed it."""
        assert self.ended.wait(SECONDS), bytes(self.data[-200:])
        return bytes(self.data)
