"""What the sandbox was given as its standard input and outputs."""

from __future__ import annotations

import fcntl
import os
import stat
from errno import EBADF
from typing import TYPE_CHECKING, Any

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.devices import NULL, NullFile
from casemate.sentry.vfs.devpts import PtsNode
from casemate.sentry.vfs.file import File
from casemate.sentry.vfs.hostfile import HostFile, HostInode, host_fs, own_description
from casemate.sentry.vfs.inode import Inode, Stat

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task


def take_standard() -> list[tuple[int, int]]:
    """Descriptors and flags of what :func:`standard_files` makes files of; for taking them while the host's files can
    still be opened, so that pipes and terminals get descriptions of their own."""
    taken = []
    for fd in range(3):
        try:
            copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        except OSError:
            try:
                copy = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                raise SysError(EBADF) from None
            flags = os.O_RDWR
        # The application's O_NONBLOCK is its own, not the host's.
        flags &= os.O_ACCMODE | os.O_APPEND
        taken.append((own_description(copy, os.fstat(copy).st_mode, flags)[0], flags))
    return taken


def standard_files(kernel: Any, taken: list[tuple[int, int]] | None = None) -> list[File]:
    """The sentry's own descriptors 0, 1 and 2 as files for the first program. They are duplicated: a pipe's other end
    sees the end of it only once the sentry has replaced its own three, too. Those that are closed become ``/dev/null``.

    Arguments:
        taken: what :func:`take_standard` gave, where that was called before.

    Raises:
        SysError(EBADF): one is neither open nor can ``/dev/null`` be opened in its place.
    """
    files: list[File] = []
    for fd, flags in take_standard() if taken is None else taken:
        found = os.fstat(fd)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == NULL:
            # One is as good as the other, and ours can be found in the sandbox's /dev.
            os.close(fd)
            files.append(null_file(kernel, flags))
        else:
            files.append(HostFile(fd, flags, kernel))
    return files


def give(file: File, uid: int) -> None:
    """Make a standard file the user's that its program runs as, so that ``/dev/stdout`` can be opened, too; container
    engines do this. What is in the sandbox's own trees stays whose it is."""
    inode = file.inode
    if isinstance(inode, HostInode | PtsNode):
        inode.uid = uid


def null_file(kernel: Any, flags: int) -> File:
    """The sandbox's own ``/dev/null``, open: with the inode of a node of it, in no directory."""
    host = host_fs(kernel)
    return NullFile(flags, NullInode(host))


class NullInode(Inode):
    """A node of ``/dev/null`` that is in no tree."""

    def stat(self) -> Stat:
        return Stat(mode=stat.S_IFCHR | 0o666, ino=1, dev=self.fs.device, rdev=NULL)

    def open(self, task: Task, flags: int) -> File:
        return NullFile(flags, self)
