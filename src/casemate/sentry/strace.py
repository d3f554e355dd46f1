"""Showing system calls as they are served, in the manner of strace(1)."""

from __future__ import annotations

import errno
import sys
from collections import Counter
from typing import TYPE_CHECKING, TextIO

from casemate.sentry.abi import s32, s64
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.numbers import NUMBERS

if TYPE_CHECKING:
    from casemate.sentry.syscalls.table import Entry
    from casemate.sentry.tasks.task import Task

SHOWN = 48
"""How much of a text is shown."""
_SIGNED = frozenset(("fd", "dirfd", "olddirfd", "newdirfd", "oldfd", "newfd", "pid", "tid", "epfd", "in_fd", "out_fd"))
_OCTAL = frozenset(("mode", "umask"))
_DATA = frozenset(NUMBERS[name] for name in ("write", "pwrite64", "sendto"))


class Strace:
    """Told of every call and what became of it.

    Arguments:
        calls: names of those that are shown; empty for all.
        out: where to.
    """

    results = True
    """Results are shown, so that none may be the host's own."""

    def __init__(self, calls: list[str], out: TextIO = sys.stderr) -> None:
        self.calls = frozenset(calls)
        self.out = out
        self._open: dict[int, str] = {}

    def enter(self, task: Task, entry: Entry) -> None:
        """A call begins, or is made again after it has waited."""
        if (self.calls and entry.name not in self.calls) or task.tid in self._open:
            return
        # Now, not at the end: execve(2) and others change what the arguments point to.
        self._open[task.tid] = f"{entry.name}({arguments(task, entry)})"

    def leave(self, task: Task, result: int | None) -> None:
        """It ended; None: a signal interrupted it."""
        text = self._open.pop(task.tid, None)
        if text is None:
            return
        if result is None:
            shown = "? (interrupted)"
        elif -4096 < result < 0:
            shown = f"-1 {errno.errorcode.get(-result, str(-result))}"
        elif result > 0xFFFF:
            shown = hex(result)
        else:
            shown = str(result)
        self._write(f"[{task.tid}] {text} = {shown}")

    def _write(self, line: str) -> None:
        try:
            self.out.write(line + "\n")
            self.out.flush()
        except (OSError, ValueError):
            return  # nobody reads it


class Tally:
    """Counts the calls and what became of them, in the manner of ``strace -c``.

    Arguments:
        shown: who is told of each call as well.
    """

    def __init__(self, shown: Strace | None = None) -> None:
        self.shown = shown
        self.results = shown is not None
        """As :attr:`Strace.results`; a call that the host is to make, all having been checked, counts as done."""
        self.made: Counter[str] = Counter()
        self.failed: dict[str, Counter[str]] = {}
        self.returned: Counter[str] = Counter()
        self._open: dict[int, str] = {}

    def enter(self, task: Task, entry: Entry) -> None:
        """As :meth:`Strace.enter`."""
        if task.tid not in self._open:
            self._open[task.tid] = entry.name
            self.made[entry.name] += 1
        if self.shown is not None:
            self.shown.enter(task, entry)

    def leave(self, task: Task, result: int | None) -> None:
        """As :meth:`Strace.leave`."""
        name = self._open.pop(task.tid, None)
        if name is not None:
            if result is None:
                self.failed.setdefault(name, Counter())["interrupted"] += 1
            elif -4096 < result < 0:
                self.failed.setdefault(name, Counter())[errno.errorcode.get(-result, str(-result))] += 1
            else:
                self.returned[name] += 1
        if self.shown is not None:
            self.shown.leave(task, result)

    def table(self) -> str:
        """A line for each call, the most frequent first: how often it was made, how often it came back without an
        error, its name, and its errors with how often each was given."""
        lines = [f"{'calls':>9} {'done':>9} call"]
        for name, made in sorted(self.made.items(), key=lambda item: (-item[1], item[0])):
            errors = ", ".join(f"{error} {times}" for error, times in self.failed.get(name, Counter()).most_common())
            lines.append(f"{made:9} {self.returned[name]:9} {name}{': ' if errors else ''}{errors}")
        return "\n".join(lines)


def arguments(task: Task, entry: Entry) -> str:
    """A call's arguments for people, with what texts and data they point to."""
    names = entry.handler.__code__.co_varnames[1 : entry.arguments + 1]
    shown = []
    for place, (name, value) in enumerate(zip(names, task.args, strict=False)):
        if name in _SIGNED:
            shown.append(_descriptor(value))
        elif name in _OCTAL:
            shown.append(oct(value & 0xFFFF))
        elif "path" in name or name in ("target", "filename", "pathname"):
            shown.append(_text(task, value))
        elif place == 1 and entry.number in _DATA:
            shown.append(_buffer(task, value, task.args[2]))
        elif value < 10_000:
            shown.append(str(value))
        elif s64(value) < 0 and s64(value) > -4096:
            shown.append(str(s64(value)))
        else:
            shown.append(hex(value))
    return ", ".join(shown)


def _descriptor(value: int) -> str:
    number = s32(value)
    return "AT_FDCWD" if number == -100 else str(number)


def _text(task: Task, address: int) -> str:
    if address == 0:
        return "NULL"
    try:
        data = task.mem.cstring(address)
    except SysError:
        return hex(address)
    return _quoted(data)


def _buffer(task: Task, address: int, size: int) -> str:
    try:
        return _quoted(task.mem.read(address, min(size, SHOWN + 1)))
    except SysError:
        return hex(address)


def _quoted(data: bytes) -> str:
    text = repr(data[:SHOWN].decode("latin-1"))[1:-1].replace('"', '\\"')
    return f'"{text}"' + ("..." if len(data) > SHOWN else "")
