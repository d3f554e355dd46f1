"""The watch for want of memory: when it kills, whom, and whom it tells."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.agent import oom
from casemate.agent.cgroup import Cgroup


class Group(Cgroup):
    """A group of one process, full or not as a test says."""

    def __init__(self, directory: Path, member: int) -> None:
        super().__init__("one", str(directory))
        self.member = member
        self.is_full = True
        self.is_member = True

    def pids(self) -> list[int]:
        return [self.member]

    def full(self, part: int) -> bool:
        return self.is_full

    def holds(self, pid: int) -> bool:
        return self.is_member and pid == self.member


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def press(watch: oom.Watch, times: int) -> None:
    for _ in range(times):
        watch._pressed()
        watch._count()


def test_who_stands_still_three_times_in_a_row_is_killed(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    told: list[bool] = []
    group = Group(tmp_path, child.pid)
    watch = oom.Watch(group, lambda: told.append(True))
    try:
        press(watch, 2)
        assert group.oom_kills() == 0 and child.poll() is None and not told
        press(watch, 1)
        assert child.wait(20) == -signal.SIGKILL
        assert group.oom_kills() == 1 and told == [True]
        press(watch, 2)
        assert told == [True], "each kill is told once, and the next takes as long"
    finally:
        watch.close()


def test_who_has_memory_left_is_not_killed(
    tmp_path: Path, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(tmp_path, child.pid)
    watch = oom.Watch(group, lambda: None)
    try:
        group.is_full = False
        press(watch, 10)
        group.is_full = True
        press(watch, 2)
        group.is_full = False
        press(watch, 1)  # a moment of rest begins anew
        group.is_full = True
        press(watch, 2)
        with monkeypatch.context() as patch:
            patch.setattr(oom, "LAPSE", 0.0)  # as if the last time had been long ago
            press(watch, 5)
        group.is_member = False  # the number has become another process's
        press(watch, 5)
        assert group.oom_kills() == 0 and child.poll() is None
    finally:
        watch.close()


def test_a_watch_ends_when_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    run = oom.Watch._run

    def observed(self: oom.Watch) -> None:
        run(self)
        ended.set()

    monkeypatch.setattr(oom.Watch, "_run", observed)
    watch = oom.Watch(Cgroup("none", str(tmp_path)), lambda: None)
    watch.close()
    assert ended.wait(20)
    watch.close()


def test_what_counts_as_full(tmp_path: Path) -> None:
    group = Cgroup("one", str(tmp_path))
    assert not group.full(16), "no figures, no judgement"
    path = tmp_path / "casemate/one"
    path.mkdir(parents=True)
    (path / "memory.max").write_text("1600\n")

    def figures(current: int, stat: str) -> bool:
        (path / "memory.current").write_text(f"{current}\n")
        (path / "memory.stat").write_text(stat)
        return group.full(16)

    assert figures(1590, "anon 1500\nfile 90\nshmem 40\nslab_reclaimable 10\n")
    assert not figures(1550, "anon 1500\nfile 90\nshmem 40\nslab_reclaimable 10\n"), "room up to the limit"
    assert not figures(1590, "anon 1400\nfile 190\nshmem 40\n"), "pages of files can be freed"
    assert figures(1590, "anon 1000\nfile 590\nshmem 590\n"), "what is in a file system in memory cannot"
    (path / "memory.max").write_text("max\n")
    assert not figures(1590, "anon 1500\n")


def test_membership_is_of_the_group_and_below(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    group = Cgroup("one", str(tmp_path))
    lines = Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()
    own = next(line[3:] for line in lines if line.startswith("0::"))
    assert not group.holds(child.pid)
    group.relative = own
    assert group.holds(child.pid)
    group.relative = own + "x"
    assert not group.holds(child.pid)
    child.kill()
    child.wait()
    group.relative = own
    assert not group.holds(child.pid)


def test_a_want_of_all_ends_the_biggest_of_all(
    tmp_path: Path, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One watch kills in another container, and the other one tells of it."""
    monkeypatch.setattr(oom, "_last_common", -oom.LAPSE)
    monkeypatch.setattr(Group, "crowded", lambda self, part: True)
    told: list[str] = []
    own, other = Group(tmp_path, 0), Group(tmp_path, child.pid)
    own.is_full = other.is_full = False
    groups: list[Cgroup] = [own, other]
    heard = threading.Event()

    def tell() -> None:
        told.append("other")
        heard.set()

    first = oom.Watch(own, lambda: told.append("own"), lambda: groups)
    second = oom.Watch(other, tell, lambda: groups)
    try:
        press(first, 2)
        assert child.poll() is None
        press(first, 1)
        assert child.wait(20) == -signal.SIGKILL
        assert heard.wait(20)
        assert other.oom_kills() == 1 and own.oom_kills() == 0
        press(second, 3)
        press(first, 3)
        assert other.oom_kills() == 1, "each of them sees the same want"
        assert told == ["other"]
    finally:
        first.close()
        second.close()
