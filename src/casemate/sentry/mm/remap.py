"""Moving, advising and locking parts of an address space: mremap(2), madvise(2), mlock(2), msync(2)."""

from __future__ import annotations

from errno import EBADF, EBUSY, EFAULT, EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING

from casemate.sentry.abi import PAGE_SIZE, U64, page_up
from casemate.sentry.errno import SysError
from casemate.sentry.mm.mapping import MAP_FIXED, MAX_MAP_COUNT, SYS_MUNMAP
from casemate.sentry.mm.memory import TASK_SIZE
from casemate.sentry.mm.space import AddressSpace
from casemate.sentry.mm.vma import (
    PROT_WRITE,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_SEALED,
    VM_SEQ_READ,
    VM_SHARED,
    VM_WIPEONFORK,
    Vma,
)
from casemate.sentry.syscalls.numbers import NUMBERS

if TYPE_CHECKING:
    from casemate.sentry.platform.base import HostThread

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4

MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED = 0, 1, 2, 3, 4
MADV_FREE, MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK = 8, 9, 10, 11
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP = 14, 15, 16, 17
MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_COLD, MADV_PAGEOUT = 18, 19, 20, 21
MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_DONTNEED_LOCKED, MADV_COLLAPSE = 22, 23, 24, 25
MADV_HWPOISON, MADV_SOFT_OFFLINE = 100, 101

SYS_MREMAP, SYS_MADVISE, SYS_MSYNC = NUMBERS["mremap"], NUMBERS["madvise"], NUMBERS["msync"]

_ACCESS = VM_SEQ_READ | VM_RAND_READ
_HUGE = VM_HUGEPAGE | VM_NOHUGEPAGE

# What advice is remembered with the mapping: flags to clear, and flags to set.
_REMEMBERED = {
    MADV_NORMAL: (_ACCESS, 0),
    MADV_RANDOM: (_ACCESS, VM_RAND_READ),
    MADV_SEQUENTIAL: (_ACCESS, VM_SEQ_READ),
    MADV_DONTFORK: (0, VM_DONTCOPY),
    MADV_DOFORK: (VM_DONTCOPY, 0),
    MADV_HUGEPAGE: (_HUGE, VM_HUGEPAGE),
    MADV_NOHUGEPAGE: (_HUGE, VM_NOHUGEPAGE),
    MADV_DONTDUMP: (0, VM_DONTDUMP),
    MADV_DODUMP: (VM_DONTDUMP, 0),
    MADV_WIPEONFORK: (0, VM_WIPEONFORK),
    MADV_KEEPONFORK: (VM_WIPEONFORK, 0),
}
# What the host alone is to know.
_PASSED = {
    MADV_WILLNEED,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_REMOVE,
    MADV_COLD,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_DONTNEED_LOCKED,
    MADV_COLLAPSE,
}


def remap(
    mm: AddressSpace, thread: HostThread, old: int, old_size: int, new_size: int, flags: int, target: int
) -> int:
    """mremap(2), sizes in bytes; limits are the caller's to check. Returns the new address, raises SysError."""
    if flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) or old % PAGE_SIZE:
        raise SysError(EINVAL)
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) and not flags & MREMAP_MAYMOVE:
        raise SysError(EINVAL)
    if old_size > TASK_SIZE or new_size > TASK_SIZE:
        raise SysError(EINVAL)
    if old > TASK_SIZE - old_size:
        raise SysError(EFAULT)
    old_size, new_size = page_up(old_size), page_up(new_size)
    if new_size == 0 or (flags & MREMAP_DONTUNMAP and old_size != new_size):
        raise SysError(EINVAL)
    if flags & MREMAP_FIXED and (
        target % PAGE_SIZE
        or target > TASK_SIZE - new_size
        or (target < old + old_size and old < target + new_size)
    ):
        raise SysError(EINVAL)
    vma = mm.regions.find(old)
    if vma is None:
        raise SysError(EFAULT)
    if vma.flags & VM_SEALED:
        raise SysError(EPERM)
    if old_size == 0 and not vma.flags & VM_SHARED:
        raise SysError(EINVAL)
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return _move(mm, thread, vma, old, old_size, new_size, flags, target)
    if new_size <= old_size:
        if new_size < old_size:
            mm.unmap(thread, old + new_size, old_size - new_size)
        return old
    if old + old_size > vma.end:
        raise SysError(EFAULT)
    if old_size and old + old_size == vma.end and _grow(mm, thread, vma, old, old_size, new_size):
        return old
    if not flags & MREMAP_MAYMOVE:
        raise SysError(ENOMEM)
    return _move(mm, thread, vma, old, old_size, new_size, flags, 0)


def _grow(mm: AddressSpace, thread: HostThread, vma: Vma, old: int, old_size: int, new_size: int) -> bool:
    """Make a mapping longer where it is, when there is room."""
    end = old + new_size
    if end > TASK_SIZE or not mm.roomy(vma.end, end):
        return False
    mm.unfence(thread, vma.end, end)
    mm.room.most += 1
    thread.syscall(SYS_MREMAP, old, old_size, new_size, 0, 0)
    more = Vma(vma.start, end, vma.prot, vma.flags, vma.file, vma.offset, vma.shared, vma.name)
    mm.regions.add(more.part(vma.end, end))
    return True


def _move(
    mm: AddressSpace, thread: HostThread, vma: Vma, old: int, old_size: int, new_size: int, flags: int, target: int
) -> int:
    """Move pages elsewhere: to ``target`` with ``MREMAP_FIXED``, which is cleared first; else where there is room."""
    regions = mm.regions
    kept = min(old_size, new_size)
    if old + kept > vma.end:
        raise SysError(EFAULT)
    if flags & MREMAP_FIXED:
        mm.place(target, new_size, MAP_FIXED)
    else:
        target = mm.place(target if flags & MREMAP_DONTUNMAP else 0, new_size, 0)
    if len(regions) + 3 >= MAX_MAP_COUNT:
        raise SysError(ENOMEM)
    if old_size > new_size:
        mm.unmap(thread, old + new_size, old_size - new_size)
        old_size = new_size
    mm.unfence(thread, target, target + new_size)
    if not regions.free(target, target + new_size):
        thread.syscall(SYS_MUNMAP, target, new_size)
        regions.remove(target, target + new_size)
    mm.room.most += 4
    host = flags & MREMAP_DONTUNMAP | MREMAP_MAYMOVE | MREMAP_FIXED
    thread.syscall(SYS_MREMAP, old, old_size, new_size, host, target)
    moved = vma.part(old, old + max(kept, PAGE_SIZE))
    new = Vma(target, target + new_size, vma.prot, vma.flags, vma.file, moved.offset, vma.shared, vma.name)
    if flags & MREMAP_DONTUNMAP:
        regions.change(moved.start, moved.end, moved.prot, moved.flags & ~VM_LOCKED)
        regions.add(new)
    else:
        # Its file may be held by this mapping alone.
        if vma.file is not None:
            vma.file.incref()
        if old_size:
            regions.remove(old, old + old_size)
        regions.add(new)
        if vma.file is not None:
            vma.file.decref()
    return target


def advise(
    mm: AddressSpace, thread: HostThread, address: int, length: int, advice: int, passing: bool = False
) -> bool:
    """madvise(2). As in Linux, all that is mapped in the range is advised even where some of it is not.

    Arguments:
        passing: the host could make the call by itself, as it was made.

    Returns whether it is to do so.
    """
    if address % PAGE_SIZE:
        raise SysError(EINVAL)
    if advice in (MADV_HWPOISON, MADV_SOFT_OFFLINE):
        raise SysError(EPERM)
    remembered = _REMEMBERED.get(advice)
    if remembered is None and advice not in _PASSED:
        raise SysError(EINVAL)
    size = page_up(length) & U64
    if (length and not size) or address + size > U64:
        raise SysError(EINVAL)
    if length == 0:
        return False
    # What is beyond all that can be mapped is a gap like others.
    end = min(address + size, TASK_SIZE)
    within = mm.regions.within(address, end)
    for vma in within:
        if vma.flags & VM_SEALED:
            raise SysError(EPERM)
    if not within:
        raise SysError(ENOMEM)
    if mm.unfence(thread, address, end):
        passing = False
    if passing and remembered is None and end == address + size:
        return True
    mm.room.most += 2
    error: SysError | None = None
    try:
        thread.syscall(SYS_MADVISE, address, end - address, advice)
    except SysError as failure:
        # ENOMEM for a gap: the rest was advised all the same.
        if failure.errno != ENOMEM:
            raise
        error = failure
    if remembered is not None:
        clear, put = remembered
        for vma in within:
            mm.regions.change(max(vma.start, address), min(vma.end, end), vma.prot, vma.flags & ~clear | put)
    if error is not None:
        raise error
    if end < address + size:
        raise SysError(ENOMEM)
    return False


def set_name(mm: AddressSpace, address: int, length: int, name: bytes) -> None:
    """``PR_SET_VMA_ANON_NAME`` of PR_SET_VMA(2const): what ``/proc/PID/maps`` calls anonymous memory.

    Arguments:
        name: checked; empty for none.

    Raises:
        SysError: EINVAL, ENOMEM where nothing is mapped, EBADF where a file is.
    """
    if address % PAGE_SIZE or address + page_up(length) > TASK_SIZE:
        raise SysError(EINVAL if address % PAGE_SIZE else ENOMEM)
    end = address + page_up(length)
    shown = b"" if not name else b"[anon:%s]" % name
    for vma in mm.regions.within(address, end):
        if vma.file is not None:
            raise SysError(EBADF)
        if not vma.flags & VM_SEALED and vma.name != b"[stack]":
            mm.regions.change(max(vma.start, address), min(vma.end, end), vma.prot, vma.flags, shown)
    if mm.regions.covered(address, end) < end:
        raise SysError(ENOMEM)


def locked(mm: AddressSpace) -> int:
    """Bytes that are locked, ``VmLck``."""
    return sum(vma.size for vma in mm.regions if vma.flags & VM_LOCKED)


def lock(mm: AddressSpace, thread: HostThread, start: int, end: int, on_fault: bool) -> None:
    """mlock(2) of whole pages: they are made present now; that they stay so is up to the host."""
    covered = mm.regions.covered(start, end)
    set_locked(mm, start, covered, True)
    if not on_fault:
        populate(mm, thread, start, covered)
    if covered < end:
        raise SysError(ENOMEM)


def set_locked(mm: AddressSpace, start: int, end: int, on: bool) -> None:
    """Note for all mappings in the range whether they are locked."""
    for vma in mm.regions.within(start, end):
        if not vma.flags & VM_SEALED and bool(vma.flags & VM_LOCKED) is not on:
            mm.regions.change(max(vma.start, start), min(vma.end, end), vma.prot, vma.flags ^ VM_LOCKED)


def populate(mm: AddressSpace, thread: HostThread, start: int, end: int) -> None:
    """Make pages present, as far as the mappings let the application touch them.

    Raises:
        SysError: ENOMEM where it may not, mlock(2).
    """
    for vma in mm.regions.within(start, end):
        if vma.flags & VM_SEALED:
            continue
        if not vma.prot:
            raise SysError(ENOMEM)
        advice = MADV_POPULATE_READ
        if vma.prot & PROT_WRITE and not vma.flags & VM_SHARED:
            advice = MADV_POPULATE_WRITE
        low, high = max(vma.start, start), min(vma.end, end)
        try:
            thread.syscall(SYS_MADVISE, low, high - low, advice)
        except SysError:
            raise SysError(ENOMEM) from None


def sync(mm: AddressSpace, thread: HostThread, address: int, length: int, flags: int) -> None:
    """msync(2)."""
    if flags & ~(MS_ASYNC | MS_INVALIDATE | MS_SYNC) or address % PAGE_SIZE or flags & 5 == 5:
        raise SysError(EINVAL)
    end = address + (page_up(length) & U64)
    if end > TASK_SIZE:
        raise SysError(ENOMEM)
    gap = mm.regions.covered(address, end) < end
    for vma in mm.regions.within(address, end):
        if flags & MS_INVALIDATE and vma.flags & VM_LOCKED:
            raise SysError(EBUSY)
        if vma.file is not None and vma.flags & VM_SHARED:
            low, high = max(vma.start, address), min(vma.end, end)
            thread.syscall(SYS_MSYNC, low, high - low, flags)
    if gap:
        raise SysError(ENOMEM)
