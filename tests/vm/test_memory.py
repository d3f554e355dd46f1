"""Bounds: memory of the whole sandbox, processors, processes, file systems in memory; and what happens at each."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.config import Config
from casemate.host import cgroups
from tests.vm.support import Casemate, Container, detached

MIB = 1 << 20
MEMORY = 256
OVERHEAD = Config().overhead
HOG = 'awk \'BEGIN { for (;;) held[i++] = sprintf("%20000s", "") }\''
"""Takes memory by small steps until it is killed."""
PIDS = 48
TMPFS = 8
CPUS = 1.5


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("volume")


@pytest.fixture(scope="module")
def bounded(cm: Casemate, volume: Path) -> Iterator[Container]:
    """A container with every bound there is."""
    options = ["--memory", f"{MEMORY}m", "--cpus", str(CPUS), "--pids-limit", str(PIDS)]
    options += ("--tmpfs", f"/small:size={TMPFS}m", "--shm-size", "4m", "-v", f"{volume}:/volume")
    with detached(cm, "bounded", *options) as made:
        yield made


@pytest.fixture(scope="module")
def neighbour(cm: Casemate) -> Iterator[Container]:
    """Another container, which must not feel anything of it."""
    with detached(cm, "neighbour") as made:
        yield made


def group(container: Container) -> cgroups.Cgroup:
    return cgroups.find(container.cm.inspect(container.name)["Id"])


def limit(container: Container) -> int:
    directory = group(container).directories["memory"]
    names = ("memory.max", "memory.limit_in_bytes")
    return int(next((directory / name).read_text() for name in names if (directory / name).exists()))


def stats(container: Container) -> dict[str, object]:
    value = json.loads(container.cm.out("stats", "--no-stream", "--format", "json", container.name))
    assert isinstance(value, dict)
    return value


def assert_unharmed(*containers: Container) -> None:
    """They answer, and the host's kernel has killed nobody in them."""
    for container in containers:
        assert container.sh("echo fine") == "fine"
        assert group(container).oom_kills() == 0


def test_the_guest_has_that_much_and_the_host_bounds_the_whole(bounded: Container) -> None:
    total = int(bounded.sh("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) * 1024
    assert 0.8 * MEMORY * MIB < total <= MEMORY * MIB, "all but what the kernel itself takes"
    assert limit(bounded) == (MEMORY + OVERHEAD) * MIB
    used = group(bounded).usage().memory
    assert used is not None and 20 * MIB < used < limit(bounded)
    # Everything that belongs to the sandbox is in the group, and nothing else.
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in group(bounded).processes()}
    assert {"virtiofsd"} < names and any(name.startswith("qemu") for name in names)
    assert any(name.startswith(("casemate", "python")) for name in names)


def test_a_killed_child_is_told_and_the_container_goes_on(bounded: Container, neighbour: Container) -> None:
    assert bounded.cm.inspect("bounded")["State"]["OOMKilled"] is False
    killed = bounded.exec("sh", "-c", f"{HOG}; echo the child ended with $?", timeout=200)
    assert killed.stdout == b"the child ended with 137\n"
    state = bounded.cm.inspect("bounded")["State"]
    assert (state["OOMKilled"], state["Status"]) == (True, "running")
    # A command of exec that is killed says so itself.
    killed = bounded.exec("sh", "-c", f"exec {HOG}", timeout=200)
    assert killed.returncode == 137
    assert b"out of memory" in killed.stderr and killed.stderr.count(b"\n") == 1
    assert_unharmed(bounded, neighbour)


def test_the_first_process_killed_ends_the_container_and_says_so(cm: Casemate, neighbour: Container) -> None:
    try:
        done = cm("run", "--name", "hog", "--memory", f"{MEMORY}m", "busybox", "sh", "-c", f"exec {HOG}")
        assert done.returncode == 137
        assert done.stderr.decode().splitlines() == [
            f"casemate: out of memory: the limit is {MEMORY} MiB for the whole guest"
        ]
        state = cm.inspect("hog")["State"]
        assert (state["OOMKilled"], state["ExitCode"], state["Status"]) == (True, 137, "exited")
        assert "out of memory" in state["Error"]
    finally:
        cm.remove("hog")
    assert_unharmed(neighbour)


def test_too_little_memory_is_told_in_a_line(cm: Casemate) -> None:
    before = cm.out("ps", "-aq")
    done = cm("run", "--memory", "64m", "busybox", "true")
    assert done.returncode == 125
    assert done.stderr.count(b"\n") == 1 and b"128m" in done.stderr
    assert cm.out("ps", "-aq") == before


def test_the_least_memory_is_enough(cm: Casemate) -> None:
    """What is allowed has to work, and to bound."""
    script = f"ls / > /dev/null && echo works; {HOG}; echo $?"
    assert cm.out("run", "--rm", "--memory", "128m", "busybox", "sh", "-c", script).split() == ["works", "137"]


def test_a_flood_of_written_pages_kills_nothing(bounded: Container, neighbour: Container, volume: Path) -> None:
    """More than all the memory there is goes through the guest's page cache, and the host's, to a volume."""
    size = MEMORY + OVERHEAD + 64
    try:
        bounded.sh(f"dd if=/dev/zero of=/volume/flood bs=1M count={size} 2> /dev/null", timeout=240)
        assert (volume / "flood").stat().st_size == size * MIB
        assert f"\n{size}+0 records out" in bounded.sh("dd if=/volume/flood of=/dev/null bs=1M 2>&1", timeout=240)
    finally:
        (volume / "flood").unlink(missing_ok=True)
    peak = group(bounded).usage().memory_peak
    assert peak is None or peak <= limit(bounded)
    assert_unharmed(bounded, neighbour)


def test_file_systems_in_memory_end_at_their_size(bounded: Container) -> None:
    for place, size in (("/small", TMPFS), ("/dev/shm", 4)):
        said = bounded.exec("dd", "if=/dev/zero", f"of={place}/file", "bs=64k")
        assert said.returncode == 1 and b"No space left on device" in said.stderr
        assert bounded.sh(f"stat -c %s {place}/file; rm {place}/file") == str(size * MIB)
    # One without a size of its own ends at the container's limit at the latest: it is the container's memory.
    script = "dd if=/dev/zero of=/dev/full-not-there bs=1M 2>&1; echo $?; rm -f /dev/full-not-there"
    assert bounded.sh(script).splitlines()[-1] == "1"
    assert_unharmed(bounded)


def test_processors(bounded: Container, neighbour: Container) -> None:
    assert bounded.sh("nproc") == "2" and neighbour.sh("nproc") == "1"
    # Two that never rest get one and a half processors of the host at most, however many it has.
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            script = "echo; while [ ! -e /stop ]; do :; done"
            burner = stack.enter_context(bounded.cm.popen("exec", "bounded", "sh", "-c", script))
            stack.callback(burner.kill)
            assert burner.stdout is not None and burner.stdout.readline() == b"\n"
        began, used = time.monotonic(), group(bounded).usage().cpu_us
        time.sleep(2)  # what is measured takes time
        used_later, seconds = group(bounded).usage().cpu_us, time.monotonic() - began
        bounded.sh("touch /stop")
    assert used is not None and used_later is not None
    assert 0 < (used_later - used) / 1e6 / seconds < CPUS * 1.15


def test_processes_end_at_their_number(bounded: Container, neighbour: Container) -> None:
    """Forks fail beyond the limit, in this container only; casemate can still see and use it afterwards."""
    script = "i=0; while [ $i -lt 100 ]; do sleep 4321 & i=$((i+1)); done; echo all"
    crowded = bounded.exec("sh", "-c", script)
    assert b"all" not in crowded.stdout and b"can't fork" in crowded.stderr
    assert neighbour.sh("sleep 0 & sleep 0 & wait; echo fine") == "fine"
    assert PIDS - 2 <= int(str(stats(bounded)["PIDs"])) <= PIDS
    # Where there is no room for one more, that is said in a line; there is when some have gone.
    one_more = bounded.exec("sh", "-c", "sleep 0 | sleep 0 | sleep 0")
    assert one_more.returncode != 0 and one_more.stderr.count(b"\n") == 1, one_more.stderr
    assert b"Traceback" not in one_more.stderr
    bounded.cm("kill", "-s", "TERM", "bounded", check=True)
    bounded.cm("rm", "-f", "bounded", timeout=60, check=True)


def test_a_fork_bomb_is_bounded_and_can_be_removed(cm: Casemate, neighbour: Container) -> None:
    # The first process must not fork any more, for it could not and would end.
    bomb = "echo lit; bomb() { bomb | bomb & }; bomb & exec sleep 1000"
    options = ("--name", "bomb", "--memory", f"{MEMORY}m", "--pids-limit", "64")
    cm("run", "-d", *options, "busybox", "sh", "-c", bomb, check=True)
    try:
        with cm.popen("logs", "-f", "bomb") as logs:
            assert logs.stdout is not None and logs.stdout.readline() == b"lit\n"
            logs.kill()
        assert 1 <= int(str(stats(Container(cm, "bomb"))["PIDs"])) <= 64
        assert cm.inspect("bomb")["State"]["Status"] == "running"
        assert_unharmed(neighbour)
    finally:
        cm("rm", "-f", "bomb", timeout=60, check=True)
