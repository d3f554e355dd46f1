"""How ``casemate sentry`` shows what it was told, which programs in the container had a hand in."""

from __future__ import annotations

from typing import Any

import pytest

from casemate.cli import sentry
from casemate.errors import UsageError

PS: dict[str, Any] = {
    "pid": 1, "tid": 2, "ppid": 0, "threads": 2, "state": "S", "uid": 5, "call": "read", "on": "fd 0 (pipe:[7])",
    "left_ms": 1250, "name": "x", "command": "x\x1b[31m" + "y" * 300,
}  # fmt: skip
STACK: dict[str, Any] = {
    "pid": 1, "tid": 2, "name": "a\nb", "state": "S", "call": "read(0)", "why": "fd 0", "left_ms": None,
    "restart": "ERESTARTNOHAND", "partial": 3, "pending": ["SIGTERM"], "blocked": [], "frozen": True,
}  # fmt: skip


def test_ps_is_a_table_without_control_characters() -> None:
    head, row = sentry.SHOWS["ps"]([PS]).splitlines()
    assert head.split("   ")[0] == "PID"
    assert "fd 0 (pipe:[7]), 1.2s left" in row
    assert "\x1b" not in row
    assert row.endswith("yyy...")


def test_maps_and_fds_have_a_line_for_each() -> None:
    mapping = {"pid": 1, "start": 0x1000, "end": 0x3000, "access": "r-xp", "offset": 4096, "name": "/bin/x"}
    assert sentry.SHOWS["maps"]([mapping]).splitlines()[1].split() == [
        "1", "00001000-00003000", "r-xp", "1000", "8.0KiB", "/bin/x",
    ]  # fmt: skip
    row = {"pid": 1, "fd": 3, "kind": "file", "access": "rw", "offset": 9, "name": "/x", "flags": ["O_APPEND"],
           "what": ""}  # fmt: skip
    assert sentry.SHOWS["fds"]([row]).splitlines()[1].split() == ["1", "3", "file", "rw", "9", "/x", "O_APPEND"]


def test_stacks_say_why_and_what_a_signal_does() -> None:
    assert sentry.SHOWS["stacks"]([STACK]).splitlines() == [
        "1/2 a\\nb (S, paused)",
        "    read(0)",
        "    waits for fd 0",
        "    has done 3 so far",
        "    a signal's handler ends it with EINTR",
        "    signals pending: SIGTERM",
    ]
    runs = {**STACK, "name": "c", "call": None, "why": "runs code of its own", "restart": None, "partial": 0,
            "pending": [], "frozen": False}  # fmt: skip
    assert sentry.SHOWS["stacks"]([runs]) == "1/2 c (S)\n    runs code of its own"


@pytest.mark.parametrize("word", ["0", "-1", "x", "99999999999", "", "1 ", "\u0663"])
def test_what_is_no_number_of_a_process(word: str) -> None:
    with pytest.raises(UsageError):
        sentry._number(word)
