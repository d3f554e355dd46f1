"""The engines: containerd, Docker and Podman, as daemons and command lines in a host of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.host import TOOLS, Host, Service, run, stop
from tests.engines.images import PAUSE, archive

RUNTIMES = ("runc", "casemate", "sentry")
"""The control, and casemate behind its two walls."""
CNI_PLUGINS = TOOLS / "containernetworking-plugins" / "root/usr/lib/cni"
RUNC = TOOLS / "bin" / "runc"


def on(*names: str) -> pytest.MarkDecorator:
    """A test's mark: it runs with these engines, each with runc as a control and with casemate,
    behind both walls."""
    clients = [f"{name}-{runtime}" for name in names for runtime in RUNTIMES]
    return pytest.mark.parametrize("cli", clients, indirect=True, scope="module")


def start_containerd(host: Host) -> Service:
    """Start containerd, with its CRI plugin, in a host. Its socket is ``BASE/c.sock``."""
    base = host.base
    networks = base / "cni"
    networks.mkdir()
    (networks / "10-pods.conflist").write_text(json.dumps(_CNI))
    sentry_options(host)
    config = base / "containerd.toml"
    config.write_text(
        _CONTAINERD.format(base=base, pause=PAUSE, plugins=CNI_PLUGINS, runc=RUNC, networks=networks)
    )
    return host.serve("containerd", "containerd", "--config", config, ready=base / "c.sock")


def sentry_options(host: Host) -> Path:
    """The shim's options for the runtime ``sentry``, in a file."""
    path = host.base / "shim-sentry.toml"
    path.write_text('Wall = "sentry"\n')
    return path


def start_dockerd(host: Host, *options: str, driver: str = "overlay2", **more: Any) -> Service:
    """Start dockerd on the containerd of a host. Its socket is ``BASE/docker.sock``.

    Arguments:
        more: settings, as for :func:`settings`.
    """
    base = host.base
    settings(host, **more)
    return host.serve(
        "dockerd", "dockerd", "--containerd", base / "c.sock", "--host", f"unix://{base}/docker.sock",
        "--data-root", base / "docker", "--exec-root", base / "docker-exec", "--pidfile", base / "docker.pid",
        "--config-file", base / "docker.json", "--storage-driver", driver, *options, ready=base / "docker.sock",
    )  # fmt: skip


def settings(host: Host, **more: Any) -> None:
    """Write dockerd's configuration, ``BASE/docker.json``; a SIGHUP has it read some of it again.

    Arguments:
        more: settings beside the usual ones, or instead of them, with ``_`` for ``-``; None leaves one out.
    """
    path = str(host.bin / "casemate-runtime")
    runtimes = {"casemate": {"path": path}, "sentry": {"path": path, "runtimeArgs": ["--wall", "sentry"]}}
    pools = [{"base": "10.66.0.0/16", "size": 24}]
    made = {"runtimes": runtimes, "default_address_pools": pools, "bip": "10.65.0.1/24"} | more
    written = {key.replace("_", "-"): value for key, value in made.items() if value is not None}
    (host.base / "docker.json").write_text(json.dumps(written))


class Client:
    """The command line of Docker or Podman, for one runtime: what it makes runs on that.

    ``client("run", "--rm", BOX, "true")`` runs a command as a person would; a runtime is added where one is chosen.
    """

    engine = ""

    def __init__(self, host: Host, runtime: str) -> None:
        self.host = host
        self.runtime = runtime

    def __repr__(self) -> str:
        return f"{self.engine}-{self.runtime}"

    @property
    def ours(self) -> bool:
        """Whether the runtime is casemate."""
        return self.runtime != "runc"

    def command(self, *words: str | os.PathLike[str]) -> list[str]:
        """The whole command line."""
        raise NotImplementedError

    @property
    def variables(self) -> dict[str, str]:
        """Its environment."""
        return self.host.variables

    def __call__(
        self,
        *words: str | os.PathLike[str],
        input: bytes | None = None,
        timeout: float = 120,
        check: bool = False,
        variables: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end; over ``timeout`` seconds the test fails."""
        return run(self.command(*words), input, timeout, check, self.variables | (variables or {}))

    def out(self, *words: str | os.PathLike[str], timeout: float = 120, input: bytes | None = None) -> str:
        """Run a command that must succeed; its standard output without the last line's end."""
        return self(*words, timeout=timeout, input=input, check=True).stdout.decode().rstrip("\n")

    def fails(self, *words: str | os.PathLike[str], status: int | None = None, timeout: float = 120) -> str:
        """Run a command that must fail; what it says on standard error."""
        done = self(*words, timeout=timeout)
        assert done.returncode != 0, done.stdout
        assert status is None or done.returncode == status, (done.returncode, done.stderr)
        return done.stderr.decode()

    def inspect(self, name: str) -> dict[str, Any]:
        """What ``inspect`` tells about a container."""
        value = json.loads(self.out("container", "inspect", name))
        return value[0]  # type: ignore[no-any-return]

    def state(self, name: str) -> dict[str, Any]:
        """The part of that about what a container does."""
        return self.inspect(name)["State"]  # type: ignore[no-any-return]

    def sh(self, name: str, script: str, *options: str, timeout: float = 60) -> str:
        """Run a shell script in a running container that must succeed; its standard output."""
        return self.out("exec", *options, name, "sh", "-c", script, timeout=timeout)

    def remove(self, *names: str) -> None:
        """Remove containers, whatever they do, with their volumes, if they exist."""
        self("rm", "-f", "-v", *names, timeout=180)

    @contextlib.contextmanager
    def popen(self, *words: str | os.PathLike[str], **rest: Any) -> Iterator[subprocess.Popen[bytes]]:
        """A command that runs for a while; killed at the end unless it has ended."""
        given: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | rest
        process = subprocess.Popen(self.command(*words), env=self.variables, start_new_session=True, **given)
        try:
            yield process
        finally:
            stop(process)

    @contextlib.contextmanager
    def container(self, *words: str | os.PathLike[str]) -> Iterator[str]:
        """A detached container for a while: ``run -d`` with these words. Gives its id; removed at the end."""
        id = self.out("run", "-d", *words)
        try:
            yield id
        finally:
            self.remove(id)


class Docker(Client):
    """``docker``; runs outside of the host, with the daemon's socket in it."""

    engine = "docker"

    @property
    def variables(self) -> dict[str, str]:
        """Classic builds: BuildKit in dockerd runs a runc of its own choice."""
        base = self.host.base
        own = {"DOCKER_HOST": f"unix://{base}/docker.sock", "DOCKER_CONFIG": str(base / "home")}
        return self.host.variables | own | {"DOCKER_BUILDKIT": "0"}

    def command(self, *words: str | os.PathLike[str]) -> list[str]:
        """The command line, with ``--runtime`` after ``run`` and ``create``."""
        given = [os.fspath(word) for word in words]
        for at, word in enumerate(given):
            if word in ("run", "create") and (at == 0 or given[:at] == ["container"]):
                given[at + 1 : at + 1] = ["--runtime", self.runtime]
                break
            if at:
                break
        return [str(TOOLS / "bin" / "docker"), *given]


class Podman(Client):
    """``podman``; runs in the host."""

    engine = "podman"

    def command(self, *words: str | os.PathLike[str]) -> list[str]:
        """The command line, with ``--runtime`` before everything."""
        path = RUNC if self.runtime == "runc" else self.host.bin / "casemate-runtime"
        wall = ["--runtime-flag", "wall=sentry"] if self.runtime == "sentry" else []
        return self.host.command(TOOLS / "bin" / "podman", "--runtime", path, *wall, *words)

    def remove(self, *names: str) -> None:
        """Remove containers without the ten seconds that Podman gives them to end."""
        self("rm", "-f", "-v", "-t", "0", *names, timeout=180)


def prepare_podman(host: Host) -> None:
    """Write Podman's configuration in a host; it has no daemon."""
    base = host.base
    files = {
        "containers.conf": _PODMAN.format(
            tools=TOOLS, networks=base / "podman/networks", plugins=CNI_PLUGINS, base=base
        ),
        "storage.conf": f'[storage]\ndriver = "overlay"\ngraphroot = "{base}/podman/root"\n'
        f'runroot = "{base}/podman/run"\n',
        "policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}\n',
        "registries.conf": "unqualified-search-registries = []\n",
    }
    for name, text in files.items():
        host("sh", "-c", f"mkdir -p /etc/containers && cat >/etc/containers/{name}", input=text.encode(), check=True)
    for name in ("root", "run", "tmp", "networks"):
        (base / "podman" / name).mkdir(parents=True)


_images = threading.Lock()


def images(host: Host) -> Path:
    """The archive of images, made at first use."""
    path = host.base / "images.tar"
    with _images:
        if not path.exists():
            archive(path)
    return path


_CNI = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.68.0.0/24"}], [{"subnet": "fd00:68::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}

_CONTAINERD = """\
version = 2
root = "{base}/containerd"
state = "{base}/c"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{base}/c.sock"
[debug]
level = "info"
[plugins."io.containerd.internal.v1.restart"]
interval = "2s"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
stream_server_address = "127.0.0.1"
stream_server_port = "0"
disable_apparmor = true
# A pod's own score is less than one without CAP_SYS_RESOURCE can give.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{networks}"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.casemate]
runtime_type = "io.containerd.casemate.v2"
privileged_without_host_devices = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.sentry]
runtime_type = "io.containerd.casemate.v2"
privileged_without_host_devices = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.sentry.options]
ConfigPath = "{base}/shim-sentry.toml"
"""

_PODMAN = """\
[containers]
log_driver = "k8s-file"
init_path = "{tools}/bin/catatonit"
seccomp_profile = "/usr/share/containers/seccomp.json"
# Its own are more than a machine without CAP_SYS_RESOURCE can give.
default_ulimits = ["nofile=4096:4096", "nproc=8192:8192"]
[engine]
cgroup_manager = "cgroupfs"
conmon_path = ["{tools}/bin/conmon"]
events_logger = "file"
helper_binaries_dir = ["{tools}/netavark/root/usr/lib/podman", "{tools}/aardvark-dns/root/usr/lib/podman",
    "{tools}/catatonit/root/usr/bin", "{tools}/podman/root/usr/lib/podman"]
runtime_supports_json = ["runc", "casemate-runtime"]
tmp_dir = "{base}/podman/tmp"
[network]
network_backend = "netavark"
network_config_dir = "{networks}"
cni_plugin_dirs = ["{plugins}"]
"""
