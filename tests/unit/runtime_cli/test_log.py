"""The log has the two formats that engines read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from casemate.runtime_cli.log import Log

NASTY = 'a "quoted"\nsecond line \\ é \x1b'


def test_json_lines_have_level_message_and_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    log = Log(str(path), "json")
    log.warning("careful")
    log.fail(NASTY)
    first, last = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["level"], first["msg"]) == ("warning", "careful")
    assert (last["level"], last["msg"]) == ("error", NASTY)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", last["time"])
    assert capfd.readouterr().err == NASTY + "\n"  # a person hears of it too, but not of the warning


def test_text_on_standard_error_is_one_line_and_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    Log().fail(NASTY)
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.match(r'time="[^"]+" level=error msg="a \\"quoted\\"\\nsecond line', said)


def test_a_log_is_added_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for message in ("one", "two"):
        Log(str(path), "text").error(message)
    assert [line.rpartition("msg=")[2] for line in path.read_text().splitlines()] == ['"one"', '"two"']


def test_debugging_is_silent_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    Log(str(path), "json").debug("no")
    Log(str(path), "json", debug=True).debug("yes")
    assert [json.loads(line)["msg"] for line in path.read_text().splitlines()] == ["yes"]


def test_what_is_not_text_does_not_break_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    Log(str(path), "json").error("bad \udcff name")
    assert json.loads(path.read_text())["msg"].startswith("bad ")
