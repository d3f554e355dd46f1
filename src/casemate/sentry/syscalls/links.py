"""Names: hard links, symbolic links, renaming."""

from __future__ import annotations

import stat
from errno import EBUSY, EEXIST, EINVAL, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EXDEV
from typing import TYPE_CHECKING

from casemate.sentry.abi import AT_FDCWD, s32, u32
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.dirs import vacancy
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.vfs import notify, target
from casemate.sentry.vfs.path import MAY_WRITE, Found, deletable, may, walk_parent, writable
from casemate.sentry.vfs.target import AT_EMPTY_PATH, AT_SYMLINK_FOLLOW

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4


# Hard links.


def _link(task: Task, old_fd: int, old: int, new_fd: int, new: int, flags: int) -> int:
    follow = bool(flags & AT_SYMLINK_FOLLOW)
    found = target.at(task, old_fd, old, flags & AT_EMPTY_PATH, AT_EMPTY_PATH, follow)
    inode = found.inode
    path = task.mem.path(new)
    where, directory = vacancy(task, new_fd, path)
    if where.slash:
        raise SysError(ENOENT)
    if found.mount is not where.mount:
        raise SysError(EXDEV)
    if inode.kind == stat.S_IFDIR:
        raise SysError(EPERM)
    if inode.stat().nlink == 0 and not inode.extra.get("linkable"):
        raise SysError(ENOENT)
    directory.inode.link(task, where.name, inode)
    directory.remove(where.name)
    if found.dentry is not None and found.dentry.deleted and inode.extra.pop("linkable", None):
        # A file of O_TMPFILE has its name from now on.
        found.dentry.deleted = False
        found.dentry.parent, found.dentry.name = directory, where.name
    if notify.watching:
        notify.entry(directory.inode, notify.IN_CREATE, where.name, inode)
    return 0


@syscall("link")
def link(task: Task, old: int, new: int) -> int:
    """link(2)."""
    return _link(task, AT_FDCWD, old, AT_FDCWD, new, 0)


@syscall("linkat")
def linkat(task: Task, old_fd: int, old: int, new_fd: int, new: int, flags: int) -> int:
    """linkat(2)."""
    flags = u32(flags)
    if flags & ~(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH):
        raise SysError(EINVAL)
    return _link(task, old_fd, old, new_fd, new, flags)


# Symbolic links.


def _symlink(task: Task, text: int, dirfd: int, path: int) -> int:
    goal = task.mem.path(text)
    if not goal:
        raise SysError(ENOENT)
    found, directory = vacancy(task, dirfd, task.mem.path(path))
    if found.slash:
        raise SysError(ENOENT)
    gid = task.creds.fsgid
    mode, _, above = directory.inode.access()
    if mode & stat.S_ISGID:
        gid = above
    inode = directory.inode.symlink(task, found.name, goal, task.creds.fsuid, gid)
    directory.remove(found.name)
    if notify.watching:
        notify.entry(directory.inode, notify.IN_CREATE, found.name, inode)
    return 0


@syscall("symlink")
def symlink(task: Task, text: int, path: int) -> int:
    """symlink(2)."""
    return _symlink(task, text, AT_FDCWD, path)


@syscall("symlinkat")
def symlinkat(task: Task, text: int, dirfd: int, path: int) -> int:
    """symlinkat(2)."""
    return _symlink(task, text, dirfd, path)


def _readlink(task: Task, dirfd: int, path: int, address: int, size: int) -> int:
    size = s32(size)
    if size <= 0:
        raise SysError(EINVAL)
    name = task.mem.path(path)
    if name or s32(dirfd) == AT_FDCWD:
        found = target.at(task, dirfd, path, 0, 0, False) if name else None
        if found is None:
            raise SysError(ENOENT)
        if found.inode.kind != stat.S_IFLNK:
            raise SysError(EINVAL)
    else:
        found = target.of_fd(task, dirfd)
        if found.inode.kind != stat.S_IFLNK:
            raise SysError(ENOENT)
    text = found.inode.readlink(task)[:size]
    task.mem.write(address, text)
    return len(text)


@syscall("readlink")
def readlink(task: Task, path: int, address: int, size: int) -> int:
    """readlink(2)."""
    return _readlink(task, AT_FDCWD, path, address, size)


@syscall("readlinkat")
def readlinkat(task: Task, dirfd: int, path: int, address: int, size: int) -> int:
    """readlinkat(2); an empty path is the link that the descriptor (O_PATH) is."""
    return _readlink(task, dirfd, path, address, size)


# Renaming.


def _rename(task: Task, old_fd: int, old: int, new_fd: int, new: int, flags: int) -> int:
    source = walk_parent(task, old_fd, task.mem.path(old))
    goal = walk_parent(task, new_fd, task.mem.path(new))
    if source.parent_mount is not goal.parent_mount:
        raise SysError(EXDEV)
    if source.parent is None:
        raise SysError(EBUSY)
    if goal.parent is None:
        raise SysError(EEXIST if flags & RENAME_NOREPLACE else EBUSY)
    if source.dentry is None:
        raise SysError(ENOENT)
    inode = source.dentry.inode
    if goal.dentry is not None and flags & RENAME_NOREPLACE:
        raise SysError(EEXIST)
    if goal.dentry is None and flags & RENAME_EXCHANGE:
        raise SysError(ENOENT)
    if flags & RENAME_EXCHANGE and goal.slash and goal.dentry is not None and goal.dentry.inode.kind != stat.S_IFDIR:
        raise SysError(ENOTDIR)
    if inode.kind != stat.S_IFDIR and (source.slash or (goal.slash and not flags & RENAME_EXCHANGE)):
        raise SysError(ENOTDIR)
    if goal.parent.inside(source.dentry):
        raise SysError(EINVAL)
    if goal.dentry is not None and source.parent.inside(goal.dentry):
        raise SysError(EINVAL if flags & RENAME_EXCHANGE else ENOTEMPTY)
    other = goal.dentry
    if other is not None and other.inode is inode and not source.parent_mount.read_only:
        return 0  # two names of one file: both stay, whoever asks
    for end in (source, goal):
        _not_mounted(end)
    _allowed(task, source, goal, flags)
    source.parent.inode.rename(task, source.name, goal.parent.inode, goal.name, flags)
    source.parent.move(source.name, goal.parent, goal.name, bool(flags & RENAME_EXCHANGE))
    if notify.watching:
        notify.moved(source.parent.inode, source.name, goal.parent.inode, goal.name, inode)
        if other is not None:
            if flags & RENAME_EXCHANGE:
                notify.moved(goal.parent.inode, goal.name, source.parent.inode, source.name, other.inode)
            else:
                notify.gone(other.inode)
    return 0


def _not_mounted(end: Found) -> None:
    """Raise SysError(EBUSY) where something is mounted on what is to be renamed."""
    if end.dentry is not None and (end.mount is not end.parent_mount or end.dentry in end.mount.children):
        raise SysError(EBUSY)


def _allowed(task: Task, source: Found, goal: Found, flags: int) -> None:
    """Whether the permissions suffice for a rename. Raises SysError."""
    assert source.parent is not None and source.dentry is not None and goal.parent is not None
    deletable(task, source.parent_mount, source.parent.inode, source.dentry.inode)
    if goal.dentry is not None:
        deletable(task, goal.parent_mount, goal.parent.inode, goal.dentry.inode)
    else:
        writable(task, goal.parent_mount, goal.parent.inode)
    if source.parent is not goal.parent:
        # Its ".." changes.
        if source.dentry.inode.kind == stat.S_IFDIR:
            may(task, source.dentry.inode, MAY_WRITE)
        if flags & RENAME_EXCHANGE and goal.dentry is not None and goal.dentry.inode.kind == stat.S_IFDIR:
            may(task, goal.dentry.inode, MAY_WRITE)


@syscall("rename")
def rename(task: Task, old: int, new: int) -> int:
    """rename(2)."""
    return _rename(task, AT_FDCWD, old, AT_FDCWD, new, 0)


@syscall("renameat")
def renameat(task: Task, old_fd: int, old: int, new_fd: int, new: int) -> int:
    """renameat(2)."""
    return _rename(task, old_fd, old, new_fd, new, 0)


@syscall("renameat2", Support.PARTIAL, "no RENAME_WHITEOUT")
def renameat2(task: Task, old_fd: int, old: int, new_fd: int, new: int, flags: int) -> int:
    """renameat2(2)."""
    flags = u32(flags)
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
        raise SysError(EINVAL)
    if flags & RENAME_EXCHANGE and flags & (RENAME_NOREPLACE | RENAME_WHITEOUT):
        raise SysError(EINVAL)
    if flags & RENAME_WHITEOUT:
        raise SysError(EINVAL)
    return _rename(task, old_fd, old, new_fd, new, flags)

