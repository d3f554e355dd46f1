"""What an overlay shows of files of its lower file system (:mod:`casemate.sentry.vfs.overlay`)."""

from __future__ import annotations

import os
import time
from errno import EINVAL
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.file import File
from casemate.sentry.vfs.inode import Attributes, Inode, Stat
from casemate.sentry.vfs.tmpfile import MAX_SIZE, TmpFile
from casemate.sentry.vfs.tmpfs import TmpInode, TmpLink, TmpNode

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.overlay import OverlayFs

COPY_CHUNK = 1 << 20


class Shown(TmpInode):
    """What shows a file of the lower file system.

    Arguments:
        lower: that file.
    """

    fs: OverlayFs

    def __init__(self, fs: OverlayFs, lower: Inode) -> None:
        Inode.__init__(self, fs)
        fs.count += 1  # which the end of the object takes back
        self.lower: Inode | None = lower
        """Where its data is; None once that was copied."""
        self.origin = lower
        self.owned = False
        """Its attributes are here; the lower file's do not count any more."""
        self.xattrs = None
        self._xattrs_owned = False
        self._told: Stat | None = None
        self._stat: Stat | None = None
        told = lower.stat()
        self.ino = fs.number_of(told.dev, told.ino)

    def stat(self) -> Stat:
        if self.owned:
            return super().stat()
        told = self.origin.stat()
        if told is not self._told or self._stat is None:
            self._told = told
            self._stat = Stat(
                told.mode, self.ino, told.uid, told.gid, told.size, told.nlink, self.fs.device, told.rdev,
                told.blksize, told.blocks, told.atime, told.mtime, told.ctime, told.btime,
            )  # fmt: skip
        return self._stat

    def access(self) -> tuple[int, int, int]:
        if self.owned:
            return self.mode, self.uid, self.gid
        return self.origin.access()

    def length(self) -> int:
        return self.origin.stat().size

    def blocks(self) -> int:
        return self.origin.stat().blocks

    def own(self) -> None:
        """Have the attributes here: one of them is about to change."""
        if self.owned:
            return
        told = self.origin.stat()
        self.mode, self.uid, self.gid, self.nlink = told.mode, told.uid, told.gid, told.nlink
        self.atime, self.mtime, self.ctime, self.btime = told.atime, told.mtime, told.ctime, told.btime
        self.owned = True
        self._told = self._stat = None
        self.fs.changed[self] = None

    def unlinked(self) -> None:
        """It has one name less."""
        self.own()
        self.nlink -= 1
        self.ctime = time.time_ns()
        if self.nlink <= 0:
            self.nlink = 0
            self.fs.changed.pop(self, None)

    def setattr(self, task: Task, attributes: Attributes) -> None:
        self.own()
        super().setattr(task, attributes)

    def getxattr(self, task: Task, name: bytes) -> bytes:
        return super().getxattr(task, name) if self._xattrs_owned else self.origin.getxattr(task, name)

    def listxattr(self, task: Task) -> list[bytes]:
        return super().listxattr(task) if self._xattrs_owned else self.origin.listxattr(task)

    def setxattr(self, task: Task, name: bytes, value: bytes, flags: int) -> None:
        self._own_xattrs(task)
        super().setxattr(task, name, value, flags)

    def removexattr(self, task: Task, name: bytes) -> None:
        self._own_xattrs(task)
        super().removexattr(task, name)

    def _own_xattrs(self, task: Task) -> None:
        self.own()
        if not self._xattrs_owned:
            self.xattrs = {name: self.origin.getxattr(task, name) for name in self.origin.listxattr(task)}
            self._xattrs_owned = True


class OverlayLink(Shown, TmpLink):
    """A symbolic link."""

    def readlink(self, task: Task) -> bytes:
        return self.origin.readlink(task)


class OverlayNode(Shown, TmpNode):
    """A FIFO, a socket or a device."""

    def __init__(self, fs: OverlayFs, lower: Inode) -> None:
        super().__init__(fs, lower)
        self.kind = lower.kind
        self.rdev = lower.stat().rdev


class OverlayFile(Shown, TmpFile):
    """A regular file."""

    def __init__(self, fs: OverlayFs, lower: Inode) -> None:
        self.fd = -1
        self.charged = 0
        self.size = 0
        self.data = bytearray()
        super().__init__(fs, lower)

    def length(self) -> int:
        return self.size if self.lower is None else self.lower.stat().size

    def blocks(self) -> int:
        return TmpFile.blocks(self) if self.lower is None else self.lower.stat().blocks

    def open(self, task: Task, flags: int) -> File:
        if self.lower is not None:
            if not flags & (os.O_ACCMODE | os.O_TRUNC):
                return LowerHandle(flags, self, self.lower.open(task, os.O_RDONLY))
            self.copy(task, 0 if flags & os.O_TRUNC else None)
        return TmpFile.open(self, task, flags)

    def setattr(self, task: Task, attributes: Attributes) -> None:
        if attributes.size is not None:
            self.copy(task, attributes.size)
        super().setattr(task, attributes)

    def copy(self, task: Task, limit: int | None = None) -> None:
        """Have the data here.

        Arguments:
            limit: what is beyond so many bytes is about to be cut off. Raises SysError(ENOSPC).
        """
        lower = self.lower
        if lower is None:
            return
        self.own()
        file = lower.open(task, os.O_RDONLY)
        try:
            size = lower.stat().size
            end = size if limit is None else min(size, limit)
            at = 0
            while at < end:
                data = file.pread(task, min(COPY_CHUNK, end - at), at)
                if not data:
                    break
                if data.count(0) == len(data):  # a hole, or as good as one
                    at += len(data)
                    if at > self.size:
                        TmpFile.resize(self, at)
                    continue
                at += self._put(data, at)
            mtime = self.mtime
            if self.size != end:
                TmpFile.resize(self, end)
        except SysError:
            TmpFile.resize(self, 0)
            raise
        finally:
            file.decref()
        self.lower = None
        self.mtime = mtime

    def _put(self, data: bytes, at: int) -> int:
        mtime, ctime = self.mtime, self.ctime
        done = TmpFile.write(self, data, at)
        self.mtime, self.ctime = mtime, ctime
        return done


class LowerHandle(File):
    """A regular file of the lower file system, open for reading. When the file is changed it goes on with the copy.

    Arguments:
        real: the lower file's, taken over.
    """

    bulk = True
    inode: OverlayFile

    def __init__(self, flags: int, inode: OverlayFile, real: File) -> None:
        super().__init__(flags, inode)
        self.real = real

    def release(self) -> None:
        self.real.decref()

    def read(self, task: Task, size: int) -> bytes:
        if self.inode.lower is None:
            data = self.inode.read(size, self.offset)
        else:
            data = self.real.pread(task, size, self.offset)
        self.offset += len(data)
        return data

    def pread(self, task: Task, size: int, offset: int) -> bytes:
        if self.inode.lower is None:
            return self.inode.read(size, offset)
        return self.real.pread(task, size, offset)

    def seek(self, task: Task, offset: int, whence: int) -> int:
        inode = self.inode
        if whence == os.SEEK_CUR:
            offset += self.offset
        elif whence == os.SEEK_END:
            offset += inode.length()
        elif whence in (os.SEEK_DATA, os.SEEK_HOLE):
            here = inode.lower is None
            offset = inode.seek_data(offset, whence) if here else self.real.seek(task, offset, whence)
        elif whence != os.SEEK_SET:
            raise SysError(EINVAL)
        if not 0 <= offset <= MAX_SIZE:
            raise SysError(EINVAL)
        self.offset = offset
        return offset

    def host_fd(self, shared: bool, writable: bool) -> int:
        return self.inode.memfd() if self.inode.lower is None else self.real.host_fd(shared, writable)

    def sync(self, task: Task, data_only: bool) -> None:
        pass
