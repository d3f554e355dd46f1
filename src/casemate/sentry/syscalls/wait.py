"""Waiting for children, wait(2)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from errno import EAGAIN, ECHILD, EINVAL, ESRCH
from signal import SIGCHLD, SIGCONT
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32, u32
from casemate.sentry.errno import SysError
from casemate.sentry.signals.info import CLD_CONTINUED, CLD_STOPPED
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.tasks import exit as exits
from casemate.sentry.tasks import usage
from casemate.sentry.tasks.pidfd import PidFile
from casemate.sentry.wait import Block

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task, ThreadGroup

WNOHANG, WUNTRACED, WSTOPPED, WEXITED, WCONTINUED, WNOWAIT = 1, 2, 2, 4, 8, 0x01000000
__WNOTHREAD, __WALL, __WCLONE = 0x20000000, 0x40000000, 0x80000000
_COMMON = WNOHANG | WUNTRACED | WCONTINUED | __WNOTHREAD | __WALL | __WCLONE
P_ALL, P_PID, P_PGID, P_PIDFD = range(4)
INT_MIN = -(1 << 31)
CONTINUED = 0xFFFF
"""The status of a child that goes on after a stop."""


class Change(IntEnum):
    """What is told of a child."""

    ENDED = 0
    STOPPED = 1
    CONTINUED = 2


def _eligible(task: Task, kind: int, number: int, options: int) -> Iterator[ThreadGroup]:
    """The children that a call may tell of."""
    children = task.group.children
    candidates: list[ThreadGroup]
    if kind == P_PID:
        child = children.get(number)
        candidates = [] if child is None else [child]
    elif kind == P_PGID:
        candidates = [child for child in children.values() if child.process_group.pgid == number]
    else:
        candidates = list(children.values())
    for child in candidates:
        # Those made with another signal than SIGCHLD are "clone" children, waited for on request only.
        if options & __WALL or (child.exit_signal != SIGCHLD) == bool(options & __WCLONE):
            yield child


def _find(task: Task, kind: int, number: int, options: int) -> tuple[ThreadGroup, Change] | None:
    """A child with something to tell; None when there are only others. Raises SysError(ECHILD) without any child."""
    none = True
    for child in _eligible(task, kind, number, options):
        none = False
        if child.zombie:
            if options & WEXITED:
                return child, Change.ENDED
            continue
        signals = child.signals
        if options & WSTOPPED and signals.tell_stop:
            return child, Change.STOPPED
        if options & WCONTINUED and signals.tell_continue:
            return child, Change.CONTINUED
    if none:
        raise SysError(ECHILD)
    return None


def _told(child: ThreadGroup, change: Change) -> None:
    """The change has been told: it is not again."""
    if change is Change.ENDED:
        exits.reap(child)
    elif change is Change.STOPPED:
        child.signals.tell_stop = 0
    else:
        child.signals.tell_continue = False


@syscall("wait4")
def wait4(task: Task, pid: int, status: int, options: int, rusage: int) -> int:
    """wait4(2)."""
    options = u32(options)
    if options & ~_COMMON:
        raise SysError(EINVAL)
    number = s32(pid)
    if number == INT_MIN:
        raise SysError(ESRCH)
    if number < -1:
        kind, number = P_PGID, -number
    elif number == -1:
        kind = P_ALL
    elif number == 0:
        kind, number = P_PGID, task.group.process_group.pgid
    else:
        kind = P_PID
    found = _find(task, kind, number, options | WEXITED)
    if found is None:
        if options & WNOHANG:
            return 0
        raise Block(task.group.child_wait)
    child, change = found
    used = usage.of_child(child) if rusage else b""
    if change is Change.ENDED:
        word = child.exit_code or 0
    elif change is Change.STOPPED:
        word = child.signals.tell_stop << 8 | 0x7F
    else:
        word = CONTINUED
    result = child.pid
    _told(child, change)
    if status:
        task.mem.put_u32(status, word)
    if rusage:
        task.mem.write(rusage, used)
    return result


@syscall("waitid")
def waitid(task: Task, which: int, number: int, info: int, options: int, rusage: int) -> int:
    """waitid(2); the fifth argument is the kernel's own, as wait4(2)'s last."""
    options, kind, id_ = u32(options), u32(which), s32(number)
    if options & ~(_COMMON | WEXITED | WNOWAIT) or not options & (WEXITED | WSTOPPED | WCONTINUED):
        raise SysError(EINVAL)
    nonblocking = False
    if kind == P_PID:
        if id_ <= 0:
            raise SysError(EINVAL)
    elif kind == P_PGID:
        if id_ < 0:
            raise SysError(EINVAL)
        id_ = id_ or task.group.process_group.pgid
    elif kind == P_PIDFD:
        if id_ < 0:
            raise SysError(EINVAL)
        file = task.files.get(id_)
        if not isinstance(file, PidFile):
            raise SysError(EINVAL)
        kind, id_ = P_PID, file.group.pid
        if task.group.children.get(id_) is not file.group:
            raise SysError(ECHILD)
        nonblocking = bool(file.flags & os.O_NONBLOCK)
    elif kind != P_ALL:
        raise SysError(EINVAL)
    try:
        found = _find(task, kind, id_, options)
    except SysError:
        if info:
            _put_info(task, info, 0, 0, 0, 0, 0)  # as Linux does, where there is nothing to tell of
        raise
    if found is None:
        if options & WNOHANG:
            if info:
                _put_info(task, info, 0, 0, 0, 0, 0)
            return 0
        if nonblocking:
            raise SysError(EAGAIN)
        raise Block(task.group.child_wait)
    child, change = found
    used = usage.of_child(child) if rusage else b""
    if change is Change.ENDED:
        told = exits.child_info(child)
        code, value = told.code, told.status
    elif change is Change.STOPPED:
        code, value = CLD_STOPPED, child.signals.tell_stop
    else:
        code, value = CLD_CONTINUED, int(SIGCONT)
    owner = exits.uid(child)
    pid = child.pid
    if not options & WNOWAIT:
        _told(child, change)
    if rusage:
        task.mem.write(rusage, used)
    if info:
        _put_info(task, info, SIGCHLD, code, pid, owner, value)
    return 0


def _put_info(task: Task, address: int, signum: int, code: int, pid: int, uid: int, status: int) -> None:
    """The fields of ``siginfo_t`` that waitid(2) sets."""
    task.mem.write(address, struct.pack("<iiiiiIi", signum, 0, code, 0, pid, uid, status))
