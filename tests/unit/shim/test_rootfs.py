"""Mounts as containerd words them, and what is told of control groups. Real mounts are the engines' tests' business."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from casemate.host import syscalls
from casemate.shim import cgroups, messages, metrics, rootfs, wire
from casemate.shim.status import StatusError


def mount(kind: str, source: str, *options: str, target: str = "") -> dict[str, Any]:
    return {"type": kind, "source": source, "target": target, "options": list(options)}


@pytest.mark.parametrize(("options", "flags", "data"), [
    (("rbind", "ro"), syscalls.MS_BIND | syscalls.MS_REC | syscalls.MS_RDONLY, []),
    (("ro", "rw", "nosuid", "defaults"), syscalls.MS_NOSUID, []),
    (("index=off", "lowerdir=/a:/b", "nodev"), syscalls.MS_NODEV, ["index=off", "lowerdir=/a:/b"]),
    (("rprivate",), syscalls.MS_PRIVATE | syscalls.MS_REC, []),
])
def test_words_of_fstab(options: tuple[str, ...], flags: int, data: list[str]) -> None:
    assert rootfs.parse(options) == (flags, data)


class Calls:
    """Takes the place of mount(2)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        monkeypatch.setattr(syscalls, "mount", lambda *call: self.calls.append(call))


def test_the_calls_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Calls(monkeypatch)
    rootfs.mount_one(mount("overlay", "overlay", "workdir=/w", "upperdir=/u", "lowerdir=/l"), "/root")
    assert made.calls == [("overlay", "/root", "overlay", 0, "workdir=/w,upperdir=/u,lowerdir=/l")]
    made.calls.clear()
    rootfs.mount_one(mount("bind", "/src", "rbind", "ro", "rslave"), "/root")
    bind = syscalls.MS_BIND | syscalls.MS_REC | syscalls.MS_RDONLY
    assert made.calls == [
        ("/src", "/root", "bind", bind, None),
        (None, "/root", None, syscalls.MS_SLAVE | syscalls.MS_REC, None),
        (None, "/root", None, bind | syscalls.MS_REMOUNT, None),
    ]


def test_many_layers_are_named_by_descriptors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Calls(monkeypatch)
    layers = [tmp_path / f"{number:03}{'x' * 100}" for number in range(100)]
    for layer in (*layers, tmp_path / "with:colon"):
        layer.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    lower = ":".join(str(layer) for layer in layers) + ":" + str(tmp_path / "with\\:colon")
    rootfs.mount_one(mount("overlay", "overlay", f"lowerdir={lower}", f"upperdir={layers[0]}", "index=off"), "/root")
    data = made.calls[0][4]
    assert len(data) <= rootfs.MAX_DATA
    assert data.count("/proc/self/fd/") == 102
    assert data.endswith(",index=off")
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(OSError, match="too long"):
        rootfs.mount_one(mount("tmpfs", "tmpfs", "x=" + "y" * 5000), "/root")


def test_what_mount_8_has_to_do() -> None:
    assert rootfs.needs_helper(mount("ext4", "/image", "loop", "ro"))
    assert rootfs.helper_command(mount("ext4", "/image", "loop", "ro"), "/root") == [
        "mount", "-t", "ext4", "-o", "loop,ro", "--", "/image", "/root",
    ]
    assert rootfs.helper_command(mount("fuse3.fuse-overlayfs", "overlay", "lowerdir=/a"), "/root") == [
        "mount.fuse3", "overlay", "/root", "-t", "fuse-overlayfs", "-o", "lowerdir=/a",
    ]
    assert not rootfs.needs_helper(mount("overlay", "overlay"))


def test_a_target_stays_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("/")
    assert rootfs.target_of(str(tmp_path), mount("bind", "/x", target="/in")) == str(tmp_path / "in")
    assert rootfs.target_of(str(tmp_path), mount("bind", "/x", target="../../in")) == str(tmp_path / "in")
    assert rootfs.target_of(str(tmp_path), mount("bind", "/x", target="/link")) == str(tmp_path)
    assert rootfs.target_of(str(tmp_path), mount("bind", "/x")) == str(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        rootfs.target_of(str(tmp_path), mount("bind", "/x", target="/none"))


def test_nothing_mounted_is_nothing_to_do(tmp_path: Path) -> None:
    rootfs.unmount_all("")
    rootfs.unmount_all(str(tmp_path))
    rootfs.unmount_all(str(tmp_path / "none"))


# --- control groups ---


def fill(directory: Path, **files: str) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)
    return str(directory)


def test_version_1(tmp_path: Path) -> None:
    groups = {
        "memory": fill(
            tmp_path / "memory", memory__usage_in_bytes="100\n", memory__max_usage_in_bytes="200\n",
            memory__stat="cache 1\nrss 2\npgfault 3\ntotal_inactive_file 4\nunknown 5\nbad line\n"
            "hierarchical_memsw_limit 9\n", memory__limit_in_bytes="300\n", memory__failcnt="1\n",
            memory__oom_control="oom_kill_disable 0\noom_kill 2\n",
        ),
        "cpuacct": fill(tmp_path / "cpu", cpuacct__usage="777\n", cpuacct__stat="user 5\nsystem 6\n",
                        cpuacct__usage_percpu="700 77 \n"),
        "cpu": fill(tmp_path / "cpu", cpu__stat="nr_periods 1\nnr_throttled 2\nthrottled_time 3\n"),
        "pids": fill(tmp_path / "pids", pids__current="4\n", pids__max="max\n"),
        "blkio": fill(tmp_path / "blkio", blkio__throttle__io_service_bytes_recursive="8:0 Read 10\nTotal 10\n"),
    }
    told = cgroups.stats(groups)
    assert told["type_url"] == "io.containerd.cgroups.v1.Metrics"
    found = wire.decode(metrics.METRICS_V1, told["value"])
    memory = found["memory"]
    assert (memory["cache"], memory["rss"], memory["pg_fault"], memory["total_inactive_file"]) == (1, 2, 3, 4)
    assert memory["hierarchical_swap_limit"] == 9
    assert memory["usage"] == {"limit": 300, "usage": 100, "max": 200, "failcnt": 1}
    assert memory["swap"] is None
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert found["cpu"]["usage"] == {"total": 777, "kernel": 6 * tick, "user": 5 * tick, "per_cpu": [700, 77]}
    assert found["cpu"]["throttling"]["throttled_time"] == 3
    assert found["pids"] == {"current": 4, "limit": 0}
    assert [entry["value"] for entry in found["blkio"]["io_service_bytes_recursive"]] == [10]
    assert cgroups.killed_for_memory(groups)


def test_version_2(tmp_path: Path) -> None:
    directory = fill(
        tmp_path / "g", cpu__stat="usage_usec 5\nuser_usec 3\nsystem_usec 2\n", memory__stat="anon 1\nfile 2\n",
        memory__current="10\n", memory__max="max\n", memory__events="oom 1\noom_kill 0\n", pids__current="3\n",
        pids__max="max\n", io__stat="8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\nbad\n",
    )
    told = cgroups.stats({"unified": directory})
    found = wire.decode(metrics.METRICS_V2, told["value"])
    memory = found["memory"]
    assert (memory["anon"], memory["usage"], memory["usage_limit"]) == (1, 10, metrics.UNLIMITED)
    assert found["cpu"]["usage_usec"] == 5
    assert found["io"]["usage"] == [{"major": 8, "minor": 0, "rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4}]
    assert not cgroups.killed_for_memory({"unified": directory})
    (tmp_path / "g" / "memory.events").write_text("oom_kill 1\n")
    assert cgroups.killed_for_memory({"unified": directory})


def test_a_container_without_a_group(tmp_path: Path) -> None:
    for groups in ({}, {"memory": str(tmp_path / "none")}):
        with pytest.raises(StatusError) as caught:
            cgroups.stats(groups)
        assert caught.value.message == "cgroup does not exist: not found"
    assert not cgroups.killed_for_memory({})


def test_our_own_group_is_found() -> None:
    found = cgroups.find(os.getpid())
    assert found
    assert all(os.path.isabs(directory) for directory in found.values())
    assert cgroups.find(1 << 30) == {}


def test_the_events_topics_are_containerds() -> None:
    assert set(messages.TOPICS.values()) == {
        f"/tasks/{name}" for name in
        ("create", "start", "delete", "exit", "oom", "exec-added", "exec-started", "paused", "resumed")
    }
