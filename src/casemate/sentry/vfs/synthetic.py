"""File systems whose files are made up when they are read: what /proc, /sys and /dev/pts are built of."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from errno import EACCES, EINVAL, EIO, EISDIR, ENOENT, EPERM
from typing import TYPE_CHECKING, Any

from casemate.sentry.errno import SysError
from casemate.sentry.vfs import directory
from casemate.sentry.vfs.file import File
from casemate.sentry.vfs.inode import Attributes, FileSystem, FsStat, Inode, Stat

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

MAX_WRITE = 65536
"""What is written to a made-up file in one call, at most."""

Entry = tuple[bytes, int, int]
"""A directory's entry: name, inode number, ``S_IFMT`` bits."""


class SyntheticFs(FileSystem):
    """Base of these file systems.

    Arguments:
        device: st_dev.
        kernel: whose state is shown.
    """

    magic = 0
    name = "none"
    refusal = EPERM
    """Why nothing can be made in it."""

    def __init__(self, device: int, kernel: Kernel) -> None:
        super().__init__(device)
        self.kernel = kernel
        self.created = kernel.clock.realtime()
        self._inodes = 0

    def number(self) -> int:
        """An inode number that no other inode of this file system has."""
        self._inodes += 1
        return self._inodes

    def statfs(self, task: Task | None) -> FsStat:
        return FsStat(self.magic)


class Node(Inode):
    """A made-up inode.

    Arguments:
        mode: kind and permissions.
    """

    def __init__(self, fs: SyntheticFs, mode: int) -> None:
        super().__init__(fs)
        self.mode = mode
        self.ino = fs.number()
        self.uid = 0
        self.gid = 0

    def size(self) -> int:
        """As stat(2) shows it: not known before it is read."""
        return 0

    def links(self) -> int:
        """``st_nlink``: of directories two, and one for each directory in them."""
        return 1

    def owner(self) -> tuple[int, int]:
        """User and group that it belongs to."""
        return self.uid, self.gid

    def stat(self) -> Stat:
        fs = self.fs
        assert isinstance(fs, SyntheticFs)
        uid, gid = self.owner()
        time = fs.created
        return Stat(
            self.mode, self.ino, uid, gid, self.size(), self.links(), fs.device,
            blksize=1024, atime=time, mtime=time, ctime=time,
        )

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode)

    def access(self) -> tuple[int, int, int]:
        return self.mode, *self.owner()


class Text(Node):
    """A file whose content is made when it is read.

    Arguments:
        make: gives the content; takes the task that reads.
        store: takes the task and what was written, once for every write(2); None for a file that cannot be written.
    """

    def __init__(
        self,
        fs: SyntheticFs,
        mode: int,
        make: Callable[[Task], bytes],
        store: Callable[[Task, bytes], None] | None = None,
    ) -> None:
        super().__init__(fs, stat.S_IFREG | mode)
        self._make = make
        self._store = store

    def make(self, task: Task) -> bytes:
        """The content now."""
        return self._make(task)

    def store(self, task: Task, data: bytes) -> None:
        """Take what was written. Raises SysError."""
        if self._store is None:
            raise SysError(EIO)
        self._store(task, data)

    def setattr(self, task: Task, attributes: Attributes) -> None:
        """Only truncation, as the shell's ``>`` does, is possible, and changes nothing."""
        if attributes.size is None:
            raise SysError(EPERM)

    def open(self, task: Task, flags: int) -> File:
        if flags & os.O_ACCMODE != os.O_RDONLY and self._store is None:
            raise SysError(EACCES)
        return TextFile(flags, self)


class TextFile(File):
    """An open made-up file: what was made when it was read from the start stays until that is done again."""

    def __init__(self, flags: int, node: Text) -> None:
        super().__init__(flags, node)
        self._node = node
        self._content: bytes | None = None

    def read(self, task: Task, size: int) -> bytes:
        data = self.pread(task, size, self.offset)
        self.offset += len(data)
        return data

    def pread(self, task: Task, size: int, offset: int) -> bytes:
        if self._content is None or offset == 0:
            self._content = self._node.make(task)
        return self._content[offset : offset + size]

    def write(self, task: Task, data: bytes) -> int:
        data = data[:MAX_WRITE]
        self._node.store(task, data)
        self.offset += len(data)
        return len(data)

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        data = data[:MAX_WRITE]
        self._node.store(task, data)
        return len(data)

    def seek(self, task: Task, offset: int, whence: int) -> int:
        if whence == os.SEEK_CUR:
            offset += self.offset
        elif whence == os.SEEK_END:
            offset += len(self._node.make(task))
        elif whence != os.SEEK_SET:
            raise SysError(EINVAL)
        if offset < 0:
            raise SysError(EINVAL)
        self.offset = offset
        return offset

    def truncate(self, task: Task, size: int) -> None:
        if not self.can_write:
            raise SysError(EINVAL)


class Link(Node):
    """A symbolic link.

    Arguments:
        target: gives the text; takes the task that asks.
    """

    def __init__(self, fs: SyntheticFs, target: Callable[[Task], bytes] | bytes) -> None:
        super().__init__(fs, stat.S_IFLNK | 0o777)
        self._target = target

    def readlink(self, task: Task) -> bytes:
        return self._target if isinstance(self._target, bytes) else self._target(task)


class Directory(Node):
    """A directory. By itself it has entries that never change; kinds with others override :meth:`lookup` and
    :meth:`readdir`."""

    def __init__(self, fs: SyntheticFs, mode: int = 0o555) -> None:
        super().__init__(fs, stat.S_IFDIR | mode)
        self.fixed: dict[bytes, Node] = {}

    def links(self) -> int:
        return 2 + sum(1 for node in self.fixed.values() if stat.S_ISDIR(node.mode))

    def add(self, name: bytes, node: Node) -> Node:
        """Give it a fixed entry."""
        self.fixed[name] = node
        return node

    def lookup(self, task: Task, name: bytes) -> Inode:
        node = self.fixed.get(name)
        if node is None:
            raise SysError(ENOENT)
        return node

    def readdir(self, task: Task) -> list[Entry]:
        """All entries but ``.`` and ``..``."""
        return [(name, node.ino, node.kind) for name, node in self.fixed.items()]

    def open(self, task: Task, flags: int) -> File:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise SysError(EISDIR)
        return directory.Directory(flags, self)

    # Nothing can be made here; what Linux says of it depends on the kind of file system.

    def _refuse(self) -> SysError:
        fs = self.fs
        assert isinstance(fs, SyntheticFs)
        return SysError(fs.refusal)

    def create(self, task: Task, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        raise self._refuse()

    def mkdir(self, task: Task, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        raise self._refuse()

    def mknod(self, task: Task, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Inode:
        raise self._refuse()

    def symlink(self, task: Task, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
        raise self._refuse()

    def link(self, task: Task, name: bytes, inode: Inode) -> None:
        raise self._refuse()

    def unlink(self, task: Task, name: bytes) -> None:
        self.lookup(task, name)
        raise SysError(EPERM)

    def rmdir(self, task: Task, name: bytes) -> None:
        self.lookup(task, name)
        raise SysError(EPERM)

    def rename(self, task: Task, name: bytes, directory: Inode, new_name: bytes, flags: int) -> None:
        raise SysError(EPERM)


Tree = dict[str, Any]
"""A description of fixed files: names to content (str, bytes, int or a function of the reading task), to a pair of that
and a function that stores, or to a further tree."""


def build(fs: SyntheticFs, parent: Directory, tree: Tree, ending: bytes = b"\n") -> None:
    """Fill a directory with what ``tree`` describes.

    Arguments:
        ending: what comes behind every content that is not a function's.
    """
    for name, value in tree.items():
        if isinstance(value, dict):
            below = Directory(fs)
            parent.add(name.encode(), below)
            build(fs, below, value, ending)
        elif isinstance(value, Node):
            parent.add(name.encode(), value)
        elif isinstance(value, tuple):
            parent.add(name.encode(), Text(fs, 0o644, _maker(value[0], ending), value[1]))
        else:
            parent.add(name.encode(), Text(fs, 0o444, _maker(value, ending)))


def _maker(value: Any, ending: bytes) -> Callable[[Task], bytes]:
    if callable(value):
        return value  # type: ignore[no-any-return]
    data = value if isinstance(value, bytes) else str(value).encode()
    return Constant(data + ending)


class Constant:
    """A content that never changes."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __call__(self, task: Task) -> bytes:
        return self.data


class Setting:
    """A number or text that can be written and read back and has no further effect."""

    __slots__ = ("data", "high", "low")

    def __init__(self, value: int | bytes, low: int | None = None, high: int | None = None) -> None:
        self.data = value if isinstance(value, bytes) else b"%d" % value
        self.low = low
        self.high = high

    def __call__(self, task: Task) -> bytes:
        return self.data + b"\n"

    def store(self, task: Task, data: bytes) -> None:
        """Take it. Raises SysError(EINVAL) for a number that is none or is out of range."""
        text = data.strip()[:4096]
        if self.low is not None or self.high is not None:
            try:
                number = int(text)
            except ValueError:
                raise SysError(EINVAL) from None
            if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
                raise SysError(EINVAL)
            text = b"%d" % number
        self.data = text

    @property
    def pair(self) -> tuple[Callable[[Task], bytes], Callable[[Task, bytes], None]]:
        """For :func:`build`."""
        return self, self.store
