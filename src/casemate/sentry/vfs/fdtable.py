"""Tables of descriptors: what the numbers that an application uses refer to."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from errno import EBADF, EINVAL, EMFILE
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.vfs import notify
from casemate.sentry.vfs.locks import unlock_process

if TYPE_CHECKING:
    from casemate.sentry.limits import Limits
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File

NR_OPEN = 1 << 20
"""What ``RLIMIT_NOFILE`` can be raised to, ``/proc/sys/fs/nr_open``."""


class FdTable:
    """The descriptors of one or more tasks (CLONE_FILES, clone(2)).

    Arguments:
        limits: of the process that it belongs to; its RLIMIT_NOFILE bounds the numbers.
    """

    __slots__ = ("_cloexec", "_free", "files", "limits", "refs")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.refs = 1
        self.files: dict[int, File] = {}
        """By number; to be changed by the methods here only."""
        self._cloexec: set[int] = set()
        self._free = 0
        """No number below this one is free."""

    def get(self, fd: int) -> File:
        """The file behind a descriptor, of which the low 32 bits count. Raises SysError(EBADF)."""
        # A negative number becomes a large one here, which no table has.
        file = self.files.get(fd & 0xFFFF_FFFF)
        if file is None:
            raise SysError(EBADF)
        return file

    def opened(self, fd: int) -> File:
        """As :meth:`get`, for calls that want more than a name: what ``O_PATH`` opened is EBADF as well, open(2)."""
        file = self.get(fd)
        if file.flags & os.O_PATH:
            raise SysError(EBADF)
        return file

    def peek(self, fd: int) -> File | None:
        """The file behind a descriptor, or None."""
        return self.files.get(fd & 0xFFFF_FFFF)

    def reserve(self, count: int = 1) -> None:
        """Raise SysError(EMFILE) unless so many more descriptors can be had."""
        limit = self.limits.soft(resource.RLIMIT_NOFILE)
        files = self.files
        if len(files) + count > limit:
            # A limit that was lowered bars new ones by their numbers: those above it may stay open.
            free = limit - sum(fd < limit for fd in files)
            if free < count:
                raise SysError(EMFILE)

    def install(self, file: File, cloexec: bool = False, lowest: int = 0) -> int:
        """Give a file the lowest free descriptor from ``lowest`` on; takes over the caller's reference.

        Raises SysError(EMFILE): the reference stays the caller's.
        """
        files = self.files
        fd = self._free if self._free > lowest else lowest
        while fd in files:
            fd += 1
        if fd >= self.limits.soft(resource.RLIMIT_NOFILE):
            raise SysError(EMFILE)
        if lowest <= self._free:
            self._free = fd + 1
        files[fd] = file
        if cloexec:
            self._cloexec.add(fd)
        return fd

    def replace(self, task: Task, fd: int, file: File, cloexec: bool = False) -> None:
        """Have ``fd`` refer to ``file``, of which it takes over the caller's reference; what it referred to is closed.

        Raises SysError(EBADF) for a number beyond the limit, dup2(2).
        """
        if not 0 <= fd < self.limits.soft(resource.RLIMIT_NOFILE):
            raise SysError(EBADF)
        old = self.files.get(fd)
        self.files[fd] = file
        if cloexec:
            self._cloexec.add(fd)
        else:
            self._cloexec.discard(fd)
        if old is not None:
            self._drop(task, old)

    def dup(self, fd: int, cloexec: bool = False, lowest: int = 0) -> int:
        """Another descriptor for the same file, dup(2), F_DUPFD. Raises SysError: EBADF, EMFILE, EINVAL."""
        file = self.get(fd)
        if not 0 <= lowest < self.limits.soft(resource.RLIMIT_NOFILE):
            raise SysError(EINVAL)
        new = self.install(file, cloexec, lowest)
        file.incref()
        return new

    def close(self, task: Task, fd: int) -> None:
        """close(2). Raises SysError(EBADF)."""
        fd &= 0xFFFF_FFFF
        file = self.files.pop(fd, None)
        if file is None:
            raise SysError(EBADF)
        self._cloexec.discard(fd)
        if fd < self._free:
            self._free = fd
        self._drop(task, file)

    def _drop(self, task: Task, file: File) -> None:
        if file.inode is not None and "locks" in file.inode.extra:
            unlock_process(self, file.inode)
        file.flush(task)
        if notify.watching and file.refs == 1:
            notify.closed(file)
        file.decref()

    def cloexec(self, fd: int) -> bool:
        """Whether execve(2) closes this descriptor."""
        return fd & 0xFFFF_FFFF in self._cloexec

    def set_cloexec(self, fd: int, on: bool) -> None:
        """F_SETFD. Raises SysError(EBADF)."""
        fd &= 0xFFFF_FFFF
        if fd not in self.files:
            raise SysError(EBADF)
        if on:
            self._cloexec.add(fd)
        else:
            self._cloexec.discard(fd)

    def items(self) -> list[tuple[int, File]]:
        """All descriptors, in their order."""
        return sorted(self.files.items(), key=lambda item: item[0])

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.files))

    # Sharing, copying, ending.

    def fork(self, limits: Limits) -> FdTable:
        """A copy with the same files, for a process with these limits."""
        copy = FdTable(limits)
        copy.files = dict(self.files)
        copy._cloexec = set(self._cloexec)
        copy._free = self._free
        for file in copy.files.values():
            file.refs += 1
        return copy

    def incref(self) -> FdTable:
        """One more task uses it."""
        self.refs += 1
        return self

    def decref(self, task: Task) -> None:
        """A task uses it no more; the last one closes everything."""
        self.refs -= 1
        if self.refs == 0:
            for fd in tuple(self.files):
                self.close(task, fd)

    def close_on_exec(self, task: Task) -> None:
        """Close what execve(2) closes. The caller has made sure that the table is the task's alone."""
        for fd in sorted(self._cloexec):
            self.close(task, fd)
