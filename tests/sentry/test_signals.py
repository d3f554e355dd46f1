"""Signals, stops, clocks and timers behind the sentry, held against Linux."""

from __future__ import annotations

import pytest

from tests.sentry.lab import both

SIGNALS = ["altstack", "faults", "handlers", "hostile", "jobs", "registers", "restart", "threads", "waiting"]


@pytest.mark.parametrize("case", SIGNALS)
def test_signals(case: str) -> None:
    both(f"signals/{case}.c")


@pytest.mark.parametrize("case", ["clocks", "cpulimit", "timers"])
def test_time(case: str) -> None:
    both(f"time/{case}.c")
