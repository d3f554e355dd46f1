"""A sandbox's keeper with a real machine: several containers, control groups of the host, and deaths at any moment."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate import config as configuration
from casemate.host import cgroups, processes
from casemate.pod import cgroup, oom, reap
from casemate.pod.client import PodClient
from casemate.pod.model import Record
from casemate.pod.store import PodStore
from tests.vm.oci import PATIENCE, Bundle, Container, Failed, Runtime, left, until

MIB = 1 << 20


def store_of(runtime: Runtime) -> PodStore:
    """The records below the runtime's root."""
    return PodStore(configuration.load(runtime.env.variables), runtime.root)


def keeper_of(container: Container) -> PodClient:
    """A connection to a container's keeper."""
    store = store_of(container.runtime)
    return PodClient(store, store.get(container.id).pod)


def record_of(container: Container) -> Record:
    return store_of(container.runtime).get(container.id)


def member(bundle: Bundle, of: Container) -> Bundle:
    """Have a bundle's container join another one's sandbox, as Docker's ``--network container:`` does."""
    for entry in bundle.spec["linux"]["namespaces"]:
        if entry["type"] == "network":
            entry["path"] = f"/proc/{of.pid}/ns/net"
    return bundle


def files_of(container: Container) -> cgroup.HostGroup:
    record = record_of(container)
    return cgroup.restore(record.cgroups, record.unit)


def value(container: Container, controller: str, name: str) -> str:
    directory = files_of(container).directory(controller)
    assert directory is not None
    return (directory / name).read_text().strip()


def running(pids: set[int]) -> set[int]:
    """Those of some processes that have not ended, whether or not somebody has reaped them."""
    return {pid for pid in pids if processes.alive(pid, processes.start_time(pid) or 0)}


@pytest.fixture
def old_layout() -> None:
    """For what is read from files of version 1: the unit tests know those of version 2."""
    if any(tree.unified and "memory" in tree.controllers for tree in cgroups.hierarchies()):
        pytest.skip("the memory controller is one of version 2 here")


def test_two_share_a_machine_which_outlives_the_first(ours: Runtime) -> None:
    first = ours.create(ours.bundle()).start()
    second = ours.create(member(ours.bundle(), first)).start()
    boot = "cat /proc/sys/kernel/random/boot_id"
    assert first.sh(boot) == second.sh(boot)
    first.sh("echo mine > /tmp/x")
    assert second.sh("ls /tmp") == ""
    info = keeper_of(first).info()
    assert info["containers"] == {first.id: "running", second.id: "running"}
    machine = {info["keeper"], *info["processes"].values()}
    assert machine <= files_of(first).processes() and not machine & files_of(second).processes()
    first("kill", "KILL")
    assert first.wait() == 137
    first("delete")
    assert machine <= files_of(second).processes()
    assert second.sh(boot)
    third = ours.create(member(ours.bundle("sh", "-c", "exit 5"), second)).start()
    assert third.wait() == 5
    third("delete")
    second("kill", "TERM")
    second("kill", "KILL")
    assert second.wait() == 137
    second("delete")
    assert left(ours) == []
    until(lambda: not running(machine), "the machine's end")


def test_an_exec_ends_before_its_container(ours: Runtime) -> None:
    container = ours.create(ours.bundle()).start()
    exec = ours.monitored(container.id, ["exec", "--detach"], [container.id, "sleep", "1000"])
    assert record_of(container).execs and exec.pid in record_of(container).execs.values()
    events = keeper_of(container).events()
    assert next(events)["event"] == "ready"
    container("kill", "KILL")
    told = [(event["event"], event["exec"] is not None, event["status"]) for event in events]
    assert told == [("exit", True, 137), ("exit", False, 137)]
    assert exec.wait() == 137 and container.wait() == 137


def test_the_bounds_of_the_group_are_those_asked_for(ours: Runtime, old_layout: None) -> None:
    bundle = ours.bundle()
    bundle.spec["linux"]["resources"] = {
        "memory": {"limit": 64 * MIB},
        "cpu": {"shares": 300, "quota": 150_000, "period": 100_000, "cpus": "0"},
    }
    container = ours.create(bundle).start()
    overhead = cgroup.overhead_mib({"memory": {"limit": 64 * MIB}}) + store_of(ours).config.overhead
    assert value(container, "memory", "memory.limit_in_bytes") == str((64 + overhead) * MIB)
    assert value(container, "cpu", "cpu.shares") == "300" and value(container, "cpuset", "cpuset.cpus") == "0"
    assert value(container, "cpu", "cpu.cfs_quota_us") == "150000"
    assert value(container, "pids", "pids.max") == str(cgroup.MACHINE_TASKS)
    # The container may use what it asked for, and the machine has that much.
    container.sh("mkdir /dev/shm/a; dd if=/dev/zero of=/dev/shm/a/x bs=1M count=52 2>/dev/null; rm /dev/shm/a/x")
    keeper_of(container).update(container.id, {"cpu": {"shares": 700}, "memory": {"limit": 32 * MIB}})
    assert value(container, "cpu", "cpu.shares") == "700"
    # The machine has the memory that it has.
    assert value(container, "memory", "memory.limit_in_bytes") == str((64 + overhead) * MIB)
    assert keeper_of(container).stats(container.id)["memory"]["max"] == 32 * MIB


def notified(group: cgroup.HostGroup) -> Iterator[int]:
    """An eventfd that containerd's shim registers for kills (cgroup-v1/memory.rst, "OOM Control")."""
    directory = group.directory("memory")
    assert directory is not None
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    with open(directory / "memory.oom_control") as control:
        (directory / "cgroup.event_control").write_text(f"{event} {control.fileno()}")
        yield event
    os.close(event)


@pytest.mark.parametrize("asked", [True, False], ids=["first", "member"])
def test_who_watches_the_group_sees_a_kill_for_memory(ours: Runtime, old_layout: None, asked: bool) -> None:
    bundle = ours.bundle("sh", "-c", "sleep 1; tail /dev/zero")
    bundle.spec["linux"]["resources"] = {"memory": {"limit": 64 * MIB, "swap": 64 * MIB}}
    other = None if asked else ours.create(ours.bundle()).start()
    container = ours.create(bundle if other is None else member(bundle, other))
    for event in notified(files_of(container)):
        container.start()
        assert container.wait() == 137
        assert os.eventfd_read(event) == 1
    record = record_of(container)
    assert record.oom_killed and record.status == "stopped"
    if other is not None:
        assert other.sh("echo still here") == "still here"


@pytest.mark.parametrize("shared", [False, True])
def test_the_process_that_is_to_be_killed_is(ours: Runtime, old_layout: None, shared: bool) -> None:
    sleeper = subprocess.Popen(["sleep", "1000"])
    try:
        group = cgroup.make(
            f"/{ours.new_id()}", "x", resources={"memory": {"limit": 64 * MIB, "swap": 64 * MIB}},
            overhead_mib=16 if shared else None, pid=sleeper.pid,
        )  # fmt: skip
        directory = group.directory("memory")
        assert directory is not None
        limit = (directory / "memory.limit_in_bytes").read_text()
        for event in notified(group):
            oom.strike(group, shared=shared)
            assert os.eventfd_read(event) == 1
        assert "oom_kill 1" in (directory / "memory.oom_control").read_text()
        assert (directory / "memory.limit_in_bytes").read_text() == limit
        assert sleeper.poll() is None and group.processes() == {sleeper.pid}
        group.kill()
        group.remove()
        assert sleeper.wait(10) == -9
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_group_of_others_is_refused_and_left_alone(ours: Runtime) -> None:
    sleeper = subprocess.Popen(["sleep", "1000"])
    group = cgroup.make(f"/{ours.new_id()}", "x", pid=sleeper.pid)
    try:
        bundle = ours.bundle()
        name = Path(group.paths[0]).name
        bundle.spec["linux"]["cgroupsPath"] = f"/{name}"
        with pytest.raises(Failed, match="in use by others"):
            ours.create(bundle)
        assert sleeper.poll() is None and group.processes() == {sleeper.pid}
    finally:
        sleeper.kill()
        sleeper.wait()
        group.remove()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_the_death_of_the_keeper_ends_all(ours: Runtime, signum: signal.Signals) -> None:
    first = ours.create(ours.bundle()).start()
    second = ours.create(member(ours.bundle(), first))
    info = keeper_of(first).info()
    os.kill(info["keeper"], signum)
    status = 255 if signum == signal.SIGKILL else 143
    assert (first.wait(), second.wait()) == (status, status)
    for container in (first, second):
        assert container.state()["status"] == "stopped"
        assert record_of(container).error
        container("delete")
    assert left(ours) == []
    until(lambda: not running(set(info["processes"].values())), "the machine's end")


@pytest.mark.parametrize("part", ["vmm", "files", "volumes"])
def test_the_death_of_a_part_of_the_machine_ends_all(ours: Runtime, part: str) -> None:
    container = ours.create(ours.bundle()).start()
    os.kill(keeper_of(container).info()["processes"][part], signal.SIGKILL)
    assert container.wait() in (137, 255)
    assert record_of(container).status == "stopped" and record_of(container).error
    container("delete")
    assert left(ours) == []


def test_connections_reach_a_port_of_the_guest(ours: Runtime) -> None:
    echo = "mkfifo /tmp/f; nc -l -p 8080 </tmp/f | cat >/tmp/f"
    container = ours.create(ours.bundle("sh", "-c", echo)).start()
    ours_end, theirs = socket.socketpair()
    listening = "netstat -tln | grep -q :8080"
    container.sh(f"until {listening}; do usleep 10000; done")
    keeper_of(container).forward(8080, theirs.fileno())
    theirs.close()
    ours_end.settimeout(PATIENCE)
    ours_end.sendall(b"through and back")
    assert ours_end.recv(100) == b"through and back"
    ours_end.close()
    assert container.wait() == 0


def test_waiting_tells_how_a_process_ended(ours: Runtime) -> None:
    container = ours.create(ours.bundle()).start()
    results: list[dict[str, Any]] = []
    client = keeper_of(container)
    waiting = threading.Thread(target=lambda: results.append(client.wait(container.id)))
    waiting.start()
    container("kill", "INT")  # which it ignores, as the first process does what it has no handler for
    container("kill", "KILL")
    waiting.join(PATIENCE)
    assert [(one["status"], one["signal"], one["oom"]) for one in results] == [(137, 9, False)]


def fill(path: Path) -> None:
    """Write to a file until the disk is full."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="No space left"):
        while True:
            os.write(descriptor, bytes(4096))
    os.close(descriptor)


def test_a_full_disk_is_told_and_leaves_nothing(ours: Runtime) -> None:
    ours.root = ours.directory / "small"
    ours.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(ours.root)], check=True)
    try:
        fill(ours.root / "ballast")
        with pytest.raises(Failed, match="No space left|no space left"):
            ours.create(ours.bundle(), id="full")
        ours("delete", "--force", "full", check=True)
        (ours.root / "ballast").unlink()
        container = ours.create(ours.bundle(), id=ours.new_id()).start()
        fill(ours.root / "ballast")
        assert container.sh("echo alive") == "alive"
        container("kill", "KILL")
        assert container.wait() == 137
        container("delete", "--force")
        assert sorted(os.listdir(ours.root)) == [".pods", "ballast"] and os.listdir(ours.root / ".pods") == []
    finally:
        subprocess.run(["umount", str(ours.root)], check=True)


MOMENTS = 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(MOMENTS))
def test_a_creation_may_be_cut_short_at_any_moment(ours: Runtime, seed: int) -> None:
    """Whoever creates it is killed, and so is the keeper, or neither: a forced deletion leaves nothing."""
    chance = random.Random(seed)
    bundle = ours.bundle()
    id = ours.new_id()
    bundle.spec["linux"]["cgroupsPath"] = f"/{id}"
    path = str(bundle.write())
    creator = subprocess.Popen(
        ours.words("create", "--bundle", path, id), env=ours.env.variables, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with contextlib.suppress(subprocess.TimeoutExpired):
        creator.wait(chance.uniform(0.05, 6))
    if seed % 4 != 3:
        creator.kill()
    if seed % 4 == 1:
        for pod in store_of(ours).pods():
            reap.end_keeper(pod)
    ours("delete", "--force", id, check=True)
    creator.wait(PATIENCE)
    ours("delete", "--force", id, check=True)
    until(lambda: not left(ours), f"left: {left(ours)}", 30)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["start", "exec", "kill", "delete"])
@pytest.mark.parametrize("victim", ["keeper", "vmm", "command"])
def test_a_request_may_be_cut_short_at_any_moment(ours: Runtime, command: str, victim: str) -> None:
    """Whatever dies while a command is at work, a forced deletion leaves nothing and the host's process ends."""
    chance = random.Random(f"{command} {victim}")
    container = ours.create(ours.bundle())
    info = keeper_of(container).info()
    if command != "start":
        container.start()
    words = {
        "start": ["start", container.id],
        "exec": ["exec", "--detach", container.id, "sleep", "1000"],
        "kill": ["kill", container.id, "KILL"],
        "delete": ["delete", "--force", container.id],
    }[command]
    process = subprocess.Popen(
        ours.words(*words), env=ours.env.variables, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(chance.uniform(0.1, 0.8))
    pid = {"keeper": info["keeper"], "vmm": info["processes"]["vmm"], "command": process.pid}[victim]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    process.wait(PATIENCE)
    ours("delete", "--force", container.id, check=True)
    container.wait()
    ours("delete", "--force", container.id, check=True)
    until(lambda: not left(ours), f"left: {left(ours)}", 30)
    until(lambda: not running_of(info), "the machine's end")


def running_of(info: dict[str, Any]) -> set[int]:
    """The processes of a sandbox that still run."""
    return running({info["keeper"], *info["processes"].values()})
