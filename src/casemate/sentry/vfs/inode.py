"""Inodes: what file systems are made of. One class per kind of file system overrides what it can do."""

from __future__ import annotations

import stat
from errno import EINVAL, ENODATA, ENOTDIR, EOPNOTSUPP, EPERM, EROFS
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File


class Stat:
    """stat(2), times in nanoseconds since the epoch. (No dataclass, as that takes half a millisecond to make.)

    Arguments:
        mode: with the kind of file.
    """

    __slots__ = (
        "atime", "blksize", "blocks", "btime", "ctime", "dev", "gid", "ino", "mode", "mtime",
        "nlink", "rdev", "size", "uid",
    )  # fmt: skip

    def __init__(
        self, mode: int, ino: int, uid: int = 0, gid: int = 0, size: int = 0, nlink: int = 1, dev: int = 0,
        rdev: int = 0, blksize: int = 4096, blocks: int = 0, atime: int = 0, mtime: int = 0, ctime: int = 0,
        btime: int = 0,
    ) -> None:  # fmt: skip
        self.mode = mode
        self.ino = ino
        self.uid = uid
        self.gid = gid
        self.size = size
        self.nlink = nlink
        self.dev = dev
        self.rdev = rdev
        self.blksize = blksize
        self.blocks = blocks
        self.atime = atime
        self.mtime = mtime
        self.ctime = ctime
        self.btime = btime


class Attributes:
    """What :meth:`Inode.setattr` is to change; None for what stays. Times in nanoseconds.

    Arguments:
        mode: permission bits only.
    """

    __slots__ = ("atime", "gid", "mode", "mtime", "size", "uid")

    def __init__(
        self, mode: int | None = None, uid: int | None = None, gid: int | None = None,
        size: int | None = None, atime: int | None = None, mtime: int | None = None,
    ) -> None:  # fmt: skip
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.atime = atime
        self.mtime = mtime


class FsStat:
    """statfs(2)."""

    __slots__ = (
        "bavail", "bfree", "blocks", "bsize", "ffree", "files", "flags", "frsize", "namelen", "type",
    )  # fmt: skip

    def __init__(
        self, type: int, bsize: int = 4096, blocks: int = 0, bfree: int = 0, bavail: int = 0, files: int = 0,
        ffree: int = 0, namelen: int = 255, frsize: int = 4096, flags: int = 0,
    ) -> None:  # fmt: skip
        self.type = type
        self.bsize = bsize
        self.blocks = blocks
        self.bfree = bfree
        self.bavail = bavail
        self.files = files
        self.ffree = ffree
        self.namelen = namelen
        self.frsize = frsize
        self.flags = flags


class FileSystem:
    """One mounted instance. ``device`` is the number that stat(2) shows, unique within the sandbox."""

    name = "none"
    """As ``/proc/mounts`` shows the type."""
    read_only = False
    stable = False
    """Names change only by what :mod:`casemate.sentry.vfs` does with them: what a lookup found once is not asked again
    while it is remembered."""

    def __init__(self, device: int) -> None:
        self.device = device

    @property
    def root(self) -> Inode:
        """Its top directory."""
        raise NotImplementedError

    def statfs(self, task: Task | None) -> FsStat:
        """statfs(2)."""
        raise NotImplementedError

    def sync(self) -> None:
        """syncfs(2)."""

    def close(self) -> None:
        """Unmounted and no more used: give everything back."""


class Inode:
    """A file, directory, link or device.

    Permissions were checked by the caller (:mod:`casemate.sentry.vfs.path`); names are single components, at most 255
    bytes, never ``.`` or ``..``. Methods raise SysError.

    The same file must be the same object as long as anybody holds it: locks, bound sockets and FIFOs hang on it.
    """

    opens_itself = False
    """What it is opened as is its own affair, whatever its kind: what the host keeps for the sandbox."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.extra: dict[str, object] = {}
        """What other parts of the kernel tie to a file: ``"pipe"`` of a FIFO, ``"socket"`` bound here, ``"locks"``…"""

    # Any kind.

    def stat(self) -> Stat:
        """stat(2)."""
        raise NotImplementedError

    def access(self) -> tuple[int, int, int]:
        """Mode, uid and gid, for checks of permission: each component of each path asks, so file systems answer it
        without making a :class:`Stat` where they can."""
        found = self.stat()
        return found.mode, found.uid, found.gid

    def setattr(self, task: Task, attributes: Attributes) -> None:
        """chmod(2), chown(2), truncate(2), utimensat(2)."""
        raise SysError(EPERM)

    def open(self, task: Task, flags: int) -> File:
        """Open it. FIFOs, sockets and devices are opened by the caller; links never are.

        The default serves directories, by :meth:`readdir`."""
        if self.kind != stat.S_IFDIR:
            raise SysError(EINVAL)
        from casemate.sentry.vfs.directory import Directory

        return Directory(flags, self)

    def getxattr(self, task: Task, name: bytes) -> bytes:
        """getxattr(2)."""
        raise SysError(EOPNOTSUPP)

    def setxattr(self, task: Task, name: bytes, value: bytes, flags: int) -> None:
        """setxattr(2)."""
        raise SysError(EOPNOTSUPP)

    def listxattr(self, task: Task) -> list[bytes]:
        """listxattr(2)."""
        return []

    def removexattr(self, task: Task, name: bytes) -> None:
        """removexattr(2)."""
        raise SysError(ENODATA)

    # Links.

    def readlink(self, task: Task) -> bytes:
        """readlink(2)."""
        raise SysError(EINVAL)

    def follow(self, task: Task) -> object | None:
        """Where a "magic" link leads directly (a Place, as ``/proc/self/exe``), without its text being walked; None for
        ordinary links."""
        return None

    # Directories.

    def lookup(self, task: Task, name: bytes) -> Inode:
        """The entry. Raises ENOENT."""
        raise SysError(ENOTDIR)

    def readdir(self, task: Task) -> list[tuple[bytes, int, int]]:
        """All entries but ``.`` and ``..``: name, inode number, and kind as ``S_IFMT`` bits (0 when unknown)."""
        raise SysError(ENOTDIR)

    def create(self, task: Task, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        """A new regular file; EEXIST. ``mode`` has the umask applied."""
        raise SysError(EROFS)

    def mknod(self, task: Task, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Inode:
        """A new FIFO, socket or device (the kind is in ``mode``)."""
        raise SysError(EROFS)

    def mkdir(self, task: Task, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        """mkdir(2)."""
        raise SysError(EROFS)

    def symlink(self, task: Task, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
        """symlink(2)."""
        raise SysError(EROFS)

    def link(self, task: Task, name: bytes, inode: Inode) -> None:
        """link(2); ``inode`` is of the same file system."""
        raise SysError(EROFS)

    def unlink(self, task: Task, name: bytes) -> None:
        """unlink(2)."""
        raise SysError(EROFS)

    def rmdir(self, task: Task, name: bytes) -> None:
        """rmdir(2)."""
        raise SysError(EROFS)

    def rename(self, task: Task, name: bytes, directory: Inode, new_name: bytes, flags: int) -> None:
        """renameat2(2) to a directory of the same file system."""
        raise SysError(EROFS)

    def tmpfile(self, task: Task, mode: int, uid: int, gid: int) -> Inode:
        """A file without a name, ``O_TMPFILE`` of open(2)."""
        raise SysError(EOPNOTSUPP)

    # What kind it is.

    @property
    def kind(self) -> int:
        """``S_IFMT`` bits of its mode. Walks ask it of every component: file systems override it with an attribute
        (declared in the class: ``kind = 0``) where they know it."""
        return stat.S_IFMT(self.stat().mode)
