"""inotify(7); what happens to files is told in :mod:`casemate.sentry.vfs.notify`."""

from __future__ import annotations

import os
import stat
from errno import EINVAL, ENOSYS, ENOTDIR
from typing import TYPE_CHECKING

from casemate.sentry.abi import AT_FDCWD, s32, u32
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.anon import anon_inode
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.vfs.notify import (
    IN_ALL_EVENTS,
    IN_DONT_FOLLOW,
    IN_EXCL_UNLINK,
    IN_IGNORED,
    IN_ISDIR,
    IN_MASK_ADD,
    IN_MASK_CREATE,
    IN_ONESHOT,
    IN_ONLYDIR,
    IN_Q_OVERFLOW,
    IN_UNMOUNT,
    Inotify,
)
from casemate.sentry.vfs.path import MAY_READ, may, walk

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

_VALID = IN_ALL_EVENTS | IN_ONLYDIR | IN_DONT_FOLLOW | IN_EXCL_UNLINK | IN_MASK_CREATE | IN_MASK_ADD | IN_ONESHOT
_KNOWN = _VALID | IN_UNMOUNT | IN_Q_OVERFLOW | IN_IGNORED | IN_ISDIR
"""What a mask may consist of; what is only ever told asks for nothing."""


@syscall("inotify_init1")
def inotify_init1(task: Task, flags: int) -> int:
    """inotify_init1(2)."""
    flags = u32(flags)
    if flags & ~(os.O_CLOEXEC | os.O_NONBLOCK):
        raise SysError(EINVAL)
    task.files.reserve()
    file = Inotify(task.kernel, flags & os.O_NONBLOCK, anon_inode(task.kernel))
    return task.files.install(file, bool(flags & os.O_CLOEXEC))


@syscall("inotify_init")
def inotify_init(task: Task) -> int:
    """inotify_init(2)."""
    return inotify_init1(task, 0)


def _inotify(task: Task, fd: int) -> Inotify:
    file = task.files.opened(fd)
    if not isinstance(file, Inotify):
        raise SysError(EINVAL)
    return file


@syscall("inotify_add_watch")
def inotify_add_watch(task: Task, fd: int, path: int, mask: int) -> int:
    """inotify_add_watch(2)."""
    mask = u32(mask)
    if not mask & _KNOWN:
        raise SysError(EINVAL)
    file = task.files.opened(fd)
    if mask & IN_MASK_ADD and mask & IN_MASK_CREATE or not isinstance(file, Inotify):
        raise SysError(EINVAL)
    place = walk(task, AT_FDCWD, task.mem.path(path), not mask & IN_DONT_FOLLOW)
    if mask & IN_ONLYDIR and place.inode.kind != stat.S_IFDIR:
        raise SysError(ENOTDIR)
    may(task, place.inode, MAY_READ)
    return file.add(place.inode, mask & _VALID)


@syscall("inotify_rm_watch")
def inotify_rm_watch(task: Task, fd: int, wd: int) -> int:
    """inotify_rm_watch(2)."""
    file = _inotify(task, fd)
    watch = file.watches.get(s32(wd))
    if watch is None:
        raise SysError(EINVAL)
    file.remove(watch)
    return 0


@syscall("fanotify_init", Support.NONE, "ENOSYS: inotify is there")
def fanotify_init(task: Task, flags: int, event_flags: int) -> int:
    """fanotify_init(2)."""
    raise SysError(ENOSYS)


@syscall("fanotify_mark", Support.NONE, "ENOSYS: inotify is there")
def fanotify_mark(task: Task, fd: int, flags: int, mask: int, dirfd: int, path: int) -> int:
    """fanotify_mark(2)."""
    raise SysError(ENOSYS)
