"""fork(2), vfork(2), clone(2), unshare(2)."""

from __future__ import annotations

from errno import ENOSYS
from signal import SIGCHLD
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.tasks import clone as clones
from casemate.sentry.wait import Block, Restart

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task


def _make(task: Task, flags: int, stack: int, parent_tid: int, child_tid: int, tls: int) -> int:
    """Make a child and let it run; with CLONE_VFORK, wait until it has its own memory or is gone."""
    if "child" in task.blocked:
        child: Task = task.blocked["child"]
    else:
        child = clones.clone(task, flags, stack, parent_tid, child_tid, tls)
        if flags & clones.CLONE_PIDFD:
            clones.pidfd(task, child, parent_tid)
        task.kernel.resume(child)
        if flags & clones.CLONE_VFORK:
            task.blocked["child"] = child
    if child.vfork_done is not None:
        raise Block(child.vfork_done, restart=Restart.KILL)
    return child.tid


@syscall("fork")
def fork(task: Task) -> int:
    """fork(2)."""
    return _make(task, SIGCHLD, 0, 0, 0, 0)


@syscall("vfork")
def vfork(task: Task) -> int:
    """vfork(2)."""
    return _make(task, clones.CLONE_VM | clones.CLONE_VFORK | SIGCHLD, 0, 0, 0, 0)


@syscall("clone", Support.PARTIAL, "new namespaces are refused with EPERM")
def clone(task: Task, flags: int, stack: int, parent_tid: int, child_tid: int, tls: int) -> int:
    """clone(2)."""
    return _make(task, flags & 0xFFFF_FFFF, stack, parent_tid, child_tid, tls)


@syscall("clone3", Support.NONE, "programs fall back to clone(2)")
def clone3(task: Task, args: int, size: int) -> int:
    """clone(2)."""
    raise SysError(ENOSYS)


@syscall("unshare", Support.PARTIAL, "new namespaces are refused with EPERM")
def unshare(task: Task, flags: int) -> int:
    """unshare(2)."""
    clones.unshare(task, flags & 0xFFFF_FFFF)
    return 0
