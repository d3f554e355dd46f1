"""The host's control groups of containers, over directories that look like each layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import HostError, UsageError
from casemate.host.cgroups import Hierarchy, hierarchies
from casemate.pod import bounds, cgroup, systemd
from casemate.pod.home import Home
from casemate.pod.systemd import Unit, slice_path

OLD = ("cpu,cpuacct", "cpuset", "memory", "pids", "blkio", "freezer", "devices", "name=systemd")
FILES = {
    "cpu": ("cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    "cpuset": ("cpuset.cpus", "cpuset.mems"),
    "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes"),
    "pids": ("pids.max",),
    "blkio": ("blkio.weight", "blkio.throttle.read_bps_device"),
}
NEW_FILES = (
    "cpu.weight", "cpu.max", "cpuset.cpus", "memory.max", "memory.swap.max", "memory.low", "pids.max", "io.weight",
    "io.max",
)  # fmt: skip


class Kernel:
    """Directories in place of mounted hierarchies: a group gets its files when it is made, as from the kernel."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, old: tuple[str, ...], new: str | None) -> None:
        self.path = path
        self.trees = [Hierarchy(path / words.replace("name=", ""), frozenset(words.split(",")), False) for words in old]
        if new is not None:
            self.trees.append(Hierarchy(path / "unified", frozenset(new.split()), True))
        for tree in self.trees:
            tree.mount.mkdir(parents=True)
            self._fill(tree.mount)
        mkdir, rmdir = Path.mkdir, Path.rmdir

        def make(place: Path, *args: Any, **values: Any) -> None:
            mkdir(place, *args, **values)
            if path in place.parents:
                self._fill(place)

        def remove(place: Path) -> None:
            if path in place.parents:
                if (place / "cgroup.procs").read_text():
                    raise OSError(16, "Device or resource busy")
                for entry in place.iterdir():
                    if entry.is_file():
                        entry.unlink()
            rmdir(place)

        monkeypatch.setattr(Path, "mkdir", make)
        monkeypatch.setattr(Path, "rmdir", remove)
        monkeypatch.setattr("casemate.host.cgroups.hierarchies", lambda *_, **__: self.trees)

    def _fill(self, place: Path) -> None:
        tree = next(tree for tree in self.trees if tree.mount == place or tree.mount in place.parents)
        (place / "cgroup.procs").touch()
        if tree.unified:
            (place / "cgroup.controllers").write_text(" ".join(sorted(tree.controllers)))
            (place / "cgroup.subtree_control").touch()
            for name in NEW_FILES:
                if name.split(".")[0] in tree.controllers:
                    (place / name).touch()
        for controller in tree.controllers:
            for name in () if tree.unified else FILES.get(controller, ()):
                (place / name).touch()
        if place == tree.mount and "cpuset" in tree.controllers and not tree.unified:
            (place / "cpuset.cpus").write_text("0-3\n")
            (place / "cpuset.mems").write_text("0\n")
        for name in ("memory.memsw.limit_in_bytes",):
            if (place / name).exists():
                (place / name).write_text("9223372036854771712")

    def text(self, where: str) -> str:
        return (self.path / where).read_text()


RESOURCES: dict[str, Any] = {
    "memory": {"limit": 64 << 20, "swap": 128 << 20, "reservation": 32 << 20},
    "cpu": {"shares": 512, "quota": 150_000, "period": 100_000, "cpus": "0-1"},
    "pids": {"limit": 10},
    "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]},
}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path / "cg", monkeypatch, OLD, None)


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path / "cg", monkeypatch, (), "cpu cpuset memory pids io")


def test_version_1(old: Kernel) -> None:
    group = cgroup.make("/docker/abc", "abc", resources=RESOURCES, overhead_mib=256)
    assert old.text("memory/docker/abc/memory.limit_in_bytes") == str((64 + 256) << 20)
    assert old.text("memory/docker/abc/memory.memsw.limit_in_bytes") == str((128 + 256) << 20)
    assert old.text("memory/docker/abc/memory.soft_limit_in_bytes") == str((32 + 256) << 20)
    assert old.text("cpu,cpuacct/docker/abc/cpu.shares") == "512"
    assert old.text("cpu,cpuacct/docker/abc/cpu.cfs_quota_us") == "150000"
    assert old.text("cpu,cpuacct/docker/abc/cpu.cfs_period_us") == "100000"
    assert old.text("cpuset/docker/abc/cpuset.cpus") == "0-1"
    assert old.text("cpuset/docker/cpuset.cpus") == "0-3" and old.text("cpuset/docker/abc/cpuset.mems") == "0"
    assert old.text("pids/docker/abc/pids.max") == "4096"  # the guest counts those of the container
    assert old.text("blkio/docker/abc/blkio.weight") == "500"
    assert old.text("blkio/docker/abc/blkio.throttle.read_bps_device") == "8:0 1000"
    assert len(group.paths) == len(OLD)
    again = cgroup.restore(group.paths)
    assert again.paths == group.paths and again.procs_files() == group.procs_files()
    again.remove()
    assert not any(Path(path).exists() for path in group.paths)
    assert cgroup.restore(group.paths).paths == ()
    cgroup.restore(group.paths).kill()
    cgroup.restore(group.paths).remove()


def test_version_2(new: Kernel) -> None:
    group = cgroup.make("/pod/abc", "abc", resources=RESOURCES, overhead_mib=256)
    assert new.text("unified/pod/abc/memory.max") == str((64 + 256) << 20)
    assert new.text("unified/pod/abc/memory.swap.max") == str(64 << 20)
    assert new.text("unified/pod/abc/memory.low") == str((32 + 256) << 20)
    assert new.text("unified/pod/abc/cpu.weight") == str(bounds.weight(512))
    assert new.text("unified/pod/abc/cpu.max") == "150000 100000"
    assert new.text("unified/pod/abc/cpuset.cpus") == "0-1"
    assert new.text("unified/pod/abc/pids.max") == "4096"
    assert new.text("unified/pod/abc/io.max") == "8:0 rbps=1000"
    for place in ("unified", "unified/pod"):
        assert new.text(f"{place}/cgroup.subtree_control") != ""  # a real one keeps all of them
    assert new.text("unified/pod/abc/cgroup.subtree_control") == ""
    assert group.paths == (str(new.path / "unified/pod/abc"),)


def test_both_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(tmp_path / "cg", monkeypatch, ("memory", "cpu"), "")
    group = cgroup.make(None, "abc", resources=RESOURCES)
    assert {Path(path).relative_to(kernel.path).as_posix() for path in group.paths} == {
        "memory/casemate/abc", "cpu/casemate/abc", "unified/casemate/abc",
    }  # fmt: skip
    assert kernel.text("memory/casemate/abc/memory.limit_in_bytes") == str(64 << 20)
    assert not group.is_new("memory")


def test_only_stand_ins_need_no_bound_on_tasks(old: Kernel) -> None:
    cgroup.make("/x", "x", resources=RESOURCES)
    assert old.text("pids/x/pids.max") == ""
    assert old.text("memory/x/memory.limit_in_bytes") == str(64 << 20)


def test_no_bound_asked_is_no_bound(old: Kernel) -> None:
    cgroup.make("/x", "x", resources={"memory": {}, "cpu": {"shares": 0, "quota": 0}}, overhead_mib=256)
    assert old.text("memory/x/memory.limit_in_bytes") == "" and old.text("cpu,cpuacct/x/cpu.shares") == ""


@pytest.mark.parametrize("files", [{"cgroup.procs": "1\n"}, {"below": None}])
def test_a_group_in_use_is_refused(old: Kernel, files: dict[str, str | None]) -> None:
    place, empty = old.path / "memory/docker/abc", old.path / "cpu,cpuacct/docker/abc"
    place.mkdir(parents=True)
    empty.mkdir(parents=True)
    for name, text in files.items():
        if text is None:
            (place / name).mkdir()
        else:
            (place / name).write_text(text)
    with pytest.raises(HostError, match="in use by others"):
        cgroup.make("/docker/abc", "abc", resources=RESOURCES)
    cgroup.sweep("/docker/abc", "abc")
    assert place.exists() and empty.exists() and not (old.path / "cpuset/docker/abc").exists()
    assert old.text("memory/docker/abc/memory.limit_in_bytes") == ""


def test_an_empty_group_is_taken(old: Kernel) -> None:
    (old.path / "memory/docker/abc").mkdir(parents=True)
    group = cgroup.make("/docker/abc", "abc", resources=RESOURCES)
    group.remove()
    assert not (old.path / "memory/docker/abc").exists() and (old.path / "memory/docker").exists()


@pytest.mark.parametrize(
    ("path", "place"),
    [("/a/../b", "b"), ("/../../b", "b"), ("//b/./c/", "b/c"), (None, "casemate/abc"), ("", "casemate/abc")],
)
def test_paths_stay_below_the_mount(old: Kernel, path: str | None, place: str) -> None:
    places = cgroup.locate(path, "abc", old.trees)
    assert {directory.relative_to(tree.mount).as_posix() for tree, directory in places} == {place}


@pytest.mark.parametrize("path", ["/", "/..", "/a/..", "a\0b", "/" + "x" * 3000, "/" + "x/" * 100])
def test_bad_paths_are_refused(old: Kernel, path: str) -> None:
    with pytest.raises(UsageError, match="cgroupsPath"):
        cgroup.locate(path, "abc", old.trees)


def test_a_relative_path_begins_at_our_own_group() -> None:
    for tree, directory in cgroup.locate("a/b", "abc", hierarchies(every=True)):
        assert directory.parts[-2:] == ("a", "b") and tree.mount in directory.parents
        own = directory.parent.parent
        assert own.is_dir()
        if not tree.unified:
            assert str(os.getpid()) in (own / "cgroup.procs").read_text().split()


def test_what_was_not_written_down_is_swept(old: Kernel) -> None:
    group = cgroup.make("/docker/abc", "abc")
    cgroup.sweep("/docker/abc", "abc")
    assert not [path for path in group.paths if Path(path).exists()]
    group = cgroup.make("/docker/abc", "abc")
    (old.path / "memory/docker/abc/cgroup.procs").write_text("1")
    cgroup.sweep("/docker/abc", "abc")
    assert all(Path(path).exists() for path in group.paths)
    cgroup.sweep("/", "abc")
    assert old.path.is_dir()


def test_a_failure_leaves_nothing(old: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    put = cgroup._put

    def refuse(path: Path, text: str) -> None:
        if path.name == "cpu.cfs_quota_us":
            raise OSError(22, "Invalid argument")
        put(path, text)

    monkeypatch.setattr(cgroup, "_put", refuse)
    with pytest.raises(HostError, match=r"cannot set .*cpu.cfs_quota_us to -1: Invalid argument"):
        cgroup.make("/docker/abc", "abc", resources=RESOURCES)
    assert not any((tree.mount / "docker/abc").exists() for tree in old.trees)


def test_swap_makes_room_first(old: Kernel) -> None:
    group = cgroup.make("/x", "x", resources={"memory": {"limit": 100, "swap": 200}})
    (old.path / "memory/x/memory.memsw.limit_in_bytes").write_text("200")
    order: list[tuple[str, str]] = []
    put = cgroup._put

    def watch(path: Path, text: str) -> None:
        order.append((path.name.replace("_in_bytes", ""), text))
        put(path, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cgroup, "_put", watch)
        group.bound({"memory": {"limit": 300, "swap": 600}})
        (old.path / "memory/x/memory.memsw.limit_in_bytes").write_text("600")
        group.bound({"memory": {"limit": 100, "swap": 200}})
        group.bound({"memory": {"limit": -1, "swap": -1}})
    assert order == [
        ("memory.memsw.limit", "300"), ("memory.limit", "300"), ("memory.memsw.limit", "600"),
        ("memory.limit", "100"), ("memory.memsw.limit", "200"),
        ("memory.memsw.limit", "-1"), ("memory.limit", "-1"), ("memory.memsw.limit", "-1"),
    ]  # fmt: skip


def test_a_missing_file_is_told_unless_it_may_be_missing(old: Kernel) -> None:
    group = cgroup.make("/x", "x")
    (old.path / "blkio/x/blkio.weight").unlink()
    group.bound({"blockIO": {"weight": 10}})
    (old.path / "cpuset/x/cpuset.cpus").unlink()
    with pytest.raises(HostError, match="cannot set cpuset.cpus"):
        group.bound({"cpu": {"cpus": "0"}})


@pytest.mark.parametrize(
    "resources",
    [
        {"memory": []}, {"memory": {"limit": "1"}}, {"memory": {"limit": True}}, {"cpu": {"shares": 1.5}},
        {"blockIO": {"weightDevice": {}}}, {"blockIO": {"throttleReadBpsDevice": [1]}}, {"cpu": {"quota": 1 << 64}},
        {"blockIO": {"throttleReadBpsDevice": [{"major": 1}] * 1000}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["old", "new"])
def test_values_of_other_types_are_refused(
    request: pytest.FixtureRequest, layout: str, resources: dict[str, Any]
) -> None:
    kernel: Kernel = request.getfixturevalue(layout)
    with pytest.raises(UsageError):
        cgroup.make("/x", "x", resources=resources)
    assert not any((tree.mount / "x").exists() for tree in kernel.trees)


def test_weights_are_those_of_all_runtimes() -> None:
    assert [bounds.weight(shares) for shares in (2, 1024, 262_144, 0, 1 << 40)] == [1, 39, 10000, 1, 10000]


def test_new_bounds_can_be_lifted() -> None:
    available = {"memory", "cpu", "io"}
    resources = {"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1}, "blockIO": {"weight": 10}}
    found = {one.name: one.texts for one in bounds.writes(resources, available, available, 1 << 20, None)}
    assert found == {
        "memory.max": ("max",), "memory.swap.max": ("max",), "cpu.max": ("max 100000",), "io.bfq.weight": ("10",),
        "io.weight": ("1",),
    }  # fmt: skip


def test_a_machine_gets_what_its_containers_may_have_together() -> None:
    members: list[dict[str, Any]] = [
        {"cpu": {"shares": 2, "quota": 50_000, "period": 100_000, "cpus": "0"}},
        {"cpu": {"shares": 512, "quota": 20_000, "period": 10_000, "cpus": "2-3"}},
    ]
    assert cgroup.machine_resources(members) == {
        "cpu": {"shares": 514, "period": 100_000, "quota": 250_000, "cpus": "0,2-3"}
    }
    assert cgroup.machine_resources([*members, {}]) == {"cpu": {"shares": 1538, "period": 100_000, "quota": -1}}


def test_the_machine_keeps_its_memory_when_a_container_gets_less() -> None:
    home = Home(memory_mib=512 + 96, overhead_mib=160)
    small = home._machine([{}], {"memory": {"limit": 64 << 20, "swap": 128 << 20}, "cpu": {"shares": 5}})
    assert small == {"memory": {"limit": 608 << 20, "swap": (608 + 64) << 20}, "cpu": {"shares": 5}}
    assert home._machine([{}], {"memory": {"limit": -1}})["memory"] == {"limit": -1}
    assert home._machine([{}], {"cpu": {"shares": 5}})["memory"] == {}


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("a-1.slice:docker:abc", Unit("docker-abc.scope", "a-1.slice", "/a.slice/a-1.slice/docker-abc.scope")),
        (":casemate:abc", Unit("casemate-abc.scope", "system.slice", "/system.slice/casemate-abc.scope")),
        ("-.slice::abc", Unit("abc.scope", "-.slice", "/abc.scope")),
        (None, Unit("casemate-id.scope", "system.slice", "/system.slice/casemate-id.scope")),
    ],
)  # fmt: skip
def test_systemd_paths(text: str | None, unit: Unit) -> None:
    assert Unit.parse(text, "id") == unit


@pytest.mark.parametrize(
    "text", ["/a/b", "a:b", "a.slice:b:", "x:y:z", "a--b.slice:p:n", "a.slice:p:../n", ".slice:p:n"]
)
def test_other_paths_are_none_for_systemd(text: str) -> None:
    with pytest.raises(UsageError):
        Unit.parse(text, "id")


def test_slices_are_nested_by_their_names() -> None:
    assert slice_path("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"


def test_systemd_makes_the_scope(old: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    class Done:
        status, reason = 0, ""

    def run(argv: list[str], **_: object) -> Done:
        assert argv[:3] == ["busctl", "--", "call"]  # nothing that follows is an option
        calls.append(argv[6:])
        if "StartTransientUnit" in argv:
            (old.path / "memory/system.slice/docker-abc.scope").mkdir(parents=True)
            (old.path / "memory/system.slice/docker-abc.scope/cgroup.procs").write_text("4711")
        return Done()

    monkeypatch.setattr("casemate.host.commands.run", run)
    moved = iter([False, False, True])
    monkeypatch.setattr(systemd, "_is_in", lambda pid, unit: next(moved))
    with monkeypatch.context() as patch:
        patch.setattr(cgroup.HostGroup, "add", lambda self, pid: None)
        group = cgroup.make(
            "system.slice:docker:abc", "abc", systemd=True, resources=RESOURCES, overhead_mib=256, pid=4711
        )
    method, signature, name, mode, count, *words = calls[0]
    assert (method, signature, name, mode) == ("StartTransientUnit", "ssa(sv)a(sa(sv))", "docker-abc.scope", "fail")
    line = " ".join(words)
    for part in (
        "Slice s system.slice", "PIDs au 1 4711", "Delegate b true", f"MemoryMax t {(64 + 256) << 20}",
        "CPUShares t 512", "CPUQuotaPerSecUSec t 1500000", "TasksMax t 4096",
    ):  # fmt: skip
        assert part in line
    assert words[-1] == "0" and int(count) == 12
    assert calls[1] == ["GetUnit", "s", "docker-abc.scope"]
    group.bound({"memory": {"limit": 1 << 20}})
    assert calls.pop() == [
        "SetUnitProperties",
        "sba(sv)",
        "docker-abc.scope",
        "true",
        "1",
        "MemoryMax",
        "t",
        str(1 << 20),
    ]
    group.bound(RESOURCES, 256)
    calls.pop()
    assert group.unit == "docker-abc.scope"
    assert old.text("memory/system.slice/docker-abc.scope/memory.limit_in_bytes") == str((64 + 256) << 20)
    (old.path / "memory/system.slice/docker-abc.scope/cgroup.procs").write_text("")
    cgroup.restore(group.paths, group.unit).remove()
    assert [call[0] for call in calls[2:]] == ["StopUnit", "ResetFailedUnit"]


def test_systemd_may_refuse(old: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed:
        status, reason = 1, "Unit docker-abc.scope already exists."

    monkeypatch.setattr("casemate.host.commands.run", lambda *_, **__: Failed())
    with pytest.raises(HostError, match="systemd refused StartTransientUnit: Unit docker-abc.scope already exists"):
        cgroup.make(":docker:abc", "abc", systemd=True, pid=1)
    with pytest.raises(HostError, match="without a process"):
        cgroup.make(":docker:abc", "abc", systemd=True)
