"""The count of calls that the sentry's cases make: what is missing is told, nothing else."""

from __future__ import annotations

import io
from collections import Counter
from types import SimpleNamespace
from typing import Any

from casemate.sentry.strace import Strace, Tally
from casemate.sentry.syscalls.table import Entry, Support, load
from tests.sentry import tally


def everything() -> tally.Counts:
    """Counts with which nothing is missing."""
    counts: tally.Counts = {}
    for entry in load().values():
        results = counts[entry.name] = Counter()
        if entry.support is not Support.NONE and entry.name not in tally.NEVER_DONE:
            results[""] = 1
        if entry.name not in tally.NEVER_FAIL:
            results["EINVAL"] = 2
    return counts


def test_nothing_is_missing() -> None:
    assert tally.missing(everything()) == []


def test_what_is_missing_is_told() -> None:
    counts = everything()
    del counts["openat"]
    del counts["read"][""]
    del counts["write"]["EINVAL"]
    counts["write"]["interrupted"] = 5
    counts["getpid"]["EINVAL"] = 1
    counts["bpf"][""] = 1
    counts["pause"][""] = 1
    told = [line.partition(": ")[0] for line in tally.missing(counts)]
    assert told == ["read", "write", "pause", "getpid", "openat", "bpf"]


def test_a_pause_is_seen_failing_when_it_is_interrupted() -> None:
    counts = everything()
    counts["pause"] = Counter({"interrupted": 1})
    assert tally.missing(counts) == []


def test_the_lists_name_calls_that_there_are() -> None:
    names = {entry.name for entry in load().values()}
    assert {*tally.NEVER_FAIL, *tally.NEVER_DONE, *tally.UNSEEN} <= names


def made(counter: Tally, name: str, *results: int | None) -> None:
    """One call that was begun, and what became of it."""
    task: Any = SimpleNamespace(tid=1, args=(0,) * 6)
    entry: Entry = next(entry for entry in load().values() if entry.name == name)
    counter.enter(task, entry)
    counter.enter(task, entry)  # made again after it has waited: the same call
    for result in results:
        counter.leave(task, result)


def test_the_table_is_read_back() -> None:
    counter = Tally()
    made(counter, "read", 7)
    made(counter, "read", 0)
    made(counter, "read", -22)
    made(counter, "pause", None)
    made(counter, "exit")
    assert not counter.results
    told = "what a program has written\n" + counter.table() + "\n"
    assert tally.read(told) == {
        "read": Counter({"": 2, "EINVAL": 1}),
        "pause": Counter({"interrupted": 1}),
        "exit": Counter(),
    }


def test_calls_are_shown_as_well() -> None:
    out = io.StringIO()
    counter = Tally(Strace([], out))
    made(counter, "getpid", 5)
    assert out.getvalue() == "[1] getpid() = 5\n" and counter.results
    assert counter.table().splitlines()[1].split() == ["1", "1", "getpid"]
