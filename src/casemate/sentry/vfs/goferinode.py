"""Inodes of the host's files (:mod:`casemate.sentry.vfs.goferfs`), but for directories."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from errno import EINVAL, ENODATA, EOPNOTSUPP, EROFS
from typing import TYPE_CHECKING

from casemate.gofer import frames
from casemate.sentry.errno import SysError, from_os
from casemate.sentry.vfs.goferfile import GoferFile
from casemate.sentry.vfs.inode import Attributes, Inode, Stat

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File
    from casemate.sentry.vfs.goferfs import GoferFs

YOUNG, YOUNG_SECOND = 20_000_000, 2_100_000_000
"""Nanoseconds: a change time this recent may stay the same over a further change (file times advance with the host's
ticks; on some file systems, which show whole seconds, with those), so what it vouches for is not kept."""
_whole_map = False
"""This process sees files with the owners that they have on the host."""


def before_isolation() -> None:
    """Look whether this process is in a user namespace that changes the owners of files, user_namespaces(7)."""
    global _whole_map
    with contextlib.suppress(OSError), open("/proc/self/uid_map") as users, open("/proc/self/gid_map") as groups:
        _whole_map = all(file.read().split() == ["0", "0", "4294967295"] for file in (users, groups))


WRITES = os.O_ACCMODE | os.O_TRUNC
_ATTRIBUTES = frames.ATTRIBUTES
_XATTRS = (b"user.", b"security.capability", b"system.posix_acl_")


class GoferInode(Inode):
    """A file of the host's.

    Arguments:
        key: the host's device and inode number, by which it is told from others.
        fid: what the gofer knows it as.
        path_fd: an ``O_PATH`` descriptor of it, taken over; -1 for none.
    """

    fs: GoferFs
    kind = 0
    ro = rw = -1
    """Descriptors of the data of a regular file."""

    def __init__(self, fs: GoferFs, key: tuple[int, int], fid: int, path_fd: int) -> None:
        super().__init__(fs)
        self.key = key
        self.fid = fid
        self.path_fd = path_fd
        self.cached: Stat | None = None
        """Its attributes, while nothing can have changed them."""
        self.owner = (0, 0)
        self.mode = 0
        self.ids_as_of = -1
        """Change time at which the owner was asked for; -1 when that was too young."""
        self.xattrs: list[bytes] | None = None

    def __del__(self) -> None:
        client = self.fs.client
        client.clunk(self.fid)
        for fd in (self.path_fd, self.ro, self.rw):
            if fd >= 0:
                os.close(fd)
        if self.fs.closed:
            client.flush()

    def forget(self) -> None:
        """Keep nothing that the host tells."""
        self.cached = self.xattrs = None

    # Attributes.

    def update(self, attributes: tuple[int, ...]) -> None:
        """Take in what the gofer says."""
        mode, uid, gid, nlink, blksize, device, number, rdev, size, blocks, atime, mtime, ctime = attributes
        self.kind = mode & 0o170000
        self.mode = mode
        fs = self.fs
        if fs.ids is not None:
            uid, gid = fs.ids.inside(uid, gid)
        self.owner = (uid, gid)
        self.cached = Stat(
            mode, number, uid, gid, size, nlink, fs.device_of(device), rdev, blksize, blocks, atime, mtime, ctime
        )
        if not fs.exclusive:
            self.ids_as_of = ctime if self.settled(ctime) else -1

    def stat(self) -> Stat:
        found = self.cached
        if found is not None and self.fs.exclusive and self.rw < 0:
            return found
        return self._look()

    def _look(self) -> Stat:
        """Attributes that may have changed."""
        fd = self.rw if self.rw >= 0 else self.ro if self.ro >= 0 else self.path_fd
        if fd < 0:
            return self.ask_attributes()
        status = os.fstat(fd)
        if not self.fs.exclusive and status.st_ctime_ns != self.ids_as_of:
            if not _whole_map or self.fs.ids is not None:
                return self.ask_attributes()
            self.owner = (status.st_uid, status.st_gid)
        uid, gid = self.owner
        mode = self.mode = status.st_mode
        found = self.cached = Stat(
            mode, status.st_ino, uid, gid, status.st_size, status.st_nlink, self.fs.device_of(self.key[0]),
            status.st_rdev, status.st_blksize, status.st_blocks,
            status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns,
        )  # fmt: skip
        return found

    def ask_attributes(self) -> Stat:
        """Attributes as the gofer tells them."""
        body = self.fs.call(frames.TGETATTR, (self.fid,))
        self.update(_ATTRIBUTES.unpack(body))
        assert self.cached is not None
        return self.cached

    def settled(self, stamp: int) -> bool:
        """Whether a change time will be another one after the next change."""
        if stamp % 1_000_000_000 == 0:
            return time.time_ns() - stamp > YOUNG_SECOND
        return self.fs.fine(self.key[0], self.fid) or time.time_ns() - stamp > YOUNG

    def access(self) -> tuple[int, int, int]:
        if not self.fs.exclusive:
            found = self._look()
            return found.mode, found.uid, found.gid
        return self.mode, *self.owner

    def setattr(self, task: Task, attributes: Attributes) -> None:
        which, mode, uid, gid, size, atime, mtime = 0, 0, 0, 0, 0, 0, 0
        if attributes.mode is not None:
            which, mode = which | frames.SET_MODE, attributes.mode & 0o7777
        if attributes.uid is not None:
            which, uid = which | frames.SET_UID, attributes.uid
        if attributes.gid is not None:
            which, gid = which | frames.SET_GID, attributes.gid
        if attributes.size is not None:
            which, size = which | frames.SET_SIZE, attributes.size
        if attributes.atime is not None:
            which, atime = which | frames.SET_ATIME, attributes.atime
        if attributes.mtime is not None:
            which, mtime = which | frames.SET_MTIME, attributes.mtime
        if self.fs.ids is not None and which & (frames.SET_UID | frames.SET_GID):
            ids = self.fs.ids
            uid = ids.user(uid) if which & frames.SET_UID else 0
            gid = ids.group(gid) if which & frames.SET_GID else 0
        body = self.fs.call(frames.TSETATTR, (self.fid, which, mode, uid, gid, size, atime, mtime))
        self.update(_ATTRIBUTES.unpack(body))

    # Extended attributes: most programs ask for some that nobody has.

    def getxattr(self, task: Task, name: bytes) -> bytes:
        self._known(name, ENODATA)
        if self.xattrs is not None and name not in self.xattrs:
            raise SysError(ENODATA)
        if self.fs.exclusive and name not in self.listxattr(task):
            raise SysError(ENODATA)
        return self.fs.call(frames.TGETXATTR, (self.fid,), (name,))

    def setxattr(self, task: Task, name: bytes, value: bytes, flags: int) -> None:
        self._known(name, EOPNOTSUPP)
        self.xattrs = None
        self.fs.call(frames.TSETXATTR, (self.fid, flags), (name, value))
        self.ask_attributes()

    def listxattr(self, task: Task) -> list[bytes]:
        names = self.xattrs
        if names is None:
            try:
                names = self.fs.call(frames.TLISTXATTR, (self.fid,)).split(b"\0")[:-1]
            except SysError as error:
                if error.errno != EOPNOTSUPP:
                    raise
                names = []
            if self.fs.exclusive:
                self.xattrs = names
        return names

    def removexattr(self, task: Task, name: bytes) -> None:
        self._known(name, ENODATA)
        self.xattrs = None
        self.fs.call(frames.TREMOVEXATTR, (self.fid,), (name,))
        self.ask_attributes()

    def _known(self, name: bytes, number: int) -> None:
        """Raise SysError for an attribute that the gofer does not serve."""
        if not name.startswith(_XATTRS):
            raise SysError(number)


class GoferRegular(GoferInode):
    """A regular file."""

    kind = stat.S_IFREG

    def __init__(self, fs: GoferFs, key: tuple[int, int], fid: int, path_fd: int) -> None:
        super().__init__(fs, key, fid, path_fd)
        self.ro = -1
        self.rw = -1
        self.users = 0
        """How many open files use the descriptors."""

    def setattr(self, task: Task, attributes: Attributes) -> None:
        if self.rw >= 0 and attributes.size is not None and attributes == Attributes(size=attributes.size):
            try:
                os.ftruncate(self.rw, attributes.size)
            except OSError as error:
                raise from_os(error) from None
            return
        super().setattr(task, attributes)

    def open(self, task: Task, flags: int) -> File:
        fd = self.rw
        if flags & WRITES:
            if fd < 0:
                fd = self.rw = self._handle(os.O_RDWR | flags & os.O_TRUNC)
            elif flags & os.O_TRUNC:
                try:
                    os.ftruncate(fd, 0)
                except OSError as error:
                    raise from_os(error) from None
        elif fd < 0:
            fd = self.ro
            if fd < 0:
                fd = self.ro = self._handle(os.O_RDONLY)
        if self.users == 0:
            self.fs.idle.pop(self, None)
        self.users += 1
        return GoferFile(flags, self, fd)

    def _handle(self, flags: int) -> int:
        if flags != os.O_RDONLY and self.fs.read_only:
            raise SysError(EROFS)
        body, fds = self.fs.call_fds(frames.TLOPEN, (self.fid, flags))
        if len(fds) != 1:
            raise SysError(EINVAL)
        return fds[0]

    def close_handles(self) -> None:
        """Give back the descriptors, which nobody uses."""
        if self.users == 0:
            for fd in (self.ro, self.rw):
                if fd >= 0:
                    os.close(fd)
            if self.rw >= 0:
                self.cached = None
            self.ro = self.rw = -1


class GoferLink(GoferInode):
    """A symbolic link, whose text never changes."""

    kind = stat.S_IFLNK

    def __init__(self, fs: GoferFs, key: tuple[int, int], fid: int, path_fd: int) -> None:
        super().__init__(fs, key, fid, path_fd)
        self.target: bytes | None = None

    def readlink(self, task: Task) -> bytes:
        text = self.target
        if text is None:
            text = self.target = self.fs.call(frames.TREADLINK, (self.fid,))
        return text
