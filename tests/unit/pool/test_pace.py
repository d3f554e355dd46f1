"""When a pool may make its next member."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from casemate.config import Config
from casemate.pool import pace
from casemate.vm import boots

CONFIG = replace(Config(), pool_interval=5, pool_spare=100)


def test_members_come_at_their_pace() -> None:
    made = pace.Pace(CONFIG, available=lambda: 1 << 20, busy=lambda: False)
    assert made.wait(100.0) == (0.0, "")
    made.began(100.0)
    assert made.wait(101.0) == (4.0, "its pace")
    made.ended(103.0, True)
    assert made.wait(104.0)[0] == 4.0
    assert made.wait(108.0) == (0.0, "")
    made.handed_out(110.0)
    assert made.wait(112.0) == (3.0, "its pace")


def test_failures_make_it_slower() -> None:
    made = pace.Pace(CONFIG, available=lambda: 1 << 20, busy=lambda: False)
    waits = []
    for _ in range(6):
        made.ended(0.0, False)
        waits.append(made.wait(0.0))
    assert [seconds for seconds, _ in waits] == [10, 20, 40, 60, 60, 60] and waits[0][1] == "another attempt"
    made.ended(0.0, True)
    assert made.wait(0.0) == (5.0, "its pace")


@pytest.mark.parametrize(("available", "may"), [(100 + 256 + CONFIG.overhead - 1, False), (1024, True)])
def test_none_is_made_where_memory_is_short(available: int, may: bool) -> None:
    seconds, why = pace.Pace(CONFIG, available=lambda: available, busy=lambda: False).wait(0.0)
    assert (seconds == 0.0) is may and ("memory" in why) is not may


def test_members_are_let_go_where_memory_is_very_short() -> None:
    for available, short in ((49, True), (50, False)):
        made = pace.Pace(CONFIG, available=lambda value=available: value, busy=lambda: False)  # type: ignore[misc]
        assert made.short() is short


def test_others_that_start_go_first_but_not_for_ever() -> None:
    made = pace.Pace(CONFIG, available=lambda: 1 << 20, busy=lambda: True)
    assert made.wait(0.0) == (pace.LOOK_AGAIN, "others that start")
    assert made.wait(pace.BUSY_SECONDS - 1)[0] > 0
    assert made.wait(pace.BUSY_SECONDS) == (0.0, "")
    assert made.wait(pace.BUSY_SECONDS + 1)[0] > 0, "each time anew"


def test_what_is_available_is_read_from_the_kernel() -> None:
    text = Path("/proc/meminfo").read_text()
    total = int(text.partition("MemTotal:")[2].split()[0]) >> 10
    assert 0 < pace.available_mib() <= total


def test_a_turn_at_booting_is_seen(tmp_path: Path) -> None:
    import threading

    config = replace(Config(), run=tmp_path)
    assert not boots.busy(config)
    turn = boots.take(config, "0" * 64, lambda: None, threading.Event())
    assert boots.busy(config)
    turn.end()
    assert not boots.busy(config)
