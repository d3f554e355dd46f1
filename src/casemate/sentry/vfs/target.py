"""What the arguments of ``…at`` calls mean: a descriptor, a path and ``AT_*`` flags."""

from __future__ import annotations

import os
import stat
from errno import EBADF, EINVAL, EROFS
from typing import TYPE_CHECKING

from casemate.sentry.abi import AT_FDCWD, s32
from casemate.sentry.errno import SysError
from casemate.sentry.vfs.path import resolve

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.inode import Inode
    from casemate.sentry.vfs.mount import Mount
    from casemate.sentry.vfs.place import Dentry, Place

AT_SYMLINK_NOFOLLOW, AT_EACCESS, AT_REMOVEDIR = 0x100, 0x200, 0x200
AT_SYMLINK_FOLLOW, AT_NO_AUTOMOUNT, AT_EMPTY_PATH = 0x400, 0x800, 0x1000


class Target:
    """What a call is about.

    Attributes:
        mount, dentry: where it was found; None for files that are in no directory (pipes, sockets).
    """

    __slots__ = ("dentry", "inode", "mount")

    def __init__(self, inode: Inode, mount: Mount | None, dentry: Dentry | None) -> None:
        self.inode = inode
        self.mount = mount
        self.dentry = dentry

    def changeable(self) -> None:
        """Raise SysError(EROFS) when its mount is read-only."""
        if self.mount is not None and self.mount.read_only and self.mount.fs is self.inode.fs:
            raise SysError(EROFS)


def of_place(place: Place) -> Target:
    """What is at a place."""
    return Target(place.dentry.inode, place.mount, place.dentry)


def of_fd(task: Task, fd: int, path_only: bool = True) -> Target:
    """What is open as ``fd``. Raises SysError(EBADF), also for O_PATH where that is not enough."""
    file = task.files.get(fd)
    if not path_only and file.flags & os.O_PATH:
        raise SysError(EBADF)
    inode = file.inode
    if inode is None:
        raise SysError(EBADF)
    place = file.place
    if place is None:
        return Target(inode, None, None)
    return Target(inode, place.mount, place.dentry)


def of_path(task: Task, address: int, follow: bool = True) -> Target:
    """What a path leads to, from the working directory."""
    found = resolve(task, AT_FDCWD, task.mem.path(address), follow)
    assert found.dentry is not None
    return Target(found.dentry.inode, found.mount, found.dentry)


def at(task: Task, dirfd: int, address: int, flags: int, allowed: int, follow: bool = True) -> Target:
    """What the arguments of an ``…at`` call mean.

    Arguments:
        address: of the path.
        flags: ``AT_*``; more than ``allowed`` is EINVAL.
        follow: links at the end are followed unless AT_SYMLINK_NOFOLLOW says otherwise.
    """
    flags &= 0xFFFF_FFFF
    if flags & ~allowed:
        raise SysError(EINVAL)
    path = b"" if flags & AT_EMPTY_PATH and not address else task.mem.path(address)
    if not path and flags & AT_EMPTY_PATH:
        if s32(dirfd) == AT_FDCWD:
            return of_place(task.fs.cwd)
        return of_fd(task, dirfd)
    found = resolve(task, dirfd, path, follow and not flags & AT_SYMLINK_NOFOLLOW)
    assert found.dentry is not None
    return Target(found.dentry.inode, found.mount, found.dentry)


def is_directory(inode: Inode) -> bool:
    """Whether it is one."""
    return inode.kind == stat.S_IFDIR
