"""Reading and writing, with one buffer; :mod:`.vectors` has several."""

from __future__ import annotations

import os
import resource
import signal
from errno import EBADF, EFAULT, EFBIG, EINVAL, ESPIPE
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.mm.memory import MAX_RW_COUNT, TASK_SIZE
from casemate.sentry.mm.vma import PROT_READ
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.vfs import notify
from casemate.sentry.vfs.file import File
from casemate.sentry.wait import Block

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.sentry.tasks.task import Task

CHUNK = 1 << 20
"""How much is moved at once."""
_ACCESS = os.O_ACCMODE | os.O_PATH
_NO_READING = os.O_WRONLY | os.O_PATH
_WRITING = (os.O_WRONLY, os.O_RDWR)


def kept(task: Task, fd: int) -> File | None:
    """The file that a call which has waited began with: its descriptor may refer to another one by now.

    Raises SysError(EBADF) where the file was closed meanwhile.
    """
    if not task.blocked:
        return None
    begun, file = task.blocked.get("file", (-1, None))
    if begun != fd:
        return None
    if file.refs <= 0:
        raise SysError(EBADF)
    found: File = file
    return found


def readable(task: Task, fd: int) -> File:
    """The file, for calls that read. Raises SysError(EBADF)."""
    file = kept(task, fd) if task.blocked else None
    if file is None:
        file = task.files.files.get(fd & 0xFFFF_FFFF)
    if file is None or file.flags & _NO_READING:
        raise SysError(EBADF)
    return file


def writing(task: Task, fd: int) -> File:
    """The file, for calls that write. Raises SysError(EBADF)."""
    file = kept(task, fd) if task.blocked else None
    if file is None:
        file = task.files.files.get(fd & 0xFFFF_FFFF)
    if file is None or file.flags & _ACCESS not in _WRITING:
        raise SysError(EBADF)
    return file


def at_offset(task: Task, fd: int, choose: Callable[[Task, int], File]) -> File:
    """The file by :func:`readable` or :func:`writing`, for calls with an offset. One that has no places says so first:
    ESPIPE."""
    try:
        return choose(task, fd)
    except SysError:
        file = task.files.opened(fd)
        if type(file).pread is File.pread:
            raise SysError(ESPIPE) from None
        raise


@syscall("read")
def read(task: Task, fd: int, address: int, size: int) -> int:
    """read(2)."""
    file = readable(task, fd)
    if size > CHUNK and file.bulk:
        return _read_large(task, file, address, size, -1)
    data = file.read(task, size if size < CHUNK else CHUNK)
    if data:
        try:
            task.mm.write(address, data)
        except SysError:
            if file.bulk:
                file.offset -= len(data)
            raise
        if notify.watching:
            notify.on_file(file, notify.IN_ACCESS)
    elif address + size > TASK_SIZE:
        raise SysError(EFAULT)
    return len(data)


def _read_large(task: Task, file: File, address: int, size: int, offset: int) -> int:
    """Read in pieces, at ``offset`` or (-1) the file's own."""
    if address + size > TASK_SIZE:
        raise SysError(EFAULT)
    size = min(size, MAX_RW_COUNT)
    done = 0
    while done < size:
        step = min(CHUNK, size - done)
        data = file.read(task, step) if offset < 0 else file.pread(task, step, offset + done)
        try:
            task.mem.write(address + done, data)
        except SysError:
            if offset < 0:
                file.offset -= len(data)
            if done:
                return done
            raise
        done += len(data)
        if len(data) < step:
            break
    if done and notify.watching:
        notify.on_file(file, notify.IN_ACCESS)
    return done


@syscall("pread64")
def pread64(task: Task, fd: int, address: int, size: int, offset: int) -> int:
    """pread(2)."""
    if offset + size >> 62 and (offset >> 63 or offset + min(size, MAX_RW_COUNT) >> 63):
        raise SysError(EINVAL)
    try:
        file = readable(task, fd)
    except SysError:
        file = at_offset(task, fd, readable)  # which knows the error
    if size > CHUNK and file.bulk:
        return _read_large(task, file, address, size, offset)
    data = file.pread(task, size if size < CHUNK else CHUNK, offset)
    if data:
        task.mm.write(address, data)
        if notify.watching:
            notify.on_file(file, notify.IN_ACCESS)
    return len(data)


@syscall("write")
def write(task: Task, fd: int, address: int, size: int) -> int:
    """write(2)."""
    file = writing(task, fd)
    if size > MAX_RW_COUNT:
        if address + size > TASK_SIZE:
            raise SysError(EFAULT)
        size = MAX_RW_COUNT
    if file.bulk:
        if task.group.limits.sizes:
            size = allowed(task, file, size, -1)
        if size <= CHUNK:
            try:
                data = task.mm.read(address, size)
            except SysError:
                return write_all(task, file, [(address, size)], size)  # what comes before the bad page
            done = file.write(task, data)
            if notify.watching and done:
                notify.on_file(file, notify.IN_MODIFY)
            return done
    elif size <= CHUNK and not task.blocked:
        # The usual case of pipes and sockets: all of it at once.
        done = file.write(task, task.mem.read(address, size))
        if done == size:
            if notify.watching and done:
                notify.on_file(file, notify.IN_MODIFY)
            return done
        task.blocked["written"] = done
    return write_all(task, file, [(address, size)], size)


def allowed(task: Task, file: File, size: int, offset: int) -> int:
    """How much of a write RLIMIT_FSIZE allows; SIGXFSZ and EFBIG where it is nothing, setrlimit(2)."""
    limit = task.group.limits.soft(resource.RLIMIT_FSIZE)
    if limit >= 1 << 63 or not size:
        return size
    if file.flags & os.O_APPEND:
        offset = file.stat().size
    elif offset < 0:
        offset = file.offset
    if offset >= limit:
        from casemate.sentry.signals.send import send_signal

        send_signal(task, signal.SIGXFSZ)
        raise SysError(EFBIG)
    return min(size, limit - offset)


def write_all(task: Task, file: File, vectors: list[tuple[int, int]], size: int, offset: int = -1) -> int:
    """Write buffers until all is written, or nothing more can be: then the call returns what was.

    Where a file makes it wait, what is done is kept for the next time (:mod:`casemate.sentry.wait`).
    """
    done: int = task.blocked.get("written", 0)
    while True:
        try:
            data = _piece(task, vectors, done, CHUNK)
            step = file.write(task, data) if offset < 0 else file.pwrite(task, data, offset + done)
        except SysError:
            if done:
                break
            raise
        except Block as block:
            task.blocked["written"] = done
            block.partial += done
            raise
        done += step
        if task.blocked:
            # What the file kept of the piece that is written now.
            task.blocked = {}
        if done >= size or step == 0 or (file.bulk and step < len(data)):
            break
    if done and notify.watching:
        notify.on_file(file, notify.IN_MODIFY)
    return done


def _piece(task: Task, vectors: list[tuple[int, int]], skip: int, limit: int) -> bytes:
    """What the buffers hold behind the first ``skip`` bytes, at most ``limit`` of it."""
    parts: list[bytes] = []
    for base, size in vectors:
        if skip >= size:
            skip -= size
            continue
        step = min(size - skip, limit)
        try:
            parts.append(task.mem.read(base + skip, step))
        except SysError:
            # What comes before the bad page is written.
            good = task.mem.readable_size(base + skip, step, PROT_READ)
            if good:
                parts.append(task.mem.read(base + skip, good))
            elif not parts:
                raise
            break
        limit -= step
        skip = 0
        if limit == 0:
            break
    return parts[0] if len(parts) == 1 else b"".join(parts)


@syscall("pwrite64")
def pwrite64(task: Task, fd: int, address: int, size: int, offset: int) -> int:
    """pwrite(2)."""
    if offset + size >> 62 and (offset >> 63 or offset + min(size, MAX_RW_COUNT) >> 63):
        raise SysError(EINVAL)
    try:
        file = writing(task, fd)
    except SysError:
        file = at_offset(task, fd, writing)
    if size > MAX_RW_COUNT:
        if address + size > TASK_SIZE:
            raise SysError(EFAULT)
        size = MAX_RW_COUNT
    if file.bulk and task.group.limits.sizes:
        size = allowed(task, file, size, offset)
    if size <= CHUNK:
        try:
            data = task.mm.read(address, size)
        except SysError:
            return write_all(task, file, [(address, size)], size, offset)
        done = file.pwrite(task, data, offset)
        if notify.watching and done:
            notify.on_file(file, notify.IN_MODIFY)
        return done
    return write_all(task, file, [(address, size)], size, offset)
