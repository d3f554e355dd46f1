"""The minimal kernel that ``casemate guest kernel build`` has left in the cache: it boots without an initial root, and
has what containers need. That all other tests pass with it, too, shows ``make test KERNEL=minimal``.

Compiling one takes ten minutes, so without one there is nothing to test here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.config import machine
from casemate.vm import guest
from casemate.vm.guest import kernels
from tests.vm.support import CACHE, Casemate, Container, Environment, clear, detached, environment, leaks

BUILT = kernels.present(CACHE, machine())
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(BUILT is None, reason="no minimal kernel is built: casemate guest kernel build"),
]


@pytest.fixture(scope="module")
def minimal() -> Iterator[Environment]:
    """An environment whose guest has the minimal kernel, whatever others have."""
    with environment() as made:
        (made.root / "guest").unlink()
        guest.build(made.root, CACHE, print, kernel="minimal")
        yield made
        if left := leaks(made):
            clear(made)
            pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(scope="module")
def cm(minimal: Environment) -> Casemate:
    return Casemate(minimal)


@pytest.fixture(scope="module")
def box(cm: Casemate) -> Iterator[Container]:
    """A container that may do much, so that the kernel is what refuses."""
    options = ("--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "--tmpfs", "/try")
    with detached(cm, "minimal", *options) as made:
        yield made


def test_the_bundle_says_which_kernel_it_has(minimal: Environment, cm: Casemate) -> None:
    assert BUILT is not None
    bundle = guest.find(minimal.root)
    assert bundle.kernel_kind == "minimal" and bundle.manifest["kernel"]["key"] == BUILT.key
    assert bundle.initrd is None and not any(p["name"].startswith("linux-image") for p in bundle.manifest["packages"])
    assert cm.json("guest", "inspect")["kernel_release"] == BUILT.release


def test_the_container_runs_on_it_confined(cm: Casemate) -> None:
    assert BUILT is not None
    script = "uname -r; grep -E '^(Seccomp|CapEff|NoNewPrivs):' /proc/self/status | tr -d '\\t'; cat /proc/self/cgroup"
    lines = cm.out("run", "--rm", "--security-opt", "no-new-privileges", "busybox", "sh", "-c", script).splitlines()
    assert lines == [BUILT.release, "CapEff:00000000a80425fb", "NoNewPrivs:1", "Seccomp:2", "0::/"]


def test_bounds_of_memory_and_processes_hold(cm: Casemate) -> None:
    script = "a=; while :; do a=x$a$a; done"
    done = cm("run", "--rm", "-m", "128m", "busybox", "sh", "-c", script, timeout=280)
    assert done.returncode == 137
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 9 & done; echo all"
    done = cm("run", "--rm", "--pids-limit", "5", "busybox", "sh", "-c", script)
    assert b"can't fork" in done.stderr and b"all" not in done.stdout


def test_every_controller_and_namespace(box: Container) -> None:
    found = set(box.sh("cat /sys/fs/cgroup/cgroup.controllers").split())
    assert {"cpu", "cpuset", "hugetlb", "io", "memory", "pids"} <= found
    assert set(box.sh("ls /proc/self/ns").split()) >= {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"}
    assert box.sh("unshare -U -r id -u") == "0"
    assert box.sh("cat /proc/pressure/memory | head -n 1").startswith("some ")


@pytest.mark.parametrize("name", ["ext4", "xfs", "vfat", "iso9660", "squashfs"])
def test_file_systems_that_containers_mount_are_found(box: Container, name: str) -> None:
    assert f"\t{name}" in box.sh(f"mount -t {name} none /try 2>/dev/null; cat /proc/filesystems").splitlines()


def test_file_systems_that_are_there_from_the_start(box: Container) -> None:
    found = {line.split()[-1] for line in box.sh("cat /proc/filesystems").splitlines()}
    assert {"9p", "erofs", "fuse", "hugetlbfs", "mqueue", "overlay", "tmpfs", "virtiofs"} <= found
    box.sh("cd /try && mkdir a b c d && mount -t overlay x -o lowerdir=a,upperdir=b,workdir=c d && umount d")


LINKS = ("bridge", "dummy", "ipvlan", "macvlan", "veth", "vxlan id 9 dstport 4789", "wireguard")


@pytest.mark.parametrize("kind", LINKS)
def test_links(box: Container, kind: str) -> None:
    """Each by itself, for the kernel loads what it takes."""
    upon = "link base9 " if kind in ("ipvlan", "macvlan") else ""
    box.sh(f"ip link show base9 || ip link add base9 type dummy; ip link add {upon}name test9 type {kind}")
    box.sh("ip link show test9 && ip link delete test9")


def test_what_programs_ask_for(box: Container) -> None:
    box.sh("ping -c 1 -W 5 ::1 && ping -c 1 -W 5 127.0.0.1")
    for path in ("/proc/keys", "/proc/sysvipc/sem", "/proc/swaps", "/dev/mqueue", "/proc/sys/vm/nr_hugepages"):
        box.sh(f"test -e {path}")
    assert box.sh("cat /proc/sys/kernel/unprivileged_bpf_disabled") == "2"
    assert box.sh("cat /proc/sys/kernel/perf_event_paranoid") == "3"
    assert "selinux" not in box.sh("mount -t securityfs none /try && cat /try/lsm; umount /try")


def test_where_the_time_went(minimal: Environment, cm: Casemate, tmp_path: Path) -> None:
    assert BUILT is not None
    picture = tmp_path / "chart.svg"
    chart = json.loads(cm.out("boot-chart", "--json", "--initcalls", "--svg", str(picture), timeout=280))
    phases = chart["phases"]
    assert BUILT.release in chart["title"] and picture.read_text().startswith("<svg ")
    names = [phase["name"] for phase in phases]
    for name in ("VMM starts", "drivers and protocols", "Python starts", "hello", "crun makes and starts it"):
        assert name in names
    assert "initial root: modules, root image" not in names
    assert phases[0]["begin"] == 0 and all(a["end"] == b["begin"] for a, b in zip(phases, phases[1:], strict=False))
    assert all(phase["end"] >= phase["begin"] for phase in phases) and chart["cpu"] > 0
    assert "acpi_init" in {call["name"] for call in chart["calls"]}
    assert chart["memory"][0] > chart["memory"][1] > 0
