"""Leave for threads to have the host make brk(2) without asking the kernel each time.

What native/notify.c looks at before it hands a notification on. A permit says for which ends of the heap, all of which
the kernel has checked beforehand; when it is taken back it says what the host was left to make meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

PERMITS = 16
"""How many threads have one at once. Each call that might be for one is compared with all."""


class _Permit(ctypes.Structure):
    """``struct permit`` of native/notify.c."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("tid", "low", "high", "last", "before")]


class Permits:
    """All that there are of one platform. Whoever gets one and there is no room takes it from another."""

    def __init__(self) -> None:
        self.table = (_Permit * PERMITS)()
        self._settle: list[Callable[[], None] | None] = [None] * PERMITS
        self._next = 0

    def give(self, tid: int, low: int, high: int, settle: Callable[[], None]) -> int:
        """Leave for a thread that stands still.

        Arguments:
            tid: the host's number for it; it has no permit.
            low, high: what it may make the heap's end, bytes.
            settle: called where another one needs the place, before it gets it: is to call :meth:`take_back`.

        Returns the place, for :meth:`take_back`.
        """
        place = next((at for at, other in enumerate(self._settle) if other is None), -1)
        if place < 0:
            place, self._next = self._next, (self._next + 1) % PERMITS
            if (other := self._settle[place]) is not None:
                other()
        permit = self.table[place]
        permit.low, permit.high, permit.last, permit.before, permit.tid = low, high, 0, 0, tid
        self._settle[place] = settle
        return place

    def stop(self, place: int) -> None:
        """No more of it; what was made is still told by :meth:`take_back`."""
        self.table[place].tid = 0

    def take_back(self, place: int) -> tuple[int, int]:
        """The end. Returns what the host was left to make the heap's end last, and before that; 0 for nothing."""
        permit = self.table[place]
        permit.tid = 0
        self._settle[place] = None
        return permit.last, permit.before

    def forget(self, tid: int) -> None:
        """A new thread has this number: what another one had was not meant for it."""
        for permit in self.table:
            if permit.tid == tid:
                permit.tid = 0
