"""A guest with its agent and nothing above: tests speak the agent's protocol (docs/protocol.md) with it."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from casemate import config, ids
from casemate.host import namespaces, uids
from casemate.sandbox import ProcessExit, ProcessStreams, Stream
from casemate.vm import files
from casemate.vm.hypervisor import base
from casemate.vm.machine import Machine
from casemate.wall.calls import Key
from tests.vm.support import Environment

BUSYBOX = Path("/bin/busybox")
PATIENCE = 60.0
SHARE, VOLUMES = "/run/casemate/share", "/run/casemate/volumes"


class Process:
    """A process that was made: its streams, and what it wrote."""

    def __init__(self, guest: Guest, key: Key, streams: ProcessStreams) -> None:
        self.guest = guest
        self.key = key
        self.stdin, self.stdout, self.stderr = streams.stdin, streams.stdout, streams.stderr

    def output(self) -> str:
        """All of its standard output."""
        assert self.stdout is not None
        return read_all(self.stdout)

    def errors(self) -> str:
        """All of its standard error."""
        assert self.stderr is not None
        return read_all(self.stderr)

    def line(self) -> str:
        """The next line of its standard output."""
        assert self.stdout is not None
        got = b""
        while not got.endswith(b"\n"):
            chunk = self.stdout.recv(1)
            assert chunk, got
            got += chunk
        return got.decode().rstrip("\n")

    def wait(self) -> ProcessExit:
        """How it ended."""
        return self.guest.wait(*self.key)


def read_all(stream: Stream) -> str:
    """What comes until the end of a stream."""
    got = bytearray()
    while chunk := stream.recv():
        got += chunk
    return got.decode()


class Guest:
    """A booted machine, two shared trees, and requests to the agent."""

    def __init__(self, env: Environment, memory_mib: int = 256, vcpus: int | None = None) -> None:
        self.env = env
        self.config = config.load(dict(env.variables))
        identifier = ids.new_id()
        self.directory = env.base / f"agent-{ids.short(identifier)}"
        self.directory.mkdir(mode=0o711)
        self.run_path = env.run / ids.short(identifier)
        self.share, self.volumes = self.directory / "share", self.directory / "volumes"
        self.share.mkdir()
        self.volumes.mkdir()
        self.ends: list[tuple[Key, ProcessExit]] = []
        self.ooms: list[str] = []
        self._changed = threading.Condition()
        self._scripts = 0
        self.netns = namespaces.new_netns()
        self.machine = Machine(
            self.config, identifier, self.directory, self.run_path,
            memory_mib=memory_mib, cpus=vcpus, on_exit=self._exited, on_oom=self._oom,
        )  # fmt: skip
        self.identifier = identifier

    def boot(self, devices: Sequence[base.Device] = (), slots: int = 4) -> None:
        self.machine.prepare()
        shares = [
            self.machine.serve_files(files.TAG, self.share, files.ROOT_KEEP),
            self.machine.serve_files(files.VOLUMES_TAG, self.volumes, 0),
        ]
        self.machine.boot(self.netns, [*shares, *devices], slots=slots)

    def close(self) -> None:
        self.machine.close()
        os.close(self.netns)
        uids.release(self.identifier, self.config)
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self.run_path, ignore_errors=True)

    def console(self) -> str:
        """What the guest has written to its console."""
        return (self.directory / "console.log").read_text(errors="replace")

    # ---- ends

    def _exited(self, identifier: str, exec_id: str | None, end: ProcessExit) -> None:
        with self._changed:
            self.ends.append(((identifier, exec_id), end))
            self._changed.notify_all()

    def _oom(self, identifier: str) -> None:
        with self._changed:
            self.ooms.append(identifier)
            self._changed.notify_all()

    def wait(self, identifier: str, exec_id: str | None = None) -> ProcessExit:
        """How a process ended."""

        def found() -> ProcessExit | None:
            return next((end for key, end in self.ends if key == (identifier, exec_id)), None)

        with self._changed:
            assert self._changed.wait_for(lambda: found() is not None, PATIENCE), f"{identifier} {exec_id} does not end"
            end = found()
        assert end is not None
        return end

    # ---- containers

    def root(self, identifier: str) -> Path:
        """A root file system with busybox, for a container of that name."""
        root = self.share / identifier
        if root.exists():
            return root
        for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
            (root / name).mkdir(parents=True)
        shutil.copyfile(BUSYBOX, root / "bin/busybox")
        (root / "bin/busybox").chmod(0o755)
        for name in ("cat", "false", "sh", "sleep", "true"):
            (root / "bin" / name).symlink_to("busybox")
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\nweb:x:33:\n")
        return root

    def spec(self, identifier: str, *args: str, **process: Any) -> dict[str, Any]:
        """A specification as engines write it, with this guest's paths."""
        capabilities = [f"CAP_{name}" for name in ("CHOWN", "DAC_OVERRIDE", "KILL", "SETUID", "SETGID", "NET_RAW")]
        strict = ["nosuid", "noexec", "nodev"]
        return {
            "ociVersion": "1.0.2-dev",
            "process": {
                "args": list(args),
                "env": ["PATH=/bin"],
                "cwd": "/",
                "user": {"uid": 0, "gid": 0},
                "capabilities": {kind: capabilities for kind in ("bounding", "effective", "permitted")},
                **process,
            },
            "root": {"path": f"{SHARE}/{identifier}"},
            "hostname": identifier,
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": strict},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*strict, "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*strict, "ro"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                 "options": [*strict, "mode=1777", "size=65536k"]},
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")],
                "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            },
        }  # fmt: skip

    def first(self) -> None:
        """Make the container ``first``, which prepares the guest and stays."""
        self.create("first", "sleep", "100000", sandbox={
            "hostname": "guest", "time_ns": time.time_ns(), "entropy": base64.b64encode(os.urandom(64)).decode(),
            "shares": self.machine.late,
            "interfaces": [],
        })  # fmt: skip
        self.start("first")

    def begin(
        self, method: str, key: Key, params: dict[str, Any], terminal: bool, stdin: bool, size: tuple[int, int] | None
    ) -> Process:
        streams = self.machine.calls.begin(key, method, params, terminal=terminal, stdin=stdin, size=size)
        return Process(self, key, streams)

    def create(
        self, identifier: str, *args: str, spec: dict[str, Any] | None = None, run: bool = False, stdin: bool = False,
        terminal: bool = False, size: tuple[int, int] | None = None, **more: Any,
    ) -> Process:
        """Make a container; its root file system is made where there is none."""
        if spec is None:
            spec = self.spec(identifier, *args)
        self.root(identifier)
        spec["process"]["terminal"] = terminal
        params = {"id": identifier, "spec": spec, "user": "", "files": [], "memory": None, "sandbox": None, **more}
        method = "container.run" if run else "container.create"
        return self.begin(method, (identifier, None), params, terminal, stdin, size)

    def start(self, identifier: str) -> None:
        self.call("container.start", id=identifier)

    def run(self, identifier: str, *args: str, **more: Any) -> Process:
        """Create and start."""
        process = self.create(identifier, *args, **more)
        self.start(identifier)
        return process

    def exec(self, identifier: str, exec_id: str, *args: str, stdin: bool = False, terminal: bool = False,
             **process: Any) -> Process:  # fmt: skip
        spec = {**self.spec(identifier, *args)["process"], "terminal": terminal, **process}
        params = {"id": identifier, "exec_id": exec_id, "process": spec, "user": ""}
        return self.begin("container.exec", (identifier, exec_id), params, terminal, stdin, None)

    def sh(self, identifier: str, script: str, **more: Any) -> str:
        """Run a shell script in a running container that must succeed; its standard output without the last end."""
        with self._changed:
            self._scripts += 1
            exec_id = f"sh{self._scripts}"
        process = self.exec(identifier, exec_id, "sh", "-c", script, **more)
        output, errors = process.output(), process.errors()
        end = process.wait()
        assert end.status == 0, (script, end, output, errors)
        return output.rstrip("\n")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.machine.calls.call(method, params)

    def signal(self, identifier: str, number: int, exec_id: str | None = None, everyone: bool = False) -> None:
        self.call("process.signal", id=identifier, exec_id=exec_id, signal=number, all=everyone)

    def delete(self, *identifiers: str) -> None:
        for identifier in identifiers:
            self.call("container.delete", id=identifier)


@contextlib.contextmanager
def booted(env: Environment, **more: Any) -> Iterator[Guest]:
    """A guest for a while."""
    guest = Guest(env, **more)
    try:
        guest.boot()
        guest.first()
        yield guest
    finally:
        guest.close()
