"""/proc without processes of the host: who sees whom, settings, and how made-up files are read."""

from __future__ import annotations

import os
import time
from errno import EACCES, EINVAL, EISDIR, ENOENT, EPERM
from types import SimpleNamespace
from typing import Any

import pytest

from casemate.sentry.creds import Credentials
from casemate.sentry.errno import SysError
from casemate.sentry.tasks.namespaces import Namespaces
from casemate.sentry.vfs import cgroupfs
from casemate.sentry.vfs.procfs import ProcFs
from casemate.sentry.vfs.synthetic import Constant, Directory, Setting, SyntheticFs, Text, build
from tests.unit.sentry.spaces import namespaces


class FakeGroup:
    """A process without threads."""

    def __init__(self, kernel: Any, pid: int, ns: Namespaces, container: str = "a") -> None:
        self.kernel = kernel
        self.pid = pid
        self.container = container
        self.ns = ns
        self.tasks: dict[int, Any] = {}
        self.any_task = None
        self.zombie = False


@pytest.fixture
def kernel() -> Any:
    clock = SimpleNamespace(realtime=time.time_ns, monotonic=time.monotonic_ns)
    made = SimpleNamespace(
        clock=clock, groups={}, tasks={}, subsystems={}, pid_max=32768, boot_id="8f4fb3b4-0b3f-4f0e-9d7a-0c0c0c0c0c0c",
        ended_time={},
    )  # fmt: skip
    made.ns = namespaces(made, hostname=b"here")
    made.other = namespaces(made, 1)
    for pid, ns in ((1, made.ns), (5, made.ns), (7, made.other)):
        made.groups[ns.pid.key(pid)] = FakeGroup(made, pid, ns, "a" if ns is made.ns else "b")
        ns.pid.last = pid
    return made


def task_of(kernel: Any, pid: int, creds: Credentials | None = None) -> Any:
    """One that asks."""
    group = kernel.ns.pid.group(pid) or kernel.other.pid.group(pid)
    return SimpleNamespace(kernel=kernel, group=group, tid=pid, creds=creds or Credentials())


def numbers(fs: ProcFs, task: Any) -> list[int]:
    """The processes that are listed."""
    return [int(name) for name, _, _ in fs.root.readdir(task) if name.isdigit()]


def test_processes_of_other_namespaces_are_not_there(kernel: Any) -> None:
    fs = ProcFs(1, kernel)
    inside, neighbour = task_of(kernel, 5), task_of(kernel, 7)
    assert numbers(fs, inside) == [1, 5]
    assert numbers(fs, neighbour) == [7]
    assert fs.root.lookup(inside, b"1").kind == 0o040000
    with pytest.raises(SysError) as failed:
        fs.root.lookup(inside, b"7")
    assert failed.value.errno == ENOENT


@pytest.mark.parametrize("name", [b"0", b"01", b"+1", b" 1", b"99999999999", b"1x", b"-1", b"\xd9\xa1"])
def test_what_is_no_number_of_a_process(kernel: Any, name: bytes) -> None:
    with pytest.raises(SysError) as failed:
        ProcFs(1, kernel).root.lookup(task_of(kernel, 1), name)
    assert failed.value.errno == ENOENT


def test_a_process_is_another_one_when_its_number_is_used_again(kernel: Any) -> None:
    fs = ProcFs(1, kernel)
    task = task_of(kernel, 1)
    old = fs.root.lookup(task, b"5")
    assert fs.root.lookup(task, b"5") is old
    kernel.groups[5] = FakeGroup(kernel, 5, kernel.ns)
    assert fs.root.lookup(task, b"5") is not old
    with pytest.raises(SysError) as failed:
        old.lookup(task, b"stat")
    assert failed.value.errno == ENOENT


def read(node: Any, task: Any) -> bytes:
    """The whole content."""
    data: bytes = node.open(task, os.O_RDONLY).read(task, 65536)
    return data


def below(fs: ProcFs, task: Any, path: str) -> Any:
    """What a path of /proc/sys leads to."""
    node: Any = fs.root
    for name in ("sys/" + path).split("/"):
        node = node.lookup(task, name.encode())
    return node


def test_the_host_name_is_set_by_who_may(kernel: Any) -> None:
    fs = ProcFs(1, kernel)
    root = task_of(kernel, 1)
    node = below(fs, root, "kernel/hostname")
    assert read(node, root) == b"here\n"
    node.open(root, os.O_WRONLY).write(root, b"there\n")
    assert kernel.ns.uts.hostname == b"there"
    user = task_of(kernel, 1, Credentials(1000, 1000))
    for data, asks, number in ((b"x", user, EPERM), (b"x" * 65, root, EINVAL)):
        with pytest.raises(SysError) as failed:
            node.open(asks, os.O_WRONLY).write(asks, data)
        assert failed.value.errno == number


def test_settings_are_kept_and_bounded(kernel: Any) -> None:
    fs = ProcFs(1, kernel)
    root = task_of(kernel, 1)
    node = below(fs, root, "vm/swappiness")
    node.open(root, os.O_WRONLY).write(root, b" 10\n")
    assert read(node, root) == b"10\n"
    for wrong in (b"201", b"-1", b"x", b""):
        with pytest.raises(SysError) as failed:
            node.open(root, os.O_WRONLY).write(root, wrong)
        assert failed.value.errno == EINVAL
    with pytest.raises(SysError) as failed:
        below(fs, root, "kernel/ostype").open(root, os.O_WRONLY)
    assert failed.value.errno == EACCES


def test_a_made_up_file_is_made_when_it_is_read_from_the_start(kernel: Any) -> None:
    fs = SyntheticFs(1, kernel)
    made: list[int] = []

    def make(task: Any) -> bytes:
        made.append(1)
        return b"%04d" % len(made) * 3

    file = Text(fs, 0o444, make).open(task_of(kernel, 1), os.O_RDONLY)
    task = task_of(kernel, 1)
    assert [file.read(task, 5) for _ in range(4)] == [b"00010", b"00100", b"01", b""]
    assert len(made) == 1
    assert file.pread(task, 4, 4) == b"0001"
    assert file.seek(task, 0, os.SEEK_SET) == 0
    assert file.read(task, 4) == b"0002"
    with pytest.raises(SysError) as failed:
        file.seek(task, -1, os.SEEK_SET)
    assert failed.value.errno == EINVAL


def test_trees_are_built_as_described(kernel: Any) -> None:
    fs = SyntheticFs(1, kernel)
    task = task_of(kernel, 1)
    root = Directory(fs)
    build(fs, root, {"text": "abc", "number": 5, "below": {"made": Constant(b"whole")}, "set": Setting(1, 0, 2).pair})
    assert [name for name, _, _ in root.readdir(task)] == [b"text", b"number", b"below", b"set"]
    assert read(root.lookup(task, b"number"), task) == b"5\n"
    made = root.lookup(task, b"below").lookup(task, b"made")
    assert read(made, task) == b"whole"
    assert root.stat().nlink == 3
    assert len({ino for _, ino, _ in root.readdir(task)}) == 4
    with pytest.raises(SysError) as failed:
        root.open(task, os.O_RDWR)
    assert failed.value.errno == EISDIR
    with pytest.raises(SysError) as failed:
        root.mkdir(task, b"new", 0o755, 0, 0)
    assert failed.value.errno == EPERM


def test_a_container_is_told_its_own_bounds(kernel: Any) -> None:
    a, b = task_of(kernel, 1), task_of(kernel, 7)
    cgroupfs.note(kernel, "a", {"memory": {"limit": 64 << 20}, "cpu": {"quota": 50000, "shares": 1024}})
    root = cgroupfs.CgroupFs(1, kernel).root
    kernel.max_tasks = 9

    def shown(task: Any, name: bytes) -> bytes:
        return read(root.lookup(task, name), task)

    assert shown(a, b"memory.max") == b"%d\n" % (64 << 20)
    assert shown(a, b"cpu.max") == b"50000 100000\n"
    assert shown(a, b"cpu.weight") == b"39\n"
    assert shown(a, b"pids.max") == b"9\n"
    assert shown(a, b"cgroup.procs") == b"1\n5\n"
    assert shown(b, b"memory.max") == b"max\n"
    assert shown(b, b"cpu.max") == b"max 100000\n"
    assert shown(b, b"cgroup.procs") == b"7\n"
    cgroupfs.note(kernel, "a", {"pids": {"limit": 5}, "cpu": {"period": 20000}, "memory": "nonsense"})
    assert shown(a, b"pids.max") == b"5\n"
    assert shown(a, b"cpu.max") == b"50000 20000\n"
    assert shown(a, b"memory.max") == b"%d\n" % (64 << 20)


def test_the_machine_is_as_large_as_the_largest_bound(kernel: Any) -> None:
    limit = kernel.subsystems
    cgroupfs.note(kernel, "a", {"memory": {"limit": 100}})
    assert limit["memory_limit"] == 100
    cgroupfs.note(kernel, "b", {})
    assert limit["memory_limit"] == 0  # one without a bound may have all
    cgroupfs.note_machine(kernel, 150)
    assert limit["memory_limit"] == 150
    cgroupfs.note(kernel, "b", {"memory": {"limit": 120}})
    assert limit["memory_limit"] == 120
    cgroupfs.note(kernel, "b", {"memory": {"limit": 500}})
    assert limit["memory_limit"] == 150
    cgroupfs.forget(kernel, "b")
    assert limit["memory_limit"] == 100
