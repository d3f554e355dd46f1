"""When a kill for want of memory is made visible in a host's control group, and when that is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.errors import HostError
from casemate.host.cgroups import Hierarchy
from casemate.pod import oom
from casemate.pod.cgroup import HostGroup

MIB = 1 << 20


class Group:
    """A group of files, of version 1 or 2, 200 MiB of 256 in use, 10 of them file contents."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
        tree = Hierarchy(path, frozenset({"memory"}), new)
        self.above, self.path = path / "pod", path / "pod" / "one"
        self.path.mkdir(parents=True)
        self.limit = "memory.max" if new else "memory.limit_in_bytes"
        self.usage = "memory.current" if new else "memory.usage_in_bytes"
        self.write(self.limit, 256 * MIB)
        self.write(self.usage, 200 * MIB)
        (self.path / "cgroup.controllers").write_text("memory")
        (self.path / "cgroup.procs").write_text("")
        prefix = "" if new else "total_"
        self.write("memory.stat", f"{prefix}inactive_file {6 * MIB}\n{prefix}active_file {4 * MIB}\n")
        if new:
            self.write("memory.swap.max", 0)
        else:
            self.write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
            self.write("memory.memsw.limit_in_bytes", 256 * MIB)
        self.taken: list[tuple[int, int]] = []
        self.meminfo = {"MemAvailable": 4 << 30, "SwapTotal": 1 << 30}
        self.panic = 0
        monkeypatch.setattr(oom, "_take", lambda files, size: self.taken.append((size, files.limit)))
        monkeypatch.setattr(oom, "_meminfo", lambda key: self.meminfo[key])
        number = oom._number
        monkeypatch.setattr(oom, "_number", lambda path: self.panic if path.name == "panic_on_oom" else number(path))
        self.group = HostGroup([(tree, self.path)])

    def write(self, name: str, value: object, above: bool = False) -> None:
        ((self.above if above else self.path) / name).write_text(str(value))


@pytest.fixture(params=[False, True], ids=["v1", "v2"])
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Group:
    return Group(tmp_path, monkeypatch, request.param)


def test_beside_a_machine_the_bound_stays(group: Group) -> None:
    oom.strike(group.group, shared=True)
    assert group.taken == [(66 * MIB + oom.SLACK, 256 * MIB)]
    assert (group.path / group.limit).read_text() == str(256 * MIB)


def test_beside_stand_ins_the_bound_is_lowered_for_a_moment(group: Group) -> None:
    for usual in (str(256 * MIB), "max" if group.limit == "memory.max" else str((1 << 63) - 4096)):
        group.write(group.limit, usual)
        group.write(group.usage, 3 * MIB + 1)
        oom.strike(group.group, shared=False)
        assert group.taken.pop() == (oom.LOWERED_ROOM + oom.SLACK, 3 * MIB + oom.LOWERED_ROOM)
        assert (group.path / group.limit).read_text() == usual


def test_the_bound_comes_back_whatever_happens(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise HostError("nothing was killed")

    monkeypatch.setattr(oom, "_take", fail)
    with pytest.raises(HostError):
        oom.strike(group.group, shared=False)
    assert (group.path / group.limit).read_text() == str(256 * MIB)


def test_a_small_bound_is_not_raised(group: Group) -> None:
    group.write(group.limit, 8 * MIB)
    group.write(group.usage, 3 * MIB)
    oom.strike(group.group, shared=False)
    assert group.taken == [(8 * MIB, 8 * MIB)]


def refuse(group: Group, words: str) -> None:
    with pytest.raises(HostError, match=words):
        oom.strike(group.group, shared=True)
    assert group.taken == []


def test_not_without_a_bound(group: Group) -> None:
    group.write(group.limit, "max" if group.limit == "memory.max" else (1 << 63) - 4096)
    refuse(group, "no bound")


def test_not_when_much_is_left(group: Group) -> None:
    group.write(group.limit, 2 << 30)
    refuse(group, "too many to take")


def test_not_when_the_host_is_short_itself(group: Group) -> None:
    group.meminfo["MemAvailable"] = 200 * MIB
    refuse(group, "short of memory")


def test_not_when_the_machine_could_be_swapped_out(group: Group) -> None:
    for name in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
        (group.path / name).unlink(missing_ok=True)
    refuse(group, "may swap")
    group.meminfo["SwapTotal"] = 0
    oom.strike(group.group, shared=True)


def test_not_when_a_group_above_is_full_first(group: Group) -> None:
    group.write(group.limit, 300 * MIB, above=True)
    group.write(group.usage, 220 * MIB, above=True)
    refuse(group, "would be reached first")
    group.write(group.limit, 512 * MIB, above=True)
    oom.strike(group.group, shared=True)


def test_not_when_all_or_none_would_be_killed(group: Group) -> None:
    if group.limit == "memory.max":
        group.write("memory.oom.group", "1\n")
    else:
        group.write("memory.oom_control", "oom_kill_disable 1\nunder_oom 0\noom_kill 0\n")
    for shared in (True, False):
        with pytest.raises(HostError, match="one process killed"):
            oom.strike(group.group, shared=shared)


def test_not_when_the_host_would_panic(group: Group) -> None:
    group.panic = 2
    refuse(group, "panic")


def test_not_below_a_bound_that_slows_down(group: Group) -> None:
    group.write("memory.high", 200 * MIB)
    refuse(group, "slows its processes down")


def test_not_beside_somebody_as_ready(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    number = oom._number
    score = 1000
    monkeypatch.setattr(oom, "_number", lambda path: score if path.name == "oom_score_adj" else number(path))
    monkeypatch.setattr(HostGroup, "processes", lambda self: {1})
    monkeypatch.setattr(oom, "_resident", lambda pid: 20 * MIB)
    for shared in (True, False):
        with pytest.raises(HostError, match="may be killed instead"):
            oom.strike(group.group, shared=shared)
    score = -999
    oom.strike(group.group, shared=True)
    score = 500
    oom.strike(group.group, shared=True)
    assert len(group.taken) == 2


def test_not_where_memory_is_not_counted(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="counts no memory"):
        oom.strike(HostGroup([]), shared=False)
