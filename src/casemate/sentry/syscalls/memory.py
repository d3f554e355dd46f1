"""System calls for memory: mappings, the heap, advice, locks."""

from __future__ import annotations

import resource
from errno import EAGAIN, EBADF, EINVAL, ENOMEM, EOPNOTSUPP, EPERM

from casemate.sentry.abi import PAGE_SIZE, U64, page_down, page_up, s32, u32
from casemate.sentry.creds import CAP_IPC_LOCK
from casemate.sentry.errno import SysError
from casemate.sentry.mm import passed, remap
from casemate.sentry.mm.mapping import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_PRIVATE,
    MAP_SHARED_VALIDATE,
    MAP_SYNC,
    MAP_TYPE,
)
from casemate.sentry.mm.memory import TASK_SIZE
from casemate.sentry.mm.room import host_bounds
from casemate.sentry.mm.vma import (
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    VM_LOCKED,
    VM_SEALED,
    VM_SHARED,
    Vma,
    counts_as_data,
)
from casemate.sentry.platform.filter import HUGE, PLAIN_FLAGS, PLAIN_IGNORED, PLAIN_RIGHTS
from casemate.sentry.syscalls.numbers import NUMBERS
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.tasks.task import Task
from casemate.sentry.wait import Passed

PROT_SEM, PROT_GROWSDOWN, PROT_GROWSUP = 0x8, 0x0100_0000, 0x0200_0000
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
MLOCK_ONFAULT = 1
HEAP_ROOM = 16 << 20
"""How far the host may let a heap grow without telling, bytes."""
# What MAP_SHARED_VALIDATE knows, as of Linux's LEGACY_MAP_MASK.
_VALIDATED = 0x3 | 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x800 | 0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
_VALIDATED |= MAP_HUGETLB | 0x4000000 | 0x100000 | (0x3F << 26)

SYS_MINCORE, SYS_REMAP_FILE_PAGES = NUMBERS["mincore"], NUMBERS["remap_file_pages"]
SYS_MPROTECT = NUMBERS["mprotect"]


def _may_grow(task: Task, size: int, data: bool, replaced: int = 0) -> None:
    """Raises SysError(ENOMEM) when RLIMIT_AS or RLIMIT_DATA bars ``size`` further bytes."""
    limits = task.group.limits
    regions = task.mm.regions
    if regions.bytes + size - replaced > limits.soft(resource.RLIMIT_AS):
        raise SysError(ENOMEM)
    if data and regions.data + size > limits.soft(resource.RLIMIT_DATA):
        raise SysError(ENOMEM)


def _may_lock(task: Task, size: int, error: int) -> None:
    """Raises SysError when RLIMIT_MEMLOCK bars ``size`` further bytes."""
    if task.creds.capable(CAP_IPC_LOCK):
        return
    if remap.locked(task.mm) + size > task.group.limits.soft(resource.RLIMIT_MEMLOCK):
        raise SysError(error)


def _mapped(task: Task, start: int, end: int) -> int:
    """How many bytes of the range are mapped."""
    return sum(min(vma.end, end) - max(vma.start, start) for vma in task.mm.regions.within(start, end))


@syscall("mmap")
def mmap(task: Task, address: int, length: int, prot: int, flags: int, fd: int, offset: int) -> int:
    """mmap(2)."""
    flags = u32(flags)
    if offset % PAGE_SIZE:
        raise SysError(EINVAL)
    thread = task.thread
    assert thread is not None
    file = None
    if not flags & MAP_ANONYMOUS:
        file = task.files.get(s32(fd))
        if file.flags & 0o10000000:  # O_PATH
            raise SysError(EBADF)
    if length == 0:
        raise SysError(EINVAL)
    size = page_up(length)
    if size > TASK_SIZE:
        raise SysError(ENOMEM)
    if flags & MAP_HUGETLB:
        # As on a machine whose pool of huge pages is empty, or for a file that is not on hugetlbfs.
        raise SysError(ENOMEM if file is None else EINVAL)
    sharing = flags & MAP_TYPE
    if sharing == MAP_SHARED_VALIDATE and file is None:
        raise SysError(EINVAL)
    if sharing == MAP_SHARED_VALIDATE and (flags & ~_VALIDATED or flags & MAP_SYNC):
        raise SysError(EOPNOTSUPP)
    mm = task.mm
    data = sharing == MAP_PRIVATE and counts_as_data(prot, 0)
    replaced = _mapped(task, address, address + size) if flags & MAP_FIXED and address % PAGE_SIZE == 0 else 0
    _may_grow(task, size, data, replaced)
    if (flags & MAP_LOCKED) or mm.locked_future:
        if flags & MAP_LOCKED and not task.creds.capable(CAP_IPC_LOCK) and not task.group.limits.soft(
            resource.RLIMIT_MEMLOCK
        ):
            raise SysError(EPERM)
        _may_lock(task, size, EAGAIN)
    if (
        # As the filter of the platform says, which has all others stop the thread.
        flags & ~PLAIN_IGNORED == PLAIN_FLAGS and not address and not offset and size < HUGE
        and not prot & ~PLAIN_RIGHTS and task.kernel.passes(task)
        and (expected := passed.expect(mm, thread, size, prot, flags)) is not None
    ):  # fmt: skip
        raise Passed(expected)
    return mm.map(thread, address, length, prot, flags, file, offset)


@syscall("munmap")
def munmap(task: Task, address: int, length: int) -> int:
    """munmap(2)."""
    thread = task.thread
    assert thread is not None
    if task.mm.unmap(thread, address, length, task.kernel.passes(task)):
        raise Passed
    return 0


@syscall("mprotect")
def mprotect(task: Task, address: int, length: int, prot: int) -> int:
    """mprotect(2)."""
    grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
    prot &= ~(PROT_GROWSDOWN | PROT_GROWSUP)
    if grows == PROT_GROWSDOWN | PROT_GROWSUP or address % PAGE_SIZE:
        raise SysError(EINVAL)
    if length == 0:
        return 0
    if prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM):
        raise SysError(EINVAL)
    prot &= PROT_READ | PROT_WRITE | PROT_EXEC
    thread = task.thread
    assert thread is not None
    mm = task.mm
    if grows:
        vma = mm.regions.find(address)
        if vma is None or grows == PROT_GROWSUP or not vma.flags & 0x100:
            raise SysError(ENOMEM if vma is None else EINVAL)
        length += address - vma.start
        address = vma.start
    # What the host would see are the registers: nothing else must have been meant.
    passing = task.number == SYS_MPROTECT and task.args[2] == prot and task.kernel.passes(task)
    if mm.protect(thread, address, length, prot, passing):
        raise Passed
    return 0


@syscall("brk")
def brk(task: Task, address: int) -> int:
    """brk(2): the heap's end afterwards, which is the old one on failure."""
    mm = task.mm
    old = mm.brk
    if address <= old or address < mm.start_brk:
        if address < mm.start_brk:
            return old
    else:
        size = page_up(address) - page_up(old)
        limits = task.group.limits
        heap_and_data = address - mm.start_brk + mm.end_data - mm.start_data
        if size > TASK_SIZE or heap_and_data > limits.soft(resource.RLIMIT_DATA):
            return old
        try:
            _may_grow(task, size, True)
            if mm.locked_future:
                _may_lock(task, size, EAGAIN)
        except SysError:
            return old
    thread = task.thread
    assert thread is not None
    try:
        return mm.set_brk(thread, address, task.kernel.passes(task))
    except Passed as passed:
        if passed.expected is None and task.kernel.untold(task):
            mm.permit_heap(thread, _heap_limit(task))
        raise


def _heap_limit(task: Task) -> int:
    """How far the heap may grow without asking: some way, where no limit is near."""
    mm, limits = task.mm, task.group.limits
    data, regions = mm.end_data - mm.start_data, mm.regions
    left = min(
        limits.soft(resource.RLIMIT_AS) - regions.bytes,
        limits.soft(resource.RLIMIT_DATA) - regions.data,
        limits.soft(resource.RLIMIT_DATA) - (mm.brk - mm.start_brk + data),
    )
    return mm.brk + max(0, min(left - PAGE_SIZE, HEAP_ROOM, host_bounds()[1]))


@syscall("mremap")
def mremap(task: Task, old: int, old_size: int, new_size: int, flags: int, target: int) -> int:
    """mremap(2)."""
    mm = task.mm
    if new_size > old_size and new_size <= TASK_SIZE and old_size <= TASK_SIZE:
        vma = mm.regions.find(old)
        if vma is not None:
            size = page_up(new_size) - page_up(old_size)
            _may_grow(task, size, counts_as_data(vma.prot, vma.flags))
            if vma.flags & VM_LOCKED:
                _may_lock(task, size, EAGAIN)
    thread = task.thread
    assert thread is not None
    return remap.remap(mm, thread, old, old_size, new_size, flags, target)


@syscall("madvise", Support.PARTIAL, "no merging of equal pages (MADV_MERGEABLE), no poisoning")
def madvise(task: Task, address: int, length: int, advice: int) -> int:
    """madvise(2)."""
    thread = task.thread
    assert thread is not None
    if remap.advise(task.mm, thread, address, length, s32(advice), task.kernel.passes(task)):
        raise Passed
    return 0


def _pages(address: int, length: int) -> tuple[int, int]:
    """The pages that a range touches, as mlock(2) counts them: a length that comes to 2**64 is none at all.

    Raises SysError(EINVAL) where the range goes over the end of all addresses.
    """
    start = page_down(address)
    end = start + (page_up(length + address % PAGE_SIZE) & U64)
    if end > U64:
        raise SysError(EINVAL)
    return start, end


def _lock(task: Task, address: int, length: int, on_fault: bool) -> int:
    start, end = _pages(address, length)
    if not task.creds.capable(CAP_IPC_LOCK) and not task.group.limits.soft(resource.RLIMIT_MEMLOCK):
        raise SysError(EPERM)
    already = sum(
        min(vma.end, end) - max(vma.start, start)
        for vma in task.mm.regions.within(start, end)
        if vma.flags & VM_LOCKED
    )
    _may_lock(task, end - start - already, ENOMEM)
    thread = task.thread
    assert thread is not None
    if end > start:
        remap.lock(task.mm, thread, start, end, on_fault)
    return 0


@syscall("mlock", Support.PARTIAL, "pages are made present and counted; the host may still swap them")
def mlock(task: Task, address: int, length: int) -> int:
    """mlock(2)."""
    return _lock(task, address, length, False)


@syscall("mlock2", Support.PARTIAL, "as mlock")
def mlock2(task: Task, address: int, length: int, flags: int) -> int:
    """mlock2(2)."""
    flags = u32(flags)
    if flags & ~MLOCK_ONFAULT:
        raise SysError(EINVAL)
    return _lock(task, address, length, bool(flags & MLOCK_ONFAULT))


@syscall("munlock")
def munlock(task: Task, address: int, length: int) -> int:
    """munlock(2)."""
    start, end = _pages(address, length)
    covered = task.mm.regions.covered(start, end)
    remap.set_locked(task.mm, start, covered, False)
    if covered < end:
        raise SysError(ENOMEM)
    return 0


@syscall("mlockall", Support.PARTIAL, "as mlock")
def mlockall(task: Task, flags: int) -> int:
    """mlockall(2)."""
    flags = u32(flags)
    if not flags or flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
        raise SysError(EINVAL)
    mm = task.mm
    if not task.creds.capable(CAP_IPC_LOCK):
        limit = task.group.limits.soft(resource.RLIMIT_MEMLOCK)
        if limit == 0:
            raise SysError(EPERM)
        if flags & MCL_CURRENT and mm.regions.bytes > limit:
            raise SysError(ENOMEM)
    mm.settle_heap()
    mm.locked_future = VM_LOCKED if flags & MCL_FUTURE else 0
    if flags & MCL_CURRENT:
        remap.set_locked(mm, 0, TASK_SIZE, True)
        if not flags & MCL_ONFAULT:
            thread = task.thread
            assert thread is not None
            for vma in list(mm.regions):
                # The room of stacks is no memory that is in use.
                if vma.prot and not vma.flags & 0x100:
                    remap.populate(mm, thread, vma.start, vma.end)
    return 0


@syscall("munlockall")
def munlockall(task: Task) -> int:
    """munlockall(2)."""
    task.mm.locked_future = 0
    remap.set_locked(task.mm, 0, TASK_SIZE, False)
    return 0


@syscall("msync")
def msync(task: Task, address: int, length: int, flags: int) -> int:
    """msync(2)."""
    thread = task.thread
    assert thread is not None
    remap.sync(task.mm, thread, address, length, s32(flags))
    return 0


@syscall("mincore")
def mincore(task: Task, address: int, length: int, vector: int) -> int:
    """mincore(2)."""
    if address % PAGE_SIZE:
        raise SysError(EINVAL)
    if length > TASK_SIZE or address > TASK_SIZE - length:
        raise SysError(ENOMEM)
    end = address + page_up(length)
    mm = task.mm
    if mm.regions.covered(address, end) < end:
        raise SysError(ENOMEM)
    thread = task.thread
    assert thread is not None
    # The host checks the vector, which it writes to as the application itself could.
    if end > address:
        thread.syscall(SYS_MINCORE, address, end - address, vector)
    return 0


@syscall("remap_file_pages")
def remap_file_pages(task: Task, address: int, size: int, prot: int, pgoff: int, flags: int) -> int:
    """remap_file_pages(2)."""
    if prot:
        raise SysError(EINVAL)
    start = page_down(address)
    size = page_down(size)
    if size == 0 or start + size > TASK_SIZE or pgoff > U64 >> 13:
        raise SysError(EINVAL)
    mm = task.mm
    end = start + size
    vma = mm.regions.find(start)
    if vma is None or not vma.flags & VM_SHARED or vma.flags & VM_SEALED or end > vma.end:
        raise SysError(EINVAL)
    thread = task.thread
    assert thread is not None
    # The host has the file, or the memory without one; it makes a mapping of it, as this does in the list.
    mm.room.most += 2
    thread.syscall(SYS_REMAP_FILE_PAGES, start, size, 0, pgoff, u32(flags) & MAP_NONBLOCK)
    mm.regions.put(Vma(start, end, vma.prot, vma.flags, vma.file, pgoff * PAGE_SIZE, vma.shared, vma.name))
    return 0


@syscall("pkey_mprotect", Support.PARTIAL, "there is no key but 0, which all memory has")
def pkey_mprotect(task: Task, address: int, length: int, prot: int, key: int) -> int:
    """pkey_mprotect(2)."""
    if s32(key) not in (-1, 0):
        raise SysError(EINVAL)
    return mprotect(task, address, length, prot)


@syscall("pkey_alloc", Support.NONE, "ENOSPC, as on processors without protection keys")
def pkey_alloc(task: Task, flags: int, rights: int) -> int:
    """pkey_alloc(2)."""
    from errno import ENOSPC

    raise SysError(EINVAL if flags or rights & ~3 else ENOSPC)


@syscall("pkey_free", Support.NONE, "EINVAL: there is no key to free")
def pkey_free(task: Task, key: int) -> int:
    """pkey_free(2)."""
    raise SysError(EINVAL)
