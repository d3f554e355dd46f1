"""Mounts against the real kernel, each in a mount namespace of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casemate.errors import HostError
from casemate.host import mounts, namespaces
from tests.vm.host_tools import in_child, needs_root

pytestmark = needs_root


def test_bind_of_a_directory_and_of_a_file(tmp_path: Path) -> None:
    def body() -> None:
        namespaces.unshare_mounts()
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        (tmp_path / "a" / "x").write_text("1")
        mounts.bind(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b" / "x").read_text() == "1"
        (tmp_path / "b" / "y").write_text("2")
        assert (tmp_path / "a" / "y").read_text() == "2"
        (tmp_path / "file").touch()
        mounts.bind(tmp_path / "a" / "x", tmp_path / "file", read_only=True)
        assert (tmp_path / "file").read_text() == "1"
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "file").write_text("3")
        assert mounts.umount(tmp_path / "file")
        assert mounts.umount(tmp_path / "b")
        assert not mounts.umount(tmp_path / "b")
        assert list((tmp_path / "b").iterdir()) == []

    in_child(body)
    assert mounts.mounts_below(tmp_path) == []  # what the child left went with its namespace


def test_read_only_bind_reaches_the_mounts_below(tmp_path: Path) -> None:
    def body() -> None:
        namespaces.unshare_mounts()
        source, target = tmp_path / "s", tmp_path / "t"
        (source / "sub").mkdir(parents=True)
        target.mkdir()
        mounts.tmpfs(source / "sub", size=1 << 20)
        mounts.bind(source, target, read_only=True)
        for place in (target, target / "sub"):
            with pytest.raises(OSError, match="Read-only"):
                (place / "x").touch()
        (source / "sub" / "x").touch()
        assert (target / "sub" / "x").exists()
        other = tmp_path / "flat"
        other.mkdir()
        mounts.bind(source, other, recursive=False)
        assert not (other / "sub" / "x").exists()

    in_child(body)


def test_overlay_of_many_layers_with_awkward_names(tmp_path: Path) -> None:
    def body() -> None:
        namespaces.unshare_mounts()
        top = tmp_path / ("with:colon,comma\\and space" + "x" * 150)
        layers = [top / f"layer:{number}" for number in range(150)]
        for number, layer in enumerate(layers):
            layer.mkdir(parents=True)
            (layer / "which").write_text(str(number))
            (layer / f"only{number}").touch()
        (layers[0] / "dir").mkdir()
        upper, work, target = top / "upper", top / "work", top / "target"
        for path in (upper, work, target):
            path.mkdir()
        before = os.listdir("/proc/self/fd")
        mounts.overlay(layers, upper, work, target)
        assert os.listdir("/proc/self/fd") == before
        assert (target / "which").read_text() == "149"
        assert len(list(target.glob("only*"))) == 150
        (target / "which").write_text("mine")
        (target / "dir").rename(target / "renamed")
        assert (layers[149] / "which").read_text() == "149"
        assert (upper / "which").read_text() == "mine"
        assert str(target) in mounts.mounts_below(tmp_path)

        read_only = top / "ro"
        read_only.mkdir()
        mounts.overlay(layers[:2], None, None, read_only)
        assert (read_only / "which").read_text() == "1"
        single = top / "single"
        single.mkdir()
        mounts.overlay(layers[:1], None, None, single)
        assert (single / "which").read_text() == "0"
        for place in (read_only, single):
            with pytest.raises(OSError, match="Read-only"):
                (place / "z").touch()

    in_child(body)


def test_overlay_errors_say_what_to_do(tmp_path: Path) -> None:
    def body() -> None:
        namespaces.unshare_mounts()
        for name in ("l", "u", "w", "t"):
            (tmp_path / name).mkdir()
        with pytest.raises(HostError, match="squash"):
            mounts.overlay([tmp_path / "l"] * 400, tmp_path / "u", tmp_path / "w", tmp_path / "t")
        with pytest.raises(HostError, match="missing as a layer.*make it first"):
            mounts.overlay([tmp_path / "missing"], tmp_path / "u", tmp_path / "w", tmp_path / "t")
        mounts.tmpfs(tmp_path / "w", size=1 << 20)
        with pytest.raises(HostError, match="cannot be part of an overlay"):
            mounts.overlay([tmp_path / "l"], tmp_path / "u", tmp_path / "w", tmp_path / "t")
        with pytest.raises(HostError, match="make it first"):
            mounts.bind(tmp_path / "nothing", tmp_path / "t")
        (tmp_path / "file").touch()
        with pytest.raises(HostError, match="files on files"):
            mounts.bind(tmp_path / "file", tmp_path / "t")

    in_child(body)


def test_mount_on_a_descriptor_inside_an_untrusted_tree(tmp_path: Path) -> None:
    def body() -> None:
        namespaces.unshare_mounts()
        root, outside, source = tmp_path / "root", tmp_path / "outside", tmp_path / "source"
        for path in (root, outside, source):
            path.mkdir()
        (source / "mark").touch()
        (root / "escape").symlink_to(outside)
        (root / "inner").mkdir()
        (root / "link").symlink_to("/inner")
        fd = mounts.mount_point(root, "/link/deep/er")
        mounts.bind(source, fd, read_only=True)
        os.close(fd)
        assert (root / "inner/deep/er/mark").exists()
        fd = mounts.mount_point(root, "scratch")
        mounts.tmpfs(fd, size=1 << 20, mode=0o1777, inodes=10)
        os.close(fd)
        assert (root / "scratch").stat().st_mode & 0o7777 == 0o1777
        with pytest.raises(HostError, match="mount point /escape/x"):
            mounts.mount_point(root, "/escape/x")
        assert list(outside.iterdir()) == []

    in_child(body)


def test_a_killed_process_leaves_no_mount(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        namespaces.unshare_mounts()
        mounts.tmpfs(tmp_path, size=1 << 20)
        (tmp_path / "inside").touch()
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert list(tmp_path.iterdir()) == []
    assert mounts.mounts_below(tmp_path) == []


def test_mounts_of_the_host_follow_or_not(tmp_path: Path) -> None:
    def body() -> None:
        namespaces.unshare_mounts(follow_host=False)
        mounts.tmpfs(tmp_path, size=1 << 20)
        mounts.make_shared(tmp_path)
        (tmp_path / "d").mkdir()
        for follow in (True, False):
            go, went = os.pipe(), os.pipe()
            pid = os.fork()
            if pid == 0:
                namespaces.unshare_mounts(follow_host=follow)
                os.write(went[1], b".")
                os.read(go[0], 1)
                os._exit(int((tmp_path / "d" / "seen").exists()))
            os.read(went[0], 1)
            mounts.tmpfs(tmp_path / "d", size=1 << 20)
            (tmp_path / "d" / "seen").touch()
            os.write(go[1], b".")
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == int(follow)
            mounts.umount(tmp_path / "d")

    in_child(body)


def test_unsharing_with_threads_is_refused() -> None:
    import threading

    def body() -> None:
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        try:
            with pytest.raises(RuntimeError, match="before any thread"):
                namespaces.unshare_mounts()
        finally:
            stop.set()
            thread.join()

    in_child(body)
