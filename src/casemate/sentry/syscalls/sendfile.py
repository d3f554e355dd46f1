"""Moving data between files: sendfile(2), copy_file_range(2), splice(2), tee(2), vmsplice(2)."""

from __future__ import annotations

import os
import stat
from errno import EBADF, EINVAL, EISDIR, ESPIPE
from typing import TYPE_CHECKING

from casemate.sentry.abi import s64, u32
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.pipe import Pipe, PipeFile
from casemate.sentry.mm.memory import MAX_RW_COUNT
from casemate.sentry.syscalls.readwrite import allowed, readable, writing
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.vfs import notify
from casemate.sentry.wait import Block

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File

CHUNK = 1 << 18
SPLICE_F_MOVE, SPLICE_F_NONBLOCK, SPLICE_F_MORE, SPLICE_F_GIFT = 1, 2, 4, 8
_ALL = SPLICE_F_MOVE | SPLICE_F_NONBLOCK | SPLICE_F_MORE | SPLICE_F_GIFT


def _position(task: Task, address: int) -> int | None:
    """An offset that the application keeps; None for a null pointer. Raises SysError(EINVAL)."""
    if not address:
        return None
    offset = s64(task.mem.u64(address))
    if offset < 0:
        raise SysError(EINVAL)
    return offset


@syscall("sendfile")
def sendfile(task: Task, out_fd: int, in_fd: int, offset: int, count: int) -> int:
    """sendfile(2)."""
    source, sink = readable(task, in_fd), writing(task, out_fd)
    at = _position(task, offset)
    wanted = count
    if wanted >> 63:
        raise SysError(EINVAL)
    if not source.bulk:
        if source.inode is not None and source.inode.kind in (stat.S_IFIFO, stat.S_IFSOCK) and at is not None:
            raise SysError(ESPIPE)
        raise SysError(EINVAL)
    if sink.flags & os.O_APPEND:
        raise SysError(EINVAL)
    count = min(count, MAX_RW_COUNT)
    if sink.bulk:
        count = allowed(task, sink, count, -1)
    done = 0
    start = source.offset if at is None else at
    if start + wanted >> 63:
        raise SysError(EINVAL)
    try:
        while done < count:
            data = source.pread(task, min(CHUNK, count - done), start + done)
            if not data:
                break
            step = sink.write(task, data)
            done += step
            if step == 0:
                break
    except SysError:
        if not done:
            raise
    except Block as block:
        # Where the sink is full, what went is told at once; the caller comes again.
        done += block.partial
        if not done:
            raise
    if at is None:
        source.offset = start + done
    else:
        task.mem.put_u64(offset, at + done)
    return _moved(source, sink, done)


def _moved(source: File, sink: File, done: int) -> int:
    if done and notify.watching:
        notify.on_file(source, notify.IN_ACCESS)
        notify.on_file(sink, notify.IN_MODIFY)
    return done


@syscall("copy_file_range")
def copy_file_range(task: Task, in_fd: int, in_at: int, out_fd: int, out_at: int, size: int, flags: int) -> int:
    """copy_file_range(2)."""
    source, sink = task.files.opened(in_fd), task.files.opened(out_fd)
    read_at, write_at = _position(task, in_at), _position(task, out_at)
    if u32(flags):
        raise SysError(EINVAL)
    for file in (source, sink):
        if not file.bulk:
            raise SysError(EISDIR if file.inode is not None and file.inode.kind == stat.S_IFDIR else EINVAL)
    readable(task, in_fd)
    writing(task, out_fd)
    if sink.flags & os.O_APPEND:
        raise SysError(EBADF)
    start = source.offset if read_at is None else read_at
    to = sink.offset if write_at is None else write_at
    size = min(size, MAX_RW_COUNT, max(0, source.stat().size - start))
    if source.inode is sink.inode and start < to + size and to < start + size:
        raise SysError(EINVAL)
    size = allowed(task, sink, size, to)
    done = 0
    while done < size:
        data = source.pread(task, min(CHUNK, size - done), start + done)
        if not data:
            break
        try:
            step = sink.pwrite(task, data, to + done)
        except SysError:
            if done:
                break
            raise
        done += step
        if step < len(data):
            break
    if read_at is None:
        source.offset = start + done
    else:
        task.mem.put_u64(in_at, start + done)
    if write_at is None:
        sink.offset = to + done
    else:
        task.mem.put_u64(out_at, to + done)
    return _moved(source, sink, done)


# Pipes.


def _pipe(file: File) -> Pipe | None:
    return file.pipe if isinstance(file, PipeFile) else None


def _quietly(file: File, flags: int) -> int:
    """Have SPLICE_F_NONBLOCK count for a pipe; what its flags were."""
    before = file.flags
    if flags & SPLICE_F_NONBLOCK and isinstance(file, PipeFile):
        file.flags |= os.O_NONBLOCK
    return before


@syscall("splice")
def splice(task: Task, in_fd: int, in_at: int, out_fd: int, out_at: int, size: int, flags: int) -> int:
    """splice(2)."""
    flags = u32(flags)
    if flags & ~_ALL:
        raise SysError(EINVAL)
    if size == 0:
        return 0
    source, sink = readable(task, in_fd), writing(task, out_fd)
    first, second = _pipe(source), _pipe(sink)
    if (first is not None and in_at) or (second is not None and out_at):
        raise SysError(ESPIPE)
    if first is None and second is None or first is second:
        raise SysError(EINVAL)
    if sink.flags & os.O_APPEND:
        raise SysError(EINVAL)
    for at in (in_at, out_at):
        _position(task, at)
    if first is not None and second is None and not sink.spliceable:
        raise SysError(EINVAL)
    size = min(size, MAX_RW_COUNT)
    before = _quietly(source, flags), _quietly(sink, flags)
    try:
        if first is not None:
            return _from_pipe(task, source, first, sink, out_at, size)
        assert second is not None
        return _to_pipe(task, source, in_at, sink, second, size)
    finally:
        source.flags, sink.flags = before


def _from_pipe(task: Task, source: File, pipe: Pipe, sink: File, out_at: int, size: int) -> int:
    if not pipe.chunks:
        # Nothing there: waiting, EAGAIN and the end are as read(2) has them.
        return len(source.read(task, 1))
    data = pipe.peek(min(size, CHUNK))
    offset = _position(task, out_at)
    if sink.bulk:
        data = data[: allowed(task, sink, len(data), -1 if offset is None else offset)]
    done = sink.write(task, data) if offset is None else sink.pwrite(task, data, offset)
    taken = 0
    while taken < done:
        taken += len(pipe.take(done - taken))
    if offset is not None:
        task.mem.put_u64(out_at, offset + done)
    return _moved(source, sink, done)


def _to_pipe(task: Task, source: File, in_at: int, sink: File, pipe: Pipe, size: int) -> int:
    room = pipe.capacity - pipe.size
    if room == 0 or not pipe.readers:
        # No room, or nobody to read it: waiting, EAGAIN and SIGPIPE are as write(2) has them.
        return sink.write(task, b"\0")
    offset = _position(task, in_at)
    size = min(size, room)
    data = source.read(task, size) if offset is None else source.pread(task, size, offset)
    if data:
        sink.write(task, data)
    if offset is not None:
        task.mem.put_u64(in_at, offset + len(data))
    return _moved(source, sink, len(data))


@syscall("tee")
def tee(task: Task, in_fd: int, out_fd: int, size: int, flags: int) -> int:
    """tee(2)."""
    flags = u32(flags)
    if flags & ~_ALL:
        raise SysError(EINVAL)
    if size == 0:
        return 0
    source, sink = readable(task, in_fd), writing(task, out_fd)
    first, second = _pipe(source), _pipe(sink)
    if first is None or second is None or first is second:
        raise SysError(EINVAL)
    before = _quietly(source, flags), _quietly(sink, flags)
    try:
        if not first.chunks:
            return len(source.read(task, 1))
        room = second.capacity - second.size
        if room == 0 or not second.readers:
            return sink.write(task, b"\0")
        return sink.write(task, first.peek(min(size, room, MAX_RW_COUNT)))
    finally:
        source.flags, sink.flags = before


@syscall("vmsplice", Support.PARTIAL, "pages are copied, never given away")
def vmsplice(task: Task, fd: int, vector: int, count: int, flags: int) -> int:
    """vmsplice(2)."""
    flags = u32(flags)
    if flags & ~_ALL:
        raise SysError(EINVAL)
    file = task.files.get(fd)
    pipe = _pipe(file)
    if pipe is None:
        raise SysError(EBADF)
    vectors = task.mem.iovecs(vector, count)
    size = sum(length for _, length in vectors)
    if not size:
        return 0
    before = _quietly(file, flags)
    try:
        if file.can_write:
            room = pipe.capacity - pipe.size
            if room == 0 or not pipe.readers:
                return file.write(task, b"\0")
            data = bytearray()
            for base, length in vectors:
                data += task.mem.read(base, min(length, room - len(data)))
                if len(data) >= room:
                    break
            return file.write(task, bytes(data))
        data_out = file.read(task, min(size, CHUNK))
        task.mem.scatter(vectors, data_out)
        return len(data_out)
    finally:
        file.flags = before
