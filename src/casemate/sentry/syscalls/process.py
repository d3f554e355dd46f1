"""Who a task is, and what it is related to: numbers, process groups, sessions, descriptors of processes."""

from __future__ import annotations

import os
from errno import EBADF, EINVAL, ENODEV, EPERM, ESRCH
from typing import TYPE_CHECKING, Any

from casemate.sentry.abi import s32, u32
from casemate.sentry.creds import CAP_SYS_PTRACE
from casemate.sentry.errno import SysError
from casemate.sentry.mm.memory import TASK_SIZE
from casemate.sentry.signals.info import SI_TKILL, SI_USER, SIZE, SigInfo
from casemate.sentry.signals.send import permitted, send
from casemate.sentry.signals.state import NSIG
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.tasks import session
from casemate.sentry.tasks.pidfd import PidFile
from casemate.sentry.tasks.task import ThreadGroup

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

ARCH_SET_GS, ARCH_SET_FS, ARCH_GET_FS, ARCH_GET_GS = 0x1001, 0x1002, 0x1003, 0x1004
ARCH_GET_CPUID, ARCH_SET_CPUID = 0x1011, 0x1012
PIDFD_NONBLOCK = os.O_NONBLOCK
KCMP_FILE, KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_IO, KCMP_SYSVSEM, KCMP_EPOLL_TFD = range(8)


def find_group(task: Task, pid: int) -> ThreadGroup:
    """The process of that number, the caller's for 0. Raises SysError(ESRCH)."""
    number = s32(pid)
    if number == 0:
        return task.group
    group = task.group.ns.pid.group(number)
    if group is None:
        raise SysError(ESRCH)
    return group


def find_task(task: Task, tid: int) -> Task:
    """The thread of that number, the caller for 0. Raises SysError(ESRCH)."""
    number = s32(tid)
    if number == 0:
        return task
    found = task.group.ns.pid.task(number)
    if found is None:
        raise SysError(ESRCH)
    return found


def may_inspect(task: Task, other: Task) -> bool:
    """Whether the task may look into another one's memory and descriptors, ptrace(2) "access mode checking"."""
    if other.group is task.group:
        return True
    mine, theirs = task.creds, other.creds
    if mine.capable(CAP_SYS_PTRACE):
        return True
    same = mine.uid == theirs.uid == theirs.euid == theirs.suid and mine.gid == theirs.gid == theirs.egid == theirs.sgid
    return same and other.group.dumpable == 1 and theirs.permitted & ~mine.permitted == 0


@syscall("getpid")
def getpid(task: Task) -> int:
    """getpid(2)."""
    return task.group.pid


@syscall("gettid")
def gettid(task: Task) -> int:
    """gettid(2)."""
    return task.tid


@syscall("getppid")
def getppid(task: Task) -> int:
    """getppid(2); 0 for who came in from outside of the sandbox."""
    parent = task.group.parent
    return parent.pid if parent is not None else 0


@syscall("getpgrp")
def getpgrp(task: Task) -> int:
    """getpgrp(2)."""
    return task.group.process_group.pgid


@syscall("getpgid")
def getpgid(task: Task, pid: int) -> int:
    """getpgid(2)."""
    return find_group(task, pid).process_group.pgid


@syscall("setpgid")
def setpgid(task: Task, pid: int, pgid: int) -> int:
    """setpgid(2)."""
    if s32(pgid) < 0:
        raise SysError(EINVAL)
    session.setpgid(task.group, s32(pid), s32(pgid))
    return 0


@syscall("getsid")
def getsid(task: Task, pid: int) -> int:
    """getsid(2)."""
    return find_group(task, pid).process_group.session.sid


@syscall("setsid")
def setsid(task: Task) -> int:
    """setsid(2)."""
    return session.setsid(task.group)


@syscall("set_tid_address")
def set_tid_address(task: Task, address: int) -> int:
    """set_tid_address(2)."""
    task.clear_child_tid = address
    return task.tid


@syscall("arch_prctl")
def arch_prctl(task: Task, op: int, address: int) -> int:
    """arch_prctl(2). The processor's CPUID cannot be made to fault."""
    assert task.thread is not None
    regs = task.thread.regs
    op = u32(op)
    if op in (ARCH_SET_FS, ARCH_SET_GS):
        if address >= TASK_SIZE:
            raise SysError(EPERM)
        if op == ARCH_SET_FS:
            regs.fs_base = address
        else:
            regs.gs_base = address
        return 0
    if op == ARCH_GET_FS:
        task.mem.put_u64(address, regs.fs_base)
        return 0
    if op == ARCH_GET_GS:
        task.mem.put_u64(address, regs.gs_base)
        return 0
    if op == ARCH_GET_CPUID:
        return 1
    if op == ARCH_SET_CPUID:
        raise SysError(ENODEV)
    raise SysError(EINVAL)


@syscall("pidfd_open")
def pidfd_open(task: Task, pid: int, flags: int) -> int:
    """pidfd_open(2) of processes; ``PIDFD_THREAD`` is not there."""
    flags, number = u32(flags), s32(pid)
    if flags & ~PIDFD_NONBLOCK or number <= 0:
        raise SysError(EINVAL)
    group = find_task(task, number).group
    if group.pid != number:
        raise SysError(EINVAL)
    return task.files.install(PidFile(flags, group), cloexec=True)


@syscall("pidfd_send_signal")
def pidfd_send_signal(task: Task, pidfd: int, sig: int, info: int, flags: int) -> int:
    """pidfd_send_signal(2)."""
    signo = s32(sig)
    if u32(flags):
        raise SysError(EINVAL)
    file = task.files.get(pidfd)
    # A directory /proc/PID is as good.
    process = file.group if isinstance(file, PidFile) else file.inode and file.inode.extra.get("process")
    if not isinstance(process, ThreadGroup):
        raise SysError(EBADF)
    group = process
    if info:
        told = SigInfo.parse(task.mem.read(info, SIZE))
        if told.signo != signo:
            raise SysError(EINVAL)
        # Nobody may claim to be the kernel, or kill(2), towards others.
        if (told.code >= 0 or told.code == SI_TKILL) and group is not task.group:
            raise SysError(EPERM)
    else:
        told = SigInfo.user(signo, SI_USER, task.pid, task.creds.uid)
    if group.ns.pid.group(group.pid) is not group:
        raise SysError(ESRCH)
    if not 0 <= signo <= NSIG:
        raise SysError(EINVAL)
    if not permitted(task, group, signo):
        raise SysError(EPERM)
    if signo:
        send(group, told)
    return 0


@syscall("pidfd_getfd")
def pidfd_getfd(task: Task, pidfd: int, fd: int, flags: int) -> int:
    """pidfd_getfd(2)."""
    if u32(flags):
        raise SysError(EINVAL)
    file = task.files.get(pidfd)
    if not isinstance(file, PidFile):
        raise SysError(EBADF)
    other = file.group.any_task
    if other is None:
        raise SysError(ESRCH)
    if not may_inspect(task, other):
        raise SysError(EPERM)
    found = other.files.get(fd)
    result = task.files.install(found, cloexec=True)
    found.incref()
    return result


@syscall("kcmp", Support.PARTIAL, "not KCMP_EPOLL_TFD")
def kcmp(task: Task, pid1: int, pid2: int, kind: int, index1: int, index2: int) -> int:
    """kcmp(2)."""
    first, second = find_task(task, pid1 or -1), find_task(task, pid2 or -1)
    if not (may_inspect(task, first) and may_inspect(task, second)):
        raise SysError(EPERM)
    if first.thread is None or second.thread is None:
        raise SysError(ESRCH)
    kind = s32(kind)
    pair: tuple[Any, Any]
    if kind == KCMP_FILE:
        pair = first.files.get(index1), second.files.get(index2)
    elif kind == KCMP_VM:
        pair = first.mm, second.mm
    elif kind == KCMP_FILES:
        pair = first.files, second.files
    elif kind == KCMP_FS:
        pair = first.fs, second.fs
    elif kind == KCMP_SIGHAND:
        pair = first.group.signals.actions, second.group.signals.actions
    elif kind == KCMP_IO or (kind == KCMP_SYSVSEM and "sysv" not in task.group.ns.ipc.subsystems):
        return 0  # neither has any
    elif kind == KCMP_SYSVSEM:
        pair = first.group, second.group
    else:
        raise SysError(EINVAL)
    one, two = id(pair[0]), id(pair[1])
    # Any order will do that stays the same while both live.
    return 0 if one == two else 1 if one < two else 2


@syscall("process_mrelease", Support.PARTIAL, "memory is given back when the process has ended, never before")
def process_mrelease(task: Task, pidfd: int, flags: int) -> int:
    """process_mrelease(2)."""
    if u32(flags):
        raise SysError(EINVAL)
    file = task.files.get(pidfd)
    if not isinstance(file, PidFile):
        raise SysError(EBADF)
    if file.group.zombie:
        raise SysError(ESRCH)
    if file.group.exit_code is None:
        raise SysError(EINVAL)
    return 0


