"""The host that engines run on: what is left there is seen, and nothing of it outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.host import host
from tests.engines.terminal import eventually
from tests.vm import support


def test_leaks_are_seen_and_end_with_it() -> None:
    with host() as made:
        assert made.leaks(0) == []
        base, env, groups = made.base, made.env, made.groups
        made.popen("sleep", "86399")
        (base / "mounted").mkdir()
        made.out("sh", "-ec", f"mkdir -p /run/casemate/0123456789ab; mount -t tmpfs tmpfs {base}/mounted")
        groups_below = "for group in /sys/fs/cgroup/*/cgroup.procs; do mkdir ${group%/*}/below; done"
        made.out("sh", "-ec", f"{groups_below}; ip link add left0 type bridge; touch /etc/left /var/lib/left")
        eventually(lambda: len(made.leaks(0)) == 3, "all three are seen")
        found = "\n".join(made.leaks(0))
        assert "sleep 86399" in found and "0123456789ab" in found and f"{base}/mounted" in found
        assert not os.path.exists("/etc/left") and not os.path.exists("/var/lib/left")
        assert not os.path.exists("/sys/class/net/left0") and not os.path.exists("/run/casemate/0123456789ab")
    assert not base.exists()
    assert not [group for group in groups if group.exists()]
    assert support.processes(env) == {}
    assert support.mounts(env) == []


def test_it_ends_with_the_process_that_made_it() -> None:
    script = (
        "from tests.engines.host import host\n"
        "import sys\n"
        "with host() as made:\n"
        "    made.popen('sleep', '86398')\n"
        "    print(made.pid, made.base, *made.groups, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=support.CHECKOUT,
        env=os.environ | {"PYTHONPATH": str(support.CHECKOUT)}, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    try:
        pid, base, *groups = process.stdout.readline().split()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        try:
            eventually(lambda: not os.path.exists(f"/proc/{pid}/root/proc"), "its first process has ended")
            for group in groups:
                eventually(lambda: not Path(group, "cgroup.procs").read_text(), f"nobody is in {group}")  # noqa: B023
        finally:
            for group in groups:
                os.rmdir(group)
            subprocess.run(["rm", "-rf", base], check=True)
    finally:
        process.stdin.close()
        process.stdout.close()


def test_a_service_that_ends_at_once_tells_why() -> None:
    with host() as made, pytest.raises(AssertionError, match="no-such-option"):
        made.serve("containerd", "containerd", "--no-such-option", ready=made.base / "c.sock")
