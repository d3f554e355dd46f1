"""What people see: errors, colour, tables, sizes, times and progress.

Colour only where standard error or output is a terminal, ``NO_COLOR`` is unset (no-color.org) and ``TERM`` is not
``dumb``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence

from casemate.errors import CasemateError

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import TextIO

RED, GREEN, YELLOW, DIM, BOLD = "31", "32", "33", "2", "1"
PATIENCE = 1.0
"""Seconds before a person wants to know what is going on."""


def coloured(file: TextIO) -> bool:
    """Whether ``file`` takes colour."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return is_terminal(file)


def is_terminal(file: TextIO) -> bool:
    """Whether ``file`` is a terminal; one that was closed is none."""
    try:
        return file.isatty()
    except (AttributeError, ValueError):
        return False


def paint(text: str, colour: str, file: TextIO) -> str:
    """``text`` in a colour, where ``file`` takes one."""
    return f"\x1b[{colour}m{text}\x1b[0m" if coloured(file) else text


def printable(text: str) -> str:
    """``text`` on one line with control characters made visible: names and messages may come from hostile images."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in text
    )


def error(problem: CasemateError, context: str = "") -> None:
    """Write one line about a problem to standard error.

    Arguments:
        problem: what happened.
        context: what it happened to, when several things are worked on.
    """
    text = printable(f"{context}: {problem.message}" if context else problem.message)
    if problem.hint:
        text += f" ({printable(problem.hint)})"
    with contextlib.suppress(OSError, ValueError):
        print(f"{paint('casemate:', RED, sys.stderr)} {text}", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Write a warning to standard error."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{paint('casemate: warning:', YELLOW, sys.stderr)} {printable(text)}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under headings, three spaces apart, without spaces at line ends."""
    clean = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *clean, strict=True)]
    lines = [
        "   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [list(head), *clean]
    ]
    return "\n".join(lines)


def size(number: float) -> str:
    """Bytes for people, in powers of 1024: ``512B``, ``1.5MiB``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    index = 0
    while abs(number) >= 1024 and index < len(units) - 1:
        number /= 1024
        index += 1
    return f"{number:.0f}{units[index]}" if index == 0 or number >= 100 else f"{number:.1f}{units[index]}"


def ago(seconds: float) -> str:
    """A length of time for people, in its largest unit."""
    for limit, unit, label in ((60, 1, "second"), (3600, 60, "minute"), (86400, 3600, "hour"), (1e18, 86400, "day")):
        if seconds < limit:
            count = max(int(seconds // unit), 0)
            return f"{count} {label}{'' if count == 1 else 's'}"
    raise AssertionError("unreachable: the last bound is beyond any clock")


def timestamp(seconds: float | None) -> str:
    """RFC 3339 in UTC with nanoseconds; the zero time of Docker for None."""
    if seconds is None:
        return "0001-01-01T00:00:00Z"
    whole = int(seconds)
    fraction = int((seconds - whole) * 1e9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{fraction:09d}Z"


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Show ``text`` and the seconds on a terminal's standard error once the work inside takes longer than a moment.

    It runs off SIGALRM and not a thread, because the work may fork. Nothing is shown where standard error is no
    terminal.
    """
    if not is_terminal(sys.stderr):
        yield
        return
    import signal

    begun = time.monotonic()
    shown = False

    def tick(signum: int, frame: object) -> None:
        nonlocal shown
        shown = True
        with contextlib.suppress(OSError):
            os.write(2, f"\r\x1b[2K{text} {time.monotonic() - begun:.0f}s".encode())

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if shown:
            with contextlib.suppress(OSError):
                os.write(2, b"\r\x1b[2K")


class Steps:
    """Progress of work that tells its steps: one line that changes on a terminal, plain lines elsewhere.

    A context manager; call it with each step.

    Arguments:
        plain: whether to write lines where standard error is no terminal; else nothing is shown there.
    """

    def __init__(self, plain: bool = True) -> None:
        self._live = is_terminal(sys.stderr)
        self._plain = plain
        self._last = ""

    def __call__(self, text: str) -> None:
        if text == self._last:
            return
        self._last = text
        with contextlib.suppress(OSError, ValueError):
            if self._live:
                width = _columns()
                sys.stderr.write(f"\r\x1b[2K{printable(text)[: width - 1]}")
            elif self._plain:
                sys.stderr.write(printable(text) + "\n")
            sys.stderr.flush()

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live and self._last:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write("\r\x1b[2K")
                sys.stderr.flush()


def _columns() -> int:
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80
