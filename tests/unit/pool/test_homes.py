"""Members' directories, and what is done about those whose member died."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from casemate import ids
from casemate.config import Config
from casemate.errors import HostError
from casemate.keeper import locks, reap
from casemate.keeper.store import Container
from casemate.pool import homes


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(Config(), root=tmp_path / "root", run=tmp_path / "run")


@pytest.fixture
def cleaned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that were cleaned up after."""
    found: list[str] = []
    monkeypatch.setattr(reap, "clean_host", lambda container: found.append(container.id))
    return found


def test_a_member_has_its_directory_locked_and_who_died_has_not(config: Config, cleaned: list[str]) -> None:
    assert homes.sweep(config) == []
    alive, dead = ids.new_id(), ids.new_id()
    path, lock = homes.make(config, alive)
    gone, other = homes.make(config, dead)
    os.close(other)
    assert sorted(os.listdir(path)) == ["lock", "upper", "work"]
    assert homes.sweep(config) == [] and cleaned == [dead]
    assert path.exists() and not gone.exists()
    os.close(lock)
    homes.sweep(config)
    assert not path.exists() and cleaned == [dead, alive]


def test_what_cannot_be_given_back_stays_for_another_time(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lock = homes.make(config, ids.new_id())
    os.close(lock)

    def refuse(container: Container) -> None:
        raise HostError("its group is busy")

    monkeypatch.setattr(reap, "clean_host", refuse)
    assert homes.sweep(config) == [f"{path.name[:12]}: its group is busy"] and path.exists()


def test_one_that_was_cut_short_while_it_was_made_goes_too(config: Config, cleaned: list[str]) -> None:
    path, lock = homes.make(config, ids.new_id())
    os.close(lock)
    (path / "lock").unlink()
    homes.sweep(config)
    assert not path.exists()


def test_one_that_is_handed_out_meanwhile_is_left_alone(
    config: Config, cleaned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = homes.make(config, ids.new_id())
    hold = locks.hold

    @contextlib.contextmanager
    def late(lock_path: Path) -> Iterator[bool]:
        with hold(lock_path) as locked:
            path.rename(config.root / "a-container")
            yield locked

    monkeypatch.setattr(locks, "hold", late)
    assert homes.sweep(config) == [] and cleaned == []
    os.close(lock)


def test_a_place_that_cannot_be_written_is_told(config: Config) -> None:
    config.root.parent.joinpath("root").write_text("a file")
    with pytest.raises(HostError, match="cannot write"):
        homes.make(config, ids.new_id())
