"""Inodes of what has no name in any tree: pipes (pipefs) and the anonymous inode of eventfd, epoll and the like."""

from __future__ import annotations

import os
import stat
from errno import ENXIO
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.file import File
from casemate.sentry.vfs.inode import Attributes, FileSystem, FsStat, Inode, Stat

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

PIPEFS_MAGIC = 0x50495045
ANON_INODE_FS_MAGIC = 0x09041934
MQUEUE_MAGIC = 0x19800202


class AnonFs(FileSystem):
    """A file system that is mounted nowhere: it only numbers its inodes, statfs(2) and stat(2) show it.

    Arguments:
        device: what ``st_dev`` shows.
        name, magic: its type, as ``/proc/filesystems`` and statfs(2) have it.
    """

    def __init__(self, device: int, name: str, magic: int) -> None:
        super().__init__(device)
        self.name = name
        self.magic = magic
        self.last = 0

    def statfs(self, task: Task | None) -> FsStat:
        return FsStat(type=self.magic)

    def next(self) -> int:
        """A number for a new inode."""
        self.last += 1
        return self.last


class AnonInode(Inode):
    """An inode that is reached by descriptors only. Its owner and permissions can be changed, as Linux lets one."""

    kind = 0

    def __init__(self, fs: AnonFs, mode: int, uid: int, gid: int, now: int) -> None:
        super().__init__(fs)
        self.ino = fs.next()
        self.mode = mode
        self.kind = stat.S_IFMT(mode)
        self.uid = uid
        self.gid = gid
        self.time = now

    def open(self, task: Task, flags: int) -> File:
        """By ``/proc/PID/fd/N``, proc_pid_fd(5)."""
        raise SysError(ENXIO)

    def stat(self) -> Stat:
        return Stat(
            mode=self.mode, ino=self.ino, uid=self.uid, gid=self.gid, dev=self.fs.device, atime=self.time,
            mtime=self.time, ctime=self.time,
        )  # fmt: skip

    def setattr(self, task: Task, attributes: Attributes) -> None:
        if attributes.mode is not None:
            self.mode = stat.S_IFMT(self.mode) | stat.S_IMODE(attributes.mode)
        if attributes.uid is not None:
            self.uid = attributes.uid
        if attributes.gid is not None:
            self.gid = attributes.gid
        self.time = task.kernel.clock.realtime()

    def access(self) -> tuple[int, int, int]:
        return self.mode, self.uid, self.gid


class AnonFile(File):
    """What all files of the anonymous inode have: they can be sought in to no effect, as Linux lets one."""

    spliceable = False

    def __init__(self, kernel: Kernel, flags: int) -> None:
        super().__init__(flags, anon_inode(kernel))

    def seek(self, task: Task, offset: int, whence: int) -> int:
        return 0


def _fs(kernel: Kernel, minor: int, name: str, magic: int) -> AnonFs:
    fs = kernel.subsystems.get(name)
    if fs is None:
        fs = kernel.subsystems[name] = AnonFs(os.makedev(0, minor), name, magic)
    assert isinstance(fs, AnonFs)
    return fs


def pipe_inode(task: Task) -> AnonInode:
    """A new inode for a pipe of this task."""
    kernel = task.kernel
    creds = task.creds
    fs = _fs(kernel, 14, "pipefs", PIPEFS_MAGIC)
    return AnonInode(fs, stat.S_IFIFO | 0o600, creds.fsuid, creds.fsgid, kernel.clock.realtime())


def anon_inode(kernel: Kernel) -> AnonInode:
    """The one inode that eventfd, epoll, timerfd, signalfd and their like share; it has no kind."""
    inode = kernel.subsystems.get("anon_inode")
    if inode is None:
        fs = _fs(kernel, 15, "anon_inodefs", ANON_INODE_FS_MAGIC)
        inode = kernel.subsystems["anon_inode"] = AnonInode(fs, 0o600, 0, 0, kernel.clock.realtime())
    assert isinstance(inode, AnonInode)
    return inode
