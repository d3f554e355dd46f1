"""Directories of an overlay (:mod:`casemate.sentry.vfs.overlay`)."""

from __future__ import annotations

import stat
import time
from errno import EEXIST, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM
from typing import TYPE_CHECKING, Any

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.inode import Inode
from casemate.sentry.vfs.shown import Shown
from casemate.sentry.vfs.tmpfs import RENAME_EXCHANGE, RENAME_NOREPLACE, TmpDirectory, TmpInode

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.overlay import OverlayFs

_NOBODY: Any = None
"""A task where there is none: lower file systems do not look at who asks."""


class ChangingDirectory(TmpDirectory):
    """What is common to directories that are new and to those that show one of the lower file system.

    Removing and renaming are told in two steps, which both know: an entry is *taken* out of a directory, an object is
    *entered* into one.
    """

    fs: OverlayFs

    def own(self) -> None:
        """Have the attributes here: one of them is about to change."""

    def find(self, name: bytes) -> TmpInode | None:
        """The entry, if there is one."""
        return self.entries.get(name)

    def empty(self) -> bool:
        """Whether there are no entries."""
        return not self.entries

    def take(self, name: bytes) -> None:
        """Have no entry of that name, which there is."""
        del self.entries[name]

    def mkdir(self, task: Task, name: bytes, mode: int, uid: int, gid: int) -> TmpInode:
        self.vacant(name)
        inode = ChangingDirectory(self.fs, mode, uid, gid, self)
        self.enter(name, inode)
        return inode

    def link(self, task: Task, name: bytes, inode: Inode) -> None:
        if isinstance(inode, Shown):
            if inode.kind == stat.S_IFDIR:
                raise SysError(EPERM)
            inode.own()
        super().link(task, name, inode)
        if isinstance(inode, Shown):
            self.fs.changed[inode] = None

    def unlink(self, task: Task, name: bytes) -> None:
        inode = self.lookup(task, name)
        if inode.kind == stat.S_IFDIR:
            raise SysError(EISDIR)
        self.own()
        self.take(name)
        self.changed()
        less(inode)

    def rmdir(self, task: Task, name: bytes) -> None:
        inode = self.lookup(task, name)
        if not isinstance(inode, ChangingDirectory):
            raise SysError(ENOTDIR)
        if not inode.empty():
            raise SysError(ENOTEMPTY)
        self.own()
        self.take(name)
        self.nlink -= 1
        self.changed()
        gone(inode)

    def rename(self, task: Task, name: bytes, directory: Inode, new_name: bytes, flags: int) -> None:
        assert isinstance(directory, ChangingDirectory)
        inode = self.lookup(task, name)
        other = directory.find(new_name)
        self.own()
        directory.own()
        if directory.nlink == 0:
            raise SysError(ENOENT)
        moved = int(inode.kind == stat.S_IFDIR)
        if flags & RENAME_EXCHANGE:
            if other is None:
                raise SysError(ENOENT)
            self.take(name)
            directory.take(new_name)
            self.entries[name], directory.entries[new_name] = other, inode
            moved -= int(other.kind == stat.S_IFDIR)
        else:
            if other is not None:
                if flags & RENAME_NOREPLACE:
                    raise SysError(EEXIST)
                if other is inode:
                    return
                replaceable(inode, other)
                directory.take(new_name)
            self.take(name)
            directory.entries[new_name] = inode
            if isinstance(other, ChangingDirectory):
                directory.nlink -= 1
                gone(other)
            elif other is not None:
                less(other)
        # Each directory's ".." is a link to the one that it is in.
        self.nlink -= moved
        directory.nlink += moved
        self.changed()
        directory.changed()
        if isinstance(inode, Shown):
            inode.own()
        inode.ctime = self.ctime


def replaceable(inode: TmpInode, other: TmpInode) -> None:
    """Raise SysError unless ``inode`` may be renamed over ``other``: EISDIR, ENOTDIR, ENOTEMPTY."""
    if isinstance(other, ChangingDirectory):
        if inode.kind != stat.S_IFDIR:
            raise SysError(EISDIR)
        if not other.empty():
            raise SysError(ENOTEMPTY)
    elif inode.kind == stat.S_IFDIR:
        raise SysError(ENOTDIR)


def less(inode: TmpInode) -> None:
    """A file has one name less."""
    if isinstance(inode, Shown):
        inode.unlinked()
    else:
        inode.nlink -= 1
        inode.ctime = time.time_ns()


def gone(directory: ChangingDirectory) -> None:
    """A directory was removed."""
    directory.own()
    directory.nlink = 0
    directory.ctime = time.time_ns()
    if isinstance(directory, Shown):
        directory.fs.changed.pop(directory, None)


class OverlayDirectory(Shown, ChangingDirectory):
    """A directory that shows one of the lower file system. What is new in it is in ``entries``, which is looked at
    first: such a name is not in the lower directory, or is :attr:`hidden` there."""

    def __init__(self, fs: OverlayFs, lower: Inode) -> None:
        self.entries = {}
        self.hidden: set[bytes] = set()
        """Names that the lower directory may have, and this one has not."""
        self.seen: dict[bytes, TmpInode] = {}
        """What shows unchanged entries."""
        super().__init__(fs, lower)

    def length(self) -> int:
        return self.origin.stat().size

    def lookup(self, task: Task, name: bytes) -> TmpInode:
        found = self.entries.get(name)
        if found is not None:
            return found
        fs = self.fs
        seen = self.seen.get(name)
        if seen is not None and fs.settled:
            return seen
        if name in self.hidden or (self.owned and self.nlink == 0):
            raise SysError(ENOENT)
        lower = self.origin.lookup(task, name)
        if not isinstance(seen, Shown) or seen.origin is not lower:
            seen = self.seen[name] = fs.show(lower)
            fs.keep(self, name)
        return seen

    def find(self, name: bytes) -> TmpInode | None:
        try:
            return self.lookup(_NOBODY, name)
        except SysError as error:
            if error.errno != ENOENT:
                raise
            return None

    def readdir(self, task: Task) -> list[tuple[bytes, int, int]]:
        fs, entries, hidden = self.fs, self.entries, self.hidden
        found = [(name, inode.ino, inode.kind) for name, inode in entries.items()]
        device = self.origin.stat().dev
        for name, number, kind in self.origin.readdir(task):
            if name not in entries and name not in hidden:
                found.append((name, fs.number_of(device, number), kind))
        return found

    def empty(self) -> bool:
        return not self.entries and not self.readdir(_NOBODY)

    def take(self, name: bytes) -> None:
        if name in self.entries:
            del self.entries[name]
        else:
            self.hidden.add(name)
            self.seen.pop(name, None)

    def vacant(self, name: bytes) -> None:
        if self.find(name) is not None:
            raise SysError(EEXIST)
        self.own()
        if self.nlink == 0:
            raise SysError(ENOENT)
