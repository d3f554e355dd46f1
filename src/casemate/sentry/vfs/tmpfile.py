"""Regular files of tmpfs(5), and what opens them."""

from __future__ import annotations

import ctypes
import os
import stat
import time
from errno import EFBIG, EINVAL, ENOSPC, ENXIO, EOPNOTSUPP, EPERM
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from casemate.sentry.creds import CAP_FSETID
from casemate.sentry.errno import SysError, from_os
from casemate.sentry.vfs.file import File
from casemate.sentry.vfs.tmpfs import SMALL, TmpFs, TmpInode

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

MAX_SIZE = (1 << 63) - 1
F_SEAL_SEAL, ALL_SEALS = 0x1, 0x3F
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 16
_DAY = 86_400_000_000_000


@lru_cache(maxsize=1)
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    return libc


def host_fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    """fallocate(2) on a descriptor of the host's, which Python has without modes only. Raises SysError."""
    if _libc().fallocate(fd, mode, offset, size) != 0:
        raise SysError(ctypes.get_errno())


class TmpFile(TmpInode):
    """A regular file."""

    kind = stat.S_IFREG

    def __init__(self, fs: TmpFs, mode: int, uid: int, gid: int) -> None:
        self.fd = -1
        """The memfd; -1 while the data is in :attr:`data`."""
        self.charged = 0
        super().__init__(fs, mode, uid, gid)
        self.size = 0
        self.data = bytearray()

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        if hasattr(self, "fs"):
            self.fs.used -= self.charged
        super().__del__()

    def length(self) -> int:
        return self.size

    def blocks(self) -> int:
        if self.fd >= 0:
            return os.fstat(self.fd).st_blocks
        return (len(self.data) + 4095) // 4096 * 8

    def open(self, task: Task, flags: int) -> File:
        return TmpHandle(flags, self)

    # Data.

    def memfd(self) -> int:
        """The data as a descriptor of the host's, for good."""
        if self.fd < 0:
            fd = os.memfd_create("tmpfs", os.MFD_CLOEXEC)
            try:
                os.write(fd, self.data)
                os.ftruncate(fd, self.size)
            except OSError as error:
                os.close(fd)
                raise from_os(error) from None
            self.fd = fd
            self.data = bytearray()
        return self.fd

    def read(self, size: int, offset: int) -> bytes:
        """Bytes from ``offset`` on; fewer at the end."""
        left = self.size - offset
        if left <= 0:
            return b""
        if size > left:
            size = left
        if self.fd < 0:
            return bytes(self.data[offset : offset + size])
        return os.pread(self.fd, size, offset)

    def write(self, data: bytes, offset: int) -> int:
        """Put bytes at ``offset``, growing the file. Returns how many there was room for. Raises ENOSPC, EFBIG."""
        size = len(data)
        if not size:
            return 0
        end = offset + size
        if end > MAX_SIZE:
            if offset >= MAX_SIZE:
                raise SysError(EFBIG)
            data = data[: MAX_SIZE - offset]
            size = len(data)
            end = MAX_SIZE
        if self.fd < 0 and end <= SMALL:
            if end > self.size:
                self._charge((end + 4095) // 4096)
                if offset > self.size:
                    self.data += bytes(offset - self.size)
                self.size = end
            self.data[offset:end] = data
        else:
            fd = self.memfd()
            fs = self.fs
            # What is written may replace what is there: only where it might not fit is it worth to look closely.
            if fs.used + size // 4096 + 2 > fs.pages:
                size = self._room(size, offset)
                data = data[:size]
            try:
                size = os.pwrite(fd, data, offset)
            except OSError as error:
                raise from_os(error) from None
            if offset + size > self.size:
                self.size = offset + size
                self.recount()
            elif self.charged * 4096 < self.size:
                self.recount()  # it has holes, which this may have filled
        self.mtime = self.ctime = time.time_ns()
        return size

    def _charge(self, pages: int) -> None:
        """Have the file count as so many pages. Raises SysError(ENOSPC)."""
        fs = self.fs
        if pages > self.charged and fs.used + pages - self.charged > fs.pages:
            raise SysError(ENOSPC)
        fs.used += pages - self.charged
        self.charged = pages

    def recount(self) -> None:
        """Count what the host holds of it: also what mappings have touched."""
        pages = os.fstat(self.fd).st_blocks // 8
        self.fs.used += pages - self.charged
        self.charged = pages

    def _room(self, size: int, offset: int) -> int:
        """How much of a write fits. Raises SysError(ENOSPC)."""
        self.recount()
        left = self.fs.pages - self.fs.used
        at, end = offset, offset + size
        while at < end:
            page_end = min(end, (at // 4096 + 1) * 4096)
            if not self._has_page(at // 4096 * 4096):
                if left <= 0:
                    break
                left -= 1
            at = page_end
        if at == offset:
            raise SysError(ENOSPC)
        return at - offset

    def _has_page(self, offset: int) -> bool:
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA) == offset
        except OSError:
            return False

    def resize(self, size: int) -> None:
        if size > MAX_SIZE:
            raise SysError(EFBIG)
        if self.fd < 0 and size <= SMALL:
            if size > self.size:
                self._charge((size + 4095) // 4096)
                self.data += bytes(size - self.size)
            else:
                del self.data[size:]
                self._charge((size + 4095) // 4096)
            self.size = size
            return
        fd = self.memfd()
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            raise from_os(error) from None
        self.size = size
        self.recount()

    def allocate(self, mode: int, offset: int, size: int) -> None:
        """fallocate(2): room in advance, holes. Other modes are EOPNOTSUPP, as on tmpfs."""
        if mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE):
            raise SysError(EOPNOTSUPP)
        end = offset + size
        if end > MAX_SIZE:
            raise SysError(EFBIG)
        if mode & FALLOC_FL_PUNCH_HOLE:
            if not mode & FALLOC_FL_KEEP_SIZE:
                raise SysError(EOPNOTSUPP)
            host_fallocate(self.memfd(), mode, offset, size)
        else:
            fd = self.memfd()
            self.recount()
            if self.fs.used + size // 4096 > self.fs.pages:
                raise SysError(ENOSPC)
            host_fallocate(fd, mode, offset, size)
            if not mode & FALLOC_FL_KEEP_SIZE and end > self.size:
                self.size = end
        self.recount()
        self.mtime = self.ctime = time.time_ns()

    def seek_data(self, offset: int, whence: int) -> int:
        """``SEEK_DATA`` and ``SEEK_HOLE``, lseek(2)."""
        if offset < 0 or offset >= self.size:
            raise SysError(ENXIO)
        if self.fd < 0:
            return offset if whence == os.SEEK_DATA else self.size
        try:
            return os.lseek(self.fd, offset, whence)
        except OSError as error:
            raise from_os(error) from None


class TmpHandle(File):
    """An open regular file."""

    bulk = True
    inode: TmpFile

    def __init__(self, flags: int, inode: TmpFile) -> None:
        super().__init__(flags, inode)

    def _touch(self) -> None:
        """Note the access, as mounts with ``relatime`` do."""
        inode = self.inode
        if (inode.atime <= inode.mtime or inode.atime <= inode.ctime) and not self.flags & os.O_NOATIME:
            inode.atime = time.time_ns()

    def read(self, task: Task, size: int) -> bytes:
        data = self.inode.read(size, self.offset)
        self.offset += len(data)
        if self.inode.atime <= self.inode.mtime:
            self._touch()
        return data

    def pread(self, task: Task, size: int, offset: int) -> bytes:
        inode = self.inode
        if inode.atime <= inode.mtime:
            self._touch()
        return inode.read(size, offset)

    def write(self, task: Task, data: bytes) -> int:
        inode = self.inode
        if inode.mode & 0o6000:
            drop_suid(task, inode)
        offset = inode.size if self.flags & os.O_APPEND else self.offset
        done = inode.write(data, offset)
        self.offset = offset + done
        return done

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        inode = self.inode
        if inode.mode & 0o6000:
            drop_suid(task, inode)
        # Linux appends even here, pwrite(2) "BUGS".
        return inode.write(data, inode.size if self.flags & os.O_APPEND else offset)

    def seek(self, task: Task, offset: int, whence: int) -> int:
        if whence == os.SEEK_CUR:
            offset += self.offset
        elif whence == os.SEEK_END:
            offset += self.inode.size
        elif whence in (os.SEEK_DATA, os.SEEK_HOLE):
            offset = self.inode.seek_data(offset, whence)
        elif whence != os.SEEK_SET:
            raise SysError(EINVAL)
        if not 0 <= offset <= MAX_SIZE:
            raise SysError(EINVAL)
        self.offset = offset
        return offset

    def host_fd(self, shared: bool, writable: bool) -> int:
        return self.inode.memfd()

    def truncate(self, task: Task, size: int) -> None:
        inode = self.inode
        if inode.mode & 0o6000:
            drop_suid(task, inode)
        inode.resize(size)
        inode.mtime = inode.ctime = time.time_ns()

    def seals(self, task: Task) -> int:
        return F_SEAL_SEAL  # none, and none can be added

    def add_seals(self, task: Task, seals: int) -> None:
        raise SysError(EINVAL if self.can_write and seals & ~ALL_SEALS else EPERM)

    def allocate(self, task: Task, mode: int, offset: int, size: int) -> None:
        self.inode.allocate(mode, offset, size)

    def sync(self, task: Task, data_only: bool) -> None:
        pass


def drop_suid(task: Task, inode: TmpInode) -> None:
    """A write takes set-user-ID and set-group-ID bits from a file, inode(7)."""
    if not task.creds.capable(CAP_FSETID):
        inode.mode &= ~stat.S_ISUID
        if inode.mode & stat.S_IXGRP:
            inode.mode &= ~stat.S_ISGID
