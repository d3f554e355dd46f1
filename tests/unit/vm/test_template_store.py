"""Noting that a template is in use."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from casemate.vm.template import store


def template(path: Path) -> store.Template:
    path.mkdir()
    (path / store.MANIFEST).write_text("{}")
    os.utime(path / store.MANIFEST, (1000, 1000))
    return store.Template(path.name, path, {})


def test_use_is_noted(tmp_path: Path) -> None:
    one = template(tmp_path / "one")
    store.used(one)
    assert (one.path / store.MANIFEST).stat().st_mtime > 1000


def test_one_that_cannot_be_written_is_used_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As below the /usr of a host that lets nobody write there."""
    one = template(tmp_path / "one")

    def refuse(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "utime", refuse)
    number = errno.EROFS
    store.used(one)
    number = errno.EIO
    with pytest.raises(OSError, match="error"):
        store.used(one)


def test_one_that_was_removed_meanwhile_is_not_there(tmp_path: Path) -> None:
    one = template(tmp_path / "one")
    store.remove(one.path)
    with pytest.raises(FileNotFoundError):
        store.used(one)
