"""Which pace is due: a pure function of how long ago the last sandbox started.

::

    a start ──> aggressive ──30 s──> standard ──120 s──> slow ──120 s──> restored
       ^____________|___________________|__________________|________________|      each start begins anew

Nothing here reads a clock or a file: the caller gives the time, in seconds of any clock that does not go backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from casemate.config import Config

RESTORED = "restored"
"""The name of the state in which the settings are those that were found."""
MOST_PAGES = (1 << 32) - 1
"""The kernel keeps the number of pages in an ``unsigned int``."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard the kernel looks for equal pages.

    Arguments:
        name: for people.
        share: one part in so many of all anonymous pages is looked at between two pauses.
        pause: milliseconds between them.
        seconds: how long this pace is kept when no sandbox starts; 0 leaves it out.
    """

    name: str
    share: int
    pause: int
    seconds: int

    def pages(self, anonymous: int) -> int:
        """How many pages to look at between two pauses.

        Arguments:
            anonymous: how many anonymous pages the host has.
        """
        return min(MOST_PAGES, max(1, anonymous // self.share))


def paces(config: Config) -> tuple[Pace, ...]:
    """The configured paces, the hardest first."""
    return (
        Pace("aggressive", config.ksm_aggressive_share, config.ksm_aggressive_pause, config.ksm_aggressive_seconds),
        Pace("standard", config.ksm_standard_share, config.ksm_standard_pause, config.ksm_standard_seconds),
        Pace("slow", config.ksm_slow_share, config.ksm_slow_pause, config.ksm_slow_seconds),
    )


class Policy:
    """What is due when.

    Arguments:
        paces: in the order in which they follow each other.
    """

    def __init__(self, paces: Sequence[Pace]) -> None:
        self._paces = tuple(pace for pace in paces if pace.seconds > 0)
        self._last: float | None = None

    def kick(self, now: float) -> None:
        """A sandbox has started at ``now``."""
        self._last = now if self._last is None else max(now, self._last)

    def at(self, now: float) -> tuple[Pace | None, float | None]:
        """What is due at ``now``, and from when on something else is.

        Returns:
            the pace, None for the settings that were found; and the time of the next change, None when only a start
            brings one. That time is after ``now``.
        """
        if self._last is not None:
            end = self._last
            for pace in self._paces:
                end += pace.seconds
                if now < end:
                    return pace, end
        return None, None
