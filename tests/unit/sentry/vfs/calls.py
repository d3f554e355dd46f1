"""System calls of the file system without programs: a task whose memory is a bytearray."""

from __future__ import annotations

import os
import struct
from errno import EFAULT
from types import SimpleNamespace
from typing import Any

from casemate.sentry.clock import Clock
from casemate.sentry.creds import Credentials
from casemate.sentry.errno import SysError
from casemate.sentry.limits import Limits
from casemate.sentry.mm.memory import Memory
from casemate.sentry.syscalls import table
from casemate.sentry.syscalls.numbers import NUMBERS
from casemate.sentry.vfs.context import FsContext
from casemate.sentry.vfs.fdtable import FdTable
from casemate.sentry.vfs.inode import FileSystem
from casemate.sentry.vfs.mount import Mounts
from casemate.sentry.vfs.tmpfs import TmpFs
from casemate.sentry.wait import Block
from tests.unit.sentry.spaces import namespaces

AT_FDCWD = -100
BASE = 0x10000
SCRATCH = 0x100000
"""Where calls put their results, far behind the arguments."""
STAT = struct.Struct("<QQQIIIIQqqqqqqqqq24x")


class Bytes(Memory):
    """Memory of some megabytes from :data:`BASE` on."""

    __slots__ = ("data",)

    def __init__(self, size: int = 8 << 20) -> None:
        super().__init__(-1)
        self.data = bytearray(size)

    def readable_size(self, address: int, size: int, prot: int = 7) -> int:
        at = address - BASE
        return max(0, min(size, len(self.data) - at)) if at >= 0 else 0

    def read(self, address: int, size: int) -> bytes:
        at = address - BASE
        if at < 0 or at + size > len(self.data):
            raise SysError(EFAULT)
        return bytes(self.data[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        at = address - BASE
        if at < 0 or at + len(data) > len(self.data):
            raise SysError(EFAULT)
        self.data[at : at + len(data)] = data


class FakeTask:
    """What stands for a task and its process; unlike a namespace it can be a key of dictionaries."""

    exit_code = 0
    """As of a process that is ending: no signal comes to it."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Waits(Exception):
    """The call would wait."""


class Caller:
    """A process that makes system calls.

    Arguments:
        like: another caller, to be in the same sandbox.
        fs: the root file system; a tmpfs by default.
    """

    def __init__(
        self, uid: int = 0, gid: int = 0, like: Caller | None = None, pid: int = 1, fs: FileSystem | None = None
    ) -> None:
        if like is None:
            fs = fs or TmpFs(os.makedev(0, 65), size=1 << 30, mode=0o755)
            mounts = Mounts(fs, b"root")
            self.kernel: Any = SimpleNamespace(
                mounts=mounts, tasks={}, groups={}, subsystems={}, clock=Clock(),
            )
            self.kernel.ns = namespaces(self.kernel)
        else:
            self.kernel = like.kernel
        root = self.kernel.mounts.root.place
        limits = Limits()
        self.memory = Bytes()
        self.task: Any = FakeTask(
            kernel=self.kernel, fs=FsContext(root, root, 0o022), files=FdTable(limits), creds=Credentials(uid, gid),
            mem=self.memory, mm=self.memory,
            group=SimpleNamespace(limits=limits, executable=None, container="", ns=self.kernel.ns),
            blocked={}, timed_out=False, pid=pid, tid=pid, thread=object(),
        )
        self.kernel.tasks[pid] = self.task
        table.load()

    def raw(self, name: str, *args: int | bytes) -> int:
        """Make a call; bytes are put into memory, with a zero behind. Raises SysError, Waits."""
        at = BASE
        words = []
        for argument in args:
            if isinstance(argument, bytes):
                self.memory.write(at, argument + b"\0")
                words.append(at)
                at += len(argument) + 16 & ~7
                assert at < SCRATCH
            else:
                words.append(argument & (1 << 64) - 1)
        entry = table.TABLE[NUMBERS[name]]
        words += [0] * (entry.arguments - len(words))
        self.task.args = tuple(words)
        try:
            result = entry.handler(self.task, *words[: entry.arguments])
        except Block as block:
            raise Waits from block
        self.task.blocked = {}
        return result

    def __call__(self, name: str, *args: int | bytes) -> int:
        """Make a call; what it returns, ``-errno`` where it fails."""
        try:
            return self.raw(name, *args)
        except SysError as error:
            self.task.blocked = {}
            return -error.errno

    # Shorter ways for what tests do often.

    def open(self, path: bytes, flags: int = 0, mode: int = 0o644, dirfd: int = AT_FDCWD) -> int:
        return self("openat", dirfd, path, flags, mode)

    def read(self, fd: int, size: int = 65536) -> bytes:
        return self.memory.read(SCRATCH, self.raw("read", fd, SCRATCH, size))

    def write(self, fd: int, data: bytes) -> int:
        self.memory.write(SCRATCH, data)
        return self("write", fd, SCRATCH, len(data))

    def stat(self, path: bytes, follow: bool = True) -> os.stat_result | int:
        result = self("stat" if follow else "lstat", path, SCRATCH)
        return result if result < 0 else self._stat()

    def fstat(self, fd: int) -> os.stat_result | int:
        result = self("fstat", fd, SCRATCH)
        return result if result < 0 else self._stat()

    def _stat(self) -> os.stat_result:
        words = STAT.unpack(self.memory.read(SCRATCH, STAT.size))
        dev, ino, nlink, mode, uid, gid, _, rdev, size, blksize, blocks, *times = words
        return os.stat_result(
            (mode, ino, dev, nlink, uid, gid, size, times[0], times[2], times[4]),
            {"st_blocks": blocks, "st_rdev": rdev, "st_blksize": blksize,
             "st_atime_ns": times[0] * 10**9 + times[1], "st_mtime_ns": times[2] * 10**9 + times[3],
             "st_ctime_ns": times[4] * 10**9 + times[5]},
        )  # fmt: skip

    def names(self, path: bytes) -> list[bytes]:
        """What a directory holds, in order."""
        fd = self.raw("openat", AT_FDCWD, path, os.O_RDONLY | os.O_DIRECTORY)
        found = []
        while data := self.memory.read(SCRATCH, self.raw("getdents64", fd, SCRATCH, 4096)):
            at = 0
            while at < len(data):
                (length,) = struct.unpack_from("<H", data, at + 16)
                found.append(data[at + 19 : at + length].split(b"\0", 1)[0])
                at += length
        self.raw("close", fd)
        return sorted(name for name in found if name not in (b".", b".."))

    def link_text(self, path: bytes) -> bytes | int:
        result = self("readlink", path, SCRATCH, 4096)
        return result if result < 0 else self.memory.read(SCRATCH, result)

    def cwd(self) -> bytes | int:
        result = self("getcwd", SCRATCH, 4096)
        return result if result < 0 else self.memory.read(SCRATCH, result - 1)

    def put(self, path: bytes, data: bytes = b"", mode: int = 0o644) -> None:
        """Make a file."""
        fd = self.raw("openat", AT_FDCWD, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        assert self.write(fd, data) == len(data)
        self.raw("close", fd)

    def data(self, path: bytes) -> bytes:
        """What a file holds."""
        fd = self.raw("openat", AT_FDCWD, path, os.O_RDONLY)
        parts = []
        while part := self.read(fd, 1 << 20):
            parts.append(part)
        self.raw("close", fd)
        return b"".join(parts)
