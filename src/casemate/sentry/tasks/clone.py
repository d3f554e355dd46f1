"""New tasks from old ones: what is shared and what is copied, clone(2)."""

from __future__ import annotations

import contextlib
import os
from errno import EAGAIN, EINVAL, EPERM
from resource import RLIMIT_NPROC
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_SYS_ADMIN, CAP_SYS_RESOURCE
from casemate.sentry.errno import SysError
from casemate.sentry.tasks import usage
from casemate.sentry.tasks.attributes import inherited
from casemate.sentry.tasks.task import Task, ThreadGroup
from casemate.sentry.wait import WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.mm.space import AddressSpace
    from casemate.sentry.platform.base import HostThread

CSIGNAL = 0xFF
CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND = 0x100, 0x200, 0x400, 0x800
CLONE_PIDFD, CLONE_PTRACE, CLONE_VFORK, CLONE_PARENT = 0x1000, 0x2000, 0x4000, 0x8000
CLONE_THREAD, CLONE_NEWNS, CLONE_SYSVSEM, CLONE_SETTLS = 0x10000, 0x20000, 0x40000, 0x80000
CLONE_PARENT_SETTID, CLONE_CHILD_CLEARTID, CLONE_DETACHED, CLONE_UNTRACED = 0x100000, 0x200000, 0x400000, 0x800000
CLONE_CHILD_SETTID, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x1000000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_IO = 0x10000000, 0x20000000, 0x40000000, 0x80000000
NAMESPACES = (
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
)
MAX_TASKS = 10_000
"""In one sandbox, whatever its limits say: each is a thread of the host."""


def check(flags: int) -> None:
    """Refuse combinations that Linux refuses, and namespaces, which the sandbox has one of each kind of."""
    if flags & CLONE_SIGHAND and not flags & CLONE_VM:
        raise SysError(EINVAL)
    if flags & CLONE_THREAD and not flags & CLONE_SIGHAND:
        raise SysError(EINVAL)
    if flags & CLONE_FS and flags & (CLONE_NEWNS | CLONE_NEWUSER):
        raise SysError(EINVAL)
    if flags & NAMESPACES:
        raise SysError(EPERM)
    if flags & CLONE_PIDFD and flags & (CLONE_DETACHED | CLONE_THREAD | CLONE_PARENT_SETTID):
        raise SysError(EINVAL)


def room(task: Task) -> None:
    """Whether there may be one more task. Raises SysError(EAGAIN)."""
    kernel: Kernel = task.kernel
    if len(kernel.tasks) >= min(MAX_TASKS, kernel.max_tasks):
        raise SysError(EAGAIN)
    own = kernel.task_limits.get(task.group.container)
    if own is not None and len(kernel.tasks) >= own:
        container = task.group.container
        if sum(len(group.tasks) for group in kernel.groups.values() if group.container == container) >= own:
            raise SysError(EAGAIN)
    limit = task.group.limits.soft(RLIMIT_NPROC)
    creds = task.creds
    if len(kernel.tasks) >= limit and creds.uid != 0 and not (
        creds.capable(CAP_SYS_RESOURCE) or creds.capable(CAP_SYS_ADMIN)
    ):
        mine = sum(1 for other in kernel.tasks.values() if other.creds.uid == creds.uid)
        if mine >= limit:
            raise SysError(EAGAIN)


def _copied(task: Task, new: HostThread) -> AddressSpace:
    """The memory of a child of its own. Raises SysError(EAGAIN) where the host has no descriptor for it."""
    try:
        return task.mm.fork(task.kernel.platform.open_memory(new))
    except OSError:
        new.kill()
        raise SysError(EAGAIN) from None


def clone(task: Task, flags: int, stack: int, parent_tid: int, child_tid: int, tls: int) -> Task:
    """Make the new task, which does not run yet.

    Arguments:
        flags: ``CLONE_*``, with the signal for the parent in the low byte.
        stack: the new stack pointer; 0 to keep the parent's.
        parent_tid, child_tid, tls: as clone(2) says.

    Raises SysError.
    """
    check(flags)
    room(task)
    kernel = task.kernel
    thread = task.thread
    assert thread is not None
    tid = task.group.ns.pid.next()
    if flags & CLONE_PARENT_SETTID:
        task.mem.put_u32(parent_tid, tid)
    new = thread.clone(bool(flags & CLONE_VM), bool(flags & CLONE_THREAD))
    mm = task.mm.incref() if flags & CLONE_VM else _copied(task, new)
    if flags & CLONE_THREAD:
        group = task.group
    else:
        parent = task.group.parent if flags & CLONE_PARENT else task.group
        group = ThreadGroup(
            kernel, tid, parent, task.group.process_group,
            task.group.signals.fork(share_actions=bool(flags & CLONE_SIGHAND)),
            task.group.limits.copy(),
        )
        group.exit_signal = task.group.exit_signal if flags & CLONE_PARENT else flags & CSIGNAL
        group.executable = task.group.executable.incref() if task.group.executable is not None else None
        group.exec_path = task.group.exec_path
        group.dumpable = task.group.dumpable
        group.oom_score_adj = task.group.oom_score_adj
        group.container = task.group.container
        group.ns = task.group.ns
        if parent is not None:
            parent.children[tid] = group
        group.process_group.add(group)
        kernel.groups[group.ns.pid.key(tid)] = group
        usage.watch_limit(group)
    child = Task(
        kernel,
        tid,
        group,
        new,
        mm,
        task.fs.incref() if flags & CLONE_FS else task.fs.fork(),
        task.files.incref() if flags & CLONE_FILES else task.files.fork(group.limits),
        task.creds.copy(),
        task.signals.clone(group.signals, keep_altstack=not flags & CLONE_VM or bool(flags & CLONE_VFORK)),
        task.name,
    )
    child.no_new_privs = task.no_new_privs
    child.prctl = inherited(task)
    child.seccomp = list(task.seccomp)
    new.owner = child
    group.tasks[tid] = child
    kernel.tasks[group.ns.pid.key(tid)] = child
    regs = new.regs
    regs.rax = 0
    if stack:
        regs.rsp = stack
    if flags & CLONE_SETTLS:
        regs.fs_base = tls
    if flags & CLONE_CHILD_SETTID:
        # A bad address is the child's own trouble, as in Linux.
        _try_put(child, child_tid, tid)
    if flags & CLONE_CHILD_CLEARTID:
        child.clear_child_tid = child_tid
    if flags & CLONE_VFORK:
        child.vfork_done = WaitQueue()
    return child


def _try_put(task: Task, address: int, value: int) -> None:
    with contextlib.suppress(SysError):
        task.mem.put_u32(address, value)


def unshare(task: Task, flags: int) -> None:
    """unshare(2): own copies of what was shared. Raises SysError."""
    if flags & ~(NAMESPACES | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM | CLONE_THREAD | CLONE_SIGHAND | CLONE_VM):
        raise SysError(EINVAL)
    if flags & NAMESPACES:
        raise SysError(EPERM)
    if flags & (CLONE_THREAD | CLONE_SIGHAND | CLONE_VM) and len(task.group.tasks) > 1:
        raise SysError(EINVAL)
    if flags & CLONE_FS:
        old, task.fs = task.fs, task.fs.fork()
        old.decref()
    if flags & CLONE_FILES:
        table, task.files = task.files, task.files.fork(task.group.limits)
        table.decref(task)


def pidfd(task: Task, child: Task, address: int) -> None:
    """Give the parent a descriptor of its child, ``CLONE_PIDFD``."""
    from casemate.sentry.tasks.pidfd import PidFile

    fd = task.files.install(PidFile(os.O_RDWR, child.group), cloexec=True)
    task.mem.put_u32(address, fd)
