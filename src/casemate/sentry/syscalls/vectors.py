"""Reading and writing with several buffers, readv(2)."""

from __future__ import annotations

import os
from errno import EINVAL, EOPNOTSUPP
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32, s64
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.readwrite import CHUNK, allowed, at_offset, readable, write_all, writing
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.vfs import notify

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File

# preadv2(2)
RWF_HIPRI, RWF_DSYNC, RWF_SYNC, RWF_NOWAIT, RWF_APPEND = 1, 2, 4, 8, 16


def _readv(task: Task, file: File, vectors: list[tuple[int, int]], offset: int) -> int:
    size = sum(length for _, length in vectors)
    if offset >= 0 and offset + size >> 63:
        raise SysError(EINVAL)
    if not size:
        return 0
    done = 0
    while True:
        step = min(CHUNK, size - done)
        data = file.read(task, step) if offset < 0 else file.pread(task, step, offset + done)
        try:
            task.mem.scatter(_behind(vectors, done), data)
        except SysError:
            if done:
                return done
            raise
        done += len(data)
        if not file.bulk or len(data) < step or done >= size:
            break
    if done and notify.watching:
        notify.on_file(file, notify.IN_ACCESS)
    return done


def _behind(vectors: list[tuple[int, int]], skip: int) -> list[tuple[int, int]]:
    """The buffers without their first ``skip`` bytes."""
    if not skip:
        return vectors
    rest: list[tuple[int, int]] = []
    for base, size in vectors:
        if skip >= size:
            skip -= size
        else:
            rest.append((base + skip, size - skip))
            skip = 0
    return rest


def _vectors(task: Task, address: int, count: int) -> list[tuple[int, int]]:
    return task.mem.iovecs(address, count)


@syscall("readv")
def readv(task: Task, fd: int, vector: int, count: int) -> int:
    """readv(2)."""
    file = readable(task, fd)
    return _readv(task, file, _vectors(task, vector, count), -1)


@syscall("writev")
def writev(task: Task, fd: int, vector: int, count: int) -> int:
    """writev(2)."""
    file = writing(task, fd)
    return _writev(task, file, _vectors(task, vector, count), -1)


def _writev(task: Task, file: File, vectors: list[tuple[int, int]], offset: int) -> int:
    size = sum(length for _, length in vectors)
    if offset >= 0 and offset + size >> 63:
        raise SysError(EINVAL)
    if not size:
        return 0
    if file.bulk:
        size = allowed(task, file, size, offset)
        vectors = _cut(vectors, size)
    return write_all(task, file, vectors, size, offset)


def _cut(vectors: list[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """The buffers up to ``limit`` bytes of them."""
    kept: list[tuple[int, int]] = []
    for base, size in vectors:
        size = min(size, limit)
        limit -= size
        kept.append((base, size))
    return kept


@syscall("preadv")
def preadv(task: Task, fd: int, vector: int, count: int, offset: int) -> int:
    """preadv(2)."""
    if offset >> 63:
        raise SysError(EINVAL)
    file = at_offset(task, fd, readable)
    return _readv(task, file, _vectors(task, vector, count), offset)


@syscall("pwritev")
def pwritev(task: Task, fd: int, vector: int, count: int, offset: int) -> int:
    """pwritev(2)."""
    if offset >> 63:
        raise SysError(EINVAL)
    file = at_offset(task, fd, writing)
    return _writev(task, file, _vectors(task, vector, count), offset)


def _flags(file: File, flags: int) -> int:
    """The status flags of the file for one call with ``RWF_*``. Raises SysError(EOPNOTSUPP)."""
    if flags & ~(RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_NOWAIT | RWF_APPEND):
        raise SysError(EOPNOTSUPP)
    more = os.O_NONBLOCK if flags & RWF_NOWAIT else 0
    if flags & RWF_APPEND:
        more |= os.O_APPEND
    return file.flags | more


@syscall("preadv2")
def preadv2(task: Task, fd: int, vector: int, count: int, offset: int, high: int, flags: int) -> int:
    """preadv2(2); an offset of -1 is the file's own."""
    file = readable(task, fd) if s64(offset) == -1 else at_offset(task, fd, readable)
    if s64(offset) < -1:
        raise SysError(EINVAL)
    before, file.flags = file.flags, _flags(file, s32(flags))
    try:
        return _readv(task, file, _vectors(task, vector, count), s64(offset))
    finally:
        file.flags = before


@syscall("pwritev2")
def pwritev2(task: Task, fd: int, vector: int, count: int, offset: int, high: int, flags: int) -> int:
    """pwritev2(2); an offset of -1 is the file's own."""
    file = writing(task, fd) if s64(offset) == -1 else at_offset(task, fd, writing)
    if s64(offset) < -1:
        raise SysError(EINVAL)
    before, file.flags = file.flags, _flags(file, s32(flags))
    try:
        return _writev(task, file, _vectors(task, vector, count), s64(offset))
    finally:
        file.flags = before
