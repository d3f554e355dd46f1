"""Moments of the guest's start by its own clock, and the kernel's messages, for ``casemate boot-chart``."""

from __future__ import annotations

import os
from time import CLOCK_BOOTTIME, clock_gettime_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST = 64
LOG = "/dev/kmsg"
LOG_BYTES = 400_000
"""How much of the messages is told, so that the answer fits into a frame whatever is in them."""
SYNC = "casemate: clock "
"""What a message begins with that tells the time by the agent's clock; the kernel's stands before it."""
_marks: list[tuple[str, int]] = []


def mark(name: str, when: int | None = None) -> None:
    """Remember a moment, one of the first few.

    Arguments:
        name: what has just been done.
        when: nanoseconds of CLOCK_BOOTTIME; now when None.
    """
    if len(_marks) < MOST:
        _marks.append((name, clock_gettime_ns(CLOCK_BOOTTIME) if when is None else when))


def tell(log: bool) -> dict[str, Any]:
    """``marks`` (pairs of name and nanoseconds) and ``now`` by the same clock.

    Arguments:
        log: whether ``log`` is told too, the kernel's messages as ``/dev/kmsg`` gives them, the first ones of them.

    Raises:
        OSError: the messages cannot be read.
    """
    told: dict[str, Any] = {"marks": [list(each) for each in _marks], "log": _log() if log else ""}
    return {**told, "now": clock_gettime_ns(CLOCK_BOOTTIME)}


def _log() -> str:
    fd = os.open(LOG, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(fd, f"<7>{SYNC}{clock_gettime_ns(CLOCK_BOOTTIME)}\n".encode())
        parts: list[bytes] = []
        size = 0
        while size < LOG_BYTES:
            try:
                part = os.read(fd, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:  # what was next has been overwritten
                continue
            if not part:
                break
            size += len(part)
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode("utf-8", "replace")
