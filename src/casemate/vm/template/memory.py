"""The memory of templates: files without a name, sealed against writing, that keepers have in common.

Each machine maps the memory of its template privately: it reads what all share, and has to itself what it writes. QEMU
wants to open such a file for writing all the same (before 8.2 there is no other way), as a user who must not be able to
change it. A file of the disk cannot have both. A memory file (:manpage:`memfd_create(2)`) can, once it is sealed
(``F_SEAL_WRITE``): nobody can write to it any more, root included.

Such a file lives as long as somebody has it open, so keepers take it from each other: each notes in
``<run>/templates/<key>/<sandbox>`` who it is and under which number it has the file, and keeps it open until its end.
Where no keeper has it, it is read from the disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from casemate.config import Config
from casemate.errors import TemplateError
from casemate.vm import notes

PAGE = 4096
CHUNK = 1 << 20
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_ZERO = bytes(CHUNK)


def create(name: str, size: int) -> int:
    """An empty memory file of ``size`` bytes.

    Raises:
        OSError: there are no descriptors left.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> None:
    """Forbid all change for ever. Raises OSError: somebody still has it mapped for writing."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def copy(source: int, target: int) -> int:
    """Copy what a file holds, leaving holes where it has some.

    Returns:
        how many bytes that was.

    Raises:
        OSError: reading or writing failed, no space is left.
    """
    copied = 0
    for start, end in _extents(source):
        while start < end:
            data = os.pread(source, min(CHUNK, end - start), start)
            if not data:
                raise OSError(errno.EIO, "the file was cut short")
            view = memoryview(data)
            at = start
            while view:
                done = os.pwrite(target, view, at)
                view, at = view[done:], at + done
            start += len(data)
            copied += len(data)
    return copied


def copy_between(source: int, target: int, begin: int, end: int) -> None:
    """As :func:`copy_without_zeros`, of a part of a file, into one that has the size already."""
    for start, stop in _extents(source):
        for at in range(max(start, begin), min(stop, end), CHUNK):
            data = os.pread(source, min(CHUNK, min(stop, end) - at), at)
            if data == _ZERO[: len(data)]:
                continue
            for first, last in _runs(data):
                view = memoryview(data)[first:last]
                where = at + first
                while view:
                    done = os.pwrite(target, view, where)
                    view, where = view[done:], where + done


def copy_without_zeros(source: int, target: int) -> None:
    """As :func:`copy`, and leave out every page that is zero; ``target`` is empty and gets the size of ``source``."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    copy_between(source, target, 0, size)


def _runs(data: bytes) -> list[tuple[int, int]]:
    """Where there are pages that are not zero: begin and end of each run of them."""
    runs: list[tuple[int, int]] = []
    for begin in range(0, len(data), PAGE):
        stop = min(begin + PAGE, len(data))
        if data[begin:stop] != _ZERO[: stop - begin]:
            if runs and runs[-1][1] == begin:
                runs[-1] = (runs[-1][0], stop)
            else:
                runs.append((begin, stop))
    return runs


def _extents(fd: int) -> list[tuple[int, int]]:
    """Where a file has data: begin and end."""
    found, at, size = [], 0, os.fstat(fd).st_size
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # holes up to the end
                break
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, at))
    return found


def read(path: Path, name: str) -> int:
    """A file of the disk as a memory file, not sealed yet.

    Raises:
        OSError: it cannot be read.
    """
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fd = create(name, os.fstat(source).st_size)
        try:
            copy(source, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd
    finally:
        os.close(source)


class Shared:
    """The memory of a template, open and sealed. Holding it lets others find it.

    Arguments:
        fd: owned from here on.
        note: the file that tells others.
    """

    def __init__(self, fd: int, note: Path) -> None:
        self.fd = fd
        self._note = note

    def close(self) -> None:
        """Give it up."""
        notes.drop(self._note)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def take(config: Config, key: str, path: Path, size: int, sandbox: str) -> Shared:
    """The memory of a template: another keeper's, or read from the disk.

    Arguments:
        key: the template's.
        path: the file of the disk.
        size: how many bytes it must have.
        sandbox: whose memory it is to be.

    Raises:
        TemplateError: it cannot be had.
    """
    fd = _from_others(config, key, size)
    try:
        if fd < 0:
            fd = read(path, _name(key))
            if os.fstat(fd).st_size != size:
                raise TemplateError(f"{path} was cut short", "make another: casemate template create")
            seal(fd)
        return share(config, key, fd, sandbox)
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        if isinstance(error, OSError):
            raise TemplateError(f"the template's memory cannot be had: {error.strerror}") from None
        raise


def share(config: Config, key: str, fd: int, sandbox: str) -> Shared:
    """Tell others that this process has a template's memory, as descriptor ``fd``. Raises OSError."""
    return Shared(fd, notes.write(config.run, key, sandbox, fd))


def _name(key: str) -> str:
    return f"casemate-template-{key[:16]}"


def _from_others(config: Config, key: str, size: int) -> int:
    """A descriptor of the file that another process has open, or -1. Notes of those that have ended are removed."""
    for note, link in notes.of(config.run, key):
        try:
            if os.readlink(link) != f"/memfd:{_name(key)} (deleted)":
                raise ValueError("it is something else")
            fd = os.open(link, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError):
            notes.drop(note)
            continue
        if _is_ours(fd, size):
            return fd
        os.close(fd)
        notes.drop(note)
    return -1


def _is_ours(fd: int, size: int) -> bool:
    """Whether a descriptor is a template's memory. A process id may have gone to somebody else meanwhile, who could
    offer memory of his own: what counts is that root made it and that nobody can change it."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_size != size:
        return False
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        return False
