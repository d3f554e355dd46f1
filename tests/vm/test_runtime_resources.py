"""Bounds and figures by the OCI command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.vm.oci import PATIENCE, Container, Runtime, until

MIB = 1 << 20


def bounded(runtime: Runtime, *words: str, **resources: Any) -> Container:
    bundle = runtime.bundle(*words)
    bundle.spec["linux"]["resources"] |= resources
    bundle.spec["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}
    )
    return runtime.create(bundle).start()


def group(container: Container, name: str) -> str:
    """A file of the container's control group in the guest."""
    return container.sh(f"cat /sys/fs/cgroup/{name}")


def stats(container: Container) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(container("events", "--stats"))
    assert (event["type"], event["id"]) == ("stats", container.id)
    data: dict[str, Any] = event["data"]
    return data


def host_group(container: Container, controller: str) -> Path:
    found = list(Path("/sys/fs/cgroup").glob(f"{controller}/{container.id}")) or [Path("/sys/fs/cgroup") / container.id]
    return found[0]


def test_bounds_hold_in_the_guest(ours: Runtime) -> None:
    container = bounded(
        ours, memory={"limit": 200 * MIB}, pids={"limit": 77}, cpu={"quota": 50000, "period": 100000, "shares": 2048}
    )
    assert group(container, "memory.max") == str(200 * MIB)
    assert group(container, "pids.max") == "77"
    assert group(container, "cpu.max") == "50000 100000"
    assert int(group(container, "cpu.weight")) == 79  # the conversion that all runtimes use
    data = stats(container)
    assert data["memory"]["usage"]["limit"] == 200 * MIB
    assert data["pids"]["limit"] == 77


def test_the_weight_of_disks_is_the_host_groups(ours: Runtime) -> None:
    container = bounded(ours, blockIO={"weight": 300})

    def weight() -> list[str]:
        names = ("blkio.weight", "blkio.bfq.weight", "io.bfq.weight")
        files = [host_group(container, "blkio") / name for name in names]
        found = [file.read_text().split()[-1] for file in files if file.exists()]
        if not found:
            pytest.skip("this kernel has no weights")
        return found

    assert set(weight()) == {"300"}
    container("update", "--blkio-weight=700")
    assert set(weight()) == {"700"}


def test_figures_are_the_guests(ours: Runtime) -> None:
    container = bounded(ours, "sh", "-c", "sleep 86400 & sleep 86400 & wait")
    container.sh("head -c 20000000 /dev/zero >/dev/shm/fill")
    data = stats(container)
    assert data["pids"]["current"] == 3
    assert data["memory"]["usage"]["usage"] > 20_000_000
    assert data["cpu"]["usage"]["total"] > 0
    assert {"shmem", "anon", "file"} <= set(data["memory"]["raw"])
    assert container.sh("cat /sys/fs/cgroup/pids.current") == "4"  # with the one that asks


def test_figures_again_and_again_until_the_end(ours: Runtime) -> None:
    container = bounded(ours)
    words = ours.words("events", "--interval", "200ms", container.id)
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=ours.env.variables) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        container("kill", "KILL")
        process.stdout.read()
        assert process.wait(PATIENCE) == 0
    assert [line["type"] for line in lines] == ["stats"] * 3


def test_too_much_memory_is_told_as_such(ours: Runtime) -> None:
    script = "echo ready; read x; tail /dev/zero"
    bundle = ours.bundle("sh", "-c", script)
    bundle.spec["linux"]["resources"] |= {"memory": {"limit": 64 * MIB}}
    (ours.directory / "fifo").unlink(missing_ok=True)
    subprocess.run(["mkfifo", str(ours.directory / "fifo")], check=True)
    with open(ours.directory / "fifo", "r+b", buffering=0) as stdin:
        container = ours.create(bundle, stdin=stdin).start()
        container.wait_for("ready")
        words = ours.words("events", "--interval", "1h", container.id)
        with subprocess.Popen(words, stdout=subprocess.PIPE, env=ours.env.variables) as process:
            assert process.stdout is not None
            # It has to listen before there is something to hear.
            until(lambda: len(json.loads(ours("ps", "-f", "json", container.id).stdout or "[]")) == 1, "it runs")
            stdin.write(b"\n")
            heard = process.stdout.read().decode()
            process.wait(PATIENCE)
    assert container.wait() == 137
    assert {"type": "oom", "id": container.id} in [json.loads(line) for line in heard.splitlines()]


def test_update_while_it_runs(ours: Runtime) -> None:
    container = bounded(ours, memory={"limit": 200 * MIB}, pids={"limit": 50})
    container("update", "--memory=150m", "--pids-limit=60", "--cpu-quota=20000", "--cpu-period=50000")
    assert group(container, "memory.max") == str(150 * MIB)
    assert group(container, "pids.max") == "60"
    assert group(container, "cpu.max") == "20000 50000"
    container("update", "--resources=-", input=json.dumps({"pids": {"limit": 70}, "cpu": {"shares": 512}}).encode())
    assert group(container, "pids.max") == "70"
    assert group(container, "memory.max") == str(150 * MIB)  # as it was
    path = ours.directory / "resources.json"
    path.write_text(json.dumps({"memory": {"limit": 200 * MIB}}))
    container("update", f"--resources={path}")
    assert group(container, "memory.max") == str(200 * MIB)


def test_update_has_the_machine_grow(ours: Runtime) -> None:
    """To what a template's class has room for, and not beyond."""
    container = bounded(ours, memory={"limit": 200 * MIB})
    container("update", "--memory=500m")
    assert group(container, "memory.max") == str(500 * MIB)
    total = int(container.sh("awk '/MemTotal/ { print $2 }' /proc/meminfo"))
    assert 500 << 10 < total < 700 << 10
    names = ("memory.limit_in_bytes", "memory.max")
    (bound,) = (path for name in names if (path := host_group(container, "memory") / name).exists())
    assert int(bound.read_text()) > 600 * MIB, "the host's bound is that of the machine"
    for more in ("5g", "1t"):  # than its class has room for, and than the host has
        assert "room for more" in ours.fails("update", f"--memory={more}", container.id)
    assert int(container.sh("awk '/MemTotal/ { print $2 }' /proc/meminfo")) == total, "what is refused changes nothing"
    assert group(container, "memory.max") == str(500 * MIB)
    container("update", "--memory=100m")
    container("update", "--memory=-1")
    assert int(group(container, "memory.max")) >= 200 * MIB


def test_update_refuses_nonsense(ours: Runtime) -> None:
    container = bounded(ours)
    assert "invalid value for memory" in ours.fails("update", "--memory", "much", container.id)
    assert ours.fails("update", "--resources", "/nope", container.id)
    assert ours.fails("update", "--resources", "-", container.id, input=b"[]")
    assert container.sh("echo on") == "on"


def test_the_hosts_control_group_holds_the_sandbox(ours: Runtime) -> None:
    container = bounded(ours, memory={"limit": 100 * MIB})
    members = set((host_group(container, "memory") / "cgroup.procs").read_text().split())
    assert str(container.pid) in members
    names = {(Path("/proc") / pid / "comm").read_text().strip() for pid in members}
    assert any(name.startswith("qemu") for name in names), names
    started = ours.monitored(container.id, ["exec", "--detach"], [container.id, "sleep", "4444"])
    assert str(started.pid) in (host_group(container, "memory") / "cgroup.procs").read_text().split()
    container.remove()
    assert not host_group(container, "memory").exists()


def test_a_group_that_others_are_in_is_refused(ours: Runtime) -> None:
    first = ours.create(ours.bundle())
    bundle = ours.bundle()
    bundle.spec["linux"]["cgroupsPath"] = f"/{first.id}"
    message = ours.fails("create", "--bundle", bundle.write(), ours.new_id())
    assert "is in use" in message
    assert first.state()["status"] == "created"


@pytest.mark.parametrize("path", ["relative/{id}", "/nested/{id}/deep", None])
def test_groups_may_be_named_in_all_ways(ours: Runtime, path: str | None) -> None:
    id = ours.new_id()
    bundle = ours.bundle("true")
    if path is not None:
        bundle.spec["linux"]["cgroupsPath"] = path.replace("{id}", id)
    done = ours("run", "--bundle", bundle.write(), id)
    assert done.returncode == 0, done
    for top in Path("/sys/fs/cgroup").glob("*/nested"):
        for child in sorted(top.rglob("*"), reverse=True):
            if child.is_dir():
                child.rmdir()
        top.rmdir()
    for top in Path("/sys/fs/cgroup").rglob("relative"):
        top.rmdir()
