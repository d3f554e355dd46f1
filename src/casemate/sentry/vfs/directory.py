"""Open directories of any file system."""

from __future__ import annotations

import os
import struct
from errno import EBADF, EINVAL, EISDIR, ENOENT
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.file import File
from casemate.sentry.vfs.inode import Inode

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

_HEAD = struct.Struct("<QqHB")


class Directory(File):
    """An open directory.

    What it holds is asked of the file system at the first read and at each rewind, so that entries that come and go
    while it is read neither show twice nor hide others. The offset counts entries.
    """

    def __init__(self, flags: int, inode: Inode) -> None:
        super().__init__(flags, inode)
        self._entries: list[tuple[bytes, int, int]] | None = None

    def read(self, task: Task, size: int) -> bytes:
        raise SysError(EISDIR)

    def pread(self, task: Task, size: int, offset: int) -> bytes:
        raise SysError(EISDIR)

    def write(self, task: Task, data: bytes) -> int:
        raise SysError(EBADF)

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        raise SysError(EBADF)

    def seek(self, task: Task, offset: int, whence: int) -> int:
        if whence == os.SEEK_CUR:
            offset += self.offset
        elif whence == os.SEEK_END:
            offset += len(self.entries(task))
        elif whence != os.SEEK_SET:
            raise SysError(EINVAL)
        if not 0 <= offset <= 0x7FFF_FFFF_FFFF_FFFF:
            raise SysError(EINVAL)
        if offset == 0:
            self._entries = None
        self.offset = offset
        return offset

    def sync(self, task: Task, data_only: bool) -> None:
        """Names are kept as they are made."""

    def entries(self, task: Task) -> list[tuple[bytes, int, int]]:
        """Name, inode number and kind of each, ``.`` and ``..`` first."""
        if self._entries is None:
            assert self.inode is not None
            number = self.inode.stat().ino
            above = number
            place = self.place
            if place is not None:
                if place.dentry.deleted:
                    raise SysError(ENOENT)
                above = place.up(task.fs.root).inode.stat().ino
            self._entries = [(b".", number, 0o040000), (b"..", above, 0o040000), *self.inode.readdir(task)]
        return self._entries

    def getdents(self, task: Task, size: int) -> bytes:
        entries = self.entries(task)
        at = self.offset
        parts: list[bytes] = []
        left = size
        while at < len(entries):
            name, number, kind = entries[at]
            length = (20 + len(name) + 7) & ~7
            if length > left:
                if not parts:
                    raise SysError(EINVAL)
                break
            left -= length
            at += 1
            parts.append((_HEAD.pack(number, at, length, kind >> 12) + name).ljust(length, b"\0"))
        self.offset = at
        return b"".join(parts)
