"""When a pool may make its next member: not so fast that others would notice, and not where there is no room for it."""

from __future__ import annotations

from collections.abc import Callable

from casemate.config import Config
from casemate.vm import boots
from casemate.vm.waiting import first_mib

LOOK_AGAIN = 0.5
"""Seconds until a host that was busy, or short of memory, is looked at again."""
BUSY_SECONDS = 10.0
"""How long others that start are waited for: on a host where somebody always does, members are wanted all the more,
and they take what processor time is left over."""
LONGEST = 60.0
"""Seconds between attempts where each fails."""


def available_mib() -> int:
    """What the kernel can give without swapping (``proc_meminfo(5)``, MemAvailable)."""
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) >> 10
    return 0


class Pace:
    """The rules.

    Arguments:
        config: the configuration in force.
        available: how many MiB the host has to give.
        busy: whether somebody starts a machine.
    """

    def __init__(
        self, config: Config, available: Callable[[], int] = available_mib, busy: Callable[[], bool] | None = None
    ) -> None:
        self._interval = float(config.pool_interval)
        self._spare = config.pool_spare
        self._needed = config.pool_spare + first_mib(config) + config.overhead
        self._available = available
        self._busy = busy or (lambda: boots.busy(config))
        self._next = 0.0
        self._failures = 0
        self._held_up: float | None = None

    def wait(self, now: float) -> tuple[float, str]:
        """Seconds until the next member may be made, 0 where that is now, and why not before."""
        if now < self._next:
            return self._next - now, "its pace" if not self._failures else "another attempt"
        if self._available() < self._needed:
            return LOOK_AGAIN, f"memory: {self._needed} MiB have to be available"
        if self._busy():
            self._held_up = now if self._held_up is None else self._held_up
            if now - self._held_up < BUSY_SECONDS:
                return LOOK_AGAIN, "others that start"
        self._held_up = None
        return 0.0, ""

    def short(self) -> bool:
        """Whether the host has so little memory left that members are better let go."""
        return self._available() < self._spare // 2

    def began(self, now: float) -> None:
        """A member is being made."""
        self._next = max(self._next, now + self._interval)

    def ended(self, now: float, well: bool) -> None:
        """It is ready, or has failed: after failures it takes longer and longer to the next attempt."""
        self._failures = 0 if well else self._failures + 1
        pause = self._interval if well else min(LONGEST, max(1.0, self._interval) * 2**min(self._failures, 10))
        self._next = now + pause

    def handed_out(self, now: float) -> None:
        """A member went to its container, which now has a start to get through."""
        self._next = max(self._next, now + self._interval)
