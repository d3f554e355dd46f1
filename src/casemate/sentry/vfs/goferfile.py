"""Open regular files of the host's."""

from __future__ import annotations

import os
from errno import EINVAL, EOVERFLOW
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError, from_os
from casemate.sentry.vfs.file import File

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.goferinode import GoferRegular

_SYNC = os.O_SYNC & ~os.O_DSYNC
_APPEND_OR_SYNC = os.O_APPEND | os.O_SYNC | os.O_DSYNC
MAX_OFFSET = 0x7FFF_FFFF_FFFF_FFFF


class GoferFile(File):
    """An open regular file of the host's.

    Arguments:
        flags: as of open(2).
        inode: what is open; its ``users`` counts this one already.
        fd: the descriptor for its data, the inode's.
    """

    bulk = True
    inode: GoferRegular

    def __init__(self, flags: int, inode: GoferRegular, fd: int) -> None:
        super().__init__(flags, inode)
        self.fd = fd

    def release(self) -> None:
        inode = self.inode
        inode.users -= 1
        if inode.users == 0:
            inode.fs.unused(inode)

    def read(self, task: Task, size: int) -> bytes:
        try:
            data = os.pread(self.fd, size, self.offset)
        except OSError as error:
            raise from_os(error) from None
        self.offset += len(data)
        return data

    def pread(self, task: Task, size: int, offset: int) -> bytes:
        try:
            return os.pread(self.fd, size, offset)
        except OSError as error:
            raise from_os(error) from None

    def write(self, task: Task, data: bytes) -> int:
        try:
            if self.flags & _APPEND_OR_SYNC:
                done = os.pwritev(self.fd, [data], self.offset, self._write_flags())
                if self.flags & os.O_APPEND:
                    self.offset = os.fstat(self.fd).st_size
                    return done
            else:
                done = os.pwrite(self.fd, data, self.offset)
        except OSError as error:
            raise from_os(error) from None
        self.offset += done
        return done

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        try:
            if self.flags & _APPEND_OR_SYNC:
                # Linux appends even here, pwrite(2) "BUGS".
                return os.pwritev(self.fd, [data], offset, self._write_flags())
            return os.pwrite(self.fd, data, offset)
        except OSError as error:
            raise from_os(error) from None

    def _write_flags(self) -> int:
        """RWF_* of pwritev2(2) for the file's flags: the descriptor is shared by opens that have others."""
        flags = os.RWF_APPEND if self.flags & os.O_APPEND else 0
        if self.flags & _SYNC:
            flags |= os.RWF_SYNC
        elif self.flags & os.O_DSYNC:
            flags |= os.RWF_DSYNC
        return flags

    def seek(self, task: Task, offset: int, whence: int) -> int:
        if whence == os.SEEK_CUR:
            offset += self.offset
        elif whence == os.SEEK_END:
            offset += os.fstat(self.fd).st_size
        elif whence in (os.SEEK_DATA, os.SEEK_HOLE):
            try:
                offset = os.lseek(self.fd, offset, whence)
            except OSError as error:
                raise from_os(error) from None
        elif whence != os.SEEK_SET:
            raise SysError(EINVAL)
        if offset < 0:
            raise SysError(EINVAL)
        if offset > MAX_OFFSET:
            raise SysError(EOVERFLOW)
        self.offset = offset
        return offset

    def host_fd(self, shared: bool, writable: bool) -> int:
        return self.fd

    def truncate(self, task: Task, size: int) -> None:
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise from_os(error) from None

    def allocate(self, task: Task, mode: int, offset: int, size: int) -> None:
        from casemate.sentry.vfs.tmpfile import host_fallocate

        host_fallocate(self.fd, mode, offset, size)

    def sync(self, task: Task, data_only: bool) -> None:
        try:
            (os.fdatasync if data_only else os.fsync)(self.fd)
        except OSError as error:
            raise from_os(error) from None
