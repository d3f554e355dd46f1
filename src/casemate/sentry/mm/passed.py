"""Memory that the host gives by itself: mmap(2) and brk(2) that are passed on, and what is to come of them.

What nobody sees is where the host puts a mapping, and whether it has the memory. The place can be foretold: it is the
highest that is free below a ceiling that all copies of the mold share. There a *fence* is put, from the ceiling down to
where this program's mappings are to begin, which is random; then both sides choose alike. For the heap, the host is
told where it starts. Before anything else becomes of the memory, the sentry looks whether what it expects is there.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from casemate.late import Logger
from casemate.sentry.abi import U64, page_up
from casemate.sentry.errno import SysError
from casemate.sentry.mm.mapping import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAX_MAP_COUNT,
    MMAP_MIN_ADDR,
    SYS_MMAP,
)
from casemate.sentry.mm.memory import TASK_SIZE
from casemate.sentry.mm.vma import VM_MAYALL, VM_NORESERVE, Vma
from casemate.sentry.platform.base import Expected
from casemate.sentry.syscalls.numbers import NUMBERS

if TYPE_CHECKING:
    from casemate.sentry.mm.space import AddressSpace
    from casemate.sentry.platform.base import HostThread

log = Logger("casemate.sentry")

PR_SET_MM, PR_SET_MM_MAP = 35, 14
_FENCE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
_MM_MAP = struct.Struct("<12QII")
"""``struct prctl_mm_map``, PR_SET_MM(2const)."""


def fence_in(mm: AddressSpace, thread: HostThread) -> None:
    """Have the host put what asks for no place where :meth:`MappedMemory.place` would. Where that cannot be, everything
    goes the slower way."""
    start, end = mm.mmap_base, mm.layout.ceiling
    if start > end or not mm.regions.free(start, end):
        return
    if start < end:
        try:
            mm.room.most += 1
            thread.syscall(SYS_MMAP, start, end - start, 0, _FENCE, U64, 0)
        except SysError:
            return
    mm.fence = start, end


def tell_heap(mm: AddressSpace, thread: HostThread, room: int) -> None:
    """Tell the host where the heap starts, so that it can serve brk(2) by itself. Where it does not want to know (a
    kernel without ``CONFIG_CHECKPOINT_RESTORE``), mappings do the same.

    Arguments:
        room: the end of writable memory in which nothing is yet.
    """
    heap = mm.brk
    # What else it wants to hear only shows in its own /proc.
    code, data = (heap - 1, heap), (heap - 1, heap - 1)
    structure = _MM_MAP.pack(*code, *data, heap, heap, *(heap,) * 5, 0, 0, 0xFFFF_FFFF)
    address = room - _MM_MAP.size
    mm.write(address, structure)
    try:
        thread.syscall(NUMBERS["prctl"], PR_SET_MM, PR_SET_MM_MAP, address, _MM_MAP.size, 0)
        mm.heap_told = True
    except SysError:
        pass
    mm.write(address, bytes(_MM_MAP.size))


def expect(mm: AddressSpace, thread: HostThread, length: int, prot: int, flags: int) -> ExpectedMapping | None:
    """mmap(2) of private anonymous memory without a place, to be passed on. Limits are the caller's to check.

    Arguments:
        length: bytes, of whole pages.

    Returns what is to come of it, which is in the list already; None where it cannot be passed on.
    """
    if mm.fence is None or not mm.foretold or mm.locked_future or len(mm.regions) >= MAX_MAP_COUNT:
        return None
    if not mm.room.for_more(thread):
        return None
    start = mm.regions.room_below(length, MMAP_MIN_ADDR, mm.mmap_base)
    if start is None:
        return None
    vm = VM_MAYALL | VM_NORESERVE if flags & MAP_NORESERVE else VM_MAYALL
    mm.regions.add(Vma(start, start + length, prot, vm))
    return ExpectedMapping(mm, thread, start, start + length, prot, vm, flags)


def _there(mm: AddressSpace, address: int) -> bool:
    """Whether there is memory, as far as that can be seen without much ado."""
    try:
        return bool(os.pread(mm.fd, 1, address))
    except OSError:
        return False


class ExpectedMapping(Expected):
    """A mapping that the host makes by itself."""

    __slots__ = ("end", "flags", "mm", "prot", "start", "thread", "vm")

    def __init__(
        self, mm: AddressSpace, thread: HostThread, start: int, end: int, prot: int, vm: int, flags: int
    ) -> None:
        self.mm = mm
        self.thread = thread
        self.start = start
        self.end = end
        self.prot = prot
        self.vm = vm
        self.flags = flags

    def instead(self) -> tuple[int, ...]:
        return self.start, self.end - self.start, self.prot, self.flags | MAP_FIXED_NOREPLACE, U64, 0

    def confirm(self) -> None:
        if not _there(self.mm, self.end - 1):
            self._look()

    def _look(self) -> None:
        """Look into the host's own list: it may have mapped nothing, for want of memory, or elsewhere."""
        try:
            theirs = self.thread.mappings()
        except OSError:
            theirs = []  # it was killed, or no descriptor is left
        if not theirs or any(start <= self.start and self.end <= end for start, end in theirs):
            return
        mm, size = self.mm, self.end - self.start
        mm.regions.remove(self.start, self.end)
        strays = self._strays(theirs)
        if not strays:
            return  # the application was told so
        log.error("memory of %#x bytes is not where it was expected, at %#x, but %r", size, self.start, strays)
        mm.foretold = False
        if len(strays) == 1 and strays[0][1] - strays[0][0] == size:
            mm.regions.add(Vma(*strays[0], self.prot, self.vm))
        else:
            self.thread.kill()  # nobody knows what it has

    def _strays(self, theirs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """What the host has mapped that the list does not have."""
        found = []
        for start, end in theirs:
            if start >= TASK_SIZE:
                continue
            known = [(vma.start, vma.end) for vma in self.mm.regions.within(start, end)]
            known += [self.mm.fence] if self.mm.fence is not None else []
            for low, high in [*sorted(known), (end, end)]:
                if start < min(low, end):
                    found.append((start, min(low, end)))
                start = max(start, high)
        return found


class ExpectedHeap(Expected):
    """A heap that the host makes larger.

    Arguments:
        wanted: its end then.
        before: its ends before, the latest first: where the host has refused one it has the next.
    """

    __slots__ = ("before", "mm", "wanted")

    def __init__(self, mm: AddressSpace, wanted: int, *before: int) -> None:
        self.mm = mm
        self.wanted = wanted
        self.before = before

    def instead(self) -> tuple[int, ...]:
        return (self.wanted,)

    def confirm(self) -> None:
        mm, end = self.mm, page_up(self.wanted)
        if _there(mm, end - 1):
            return
        *refused, last = self.before
        mm.brk = next((one for one in refused if page_up(one) == mm.start_brk or _there(mm, page_up(one) - 1)), last)
        mm.regions.remove(page_up(mm.brk), end)
