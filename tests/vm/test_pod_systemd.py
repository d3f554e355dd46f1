"""Control groups that systemd makes, with a real systemd that runs nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.host import cgroups, processes
from tests.vm.oci import until
from tests.vm.support import CACHE

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent

SCRIPT = """
import json, subprocess, sys
from pathlib import Path
from casemate.errors import HostError
from casemate.host import cgroups
from casemate.pod import cgroup

def show(*names):
    words = [word for name in names for word in ("-p", name)]
    text = subprocess.run(["systemctl", "show", group.unit, *words], capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in text.splitlines())

def read(controller, old, new):
    directory = group.directory(controller)
    return (directory / (new if group.is_new(controller) else old)).read_text().strip()

def bounds():
    return [
        read("memory", "memory.limit_in_bytes", "memory.max"),
        read("cpu", "cpu.cfs_quota_us", "cpu.max").split()[0],
        read("pids", "pids.max", "pids.max"),
    ]

name = sys.argv[1]
sleeper = subprocess.Popen(["sleep", "1000"])
resources = {"memory": {"limit": 64 << 20}, "cpu": {"shares": 512, "quota": 150_000, "period": 100_000}}
group = cgroup.make(
    f"machine-a.slice:test:{name}", name, systemd=True, resources=resources, overhead_mib=256, pid=sleeper.pid
)
found = {"unit": group.unit, "first": bounds()}
found["trees"] = len(group.paths) == len(cgroups.hierarchies(every=True))
found["inside"] = all(
    str(sleeper.pid) in Path(path, "cgroup.procs").read_text().split() for path in group.paths
)
found["shown"] = show("MemoryMax", "CPUQuotaPerSecUSec", "TasksMax", "Delegate", "ActiveState", "Slice")
subprocess.run(["systemctl", "daemon-reload"], check=True)
found["reloaded"] = bounds()
group.bound({"memory": {"limit": 32 << 20}, "cpu": {"quota": -1}}, 256)
subprocess.run(["systemctl", "daemon-reload"], check=True)
found["changed"] = bounds()
found["still inside"] = group.processes() == {sleeper.pid}
try:
    cgroup.make(f"machine-a.slice:test:{name}", name, systemd=True, pid=sleeper.pid)
except HostError as error:
    found["twice"] = str(error)
again = cgroup.restore(group.paths, group.unit)
again.kill()
again.remove()
found["killed"] = sleeper.wait()
found["left"] = [path for path in group.paths if Path(path).exists()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The process id of a systemd in namespaces and control groups of its own."""
    for program in ("/usr/lib/systemd/systemd", "/usr/bin/dbus-daemon", "/usr/bin/busctl"):
        if not os.path.exists(program):
            pytest.fail(f"{program} is missing: run scripts/setup --tests")
    base = tmp_path_factory.mktemp("systemd")
    name = f"cmt-systemd-{os.getpid()}"
    trees = cgroups.hierarchies(every=True)
    for tree in trees:
        (tree.mount / name).mkdir()
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (tree.mount / file).exists() and not tree.unified:
                (tree.mount / name / file).write_text((tree.mount / file).read_text())
    python = Path(os.path.realpath(sys.executable)).parent.parent
    guest = Path(os.environ.get("CASEMATE_ROOT") or "/var/lib/casemate") / "guest"
    tools = [] if CACHE.is_relative_to(CHECKOUT) or not CACHE.exists() else [CACHE]
    wanted = (CHECKOUT, python, *tools, *([guest] if guest.exists() else []))
    shown = [str(path) for path in wanted if not str(path).startswith("/usr")]
    joined = "".join(f"echo 0 >{tree.mount}/{name}/cgroup.procs; " for tree in trees)
    outside = subprocess.Popen(
        ["bash", "-c", f'{joined} exec unshare --mount --net --pid --cgroup --uts --ipc --fork --kill-child "$@"', "-",
         str(HERE / "systemd_host.sh"), str(base), *shown],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
        pid = int(until(lambda: children.read_text().split(), "the first process")[0])
        asked = ["nsenter", "-t", str(pid), "-m", "-p", "-C", "busctl", "status", "org.freedesktop.systemd1"]
        until(lambda: subprocess.run(asked, capture_output=True, check=False).returncode == 0, "systemd", 60)
        yield pid
    finally:
        outside.kill()
        outside.wait()
        until(lambda: not any(_remove(tree.mount / name) for tree in trees), "the end of all processes", 30)


def _remove(top: Path) -> bool:
    """Remove a group with those below it; whether something is left."""
    for directory in reversed(cgroups.subtree(top)):
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False


def test_systemd_makes_keeps_and_forgets_a_scope(host: int) -> None:
    assert processes.start_time(host)
    done = subprocess.run(
        ["nsenter", "-t", str(host), "-m", "-p", "-n", "-i", "-u", "-C", "--", "env", f"PYTHONPATH={CHECKOUT}/src",
         sys.executable, "-", "one"],
        input=SCRIPT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["shown"] == {
        "MemoryMax": str(320 << 20), "CPUQuotaPerSecUSec": "1.500000s", "TasksMax": "4096", "Delegate": "yes",
        "ActiveState": "active", "Slice": "machine-a.slice",
    }  # fmt: skip
    assert found["first"] == found["reloaded"] == [str(320 << 20), "150000", "4096"]
    assert found["changed"][0] == str(288 << 20) and found["changed"][1] in ("-1", "max")
    assert found["unit"] == "test-one.scope"
    assert found["trees"] and found["inside"] and found["still inside"]
    assert "test-one.scope" in found["twice"]
    assert found["killed"] == -9 and found["left"] == []
