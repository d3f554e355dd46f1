"""Scheduling, sched(7): the host schedules, so most of this is noted and told again."""

from __future__ import annotations

import contextlib
import functools
import os
import struct
from collections.abc import Iterator
from errno import E2BIG, EACCES, EINVAL, EPERM, ESRCH
from resource import RLIMIT_NICE
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32, u32
from casemate.sentry.creds import CAP_SYS_NICE
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.process import find_task
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.tasks import session
from casemate.sentry.tasks.attributes import AFFINITY, IOPRIO, NICE, POLICY, PRIORITY, RESET, apply_affinity

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE, SCHED_DEADLINE = 0, 1, 2, 3, 5, 6
SCHED_RESET_ON_FORK = 0x40000000
SCHED_FLAG_RESET_ON_FORK = 1
PRIO_PROCESS, PRIO_PGRP, PRIO_USER = range(3)
SCHED_ATTR_SIZE_VER0 = 48
RR_INTERVAL_NS = 100_000_000
IOPRIO_WHO_PROCESS, IOPRIO_WHO_PGRP, IOPRIO_WHO_USER = 1, 2, 3
IOPRIO_CLASS_BE, IOPRIO_CLASS_IDLE = 2, 3
IOPRIO_CLASS_SHIFT = 13
_NOTE = "noted and told again; the host schedules all threads alike"


def before_isolation() -> None:
    """Ask what cannot be asked later."""
    processors()


@functools.cache
def processors() -> int:
    """The processors that the sandbox may use, as a bit set."""
    return sum(1 << cpu for cpu in os.sched_getaffinity(0))


def affinity(task: Task) -> int:
    """The processors that a task may use, as a bit set."""
    return task.prctl.get(AFFINITY, 0) or processors()


def nice(task: Task) -> int:
    """Its nice value, -20 to 19."""
    return task.prctl.get(NICE, 0)


def _owner(task: Task, target: Task) -> bool:
    """Whether the caller may change the target's scheduling."""
    return task.creds.euid in (target.creds.uid, target.creds.euid) or task.creds.capable(CAP_SYS_NICE)


def _number(policy: int) -> tuple[int, bool]:
    """A policy, and whether children are to have the ordinary one."""
    return policy & ~SCHED_RESET_ON_FORK, bool(policy & SCHED_RESET_ON_FORK)


def _set(task: Task, pid: int, policy: int, priority: int) -> None:
    """sched_setscheduler(2). Raises SysError: EINVAL, ESRCH, EPERM."""
    if s32(pid) < 0:
        raise SysError(EINVAL)
    target = find_task(task, pid)
    policy, reset = _number(policy)
    if policy in (SCHED_FIFO, SCHED_RR):
        if not 1 <= priority <= 99:
            raise SysError(EINVAL)
        if not task.creds.capable(CAP_SYS_NICE):
            raise SysError(EPERM)
    elif policy not in (SCHED_OTHER, SCHED_BATCH, SCHED_IDLE) or priority:
        raise SysError(EINVAL)
    if not _owner(task, target):
        raise SysError(EPERM)
    if (
        target.prctl.get(POLICY) == SCHED_IDLE
        and policy != SCHED_IDLE
        and not task.creds.capable(CAP_SYS_NICE)
        and 20 - nice(target) > target.group.limits.soft(RLIMIT_NICE)
    ):
        raise SysError(EPERM)  # sched(7): leaving SCHED_IDLE takes what raising the priority does
    target.prctl[POLICY] = policy
    target.prctl[PRIORITY] = priority
    target.prctl[RESET] = int(reset)


@syscall("sched_yield")
def sched_yield(task: Task) -> int:
    """sched_yield(2)."""
    return 0


@syscall("sched_setscheduler", Support.PARTIAL, _NOTE)
def sched_setscheduler(task: Task, pid: int, policy: int, param: int) -> int:
    """sched_setscheduler(2)."""
    if not param or s32(policy) < 0:
        raise SysError(EINVAL)
    _set(task, pid, u32(policy), task.mem.s32(param))
    return 0


@syscall("sched_getscheduler")
def sched_getscheduler(task: Task, pid: int) -> int:
    """sched_getscheduler(2)."""
    if s32(pid) < 0:
        raise SysError(EINVAL)
    noted = find_task(task, pid).prctl
    return noted.get(POLICY, SCHED_OTHER) | (SCHED_RESET_ON_FORK if noted.get(RESET) else 0)


@syscall("sched_setparam", Support.PARTIAL, _NOTE)
def sched_setparam(task: Task, pid: int, param: int) -> int:
    """sched_setparam(2)."""
    if not param or s32(pid) < 0:
        raise SysError(EINVAL)
    noted = find_task(task, pid).prctl
    policy = noted.get(POLICY, SCHED_OTHER) | (SCHED_RESET_ON_FORK if noted.get(RESET) else 0)
    _set(task, pid, policy, task.mem.s32(param))
    return 0


@syscall("sched_getparam")
def sched_getparam(task: Task, pid: int, param: int) -> int:
    """sched_getparam(2)."""
    if not param or s32(pid) < 0:
        raise SysError(EINVAL)
    task.mem.put_u32(param, find_task(task, pid).prctl.get(PRIORITY, 0))
    return 0


@syscall("sched_get_priority_max")
def sched_get_priority_max(task: Task, policy: int) -> int:
    """sched_get_priority_max(2)."""
    return _priority_range(policy, 99)


@syscall("sched_get_priority_min")
def sched_get_priority_min(task: Task, policy: int) -> int:
    """sched_get_priority_min(2)."""
    return _priority_range(policy, 1)


def _priority_range(policy: int, realtime: int) -> int:
    if u32(policy) in (SCHED_FIFO, SCHED_RR):
        return realtime
    if u32(policy) in (SCHED_OTHER, SCHED_BATCH, SCHED_IDLE, SCHED_DEADLINE):
        return 0
    raise SysError(EINVAL)


@syscall("sched_rr_get_interval")
def sched_rr_get_interval(task: Task, pid: int, interval: int) -> int:
    """sched_rr_get_interval(2)."""
    if s32(pid) < 0:
        raise SysError(EINVAL)
    policy = find_task(task, pid).prctl.get(POLICY, SCHED_OTHER)
    task.mem.put_timespec(interval, RR_INTERVAL_NS if policy == SCHED_RR else 0)
    return 0


@syscall("sched_setaffinity")
def sched_setaffinity(task: Task, pid: int, size: int, mask: int) -> int:
    """sched_setaffinity(2)."""
    target = find_task(task, pid)
    wanted = int.from_bytes(task.mem.read(mask, min(u32(size), 8192)), "little")
    if not _owner(task, target):
        raise SysError(EPERM)
    usable = wanted & processors()
    if not usable:
        raise SysError(EINVAL)
    if target.thread is None:
        raise SysError(ESRCH)
    target.prctl[AFFINITY] = usable
    # The host may have fewer for the sandbox by now: then it runs the thread where it likes.
    with contextlib.suppress(OSError):
        apply_affinity(target)
    return 0


@syscall("sched_getaffinity")
def sched_getaffinity(task: Task, pid: int, size: int, mask: int) -> int:
    """sched_getaffinity(2): gives the size of the kernel's own set."""
    found = affinity(find_task(task, pid))
    length = (max(found.bit_length(), (os.cpu_count() or 1)) + 63) // 64 * 8
    room = u32(size)
    if room < length or room % 8 or not u32(room * 8):
        raise SysError(EINVAL)
    task.mem.write(mask, found.to_bytes(length, "little"))
    return length


@syscall("sched_setattr", Support.PARTIAL, _NOTE + "; no deadlines")
def sched_setattr(task: Task, pid: int, attr: int, flags: int) -> int:
    """sched_setattr(2)."""
    if not attr or s32(pid) < 0 or u32(flags):
        raise SysError(EINVAL)
    size = task.mem.u32(attr) or SCHED_ATTR_SIZE_VER0
    if size < SCHED_ATTR_SIZE_VER0 or size > 4096:
        task.mem.put_u32(attr, SCHED_ATTR_SIZE_VER0)
        raise SysError(E2BIG)
    data = task.mem.read(attr, size)
    if any(data[56:]):
        task.mem.put_u32(attr, SCHED_ATTR_SIZE_VER0)
        raise SysError(E2BIG)
    _, policy, bits, niceness, priority = struct.unpack_from("<IIQiI", data)
    target = find_task(task, pid)
    reset = SCHED_RESET_ON_FORK if bits & SCHED_FLAG_RESET_ON_FORK else 0
    _set(task, pid, policy | reset, priority)
    if policy in (SCHED_OTHER, SCHED_BATCH):
        _renice(task, target, niceness)
    return 0


@syscall("sched_getattr")
def sched_getattr(task: Task, pid: int, attr: int, size: int, flags: int) -> int:
    """sched_getattr(2)."""
    room = u32(size)
    if not attr or s32(pid) < 0 or u32(flags) or not SCHED_ATTR_SIZE_VER0 <= room <= 4096:
        raise SysError(EINVAL)
    target = find_task(task, pid)
    noted = target.prctl
    bits = SCHED_FLAG_RESET_ON_FORK if noted.get(RESET) else 0
    policy = noted.get(POLICY, SCHED_OTHER)
    data = struct.pack(
        "<IIQiIQQQ", SCHED_ATTR_SIZE_VER0, policy, bits, nice(target), noted.get(PRIORITY, 0), 0, 0, 0
    )
    task.mem.write(attr, data)
    return 0


# Nice values.


def _targets(task: Task, which: int, who: int) -> Iterator[Task]:
    """Whom getpriority(2) and ioprio_get(2) mean. Raises SysError(EINVAL)."""
    pids = task.group.ns.pid
    if which == PRIO_PROCESS:
        with contextlib.suppress(SysError):
            yield find_task(task, who)
    elif which == PRIO_PGRP:
        group = task.group.process_group if who == 0 else session.find(pids, who)
        for member in list(group.members.values()) if group is not None else []:
            yield from list(member.tasks.values())
    elif which == PRIO_USER:
        uid = task.creds.uid if who == 0 else who
        for other in list(task.kernel.tasks.values()):
            if other.creds.uid == uid and other.group.ns.pid is pids and other.thread is not None:
                yield other
    else:
        raise SysError(EINVAL)


@syscall("getpriority")
def getpriority(task: Task, which: int, who: int) -> int:
    """getpriority(2): the kernel gives 20 minus the nice value."""
    found = [20 - nice(target) for target in _targets(task, s32(which), s32(who))]
    if not found:
        raise SysError(ESRCH)
    return max(found)


def _renice(task: Task, target: Task, wanted: int) -> None:
    """Raises SysError: EPERM, EACCES."""
    wanted = max(-20, min(19, wanted))
    if not _owner(task, target):
        raise SysError(EPERM)
    lowest = 20 - min(40, target.group.limits.soft(RLIMIT_NICE))
    if wanted < nice(target) and wanted < lowest and not task.creds.capable(CAP_SYS_NICE):
        raise SysError(EACCES)
    target.prctl[NICE] = wanted


@syscall("setpriority", Support.PARTIAL, _NOTE)
def setpriority(task: Task, which: int, who: int, value: int) -> int:
    """setpriority(2)."""
    error = ESRCH
    for target in _targets(task, s32(which), s32(who)):
        try:
            _renice(task, target, s32(value))
        except SysError as failed:
            error = failed.errno
        else:
            error = 0 if error == ESRCH else error
    if error:
        raise SysError(error)
    return 0


@syscall("ioprio_get")
def ioprio_get(task: Task, which: int, who: int) -> int:
    """ioprio_get(2)."""
    targets = _targets(task, s32(which) - 1, s32(who))
    found = [target.prctl.get(IOPRIO, 0) or _from_nice(which, target) for target in targets]
    if not found:
        raise SysError(ESRCH)
    return min(found)


def _from_nice(which: int, target: Task) -> int:
    """What counts for a task without a priority of its own; for a single one, ioprio_get(2) just says that."""
    if s32(which) == IOPRIO_WHO_PROCESS:
        return 0
    kind = IOPRIO_CLASS_IDLE if target.prctl.get(POLICY) == SCHED_IDLE else IOPRIO_CLASS_BE
    return kind << IOPRIO_CLASS_SHIFT | (nice(target) + 20) // 5


@syscall("ioprio_set", Support.PARTIAL, _NOTE)
def ioprio_set(task: Task, which: int, who: int, value: int) -> int:
    """ioprio_set(2)."""
    value = s32(value)
    kind, level = value >> IOPRIO_CLASS_SHIFT, value & (1 << IOPRIO_CLASS_SHIFT) - 1
    if not 0 <= kind <= 3 or (kind == 0 and level) or (kind in (1, 2) and level & 7 != level):
        raise SysError(EINVAL)
    if kind == 1 and not task.creds.capable(CAP_SYS_NICE):
        raise SysError(EPERM)
    found = False
    for target in _targets(task, s32(which) - 1, s32(who)):
        if not _owner(task, target):
            raise SysError(EPERM)
        target.prctl[IOPRIO] = value
        found = True
    if not found:
        raise SysError(ESRCH)
    return 0


@syscall("getcpu")
def getcpu(task: Task, cpu: int, node: int) -> int:
    """getcpu(2)."""
    assert task.thread is not None
    lowest = affinity(task)
    number = (lowest & -lowest).bit_length() - 1
    if cpu:
        task.mem.put_u32(cpu, number)
    if node:
        task.mem.put_u32(node, 0)
    return 0
