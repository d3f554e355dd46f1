"""Docker with systemd as the driver of control groups, on a real systemd in namespaces of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.engines.engines import RUNTIMES
from tests.engines.host import TOOLS, run
from tests.engines.images import BOX, archive
from tests.engines.terminal import eventually
from tests.vm.support import CACHE, CONSOLE_SCRIPT, environment
from tests.vm.test_pod_systemd import host

__all__ = ["host"]
SOCKET = "unix:///run/docker.sock"


class Beside:
    """Runs commands beside that systemd."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        path = f"{TOOLS / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
        self.variables = {
            "PATH": path, "HOME": "/run", "LANG": "C.UTF-8", "CASEMATE_CACHE": str(CACHE), "DOCKER_HOST": SOCKET,
        }  # fmt: skip

    def __call__(self, *words: str | os.PathLike[str], input: bytes | None = None, check: bool = True) -> str:
        join = ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-i", "-u", "-C", "--"]
        done = run([*join, *(os.fspath(word) for word in words)], input, 200, check, self.variables)
        return (done.stdout + (b"" if check else done.stderr)).decode().rstrip("\n")

    def docker(self, *words: str) -> str:
        """A command of the client's that must succeed; its standard output."""
        return self(TOOLS / "bin" / "docker", *words)

    def shown(self, unit: str, *names: str) -> list[str]:
        """Properties of a unit's."""
        return [self("systemctl", "show", "--value", "-p", name, unit) for name in names]


@pytest.fixture(scope="module")
def beside(host: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """A dockerd that is a service of that systemd, with the images."""
    made = Beside(host)
    with environment() as env:  # for what its configuration says of machines
        made("mkdir", "-p", "/etc/casemate", "/var/lib/docker")
        # Of the kernel's settings, which that systemd shall leave alone, those of the container's own network.
        made("sh", "-ec", "cd /proc/sys; mount --bind net net; mount -o remount,bind,rw /proc/sys/net")
        made("sh", "-c", "cat >/etc/casemate/config.toml", input=env.config.read_bytes())
        path = str(CONSOLE_SCRIPT.parent / "casemate-runtime")
        runtimes = {"casemate": {"path": path}, "sentry": {"path": path, "runtimeArgs": ["--wall", "sentry"]}}
        settings = json.dumps({"runtimes": runtimes}).encode()
        made("sh", "-c", "cat >/etc/casemate/dockerd.json", input=settings)
        made(
            "systemd-run", "--unit=dockerd", "-p", "DefaultDependencies=no",
            *(f"--setenv={name}={value}" for name, value in made.variables.items()), TOOLS / "bin" / "dockerd",
            "--host", SOCKET, "--data-root", "/var/lib/docker", "--exec-root", "/run/docker",
            "--pidfile", "/run/docker.pid", "--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=systemd",
            "--bridge=none", "--iptables=false", "--ip-forward=false", "--config-file", "/etc/casemate/dockerd.json",
        )  # fmt: skip
        eventually(lambda: "Cgroup Driver: systemd" in made("docker", "info", check=False), "dockerd answers")
        images = tmp_path_factory.mktemp("images") / "images.tar"
        archive(images)
        made("docker", "load", "-q", input=images.read_bytes())
        yield made
        made("systemctl", "stop", "dockerd")


def _memory(beside: Beside, unit: str) -> int:
    """How much a unit may have, as its control group has it."""
    files = [f"/sys/fs/cgroup/{name}/system.slice/{unit}/{file}" for name, file in
             (("", "memory.max"), ("memory", "memory.limit_in_bytes"))]  # fmt: skip
    return int(beside("sh", "-c", f"cat {files[0]} 2>/dev/null || cat {files[1]}"))


@pytest.mark.feature("control groups by systemd")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_container_is_a_scope(beside: Beside, runtime: str) -> None:
    bounds = ("--memory", "200m", "--memory-swap", "200m", "--cpus", "1.5", "--pids-limit", "99")
    id = beside.docker("run", "-d", "--runtime", runtime, "--network", "none", *bounds, BOX, "sleep", "86400")
    try:
        unit = f"docker-{id}.scope"
        assert beside.shown(unit, "ActiveState", "Slice") == ["active", "system.slice"]
        assert beside.shown(unit, "CPUQuotaPerSecUSec") == ["1.500000s"]
        memory = _memory(beside, unit)
        assert memory == 200 << 20 if runtime == "runc" else memory > 200 << 20  # the machine is in it too
        pid = beside.docker("inspect", "--format", "{{.State.Pid}}", id)
        groups = [line.split(":", 2)[1:] for line in beside("cat", f"/proc/{pid}/cgroup").splitlines()]
        assert all(path == f"/system.slice/{unit}" for names, path in groups if names), groups
        beside("systemctl", "daemon-reload")
        beside.docker("update", "--memory", "150m", "--memory-swap", "150m", "--cpus", "0.5", id)
        beside("systemctl", "daemon-reload")
        assert beside.shown(unit, "CPUQuotaPerSecUSec") == ["500ms"]
        # A machine does not shrink: what the container may have of it does.
        assert _memory(beside, unit) == (150 << 20 if runtime == "runc" else memory)
        script = "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes"
        assert beside.docker("exec", id, "sh", "-c", script) == str(150 << 20)
        assert int(beside.docker("stats", "--no-stream", "--format", "{{.PIDs}}", id)) >= 1
    finally:
        beside.docker("rm", "-f", id)
    assert beside.shown(unit, "LoadState") == ["not-found"]
    found = beside("find", "/sys/fs/cgroup", "-name", unit)
    assert found == ""
