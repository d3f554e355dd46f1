"""System calls for System V shared memory."""

from __future__ import annotations

import resource
import struct
from errno import EINVAL, ENOMEM, EPERM

from casemate.sentry.abi import PAGE_SIZE, page_up, s32
from casemate.sentry.creds import CAP_IPC_LOCK
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.shm import SHM_LOCKED, SHMALL, SHMMAX, SHMMNI, SegmentFile, segments
from casemate.sentry.ipc.sysv import IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT, PERM_SIZE, READ, WRITE
from casemate.sentry.mm.mapping import MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_SHARED
from casemate.sentry.mm.vma import PROT_EXEC, PROT_READ, PROT_WRITE, Vma
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.tasks.task import Task

SHM_RDONLY, SHM_RND, SHM_REMAP, SHM_EXEC = 0o10000, 0o20000, 0o40000, 0o100000
SHM_HUGETLB = 0o4000
EXECUTE = 0o111
SHM_LOCK, SHM_UNLOCK, SHM_STAT, SHM_INFO, SHM_STAT_ANY = 11, 12, 13, 14, 15


@syscall("shmget")
def shmget(task: Task, key: int, size: int, flags: int) -> int:
    """shmget(2)."""
    flags = s32(flags)
    if flags & SHM_HUGETLB:
        # The pool of huge pages is empty.
        raise SysError(ENOMEM)
    return segments(task.group.ns.ipc).obtain(task, s32(key), size, flags)


@syscall("shmat")
def shmat(task: Task, number: int, address: int, flags: int) -> int:
    """shmat(2): the address."""
    number, flags = s32(number), s32(flags)
    if number < 0:
        raise SysError(EINVAL)
    how = MAP_SHARED
    if address:
        if address % PAGE_SIZE:
            if not flags & SHM_RND:
                raise SysError(EINVAL)
            address &= -PAGE_SIZE
            if not address and flags & SHM_REMAP:
                raise SysError(EINVAL)
        how |= MAP_FIXED if flags & SHM_REMAP else MAP_FIXED_NOREPLACE
    elif flags & SHM_REMAP:
        raise SysError(EINVAL)
    prot, wanted = PROT_READ, READ
    if not flags & SHM_RDONLY:
        prot, wanted = prot | PROT_WRITE, wanted | WRITE
    if flags & SHM_EXEC:
        prot, wanted = prot | PROT_EXEC, wanted | EXECUTE
    segment = segments(task.group.ns.ipc).find(number)
    segment.check(task, wanted)
    size = page_up(segment.size)
    mm = task.mm
    if how & MAP_FIXED_NOREPLACE and not mm.regions.free(address, address + size):
        raise SysError(EINVAL)
    if mm.regions.bytes + size > task.group.limits.soft(resource.RLIMIT_AS):
        raise SysError(ENOMEM)
    thread = task.thread
    assert thread is not None
    file = segment.read_only if flags & SHM_RDONLY else segment.read_write
    address = mm.map(thread, address, size, prot, how, file, shared=segment)
    segment.atime = segment.table.now()
    segment.lpid = task.pid
    return address


@syscall("shmdt")
def shmdt(task: Task, address: int) -> int:
    """shmdt(2)."""
    if address % PAGE_SIZE:
        raise SysError(EINVAL)
    mm = task.mm
    first: Vma | None = None
    # Parts of it may have been unmapped or changed; all that is left of this attachment goes.
    for vma in mm.regions.vmas[mm.regions.index(address) :]:
        if isinstance(vma.file, SegmentFile) and vma.start - address == vma.offset:
            first = vma
            break
    if first is None or not isinstance(first.file, SegmentFile):
        raise SysError(EINVAL)
    file, segment = first.file, first.file.segment
    thread = task.thread
    assert thread is not None
    parts = mm.regions.within(first.start, address + page_up(segment.size))
    segment.lpid = task.pid
    for vma in parts:
        if vma.file is file and vma.start - address == vma.offset:
            mm.unmap(thread, vma.start, vma.end - vma.start)
    return 0


@syscall("shmctl")
def shmctl(task: Task, number: int, command: int, buffer: int) -> int:
    """shmctl(2)."""
    number, command = s32(number), s32(command)
    if number < 0 or command < 0:
        raise SysError(EINVAL)
    table = segments(task.group.ns.ipc)
    if command == IPC_INFO:
        task.mem.write(buffer, struct.pack("<9Q", SHMMAX, 1, SHMMNI, SHMMNI, SHMALL, 0, 0, 0, 0))
        return table.highest()
    if command == SHM_INFO:
        pages = table.pages()
        task.mem.write(buffer, struct.pack("<iIQQQQQ", len(table.by_index), 0, pages, pages, 0, 0, 0))
        return table.highest()
    if command in (IPC_STAT, SHM_STAT, SHM_STAT_ANY):
        segment = table.find(number) if command == IPC_STAT else table.at(number)
        if command != SHM_STAT_ANY:
            segment.check(task, READ)
        task.mem.write(buffer, segment.stat())
        return 0 if command == IPC_STAT else segment.id
    if command == IPC_SET:
        data = task.mem.read(buffer, PERM_SIZE)
        segment = table.find(number)
        segment.set_perm(task, data)
        return 0
    if command == IPC_RMID:
        segment = table.find(number)
        segment.own(task)
        segment.doom()
        return 0
    if command in (SHM_LOCK, SHM_UNLOCK):
        segment = table.find(number)
        if not task.creds.capable(CAP_IPC_LOCK):
            if task.creds.euid not in (segment.uid, segment.cuid):
                raise SysError(EPERM)
            if command == SHM_LOCK and not task.group.limits.soft(resource.RLIMIT_MEMLOCK):
                raise SysError(EPERM)
        segment.mode = segment.mode & ~SHM_LOCKED | (SHM_LOCKED if command == SHM_LOCK else 0)
        return 0
    raise SysError(EINVAL)
