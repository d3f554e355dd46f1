"""The shim's Sandbox service on a real runtime. Debian's containerd has no client for it, so the test is the client."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate.oci import busybox
from casemate.shim import messages, sandbox, sandbox_messages, start, task, ttrpc, wire
from casemate.shim.loop import Future, Loop
from tests.engines.engines import RUNC, RUNTIMES
from tests.engines.host import Host
from tests.engines.terminal import eventually

NAMESPACE = "sandboxes"
SECONDS = 120.0


class Shim:
    """A shim that this test has started, and its services."""

    def __init__(self, host: Host, runtime: str) -> None:
        self.host = host
        self.loop = Loop()
        self.bundles = host.base / f"sandbox-{runtime}"
        root = str(host.base / "sandbox-root")
        options: dict[str, Any]
        table, options = messages.RUNC_OPTIONS, {"binary_name": str(RUNC) if runtime == "runc" else "", "root": root}
        if runtime == "sentry":
            table, options = messages.RUNTIME_OPTIONS, {"config_body": f'Root = "{root}"\nWall = "sentry"\n'.encode()}
        self.options = {"type_url": table.name, "value": wire.encode(table, options)}
        self.bundle("pod")
        words = ["containerd-shim-casemate-v2", "-namespace", NAMESPACE, "-id", "pod", "-address", runtime, "start"]
        script = f"cd {self.bundles}/pod && exec \"$@\""
        stdin = wire.encode(messages.ANY, self.options)
        self.address = host.out("sh", "-c", script, "sh", *words, input=stdin).removeprefix("unix://")
        self.client = ttrpc.Client(self.loop, f"/proc/{host.pid}/root{self.address}")
        self.tables: dict[str, tuple[str, Any, Any]] = {}
        nothing: Any = None
        for name, service in (
            (start.SANDBOX, sandbox.Sandbox(nothing, {}).service()), (task.NAMES[1], task.Task(nothing).service()),
        ):
            self.tables.update({method: (name, *tables[:2]) for method, tables in service.items()})

    def bundle(self, name: str) -> Path:
        path = self.bundles / name
        path.mkdir(parents=True)
        return path

    def ask(self, method: str, **fields: Any) -> Future:
        service, request, answer = self.tables[method]
        return self.client.call(service, method, request, fields, answer, SECONDS)

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.loop.run_until(self.ask(method, **fields), SECONDS)
        return found

    def until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < deadline
            self.loop.turn(0.05)


@pytest.fixture(params=RUNTIMES)
def shim(request: pytest.FixtureRequest, engine_host: Host) -> Iterator[Shim]:
    made = Shim(engine_host, request.param)
    yield made
    with contextlib.suppress(Exception):
        made.call("ShutdownSandbox", sandbox_id="pod")
    made.loop.close()


def _root(host: Host) -> Path:
    """A root filesystem with busybox."""
    path = host.base / "box-root"
    if not path.exists():
        program = busybox.find()
        layer = busybox.make_layer(program.read_bytes(), busybox.applets(program))
        path.mkdir()
        subprocess.run(["tar", "-x", "-C", path], input=layer, check=True)
    return path


def _container(shim: Shim, name: str, pid: int, *args: str) -> Path:
    """A bundle of a container in the pod, as the CRI plugin writes it."""
    path = shim.bundle(name)
    shared = [{"type": kind, "path": f"/proc/{pid}/ns/{file}"} for kind, file in
              (("network", "net"), ("ipc", "ipc"), ("uts", "uts"))]
    annotations = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"}
    spec = {
        "ociVersion": "1.0.2", "root": {"path": "rootfs"}, "annotations": annotations,
        "process": {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        ],
        "linux": {"namespaces": [*shared, {"type": "pid"}, {"type": "mount"}]},
    }
    (path / "config.json").write_text(json.dumps(spec))
    return path


def test_a_pod_and_a_container_in_it(shim: Shim) -> None:
    config = {
        "type_url": sandbox_messages.POD_CONFIG.name,
        "value": wire.encode(sandbox_messages.POD_CONFIG, {"hostname": "pod-host"}),
    }
    bundle = str(shim.bundles / "pod")
    shim.call("CreateSandbox", sandbox_id="pod", bundle_path=bundle, options=config)
    assert shim.call("SandboxStatus", sandbox_id="pod")["state"] == sandbox.NOT_READY
    platform = shim.call("Platform", sandbox_id="pod")["platform"]
    assert (platform["os"], platform["architecture"]) == ("linux", "amd64")
    pid = shim.call("StartSandbox", sandbox_id="pod")["pid"]
    assert shim.host("test", "-e", f"/proc/{pid}/ns/net").returncode == 0
    assert shim.call("PingSandbox", sandbox_id="pod") == {}
    assert shim.call("SandboxStatus", sandbox_id="pod")["state"] == sandbox.READY
    assert shim.call("SandboxMetrics", sandbox_id="pod")["metrics"]["data"]["value"]

    log = shim.bundles / "log"
    inside = _container(shim, "box", pid, "sh", "-c", "hostname; sleep 600")
    mounts = [{"type": "bind", "source": str(_root(shim.host)), "options": ["rbind", "ro"]}]
    streams = {"stdout": f"file://{log}", "stderr": f"file://{log}"}
    shim.call("Create", id="box", bundle=str(inside), rootfs=mounts, options=shim.options, **streams)
    shim.call("Start", id="box")
    shim.until(lambda: log.exists() and log.read_text() == "pod-host\n")
    shim.call("Shutdown", id="box")  # the pod stays
    ended = shim.ask("WaitSandbox", sandbox_id="pod")
    shim.call("StopSandbox", sandbox_id="pod", timeout_secs=3)
    shim.until(lambda: ended.done)
    assert ended.value["exit_status"] in (0, 137)
    assert shim.call("Wait", id="box")["exit_status"] == 137
    shim.call("Delete", id="box")
    shim.call("ShutdownSandbox", sandbox_id="pod")
    eventually(lambda: shim.host("test", "-e", shim.address).returncode != 0, "the shim ends")
    shim.until(lambda: shim.client.closed)
    mounted = shim.host.out("cat", "/proc/self/mountinfo")
    assert str(shim.bundles) not in mounted
    assert not list((shim.host.base / "sandbox-root" / NAMESPACE).glob("[!.]*"))
