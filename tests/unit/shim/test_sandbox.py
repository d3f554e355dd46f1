"""The Sandbox service, with a runtime whose containers are plain processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casemate.shim import messages, sandbox, start, status, wire
from casemate.shim import sandbox_messages as tables
from casemate.shim.status import StatusError
from tests.unit.shim.world import World


class Client:
    """Asks the service of a world's shim, with a bundle whose program is the host's own."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        made = sandbox.Sandbox(None, {}).service()  # type: ignore[arg-type]
        self.tables = {name: method[:2] for name, method in made.items()}

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        request, answer = self.tables[method]
        future = self.world.client.call(start.SANDBOX, method, request, fields, answer, 20)
        found: dict[str, Any] = self.world.loop.run_until(future, 20)
        return found


@pytest.fixture
def client(world: World, monkeypatch: pytest.MonkeyPatch) -> Client:
    return Client(world, monkeypatch)


def test_what_is_not_there(client: Client) -> None:
    for method in client.tables.keys() - {"CreateSandbox", "ShutdownSandbox"}:
        with pytest.raises(StatusError) as caught:
            client.call(method, sandbox_id="pod")
        assert caught.value.code == status.NOT_FOUND
    for bad in ({"sandbox_id": "a/b"}, {"sandbox_id": ""}, {"bundle_path": "x"}):
        with pytest.raises(StatusError) as caught:
            client.call("CreateSandbox", **{"sandbox_id": "pod", "bundle_path": "/", **bad})
        assert caught.value.code == status.INVALID_ARGUMENT


def test_shutdown_ends_a_shim_without_a_pod(client: Client) -> None:
    assert client.call("ShutdownSandbox", sandbox_id="pod") == {}
    client.world.until(lambda: client.world.process.poll() is not None)


def config(**fields: Any) -> dict[str, Any]:
    return {**wire.empty(tables.POD_CONFIG), **fields}


def test_the_specification_of_a_pod() -> None:
    linux = {"cgroup_parent": "/kubepods/pod1", "sysctls": {"net.ipv4.ip_forward": "1"}, "security_context": None}
    made = sandbox.specification("pod", "/run/netns/x", config(hostname="host", linux=linux), {"a": "b"})
    assert made["hostname"] == "host"
    assert made["annotations"] == {
        "a": "b", "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "pod",
    }
    assert {"type": "network", "path": "/run/netns/x"} in made["linux"]["namespaces"]
    assert made["linux"]["cgroupsPath"] == "/kubepods/pod1/pod"
    assert made["linux"]["sysctl"] == {"net.ipv4.ip_forward": "1"}
    assert made["process"]["args"][0] == "/busybox"
    plain = sandbox.specification("pod", "", config(), {})
    assert {"type": "network"} in plain["linux"]["namespaces"]
    assert "cgroupsPath" not in plain["linux"]


def test_a_pod_below_a_slice_and_one_with_the_hosts_network() -> None:
    linux: dict[str, Any] = {"cgroup_parent": "/kubepods.slice/pod1.slice", "sysctls": {}, "security_context": None}
    made = sandbox.specification("pod", "", config(linux=linux), {})
    assert made["linux"]["cgroupsPath"] == "pod1.slice:cri-containerd:pod"
    linux["security_context"] = {"namespace_options": {"network": 2, "pid": 0, "ipc": 0}}
    with pytest.raises(StatusError, match="host's network"):
        sandbox.specification("pod", "", config(linux=linux), {})


def test_what_a_request_says_of_its_pod() -> None:
    value = wire.encode(tables.POD_CONFIG, {"hostname": "h", "annotations": {"x": "y"}})
    found = sandbox.pod_config({"type_url": "runtime.v1.PodSandboxConfig", "value": value})
    assert (found["hostname"], found["annotations"]) == ("h", {"x": "y"})
    for other in (None, {"type_url": "", "value": b""}, {"type_url": "some.Other", "value": b"\xff"}):
        assert sandbox.pod_config(other) == wire.empty(tables.POD_CONFIG)
    with pytest.raises(StatusError) as caught:
        sandbox.pod_config({"type_url": "runtime.v1.PodSandboxConfig", "value": b"\xff"})
    assert caught.value.code == status.INVALID_ARGUMENT


def test_the_program_of_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "busybox"
    program.write_bytes(b"")
    program.chmod(0o755)
    monkeypatch.setattr(sandbox, "PROGRAMS", ("/no/such", str(program)))
    mount = sandbox.program_mount(str(tmp_path))
    assert mount == {"type": "bind", "source": str(program), "target": "/busybox", "options": ["bind", "ro"]}
    assert (tmp_path / "rootfs" / "busybox").is_file()
    monkeypatch.setattr(sandbox, "PROGRAMS", ("/no/such",))
    with pytest.raises(StatusError, match="busybox-static"):
        sandbox.program_mount(str(tmp_path))


def test_a_sandboxs_bundle_has_no_specification_yet(tmp_path: Path) -> None:
    assert start.grouping("pod", str(tmp_path)) == "pod"
    (tmp_path / "config.json").write_text(json.dumps({"annotations": {start.GROUPS[1]: "other"}}))
    assert start.grouping("pod", str(tmp_path)) == "other"
    (tmp_path / "config.json").write_text("[]")
    assert start.grouping("pod", str(tmp_path)) == "pod"


def test_the_service_is_loaded_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    services = start.Services({"x": {}}, None, {})  # type: ignore[arg-type]
    assert services.get("x") == {}
    assert services.get("y") is None
    assert set(services.get(start.SANDBOX)) >= {"CreateSandbox", "PingSandbox"}
    assert messages.RUNNING == 2
