"""Limits and the use of resources, getrlimit(2), getrusage(2), times(2)."""

from __future__ import annotations

import struct
from errno import EINVAL, EPERM
from resource import RLIMIT_CPU, RLIMIT_NOFILE
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32, u32
from casemate.sentry.creds import CAP_SYS_RESOURCE
from casemate.sentry.errno import SysError
from casemate.sentry.limits import NR_OPEN, RLIM_NLIMITS
from casemate.sentry.syscalls.process import find_task
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.tasks import usage

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

RUSAGE_SELF, RUSAGE_CHILDREN, RUSAGE_THREAD = 0, -1, 1


def _set(task: Task, target: Task, number: int, soft: int, hard: int) -> None:
    """Change a limit as far as the caller may. Raises SysError: EINVAL, EPERM."""
    limits = target.group.limits
    if soft > hard:
        raise SysError(EINVAL)
    if number == RLIMIT_NOFILE and hard > NR_OPEN:
        raise SysError(EPERM)
    if hard > limits.get(number)[1] and not task.creds.capable(CAP_SYS_RESOURCE):
        raise SysError(EPERM)
    target.mm.settle_heap()  # what the host may do without telling was within the old one
    limits.set(number, soft, hard)
    if number == RLIMIT_CPU:
        usage.watch_limit(target.group)


@syscall("getrlimit")
def getrlimit(task: Task, resource: int, rlim: int) -> int:
    """getrlimit(2)."""
    number = u32(resource)
    if number >= RLIM_NLIMITS:
        raise SysError(EINVAL)
    task.mem.write(rlim, struct.pack("<QQ", *task.group.limits.get(number)))
    return 0


@syscall("setrlimit")
def setrlimit(task: Task, resource: int, rlim: int) -> int:
    """setrlimit(2)."""
    number = u32(resource)
    soft, hard = struct.unpack("<QQ", task.mem.read(rlim, 16))
    if number >= RLIM_NLIMITS:
        raise SysError(EINVAL)
    _set(task, task, number, soft, hard)
    return 0


@syscall("prlimit64")
def prlimit64(task: Task, pid: int, resource: int, new: int, old: int) -> int:
    """prlimit(2)."""
    number = u32(resource)
    if number >= RLIM_NLIMITS:
        raise SysError(EINVAL)
    wanted = struct.unpack("<QQ", task.mem.read(new, 16)) if new else None
    target = find_task(task, pid)
    if target is not task:
        mine, theirs = task.creds, target.creds
        same = {theirs.uid, theirs.euid, theirs.suid} == {mine.uid}
        if not (same and {theirs.gid, theirs.egid, theirs.sgid} == {mine.gid}) and not mine.capable(CAP_SYS_RESOURCE):
            raise SysError(EPERM)
    before = target.group.limits.get(number)
    if wanted is not None:
        _set(task, target, number, wanted[0], wanted[1])
    if old:
        task.mem.write(old, struct.pack("<QQ", *before))
    return 0


@syscall("getrusage")
def getrusage(task: Task, who: int, address: int) -> int:
    """getrusage(2). All processor time is user time; page faults, input and switches are not counted."""
    group = task.group
    which = s32(who)
    if which == RUSAGE_SELF:
        used = usage.rusage(usage.process_time(group), usage.max_rss(task))
    elif which == RUSAGE_THREAD:
        used = usage.rusage(usage.thread_time(task), usage.max_rss(task))
    elif which == RUSAGE_CHILDREN:
        used = usage.rusage(group.usage.get("children", 0), group.usage.get("children_maxrss", 0))
    else:
        raise SysError(EINVAL)
    task.mem.write(address, used)
    return 0


@syscall("times")
def times(task: Task, address: int) -> int:
    """times(2)."""
    if address:
        group = task.group
        own = usage.process_time(group) // usage.TICK_NS
        children = group.usage.get("children", 0) // usage.TICK_NS
        task.mem.write(address, struct.pack("<4q", own, 0, children, 0))
    return task.kernel.clock.monotonic() // usage.TICK_NS
