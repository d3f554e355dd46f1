"""Which system calls the C cases make behind the sentry, and with which results.

Every call of the table has to be made by some case, with success and with an error, so that a call that is added
without a case fails ``make test``. Each case that ends well leaves a file in a directory of the test run
(:data:`DIRECTORY`); at the end of a run of all tests below ``tests/sentry`` the first process judges them.
``python -m tests.sentry.tally DIRECTORY`` shows the same by hand.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

DIRECTORY = "CASEMATE_TALLY"
"""The variable that names the directory; without it nothing is kept."""

WHOLE = "whole"
"""The file in it which says that all cases are run."""

Counts = dict[str, Counter[str]]
"""By a call's name: how often it gave which error, ``""`` for none."""

NEVER_FAIL: Mapping[str, str] = {
    **dict.fromkeys(["getpid", "gettid", "getppid", "getpgrp", "getuid", "geteuid", "getgid", "getegid"], "only tells"),
    **dict.fromkeys(["umask", "alarm", "setfsuid", "setfsgid", "personality"], "gives what was before"),
    **dict.fromkeys(["sched_yield", "sync", "munlockall", "set_tid_address"], "always done"),
    **dict.fromkeys(["exit", "exit_group", "rt_sigreturn"], "does not come back"),
    "brk": "gives the old end instead",
}
"""Calls without an error to test, and why."""

NEVER_DONE: Mapping[str, str] = {
    "pause": "ends by a signal only",
    "rt_sigsuspend": "ends by a signal only",
    "restart_syscall": "what it continues is continued without it",
    "settimeofday": "the time is the host's",
    "clock_settime": "the time is the host's",
    "io_cancel": "nothing is ever under way",
    "process_mrelease": "works only while a process dies",
    "reboot": "ends all: tests/sentry/test_process.py",
}
"""Calls that no case can have succeed, and why."""


UNSEEN: Mapping[str, str] = {"clone3": "the filter of applications' processes answers it itself"}
"""Calls of which the sentry is not told, and why."""


def begin() -> None:
    """Have the cases of this test run, also those of its workers, leave what they did."""
    os.environ[DIRECTORY] = tempfile.mkdtemp(prefix="casemate-tally-")


def collected(chosen: set[Path]) -> None:
    """Note that all is going to be run, where that is so.

    Arguments:
        chosen: the files of tests, from which nothing was left out.
    """
    here = Path(__file__).parent
    needed = {path for path in here.glob("test_*.py") if "both(" in (text := path.read_text()) or "tally.note" in text}
    if DIRECTORY in os.environ and os.geteuid() == 0 and needed and needed <= chosen:
        (Path(os.environ[DIRECTORY]) / WHOLE).touch()


def end(passed: bool) -> list[str]:
    """Forget what the cases left, after a look at it where all were run.

    Arguments:
        passed: no test failed.

    Returns what is missing, a line each.
    """
    directory = Path(os.environ.pop(DIRECTORY))
    try:
        return missing(gather(directory)) if passed and (directory / WHOLE).exists() else []
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def read(told: str) -> Counts:
    """The table that ``casemate do --summary`` has written last."""
    counts: Counts = {}
    _, found, table = told.rpartition("    calls      done call\n")
    if not found:
        raise ValueError("no table of calls in what the sentry said")
    for line in table.splitlines():
        words = line.split(maxsplit=2)
        if len(words) < 3 or not words[0].isdecimal():
            continue
        name, _, errors = words[2].partition(": ")
        counts[name] = Counter({"": int(words[1])} if words[1] != "0" else {})
        for error in errors.split(", ") if errors else []:
            what, _, times = error.rpartition(" ")
            counts[name][what] = int(times)
    return counts


def note(case: str, told: bytes, successes: bool = True) -> None:
    """Keep what a case did.

    Arguments:
        case: its name.
        told: its standard error, with the table at its end.
        successes: it looks at what successful calls have done.
    """
    directory = os.environ.get(DIRECTORY)
    if directory is None:
        return
    counts = read(told.decode(errors="replace"))
    if not successes:
        for results in counts.values():
            del results[""]
    path = Path(directory) / f"{case.replace('/', '-')}.{os.getpid()}.json"
    path.write_text(json.dumps(counts))


def gather(directory: Path) -> Counts:
    """What all cases did."""
    counts: Counts = {}
    for path in directory.glob("*.json"):
        for name, results in json.loads(path.read_text()).items():
            counts.setdefault(name, Counter()).update(results)
    return counts


def missing(counts: Counts) -> list[str]:
    """What no case has shown of the calls of the sentry's table, a line each."""
    from casemate.sentry.syscalls.table import Support, load

    lines = []
    for entry in sorted(load().values(), key=lambda entry: entry.number):
        if entry.name in UNSEEN:
            continue
        results = counts.get(entry.name, Counter())
        if not results:
            lines.append(f"{entry.name}: no case makes this call")
            continue
        done = results[""] > 0
        # An interrupted call gives EINTR, or is made again.
        errors = {error for error in results if error and results[error]}
        failed = bool(errors if entry.name in NEVER_DONE else errors - {"interrupted"})
        if entry.support is Support.NONE:
            if done:
                lines.append(f"{entry.name}: serves nothing by the table, but has succeeded")
            if not failed:
                lines.append(f"{entry.name}: no case has it answer its error")
            continue
        if not done and entry.name not in NEVER_DONE:
            lines.append(f"{entry.name}: no case has it succeed")
        if done and entry.name in NEVER_DONE:
            lines.append(f"{entry.name}: is said never to succeed, but has")
        if not failed and entry.name not in NEVER_FAIL:
            lines.append(f"{entry.name}: no case has it fail")
        if failed and entry.name in NEVER_FAIL:
            lines.append(f"{entry.name}: is said never to fail, but has")
    return lines


if __name__ == "__main__":
    told = missing(gather(Path(sys.argv[1])))
    print("\n".join(told) or "every call is made, with success and with an error")
    sys.exit(bool(told))
