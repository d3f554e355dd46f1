"""How fast this host's time-stamp counter counts, which is the guest's counter under TCG.

A guest's kernel that is not told measures it, in its first moments, against QEMU's interval timer. That needs a few
reads in a row without a pause, which a busy host does not grant: where the processor was away between starting the
timer and the first look at the counter, the kernel finds a counter that is 10 to 50 times too slow, takes its word
(only then do its own checks pass), and runs its clocks that much too fast for good. See docs/hypervisor.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from casemate.config import machine

INTERVAL_NS = 20_000_000
"""How far apart two readings are at least. The guest corrects what is left of the error, up to 1 %, by itself."""
TRIES = 20
CLOSE_NS = 5_000
"""A reading that took this long or less is good enough at once."""
LOWEST, HIGHEST = 100_000, 20_000_000
"""Kilohertz between which the result is believed."""

_READ = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"  # rdtsc; shl rdx, 32; or rax, rdx; ret


class Counter:
    """Measures from when it is made until it is asked: work done in between is time that need not be waited.

    Arguments:
        read: gives the counter's value; this processor's own where it is left out.
        clock: gives the time in nanoseconds.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        read: Callable[[], int] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._read = read or _reader()
        self._clock = clock
        self._sleep = sleep
        self._first = self._sample()

    def khz(self) -> int | None:
        """The frequency in kilohertz; None where it cannot be known."""
        if self._first is None:
            return None
        when, count = self._first
        left = INTERVAL_NS - (self._clock() - when)
        if left > 0:
            self._sleep(left / 1e9)
        last = self._sample()
        if last is None or last[0] <= when:
            return None
        found = round((last[1] - count) * 1_000_000 / (last[0] - when))
        return found if LOWEST <= found <= HIGHEST else None

    def _sample(self) -> tuple[int, int] | None:
        """A time and the counter's value at it: of some tries the one where both are closest together."""
        if self._read is None:
            return None
        best: tuple[int, int] | None = None
        width = 0
        for _ in range(TRIES):
            before = self._clock()
            count = self._read()
            after = self._clock()
            if best is None or after - before < width:
                best, width = ((before + after) // 2, count), after - before
            if width <= CLOSE_NS:
                break
        return best


def _reader() -> Callable[[], int] | None:
    """A function that reads the counter; None where this processor has another one or code cannot be mapped."""
    if machine() != "x86_64":
        return None
    import ctypes
    import mmap

    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a host that forbids memory that is written and executed
        return None
    page.write(_READ)
    function = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def read() -> int:
        return int(function())

    read.page = page  # type: ignore[attr-defined]  # lives as long as the function
    return read
