"""What a stand-in is made from, worked out of a specification and its plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import HostError
from casemate.pod import plan
from casemate.runtime_cli import making


def spec(*mounts: dict[str, Any]) -> dict[str, Any]:
    namespaces = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]
    process = {"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
    return {
        "ociVersion": "1.0.2", "process": process, "root": {"path": "/r"}, "mounts": list(mounts),
        "linux": {"namespaces": namespaces},
    }  # fmt: skip


def bind(source: str, destination: str, *options: str) -> dict[str, Any]:
    return {"type": "bind", "source": source, "destination": destination, "options": ["rbind", *options]}


def planned(value: dict[str, Any]) -> plan.Plan:
    return plan.plan(value, "guest", lambda kind, identity: None, lambda path: os.stat("/etc"), lambda path: 1 << 20)


def test_every_mount_has_its_place_in_order() -> None:
    value = spec(
        {"type": "proc", "source": "proc", "destination": "/proc"},
        bind("/a", "/first", "ro"),
        {"type": "tmpfs", "source": "tmpfs", "destination": "/dev"},
        bind("/b", "/dev/second", "rslave"),
    )
    volumes = making._volumes(value, planned(value))
    assert [(one.destination, one.source, one.kind, one.read_only, one.follows, one.passed) for one in volumes] == [
        ("/proc", None, "proc", False, False, True),
        ("/first", "/a", "bind", True, False, True),
        ("/dev", None, "tmpfs", False, False, True),
        ("/dev/second", "/b", "bind", False, True, True),
    ]


def test_what_the_guest_has_of_its_own_is_not_passed() -> None:
    """The host's control groups, above all: whoever could write to them through the file server would rule the host's
    processes."""
    value = spec(
        bind("/sys/fs/cgroup", "/sys/fs/cgroup"),
        bind("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd"),
        bind("/run/engine/shm", "/dev/shm"),
        bind("/a", "/a"),
    )
    volumes = making._volumes(value, planned(value))
    assert [(one.destination, one.passed) for one in volumes] == [
        ("/sys/fs/cgroup", False), ("/sys/fs/cgroup/systemd", False), ("/dev/shm", False), ("/a", True),
    ]  # fmt: skip


def test_a_pid_file_is_whole_at_once(tmp_path: Path) -> None:
    making.write_pid(str(tmp_path / "pid"), 4242)
    assert (tmp_path / "pid").read_text() == "4242"
    assert os.listdir(tmp_path) == ["pid"]


def test_a_pid_file_is_not_written_through_what_others_have_put_there(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    for name in ("pid", ".pid"):
        (tmp_path / name).symlink_to(mine)
    making.write_pid(str(tmp_path / "pid"), 4242)
    assert (mine.read_text(), (tmp_path / "pid").read_text()) == ("precious", "4242")
    assert not (tmp_path / "pid").is_symlink()


def test_a_pid_file_that_cannot_be_put_down_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "pid" / "full").mkdir(parents=True)
    with pytest.raises(HostError):
        making.write_pid(str(tmp_path / "pid"), 4242)
    assert os.listdir(tmp_path) == ["pid"]


def test_a_command_that_did_not_start_is_told_in_runcs_words() -> None:
    from casemate.errors import CommandNotExecutable, CommandNotFound

    missing, refused = CommandNotFound("x"), CommandNotExecutable("x")
    begin = "unable to start container process: exec: "
    for name, error, end in (
        ("a", missing, '"a": executable file not found in $PATH'),
        ("/a", missing, '"/a": stat /a: no such file or directory'),
        ("a", refused, '"a": permission denied'),
    ):
        assert making.command_error({"args": [name]}, error) == begin + end
