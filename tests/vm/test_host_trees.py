"""What is shown to a guest, against the real kernel, each in a mount namespace of its own: nothing of it is the guest's
to write but the containers' files and volumes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from casemate.errors import UsageError
from casemate.host import mounts, namespaces, syscalls
from casemate.keeper import rootfs
from casemate.wall import share, trees
from tests.vm.host_tools import in_child, needs_root

pytestmark = needs_root


@contextlib.contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(OSError, match="Read-only"):
        yield


def clone(path: Path) -> int:
    return syscalls.open_tree(syscalls.AT_FDCWD, str(path), syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)


def test_trees_of_a_pod(tmp_path: Path) -> None:
    run, root, data = tmp_path / "run", tmp_path / "root", tmp_path / "data"

    def body() -> None:
        namespaces.unshare_mounts()
        for directory in (run, root, data):
            directory.mkdir()
        trees.make(run)
        for _ in range(2):
            trees.attach(run, "one", clone(root), clone(data))
            (run / "share/one/of-the-container").touch()
            (run / "volumes/one/of-the-volume").touch()
            for name in trees.PLACES:
                with refused():
                    (run / name / "two").mkdir()
                with refused():
                    (run / name / "two").symlink_to("/etc")
                with refused():
                    (run / name / "file").touch()
            with pytest.raises(UsageError, match="already"):
                trees.attach(run, "one", clone(root), None)
            trees.detach(run, "one")
            assert [os.listdir(run / name) for name in trees.PLACES] == [[], []]
        trees.detach(run, "one")
        trees.attach(run, "two", clone(root), None)
        trees.remove(run)
        assert os.listdir(run) == [] and mounts.mounts_below(run) == []
        assert os.listdir(root) == ["of-the-container"] and os.listdir(data) == ["of-the-volume"]

    in_child(body)
    assert os.listdir(run) == []


def test_nobody_who_works_in_a_container_runs_its_modules(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    for place in sys.path:
        if place:
            directory = layer / place.lstrip("/")
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "of_the_container.py").write_text("raise SystemExit('code of the container is run')\n")

    def body() -> None:
        for name in ("upper", "work"):
            (tmp_path / name).mkdir()
        container: Any = SimpleNamespace(path=tmp_path, spec=SimpleNamespace(layers=[str(layer)], oci={}))
        rootfs._enter(container, None)
        assert any(os.path.exists(f"{place}/of_the_container.py") for place in paths)
        with pytest.raises(ImportError):
            import_module("of_the_container")

    paths = [place for place in sys.path if place]
    in_child(body)


def test_trees_of_one_container(tmp_path: Path) -> None:
    layer, data, file, run = (tmp_path / name for name in ("layer", "data", "file", "run"))

    def body() -> None:
        for directory in (layer, data, run, tmp_path / "upper", tmp_path / "work"):
            directory.mkdir()
        file.write_text("old")
        oci = {
            "mounts": [
                {"type": "bind", "source": str(data), "destination": "/d"},
                {"type": "bind", "source": str(file), "destination": "/f"},
                {"type": "bind", "source": str(data), "destination": "/r", "options": ["ro"]},
            ]
        }
        container: Any = SimpleNamespace(
            path=tmp_path, run_path=run, spec=SimpleNamespace(layers=[str(layer)], oci=oci)
        )
        namespaces.unshare_mounts()
        share.build(container)
        (run / "share/rootfs/of-the-container").touch()
        (run / "volumes/0/of-the-volume").touch()
        (run / "volumes/1").write_text("new")
        for place in ("share/junk", "volumes/junk", "volumes/2/junk"):
            with refused():
                (run / place).touch()
        share.unmount(run)
        share.remove(run)
        assert os.listdir(run) == [] and mounts.mounts_below(run) == []

    in_child(body)
    assert os.listdir(data) == ["of-the-volume"] and file.read_text() == "new"
    assert os.listdir(tmp_path / "upper") == ["of-the-container"]
