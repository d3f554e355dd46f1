"""What ``casemate install`` writes makes engines run containers on casemate, and is gone when it is undone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.engines import images, prepare_podman
from tests.engines.host import TOOLS, Host, host
from tests.engines.images import BOX

PATH = f"/usr/local/bin:{TOOLS / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
"""Our programs are found where they were installed, and nowhere else."""
FILES = {
    "docker": "/etc/docker/daemon.json",
    "podman": "/etc/containers/containers.conf.d/50-casemate.conf",
    "containerd": "/etc/containerd/config.toml",
}
SCRIPT = ("sh", "-c", "uname -v; cat /proc/sys/kernel/random/boot_id")


@pytest.fixture(scope="module")
def fresh() -> Iterator[Host]:
    """A host with engines that nobody has configured yet."""
    with host() as made:
        if "casemate" in made.out("sh", "-c", f"cat {' '.join(FILES.values())} 2>/dev/null; true"):
            pytest.skip("casemate is installed on this machine")
        yield made


def _files(made: Host) -> dict[str, str]:
    """What is in the places where something is written."""
    return {
        path: made("sh", "-c", f"readlink {path} || cat {path}").stdout.decode()
        for path in (*FILES.values(), "/usr/local/bin/casemate-runtime", "/usr/local/bin/containerd-shim-casemate-v2")
    }


def test_engines_find_it_until_it_is_undone(fresh: Host) -> None:
    before = _files(fresh)
    for engine, path in FILES.items():
        assert path in fresh.out("casemate", "install", "--dry-run", engine)
    assert _files(fresh) == before
    for engine in FILES:
        fresh.out("casemate", "install", engine)
    written = _files(fresh)
    assert all("casemate" in text for text in written.values()), written
    for engine in FILES:
        fresh.out("casemate", "install", engine)
    assert _files(fresh) == written, "twice is once"

    base = fresh.base
    ours = fresh.out("cat", "/proc/sys/kernel/random/boot_id")
    env = ("env", f"PATH={PATH}")
    fresh.serve(
        "containerd", *env, "containerd", "--config", FILES["containerd"], "--root", base / "containerd",
        "--state", base / "c", "--address", base / "c.sock", ready=base / "c.sock",
    )  # fmt: skip
    fresh.serve(
        "dockerd", *env, "dockerd", "--containerd", base / "c.sock", "--host", f"unix://{base}/docker.sock",
        "--data-root", base / "docker", "--exec-root", base / "docker-exec", "--pidfile", base / "docker.pid",
        "--bridge=none", "--iptables=false", "--storage-driver=vfs", ready=base / "docker.sock",
    )  # fmt: skip
    archive = images(fresh)
    docker = (*env, "docker", "--host", f"unix://{base}/docker.sock")
    fresh.out(*docker, "load", "-q", "-i", archive)
    run = ("run", "--rm", "--network", "none")
    assert ours in fresh.out(*docker, *run, BOX, *SCRIPT), "without being asked for it is not used"
    assert ours not in fresh.out(*docker, *run, "--runtime", "casemate", BOX, *SCRIPT)

    ctr = (*env, "ctr", "-a", base / "c.sock")
    fresh.out(*ctr, "images", "import", archive)
    assert ours not in fresh.out(*ctr, "run", "--rm", "--runtime", "io.containerd.casemate.v2", BOX, "one", *SCRIPT)

    prepare_podman(fresh)
    podman = (*env, "podman", "--cgroup-manager", "cgroupfs")
    fresh.out(*podman, "load", "-q", "-i", archive)
    assert ours not in fresh.out(*podman, "--runtime", "casemate", *run, BOX, *SCRIPT)

    for engine in FILES:
        fresh.out("casemate", "install", "--undo", engine)
    assert _files(fresh) == before
