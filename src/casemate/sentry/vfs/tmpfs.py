"""tmpfs(5): files in memory.

The data of a file is a bytearray while it is small, and a memfd of the host's (memfd_create(2)) from the moment that it
grows or is to be mapped: reads, writes and holes are then the host's work, and a hundred thousand small files need no
descriptors.
"""

from __future__ import annotations

import os
import stat
import time
from errno import E2BIG, EEXIST, EISDIR, ENODATA, ENOENT, ENOSPC, ENOTDIR, ENOTEMPTY, EPERM
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.inode import Attributes, FileSystem, FsStat, Inode, Stat

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File

TMPFS_MAGIC = 0x01021994
SMALL = 16384
"""Files up to this size have no memfd."""
DIRENT_SIZE = 20
"""What Linux counts an entry of a directory as."""
XATTR_CREATE, XATTR_REPLACE = 1, 2
XATTR_SPACE = 1 << 16
"""Bytes of all names and values of one file."""
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


def default_size() -> int:
    """Half of the machine's memory, as Linux takes it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class TmpFs(FileSystem):
    """One instance.

    Arguments:
        device: what stat(2) shows.
        size: how many bytes of data it may hold; half of the memory by default.
        inodes: how many files it may hold.
        mode, uid, gid: of its root.
    """

    name = "tmpfs"
    stable = True

    def __init__(
        self,
        device: int,
        size: int | None = None,
        inodes: int = 1 << 20,
        mode: int = 0o1777,
        uid: int = 0,
        gid: int = 0,
    ) -> None:
        super().__init__(device)
        self.pages = (default_size() if size is None else size) // 4096
        """How many pages of data there may be."""
        self.used = 0
        self.inodes = inodes
        self.count = 0
        self._last = 0
        self._root = TmpDirectory(self, mode, uid, gid, None)

    @property
    def root(self) -> TmpDirectory:
        return self._root

    def number(self) -> int:
        """An inode number. Raises SysError(ENOSPC) when there are as many files as may be."""
        if self.count >= self.inodes:
            raise SysError(ENOSPC)
        self.count += 1
        self._last += 1
        return self._last

    def statfs(self, task: Task | None) -> FsStat:
        free = max(0, self.pages - self.used)
        return FsStat(
            TMPFS_MAGIC, 4096, self.pages, free, free, self.inodes, max(0, self.inodes - self.count), 255, 4096
        )


class TmpInode(Inode):
    """What all kinds have."""

    fs: TmpFs
    kind: int = 0

    def __init__(self, fs: TmpFs, mode: int, uid: int, gid: int) -> None:
        self.ino = fs.number()
        super().__init__(fs)
        self.mode = self.kind | mode & 0o7777
        self.uid = uid
        self.gid = gid
        self.nlink = 1
        self.atime = self.mtime = self.ctime = self.btime = time.time_ns()
        self.xattrs: dict[bytes, bytes] | None = None

    def __del__(self) -> None:
        if hasattr(self, "fs"):
            self.fs.count -= 1

    def access(self) -> tuple[int, int, int]:
        return self.mode, self.uid, self.gid

    def stat(self) -> Stat:
        return Stat(
            self.mode, self.ino, self.uid, self.gid, self.length(), self.nlink, self.fs.device, self.device(), 4096,
            self.blocks(), self.atime, self.mtime, self.ctime, self.btime,
        )

    def length(self) -> int:
        """``st_size``."""
        return 0

    def blocks(self) -> int:
        """``st_blocks``, of 512 bytes."""
        return 0

    def device(self) -> int:
        """``st_rdev``."""
        return 0

    def setattr(self, task: Task, attributes: Attributes) -> None:
        now = time.time_ns()
        if attributes.size is not None:
            self.resize(attributes.size)
            self.mtime = now
        if attributes.mode is not None:
            self.mode = self.kind | attributes.mode & 0o7777
        if attributes.uid is not None:
            self.uid = attributes.uid
        if attributes.gid is not None:
            self.gid = attributes.gid
        if attributes.atime is not None:
            self.atime = attributes.atime
        if attributes.mtime is not None:
            self.mtime = attributes.mtime
        self.ctime = now

    def resize(self, size: int) -> None:
        """Cut or grow a regular file."""
        raise SysError(EPERM)

    def getxattr(self, task: Task, name: bytes) -> bytes:
        value = None if self.xattrs is None else self.xattrs.get(name)
        if value is None:
            raise SysError(ENODATA)
        return value

    def setxattr(self, task: Task, name: bytes, value: bytes, flags: int) -> None:
        xattrs = self.xattrs
        if xattrs is None:
            xattrs = {}
        if name in xattrs:
            if flags & XATTR_CREATE:
                raise SysError(EEXIST)
        elif flags & XATTR_REPLACE:
            raise SysError(ENODATA)
        others = sum(len(key) + len(data) for key, data in xattrs.items() if key != name)
        if others + len(name) + len(value) > XATTR_SPACE + 256:
            raise SysError(ENOSPC if others else E2BIG)
        xattrs[name] = value
        self.xattrs = xattrs
        self.ctime = time.time_ns()

    def listxattr(self, task: Task) -> list[bytes]:
        return list(self.xattrs or ())

    def removexattr(self, task: Task, name: bytes) -> None:
        if self.xattrs is None or name not in self.xattrs:
            raise SysError(ENODATA)
        del self.xattrs[name]
        self.ctime = time.time_ns()


class TmpLink(TmpInode):
    """A symbolic link."""

    kind = stat.S_IFLNK

    def __init__(self, fs: TmpFs, target: bytes, uid: int, gid: int) -> None:
        super().__init__(fs, 0o777, uid, gid)
        self.target = target

    def length(self) -> int:
        return len(self.target)

    def readlink(self, task: Task) -> bytes:
        return self.target


class TmpNode(TmpInode):
    """A FIFO, a socket or a device."""

    def __init__(self, fs: TmpFs, mode: int, rdev: int, uid: int, gid: int) -> None:
        self.kind = stat.S_IFMT(mode)
        super().__init__(fs, mode, uid, gid)
        self.rdev = rdev if self.kind in (stat.S_IFCHR, stat.S_IFBLK) else 0

    def device(self) -> int:
        return self.rdev


class TmpDirectory(TmpInode):
    """A directory."""

    kind = stat.S_IFDIR

    def __init__(self, fs: TmpFs, mode: int, uid: int, gid: int, parent: TmpDirectory | None) -> None:
        super().__init__(fs, mode, uid, gid)
        self.nlink = 2
        self.entries: dict[bytes, TmpInode] = {}
        if parent is not None:
            parent.nlink += 1

    def length(self) -> int:
        return (2 + len(self.entries)) * DIRENT_SIZE

    def lookup(self, task: Task, name: bytes) -> TmpInode:
        found = self.entries.get(name)
        if found is None:
            raise SysError(ENOENT)
        return found

    def readdir(self, task: Task) -> list[tuple[bytes, int, int]]:
        self.atime = max(self.atime, time.time_ns()) if self.atime <= self.mtime else self.atime
        return [(name, inode.ino, inode.kind) for name, inode in self.entries.items()]

    # New entries.

    def vacant(self, name: bytes) -> None:
        """Raise SysError unless an entry of that name can be made: EEXIST; ENOENT in a removed directory."""
        if name in self.entries:
            raise SysError(EEXIST)
        if self.nlink == 0:
            raise SysError(ENOENT)

    def enter(self, name: bytes, inode: TmpInode) -> None:
        """Put an entry in."""
        self.entries[name] = inode
        self.changed()

    def changed(self) -> None:
        """Note the time of a change to the entries."""
        self.mtime = self.ctime = time.time_ns()

    def create(self, task: Task, name: bytes, mode: int, uid: int, gid: int) -> TmpInode:
        from casemate.sentry.vfs.tmpfile import TmpFile

        self.vacant(name)
        inode = TmpFile(self.fs, mode, uid, gid)
        self.enter(name, inode)
        return inode

    def mknod(self, task: Task, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> TmpInode:
        self.vacant(name)
        inode = TmpNode(self.fs, mode, rdev, uid, gid)
        self.enter(name, inode)
        return inode

    def mkdir(self, task: Task, name: bytes, mode: int, uid: int, gid: int) -> TmpInode:
        self.vacant(name)
        inode = TmpDirectory(self.fs, mode, uid, gid, self)
        self.enter(name, inode)
        return inode

    def symlink(self, task: Task, name: bytes, target: bytes, uid: int, gid: int) -> TmpInode:
        self.vacant(name)
        inode = TmpLink(self.fs, target, uid, gid)
        self.enter(name, inode)
        return inode

    def link(self, task: Task, name: bytes, inode: Inode) -> None:
        assert isinstance(inode, TmpInode)
        self.vacant(name)
        if inode.kind == stat.S_IFDIR:
            raise SysError(EPERM)
        inode.nlink += 1
        inode.ctime = time.time_ns()
        self.enter(name, inode)

    def tmpfile(self, task: Task, mode: int, uid: int, gid: int) -> TmpInode:
        from casemate.sentry.vfs.tmpfile import TmpFile

        inode = TmpFile(self.fs, mode, uid, gid)
        inode.nlink = 0
        return inode

    # Entries that go.

    def unlink(self, task: Task, name: bytes) -> None:
        inode = self.lookup(task, name)
        if inode.kind == stat.S_IFDIR:
            raise SysError(EISDIR)
        del self.entries[name]
        inode.nlink -= 1
        self.changed()
        inode.ctime = self.ctime

    def rmdir(self, task: Task, name: bytes) -> None:
        inode = self.lookup(task, name)
        if not isinstance(inode, TmpDirectory):
            raise SysError(ENOTDIR)
        if inode.entries:
            raise SysError(ENOTEMPTY)
        del self.entries[name]
        inode.nlink = 0
        self.nlink -= 1
        self.changed()
        inode.ctime = self.ctime

    def rename(self, task: Task, name: bytes, directory: Inode, new_name: bytes, flags: int) -> None:
        assert isinstance(directory, TmpDirectory)
        inode = self.lookup(task, name)
        other = directory.entries.get(new_name)
        if flags & RENAME_EXCHANGE:
            if other is None:
                raise SysError(ENOENT)
            self.entries[name], directory.entries[new_name] = other, inode
            moved = int(inode.kind == stat.S_IFDIR) - int(other.kind == stat.S_IFDIR)
        else:
            if directory.nlink == 0:
                raise SysError(ENOENT)
            if other is not None:
                if flags & RENAME_NOREPLACE:
                    raise SysError(EEXIST)
                if other is inode:
                    return
                self._replaceable(inode, other)
                if isinstance(other, TmpDirectory):
                    other.nlink = 0
                    directory.nlink -= 1
                else:
                    other.nlink -= 1
                other.ctime = time.time_ns()
            del self.entries[name]
            directory.entries[new_name] = inode
            moved = int(inode.kind == stat.S_IFDIR)
        # Each directory's ".." is a link to the one that it is in.
        self.nlink -= moved
        directory.nlink += moved
        self.changed()
        directory.changed()
        inode.ctime = self.ctime

    @staticmethod
    def _replaceable(inode: TmpInode, other: TmpInode) -> None:
        if isinstance(other, TmpDirectory):
            if inode.kind != stat.S_IFDIR:
                raise SysError(EISDIR)
            if other.entries:
                raise SysError(ENOTEMPTY)
        elif inode.kind == stat.S_IFDIR:
            raise SysError(ENOTDIR)

    def open(self, task: Task, flags: int) -> File:
        from casemate.sentry.vfs.directory import Directory

        return Directory(flags, self)
