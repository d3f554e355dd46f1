"""Filters of applications on their own system calls, seccomp(2)."""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP
from typing import TYPE_CHECKING

from casemate.sentry.abi import u32
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.tasks import filters

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SECCOMP_SET_MODE_STRICT, SECCOMP_SET_MODE_FILTER, SECCOMP_GET_ACTION_AVAIL = 0, 1, 2
_ACTIONS = (
    filters.SECCOMP_RET_KILL_PROCESS,
    filters.SECCOMP_RET_KILL_THREAD,
    filters.SECCOMP_RET_TRAP,
    filters.SECCOMP_RET_ERRNO,
    filters.SECCOMP_RET_TRACE,
    filters.SECCOMP_RET_LOG,
    filters.SECCOMP_RET_ALLOW,
)


@syscall("seccomp", Support.PARTIAL, "no user notification: filters with a listener answer EINVAL")
def seccomp(task: Task, operation: int, flags: int, args: int) -> int:
    """seccomp(2)."""
    operation, flags = u32(operation), u32(flags)
    if operation == SECCOMP_SET_MODE_STRICT:
        if flags or args:
            raise SysError(EINVAL)
        return filters.set_strict(task)
    if operation == SECCOMP_SET_MODE_FILTER:
        return filters.add(task, flags, args)
    if operation == SECCOMP_GET_ACTION_AVAIL:
        if flags:
            raise SysError(EINVAL)
        if task.mem.u32(args) not in _ACTIONS:
            raise SysError(EOPNOTSUPP)
        return 0
    raise SysError(EINVAL)
