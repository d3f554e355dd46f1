"""Open file descriptions, open(2): what descriptors refer to."""

from __future__ import annotations

import os
from errno import EAGAIN, EBADF, EINVAL, ENODEV, ENOTDIR, ENOTTY, ESPIPE
from typing import TYPE_CHECKING, Any

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.inode import Stat
from casemate.sentry.vfs.locks import unlock_file
from casemate.sentry.wait import Block, WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.inode import Inode

POLLIN, POLLPRI, POLLOUT, POLLERR, POLLHUP, POLLNVAL = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20
POLLRDNORM, POLLRDBAND, POLLWRNORM, POLLWRBAND, POLLRDHUP = 0x40, 0x80, 0x100, 0x200, 0x2000
READABLE = POLLIN | POLLRDNORM
WRITABLE = POLLOUT | POLLWRNORM


class File:
    """An open file description. Kinds of files override what they can do; the rest answers as Linux does.

    Methods raise SysError, or :class:`casemate.sentry.wait.Block` where the caller has to wait.

    Arguments:
        flags: access mode and status flags of open(2), without those that matter at open only.
        inode: what was opened; None for what has no name anywhere (sockets, eventfd, …).
    """

    anonymous = "[file]"
    """What ``/proc/PID/fd`` shows for one without a path, e.g. ``anon_inode:[eventpoll]``."""

    bulk = False
    """A read or write is cut short by the file's end (or a full disk) only, as of regular files: large ones are done in
    pieces, and RLIMIT_FSIZE counts."""

    spliceable = True
    """Whether splice(2) can write to it."""

    sigio: Any = None
    """Who sends signals of its events while it is ``O_ASYNC`` (:class:`casemate.sentry.vfs.sigio.Notice`)."""

    def __init__(self, flags: int, inode: Inode | None = None) -> None:
        self.flags = flags
        self.inode = inode
        self.place: Any = None
        """Where it was found (:class:`casemate.sentry.vfs.path.Place`), for ``/proc/PID/fd`` and ``fchdir``."""
        self.offset = 0
        self.refs = 1
        self.queue = WaitQueue()
        """Notified when what :meth:`poll` says changes."""
        self.owner = 0
        """Who gets SIGIO: pid, or -pgid; ``F_SETOWN``, fcntl(2)."""
        self.signal = 0
        """Which signal instead of SIGIO; ``F_SETSIG``, fcntl(2)."""

    # References, from descriptor tables, messages in flight and mappings.

    def incref(self) -> File:
        """One more holder."""
        self.refs += 1
        return self

    def decref(self) -> None:
        """One holder less; the last one's :meth:`release` s it."""
        self.refs -= 1
        if self.refs == 0:
            if self.inode is not None and "locks" in self.inode.extra:
                unlock_file(self, self.inode)
            self.release()

    def release(self) -> None:
        """The last holder is gone: give everything back."""

    def flush(self, task: Task) -> None:
        """A descriptor of it is being closed (POSIX locks of the process go)."""

    def stat(self) -> Stat:
        """fstat(2)."""
        if self.inode is None:
            return Stat(0o600, 1)
        return self.inode.stat()

    # Access mode.

    @property
    def can_read(self) -> bool:
        """Opened for reading."""
        return self.flags & os.O_ACCMODE != os.O_WRONLY and not self.flags & os.O_PATH

    @property
    def can_write(self) -> bool:
        """Opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY and not self.flags & os.O_PATH

    @property
    def nonblocking(self) -> bool:
        """``O_NONBLOCK`` is set."""
        return bool(self.flags & os.O_NONBLOCK)

    def wait(self, *queues: WaitQueue, deadline: int | None = None) -> Exception:
        """What to raise where nothing can be done now: EAGAIN for a non-blocking file, else waiting for its queue."""
        if self.nonblocking:
            return SysError(EAGAIN)
        return Block(*(queues or (self.queue,)), deadline=deadline)

    def keep(self, task: Task) -> None:
        """A call by this file's descriptor is about to wait: it goes on with this file, even if another thread has the
        descriptor refer to something else by then (:func:`casemate.sentry.syscalls.readwrite.kept`)."""
        if not self.flags & os.O_NONBLOCK:
            fd = task.args[0]
            if task.files.peek(fd) is self:
                task.blocked["file"] = (fd, self)

    # Data. Callers have checked the access mode and bounded the size.

    def read(self, task: Task, size: int) -> bytes:
        """read(2) at the file's offset, which moves on; empty at the end."""
        raise SysError(EINVAL)

    def write(self, task: Task, data: bytes) -> int:
        """write(2) at the file's offset (its end with ``O_APPEND``), which moves on. May write less."""
        raise SysError(EINVAL)

    def pread(self, task: Task, size: int, offset: int) -> bytes:
        """pread(2)."""
        raise SysError(ESPIPE)

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        """pwrite(2)."""
        raise SysError(ESPIPE)

    def seek(self, task: Task, offset: int, whence: int) -> int:
        """lseek(2); ``offset`` is signed."""
        raise SysError(ESPIPE)

    def getdents(self, task: Task, size: int) -> bytes:
        """Entries from the offset on as ``struct linux_dirent64``, at most ``size`` bytes; EINVAL when the next one
        does not fit, empty at the end, getdents64(2)."""
        raise SysError(ENOTDIR)

    # The rest.

    @property
    def pollable(self) -> bool:
        """Whether it is a kind whose readiness can change, as epoll_ctl(2) asks: no regular file, no directory."""
        return type(self).poll is not File.poll

    def poll(self, task: Task) -> int:
        """What is possible without waiting, as bits of poll(2)."""
        return READABLE | WRITABLE

    def ioctl(self, task: Task, command: int, argument: int) -> int:
        """ioctl(2); what all files have (FIONBIO, FIOCLEX, …) is done by the caller."""
        raise SysError(ENOTTY)

    def host_fd(self, shared: bool, writable: bool) -> int:
        """A descriptor of the host's for mmap(2): stays the file's, valid as long as that. ENODEV when it has none."""
        raise SysError(ENODEV)

    def truncate(self, task: Task, size: int) -> None:
        """ftruncate(2)."""
        raise SysError(EINVAL)

    def seals(self, task: Task) -> int:
        """F_GET_SEALS, fcntl(2)."""
        raise SysError(EINVAL)

    def add_seals(self, task: Task, seals: int) -> None:
        """F_ADD_SEALS, fcntl(2)."""
        raise SysError(EINVAL)

    def allocate(self, task: Task, mode: int, offset: int, size: int) -> None:
        """fallocate(2)."""
        raise SysError(ENODEV)

    def sync(self, task: Task, data_only: bool) -> None:
        """fsync(2), fdatasync(2)."""
        raise SysError(EINVAL)

    def describe(self) -> bytes:
        """What readlink(2) of ``/proc/PID/fd/N`` says when it has no :attr:`place`."""
        return self.anonymous.encode()

    def fdinfo(self) -> bytes:
        """Further lines for ``/proc/PID/fdinfo/N``."""
        return b""


class PathFile(File):
    """What ``O_PATH`` opens: a name, no access to the data."""

    def read(self, task: Task, size: int) -> bytes:
        raise SysError(EBADF)

    def write(self, task: Task, data: bytes) -> int:
        raise SysError(EBADF)
