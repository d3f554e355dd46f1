"""The mappings of one address space, as plain data: what ``/proc/PID/maps`` shows, proc_pid_maps(5).

Nothing here touches an application: :mod:`casemate.sentry.mm.space` keeps this and the host's own mappings in step.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from casemate.sentry.abi import page_up

if TYPE_CHECKING:
    from casemate.sentry.vfs.file import File

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4

# As ``<linux/mm.h>`` names and numbers them.
VM_SHARED = 0x8
VM_MAYREAD, VM_MAYWRITE, VM_MAYEXEC = 0x10, 0x20, 0x40
VM_GROWSDOWN = 0x100
VM_LOCKED = 0x2000
VM_SEQ_READ = 0x8000
VM_RAND_READ = 0x10000
VM_DONTCOPY = 0x20000
VM_NORESERVE = 0x200000
VM_WIPEONFORK = 0x2000000
VM_DONTDUMP = 0x4000000
VM_HUGEPAGE = 0x20000000
VM_NOHUGEPAGE = 0x40000000
VM_SEALED = 1 << 63
"""Ours alone: the platform's; the application cannot change or remove it, as after mseal(2)."""
VM_MAYALL = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC


class SharedMemory:
    """Memory without a file that several address spaces share (``MAP_SHARED | MAP_ANONYMOUS``): just its identity."""

    __slots__ = ()


class Vma:
    """One mapping. Never changed once it is in a list: others are put in its place, so that copies of address spaces
    can share them.

    Arguments:
        start, end: addresses, of whole pages.
        prot: ``PROT_*`` bits.
        flags: ``VM_*`` bits.
        file: what is mapped; None for anonymous memory.
        offset: where in the file (or in ``shared``) it starts, bytes.
        shared: what is the same in all address spaces that map the same memory; None for private mappings.
        name: what ``/proc/PID/maps`` shows instead of a path: ``[stack]``, ``[vdso]``, ``[anon:…]``.
    """

    __slots__ = ("end", "file", "flags", "name", "offset", "prot", "shared", "start")

    def __init__(
        self,
        start: int,
        end: int,
        prot: int,
        flags: int,
        file: File | None = None,
        offset: int = 0,
        shared: object | None = None,
        name: bytes = b"",
    ) -> None:
        self.start = start
        self.end = end
        self.prot = prot
        self.flags = flags
        self.file = file
        self.offset = offset
        self.shared = shared
        self.name = name

    def part(self, start: int, end: int) -> Vma:
        """The same mapping of fewer pages."""
        offset = self.offset + (start - self.start)
        return Vma(start, end, self.prot, self.flags, self.file, offset, self.shared, self.name)

    def joins(self, after: Vma) -> bool:
        """Whether this mapping and the one behind it are one."""
        if (
            self.end != after.start
            or self.prot != after.prot
            or self.flags != after.flags
            or self.file is not after.file
            or self.shared is not after.shared
            or self.name != after.name
            or self.flags & VM_SEALED
        ):
            return False
        if self.file is None and self.shared is None:
            return True
        return self.offset + (self.end - self.start) == after.offset

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    def __repr__(self) -> str:
        letters = "".join(letter if self.prot & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))
        kind = "s" if self.flags & VM_SHARED else "p"
        return f"<{self.start:x}-{self.end:x} {letters}{kind} {self.offset:x} {self.file or self.name.decode()}>"


class Regions:
    """Mappings in the order of their addresses, none overlapping another. Each holds one reference to its file."""

    __slots__ = ("_gap", "_low", "bytes", "data", "starts", "vmas")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.vmas: list[Vma] = []
        self.bytes = 0
        """Of all mappings, ``VmSize``."""
        self.data = 0
        """Of private writable ones that are no stack, ``VmData``: what RLIMIT_DATA bounds, getrlimit(2)."""
        # No gap above _low is larger than _gap: where the next search from the top can begin.
        self._low = 0
        self._gap = 0

    def __iter__(self) -> Iterator[Vma]:
        return iter(self.vmas)

    def __len__(self) -> int:
        return len(self.vmas)

    def find(self, address: int) -> Vma | None:
        """The mapping that has this address."""
        index = bisect_right(self.starts, address) - 1
        if index >= 0:
            vma = self.vmas[index]
            if address < vma.end:
                return vma
        return None

    def index(self, address: int) -> int:
        """The first mapping that ends behind this address; ``len()`` when there is none."""
        index = bisect_right(self.starts, address) - 1
        if index >= 0 and address < self.vmas[index].end:
            return index
        return index + 1

    def within(self, start: int, end: int) -> list[Vma]:
        """All mappings that have a part in the range, whole."""
        return self.vmas[self.index(start) : bisect_left(self.starts, end)]

    def free(self, start: int, end: int) -> bool:
        """Whether nothing is mapped in the range."""
        return self.index(start) == bisect_left(self.starts, end)

    def covered(self, start: int, end: int) -> int:
        """Up to which address the range is mapped without a gap; ``start`` where nothing is."""
        at = start
        for vma in self.within(start, end):
            if vma.start > at:
                break
            at = vma.end
        return min(at, end)

    # Change.

    def _count(self, vma: Vma, sign: int) -> None:
        size = (vma.end - vma.start) * sign
        self.bytes += size
        if counts_as_data(vma.prot, vma.flags):
            self.data += size

    def remove(self, start: int, end: int) -> None:
        """Take the range out of all mappings; parts that lie outside stay."""
        first = self.index(start)
        last = bisect_left(self.starts, end)
        if first >= last:
            return
        vmas = self.vmas
        low, high = vmas[first], vmas[last - 1]
        keep: list[Vma] = []
        if low.start < start:
            keep.append(low.part(low.start, start))
        if high.end > end:
            keep.append(high.part(end, high.end))
        self._replace(first, last, keep)
        # Is the gap that came into being one that the search would pass by?
        after = first + 1 if low.start < start else first
        if after == len(vmas):
            self._low = self._gap = 0
            return
        ceiling = self.starts[after]
        if ceiling > self._low:
            gap = ceiling - (vmas[after - 1].end if after else 0)
            if gap > self._gap:
                self._gap = gap

    def _replace(self, first: int, last: int, new: list[Vma]) -> None:
        """Other mappings in the place of these; files' references are kept right."""
        old = self.vmas[first:last]
        for vma in new:
            self._count(vma, 1)
            if vma.file is not None:
                vma.file.incref()
        self.vmas[first:last] = new
        self.starts[first:last] = [vma.start for vma in new]
        for vma in old:
            self._count(vma, -1)
            if vma.file is not None:
                vma.file.decref()

    def add(self, vma: Vma) -> None:
        """Put a mapping where nothing is; it may become one with its neighbours."""
        vmas = self.vmas
        start, end = vma.start, vma.end
        first = last = bisect_left(self.starts, start)
        if first and vmas[first - 1].end == start and vmas[first - 1].joins(vma):
            first -= 1
        if last < len(vmas) and vmas[last].start == end and vma.joins(vmas[last]):
            last += 1
        size = end - start
        self.bytes += size
        if vma.prot & PROT_WRITE and counts_as_data(vma.prot, vma.flags):
            self.data += size
        if first == last:
            vmas.insert(first, vma)
            self.starts.insert(first, start)
            if vma.file is not None:
                vma.file.incref()
            return
        self._join(first, last, vma)

    def _join(self, first: int, last: int, vma: Vma) -> None:
        """Make one mapping of this one and those at ``first`` up to ``last``, which adjoin it or are in its place."""
        low, high = self.vmas[first], self.vmas[last - 1]
        offset = vma.offset
        start, end = vma.start, vma.end
        if low.start < start:
            start, offset = low.start, low.offset
        if high.end > end:
            end = high.end
        whole = Vma(start, end, vma.prot, vma.flags, vma.file, offset, vma.shared, vma.name)
        self.vmas[first:last] = [whole]
        self.starts[first:last] = [start]
        if vma.file is not None:
            for _ in range(last - first - 1):
                vma.file.decref()

    def change(self, start: int, end: int, prot: int, flags: int, name: bytes | None = None) -> None:
        """Give a range that lies within one mapping other attributes; it may become one with its neighbours.

        Arguments:
            name: another one; None to keep it.
        """
        index = bisect_right(self.starts, start) - 1
        vmas = self.vmas
        old = vmas[index]
        if name is None:
            name = old.name
        if old.prot == prot and old.flags == flags and old.name == name:
            return
        new = Vma(start, end, prot, flags, old.file, old.offset + (start - old.start), old.shared, name)
        size = end - start
        self.data += size * (counts_as_data(prot, flags) - counts_as_data(old.prot, old.flags))
        first, last = index, index + 1
        pieces = [new]
        if old.start < start:
            pieces.insert(0, old.part(old.start, start))
        elif index and vmas[index - 1].joins(new):
            first -= 1
            new.start, new.offset = vmas[first].start, vmas[first].offset
        if old.end > end:
            pieces.append(old.part(end, old.end))
        elif last < len(vmas) and new.joins(vmas[last]):
            new.end = vmas[last].end
            last += 1
        vmas[first:last] = pieces
        self.starts[first:last] = [piece.start for piece in pieces]
        file = old.file
        if file is not None:
            for _ in range(len(pieces) - (last - first)):
                file.incref()
            for _ in range((last - first) - len(pieces)):
                file.decref()

    def put(self, vma: Vma) -> None:
        """Put a mapping in the place of whatever is in its range."""
        # The file must outlive its removal from the place that it keeps.
        if vma.file is not None:
            vma.file.incref()
        self.remove(vma.start, vma.end)
        self.add(vma)
        if vma.file is not None:
            vma.file.decref()

    def clear(self) -> None:
        """Remove everything."""
        old = self.vmas
        self.vmas, self.starts = [], []
        self.bytes = self.data = self._low = self._gap = 0
        for vma in old:
            if vma.file is not None:
                vma.file.decref()

    def copy(self) -> Regions:
        """What a forked process has: all but what is marked ``MADV_DONTFORK``, madvise(2)."""
        new = Regions()
        new.vmas = list(self.vmas)
        new.starts = list(self.starts)
        new.bytes, new.data = self.bytes, self.data
        special = False
        for vma in new.vmas:
            if vma.file is not None:
                vma.file.incref()
            if vma.flags & (VM_DONTCOPY | VM_LOCKED):
                special = True
        if special:
            for vma in self.vmas:
                if vma.flags & VM_DONTCOPY:
                    new.remove(vma.start, vma.end)
                elif vma.flags & VM_LOCKED:
                    # Locks are not inherited, mlock(2).
                    new.change(vma.start, vma.end, vma.prot, vma.flags & ~VM_LOCKED)
        return new

    # Room.

    def room_below(self, size: int, low: int, high: int, align: int = 4096) -> int | None:
        """The highest free place of ``size`` bytes in ``low`` … ``high``, as mmap(2) chooses one; None without any."""
        if self._low and size > self._gap and self._low < high:
            found = self._search(size, low, self._low, align)
        else:
            self._gap = 0
            found = self._search(size, low, high, align)
        return found

    def _search(self, size: int, low: int, high: int, align: int) -> int | None:
        vmas = self.vmas
        index = bisect_left(self.starts, high) - 1
        ceiling = high
        while True:
            floor = vmas[index].end if index >= 0 else low
            if floor < low:
                floor = low
            place = (ceiling - size) & -align
            if place >= floor and ceiling > floor:
                # Not the place itself: nobody says that it will be used.
                self._low = ceiling
                return place
            if ceiling - floor > self._gap:
                self._gap = ceiling - floor
            if index < 0 or floor <= low:
                return None
            ceiling = min(ceiling, vmas[index].start)
            index -= 1

    def room_above(self, size: int, low: int, high: int, align: int = 4096) -> int | None:
        """The lowest free place, for ``MAP_32BIT`` and where the top is full."""
        place = page_up(low + align - 1) & -align if low % align else low
        for index in range(self.index(low), len(self.vmas)):
            vma = self.vmas[index]
            if vma.start >= place + size:
                break
            place = max(place, (vma.end + align - 1) & -align)
        return place if place + size <= high else None


def counts_as_data(prot: int, flags: int) -> bool:
    """Whether RLIMIT_DATA counts such a mapping, getrlimit(2)."""
    return bool(prot & PROT_WRITE) and not flags & (VM_SHARED | VM_GROWSDOWN)
