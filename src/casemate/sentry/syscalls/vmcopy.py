"""System calls that reach into the memory of other processes."""

from __future__ import annotations

from errno import EFAULT, EINVAL, EPERM, ESRCH

from casemate.sentry.abi import s32, u32
from casemate.sentry.creds import CAP_SYS_NICE
from casemate.sentry.errno import SysError
from casemate.sentry.mm import remap
from casemate.sentry.mm.memory import MAX_RW_COUNT, Memory
from casemate.sentry.mm.space import AddressSpace
from casemate.sentry.mm.vma import PROT_EXEC, PROT_READ, PROT_WRITE
from casemate.sentry.syscalls.process import may_inspect
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.tasks.pidfd import PidFile
from casemate.sentry.tasks.task import Task

CHUNK = 1 << 20
ANY = PROT_READ | PROT_WRITE | PROT_EXEC


def _other(task: Task, pid: int) -> AddressSpace:
    """The memory of the process or thread with this number. Raises SysError: ESRCH, EPERM."""
    other = task.group.ns.pid.task(s32(pid))
    if other is None or other.thread is None:
        raise SysError(ESRCH)
    if other.mm is not task.mm and not may_inspect(task, other):
        raise SysError(EPERM)
    return other.mm


def _copy(
    source: AddressSpace, sources: list[tuple[int, int]], target: AddressSpace, targets: list[tuple[int, int]]
) -> int:
    """Copy from one list of buffers to the other as far as both go and can be touched.

    Returns how many bytes. Raises SysError(EFAULT) where not even the first one can be.
    """
    done = 0
    into = iter(targets)
    to, room = next(into, (0, 0))
    for base, size in sources:
        while size:
            while not room:
                following = next(into, None)
                if following is None:
                    return done
                to, room = following
            step = min(size, room, CHUNK)
            allowed = min(source.readable_size(base, step), target.readable_size(to, step, PROT_WRITE))
            if allowed:
                try:
                    target.write(to, source.read(base, allowed))
                except SysError:
                    allowed = 0
            done += allowed
            if allowed < step:
                if not done:
                    raise SysError(EFAULT)
                return done
            base, size = base + step, size - step
            to, room = to + step, room - step
    return done


def _vectors(mem: Memory, address: int, count: int) -> list[tuple[int, int]]:
    return mem.iovecs(address, count) if u32(count) else []


@syscall("process_vm_readv")
def process_vm_readv(
    task: Task, pid: int, local: int, local_count: int, remote: int, remote_count: int, flags: int
) -> int:
    """process_vm_readv(2)."""
    if flags:
        raise SysError(EINVAL)
    mine = _vectors(task.mem, local, local_count)
    theirs = _vectors(task.mem, remote, remote_count)
    if not sum(size for _, size in mine) or not sum(size for _, size in theirs):
        return 0
    return _copy(_other(task, s32(pid)), theirs, task.mm, mine)


@syscall("process_vm_writev")
def process_vm_writev(
    task: Task, pid: int, local: int, local_count: int, remote: int, remote_count: int, flags: int
) -> int:
    """process_vm_writev(2)."""
    if flags:
        raise SysError(EINVAL)
    mine = _vectors(task.mem, local, local_count)
    theirs = _vectors(task.mem, remote, remote_count)
    if not sum(size for _, size in mine) or not sum(size for _, size in theirs):
        return 0
    return _copy(task.mm, mine, _other(task, s32(pid)), theirs)


@syscall("process_madvise", Support.PARTIAL, "of other processes, advice is accepted but not acted on")
def process_madvise(task: Task, fd: int, vector: int, count: int, advice: int, flags: int) -> int:
    """process_madvise(2): how many bytes were advised."""
    if u32(flags):
        raise SysError(EINVAL)
    file = task.files.get(s32(fd))
    if not isinstance(file, PidFile):
        from errno import EBADF

        raise SysError(EBADF)
    advice = s32(advice)
    vectors = _vectors(task.mem, vector, count)
    other = file.group.any_task
    if other is None or other.thread is None:
        raise SysError(ESRCH)
    if advice not in (remap.MADV_COLD, remap.MADV_PAGEOUT, remap.MADV_WILLNEED, remap.MADV_COLLAPSE) and (
        other.mm is not task.mm
    ):
        raise SysError(EINVAL)
    if other.mm is not task.mm and not (may_inspect(task, other) and task.creds.capable(CAP_SYS_NICE)):
        raise SysError(EPERM)
    done = 0
    for base, size in vectors:
        if size and other.mm is task.mm and task.thread is not None:
            try:
                remap.advise(task.mm, task.thread, base, size, advice)
            except SysError:
                if not done:
                    raise
                break
        done += size
    return min(done, MAX_RW_COUNT)
