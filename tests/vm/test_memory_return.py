"""Memory that a container frees goes back to the host: the guest's kernel reports it, and QEMU gives it up."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.config import Config
from tests.vm.oci import Runtime, until
from tests.vm.support import Casemate, detached, vmm_of
from tests.vm.test_pod import keeper_of

pytestmark = pytest.mark.slow
MIB = 1 << 20
SIZE = 512
NEAR = 96
"""How many MiB more than before may stay: the guest has touched other memory too, and reports blocks of 2 MiB only."""
FILL = f"dd if=/dev/zero of=/fill/it bs=1M count={SIZE}"
HOG = f'BEGIN {{ for (; i < {SIZE}; i++) held[i] = sprintf("%{MIB}s", ""); print "full"; getline }}'
"""A process that has as much for itself, until it reads a line."""


def resident(pid: int) -> int:
    """MiB that a process has in memory, the guest's among them."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    raise AssertionError("the VMM has ended")


def falls(pid: int, before: int) -> None:
    """Wait until a VMM has given back what it had more than before; its kernel reports every two seconds."""
    until(lambda: resident(pid) < before + NEAR, f"{before} MiB again, not {resident(pid)}")


def test_of_a_sandbox(cm: Casemate) -> None:
    size = Config().memory
    with detached(cm, "returns", "--memory", f"{size}m", "--tmpfs", f"/fill:size={SIZE + 1}m") as container:
        pid = vmm_of(cm.inspect("returns")["Id"])
        before = resident(pid)
        container.sh(FILL, timeout=200)
        assert resident(pid) > before + 0.95 * SIZE
        container.sh("rm /fill/it")
        falls(pid, before)
        # The same with memory of a process. It can be had again, and again be given back.
        with cm.popen("exec", "-i", "returns", "awk", HOG) as hog:
            assert hog.stdout is not None and hog.stdin is not None
            assert hog.stdout.readline() == b"full\n"
            assert resident(pid) > before + 0.95 * SIZE
            hog.stdin.close()
            assert hog.wait(60) == 0
        falls(pid, before)


def test_of_a_pod(ours: Runtime) -> None:
    bundle = ours.bundle()
    fill = {"destination": "/fill", "type": "tmpfs", "source": "tmpfs", "options": [f"size={SIZE + 1}m"]}
    bundle.spec["mounts"].append(fill)
    container = ours.create(bundle).start()
    pid = keeper_of(container).info()["processes"]["vmm"]
    before = resident(pid)
    container.sh(FILL, timeout=200)
    assert resident(pid) > before + 0.95 * SIZE
    container.sh("rm /fill/it")
    falls(pid, before)
