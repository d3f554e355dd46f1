"""Control groups of this host, whichever version it has; and its version 1 or 2 half alone where it has both."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from casemate.errors import HostError
from casemate.host import cgroups
from casemate.host.cgroups import Cgroup, Hierarchy
from tests.vm.host_tools import needs_root

pytestmark = needs_root


def layouts() -> list[str]:
    trees = cgroups.hierarchies()
    kinds = {tree.unified for tree in trees}
    return ["host"] + (["only-v1", "only-v2"] if len(kinds) == 2 else [])


def trees_of(layout: str) -> list[Hierarchy]:
    return [
        tree for tree in cgroups.hierarchies()
        if layout == "host" or tree.unified == (layout == "only-v2")
    ]


@pytest.fixture(params=layouts())
def trees(request: pytest.FixtureRequest) -> list[Hierarchy]:
    return trees_of(request.param)


@pytest.fixture
def name() -> Iterator[str]:
    made = f"test-{secrets.token_hex(6)}"
    yield made
    cgroups.destroy(made)
    assert cgroups.find(made).directories == {}


def start(group: Cgroup, code: str) -> subprocess.Popen[str]:
    """A process that joins the group, does ``code``, then says so and waits."""
    joined = "".join(f"open({str(path)!r}, 'w').write('0')\n" for path in group.procs_files())
    return subprocess.Popen(
        [sys.executable, "-S", "-c", f"import os, time\n{joined}{code}\nos.write(1, b'ready\\n')\ntime.sleep(100)"],
        stdout=subprocess.PIPE, text=True,
    )


def ready(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line in ("ready\n", "")
    return line != ""


def end(process: subprocess.Popen[str]) -> int:
    status = process.wait(10)
    assert process.stdout is not None
    process.stdout.close()
    return status


def test_processes_are_counted_killed_and_the_group_removed(name: str, trees: list[Hierarchy]) -> None:
    group = Cgroup.create(name, memory=256 << 20, cpu_quota=0.5, pids=64, trees=trees)
    process = start(group, "x = bytearray(20 << 20)\nfor _ in range(3):\n  if not os.fork(): time.sleep(100)")
    assert ready(process)
    usage = group.usage()
    if "memory" not in group.missing:
        assert usage.memory is not None and 20 << 20 < usage.memory < 256 << 20
        assert usage.memory_peak is not None and usage.memory_peak >= usage.memory
    if "pids" not in group.missing:
        assert usage.pids == 4
    assert usage.cpu_us is not None and usage.cpu_us > 0
    assert process.pid in group.processes() and len(group.processes()) == 4
    with pytest.raises(HostError, match="end the processes"):
        group.remove(timeout=0.05)
    found = cgroups.find(name)
    found.kill()
    assert end(process) == -signal.SIGKILL
    assert found.processes() == set()
    found.remove()
    found.remove()
    assert all(not path.parent.exists() for path in group.procs_files())


def test_freeze_and_thaw_and_kill_while_frozen(name: str, trees: list[Hierarchy]) -> None:
    group = Cgroup.create(name, trees=trees)
    read, write = os.pipe()
    os.set_inheritable(write, True)
    joined = "".join(f"open({str(path)!r}, 'w').write('0')\n" for path in group.procs_files())
    code = f"import os, time\n{joined}while True: os.write({write}, b'.'); time.sleep(0.001)"
    process = subprocess.Popen([sys.executable, "-S", "-c", code], close_fds=False)
    os.close(write)
    os.read(read, 1)
    group.freeze()
    os.set_blocking(read, False)
    while True:  # what was written before the freeze
        try:
            os.read(read, 65536)
        except BlockingIOError:
            break
    time.sleep(0.05)  # the time in which a running one would have written fifty times
    with pytest.raises(BlockingIOError):
        os.read(read, 1)
    group.thaw()
    os.set_blocking(read, True)
    assert os.read(read, 1) == b"."
    group.freeze()
    group.kill()
    assert process.wait(10) == -signal.SIGKILL
    os.close(read)


def test_a_fork_bomb_is_bounded_and_killed(name: str, trees: list[Hierarchy]) -> None:
    group = Cgroup.create(name, pids=40, trees=trees)
    if "pids" in group.missing:
        bomb = "[os.fork() for _ in range(5)]"
    else:
        bomb = "while True:\n  try: os.fork()\n  except OSError: break"
    process = start(group, bomb)
    assert ready(process)
    if "pids" not in group.missing:
        assert group.usage().pids == 40
    group.kill()
    assert end(process) == -signal.SIGKILL
    assert group.processes() == set()


def test_memory_over_the_bound_kills_the_process_only(name: str) -> None:
    group = Cgroup.create(name, memory=32 << 20)
    if "memory" in group.missing:
        pytest.skip("this host has no memory controller")
    assert group.oom_kills() == 0
    process = start(group, "x = b'x' * (100 << 20)")
    assert not ready(process)
    assert end(process) == -signal.SIGKILL
    assert group.oom_kills() == 1


def test_bounds_can_be_raised_and_lowered(name: str) -> None:
    group = Cgroup.create(name, memory=64 << 20)
    if "memory" in group.missing:
        pytest.skip("this host has no memory controller")
    directory = group.directories["memory"]
    file = "memory.max" if (directory / "memory.max").exists() else "memory.limit_in_bytes"
    for size in (128 << 20, 32 << 20):
        group.limit(memory=size, cpu_quota=2.5, pids=100)
        assert int((directory / file).read_text()) == size


def test_groups_below_ours_are_killed_and_removed(name: str, trees: list[Hierarchy]) -> None:
    group = Cgroup.create(name, trees=trees)
    for path in group.procs_files():
        (path.parent / "inner" / "most").mkdir(parents=True)
    inner = Cgroup(name, {key: path / "inner" / "most" for key, path in group.directories.items()})
    process = start(inner, "pass")
    assert ready(process)
    found = cgroups.find(name)
    assert process.pid in found.processes()
    cgroups.destroy(name)
    assert end(process) == -signal.SIGKILL
    assert cgroups.find(name).directories == {}


def test_what_is_missing_is_told_and_nothing_is_not_an_error(name: str) -> None:
    group = Cgroup.create(name, memory=1 << 20, cpu_quota=1, pids=1, trees=[])
    assert group.missing == ("memory", "cpu", "pids")
    assert group.procs_files() == () and group.usage().memory is None and group.oom_kills() == 0
    group.kill()
    group.remove()
    with pytest.raises(HostError, match="cannot freeze"):
        group.freeze()
    for bad in ("", "../x", ".", "a/b"):
        with pytest.raises(HostError, match="bad name"):
            cgroups.find(bad)
