"""``casemate pool``: what it says of a pool, and what it does not take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casemate.cli import pool
from casemate.cli.main import main
from casemate.pool import birth, client
from casemate.pool import daemon as pool_daemon
from tests.unit.cli.fakes import World

FOUND: dict[str, Any] = {
    "pid": 7, "size": 3, "made": 5, "handed_out": 2, "refused": 1, "failures": 1, "replaced": 0, "released": 4,
    "last_seconds": 2.25, "last_error": "no machine today", "waits_for": "others that start",
    "members": [
        {"id": "a" * 64, "state": "ready", "seconds": 1.0},
        {"id": "b" * 64, "state": "starting", "seconds": 0.5},
    ],
}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)


def test_a_status_is_told_to_people_and_to_programs(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "status", lambda config: FOUND)
    assert main(["pool", "--status"]) == 0
    lines = {line[:12].strip(): line[13:] for line in capsys.readouterr().out.splitlines()}
    assert lines["ready"] == "1 of 3" and lines["starting"] == "1" and lines["handed out"] == "2"
    assert lines["made"] == "5, the last in 2.2 s" and lines["failures"] == "1, the last: no machine today"
    assert lines["released"].startswith("4 ") and lines["waits for"] == "others that start"
    assert main(["pool", "--status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == FOUND


def test_nothing_is_said_of_what_there_is_not() -> None:
    lines = pool.lines({**FOUND, "last_error": "", "waits_for": "", "last_seconds": None})
    assert lines[-1] == "failures     1" and "the last in 0.0 s" in "\n".join(lines)


def test_without_a_pool_there_is_no_status(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pool", "--status"]) == 125
    assert "no pool runs" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--size", "0"], ["--size", "many"], ["--size", "1025"], ["--json"],
                                   ["--size", "2", "--status"], ["--size", "-1"], ["more"]])  # fmt: skip
def test_bad_options_are_refused(world: World, words: list[str]) -> None:
    assert main(["pool", *words]) == 125


@pytest.mark.parametrize(("words", "size"), [([], 2), (["--size", "7"], 7)])
def test_it_is_as_large_as_it_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, words: list[str], size: int
) -> None:
    sizes: list[int] = []

    class Fake:
        def __init__(self, config: Any, size: int, say: Any) -> None:
            sizes.append(size)

        def run(self) -> int:
            return 0

    monkeypatch.setattr(pool_daemon, "Pool", Fake)
    monkeypatch.setattr(birth, "make_room", lambda config: None)
    assert main(["pool", *words]) == 0
    assert sizes == [size]
