"""Control groups of version 2 on a real kernel: that of a guest, in which our own code runs as on a host."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.vm.oci import Runtime

CHECKOUT = Path(__file__).parent.parent.parent

SCRIPT = """
import json, os, subprocess, sys
from pathlib import Path
from casemate.errors import HostError
from casemate.host import cgroups
from casemate.pod import cgroup, oom

top = Path("/sys/fs/cgroup")
(top / "here").mkdir()  # a group whose groups have controllers holds no processes itself
for pid in (top / "cgroup.procs").read_text().split():
    (top / "here/cgroup.procs").write_text(pid)
found = {"trees": [tree.unified for tree in cgroups.hierarchies(every=True)]}
resources = {
    "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
    "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"},
    "pids": {"limit": 5},
}

def read(group, name):
    return Path(group.paths[0], name).read_text().strip()

sleeper = subprocess.Popen(["sleep", "1000"])
group = cgroup.make("/a/b/one", "one", resources=resources, overhead_mib=32, pid=sleeper.pid)
names = ("memory.max", "memory.low", "cpu.weight", "cpu.max", "cpuset.cpus", "pids.max")
found["bounds"] = {name: read(group, name) for name in names}
found["swap"] = read(group, "memory.swap.max") if Path(group.paths[0], "memory.swap.max").exists() else None
group.bound({"memory": {"limit": -1}, "cpu": {"quota": -1}})
found["lifted"] = [read(group, "memory.max"), read(group, "cpu.max")]
group.bound({"memory": {"limit": 64 << 20}})
found["struck"] = []
for shared in (False, True):
    before = read(group, "memory.max")
    oom.strike(group, shared=shared)
    words = dict(line.split() for line in read(group, "memory.events").splitlines())
    found["struck"].append([int(words["oom_kill"]), read(group, "memory.max") == before, sleeper.poll()])
other = cgroup.make("/a/b/two", "two")
group.move_to(other, [sleeper.pid])
found["moved"] = [group.processes() == set(), other.processes() == {sleeper.pid}]
try:
    cgroup.make("/a/b/two", "two")
except HostError as error:
    found["refused"] = str(error)
again = cgroup.restore(other.paths)
again.kill()
again.remove()
group.remove()
found["killed"] = sleeper.wait()
found["left"] = sorted(path.name for path in (top / "a/b").iterdir() if path.is_dir())
print(json.dumps(found))
"""


def test_bounds_kills_and_moves(ours: Runtime) -> None:
    bundle = ours.bundle("sleep", "1000")
    spec = bundle.spec
    python = Path(os.path.realpath(sys.executable)).parent.parent
    for path in {Path("/usr"), CHECKOUT, python}:
        bundle.mount(str(path), path, "rbind", "ro")
    for name in ("lib", "lib64"):
        (bundle.rootfs / name).symlink_to(f"usr/{name}")
    spec["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw", "nosuid", "nodev"]}
    )
    every = ["CAP_SYS_ADMIN", "CAP_KILL", "CAP_SYS_RESOURCE", "CAP_DAC_OVERRIDE", "CAP_IPC_LOCK"]
    for kind in ("bounding", "effective", "permitted"):
        spec["process"]["capabilities"][kind] = every
    container = ours.create(bundle).start()
    output = container.sh(f"PYTHONPATH={CHECKOUT}/src exec {sys.executable} -", input=SCRIPT.encode())
    found = json.loads(output.splitlines()[-1])
    assert found["trees"] == [True]
    assert found["bounds"] == {
        "memory.max": str((64 + 32) << 20), "memory.low": str((32 + 32) << 20), "cpu.weight": "20",
        "cpu.max": "50000 100000", "cpuset.cpus": "0", "pids.max": "4096",
    }  # fmt: skip
    assert found["swap"] in (None, str(32 << 20))
    assert found["lifted"] == ["max", "max 100000"]
    assert found["struck"] == [[1, True, None], [2, True, None]]
    assert found["moved"] == [True, True]
    assert "in use by others" in found["refused"]
    assert found["killed"] == -9 and found["left"] == []
