"""Named files out of a directory or an archive that cannot be trusted. Nothing is unpacked, names are looked up."""

from __future__ import annotations

import errno
import io
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from casemate import ids
from casemate.errors import BadImage, HostError, ImageNotFound
from casemate.oci import tarstream
from casemate.oci.layerstream import Readable, decompress, sniff
from casemate.oci.limits import Limits
from casemate.oci.tarstream import Feed, TarReader
from casemate.oci.trees import open_in_root

MAX_MEMBERS = 65_536
_HOPS = 8
_CHECK_EVERY = 64 << 20


class Files(Protocol):
    """What an image layout is read through."""

    def size(self, name: str) -> int:
        """Bytes of a file, or -1 when there is none."""

    def open(self, name: str) -> AbstractContextManager[Readable]:
        """Open a file.

        Raises:
            BadImage: there is none, or it is no regular file.
        """


def read(files: Files, name: str, limit: int) -> bytes:
    """A whole small file.

    Raises:
        BadImage: there is none, or it is larger than ``limit`` bytes.
    """
    data = b""
    with files.open(name) as file:
        while len(data) <= limit and (chunk := file.read(limit + 1 - len(data))):
            data += chunk
    if len(data) > limit:
        raise BadImage(f"{name[:100]} is larger than {limit} bytes")
    return data


class Section(io.RawIOBase):
    """A part of an open file, read by position. Owns the descriptor that it is given."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._at, self._end = fd, offset, offset + size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        left = self._end - self._at
        data = os.pread(self._fd, left if size < 0 else min(size, left), self._at)
        self._at += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


class Directory:
    """Files below a directory; links in it lead nowhere else."""

    def __init__(self, path: Path) -> None:
        try:
            self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageNotFound(f"no image layout at {path} ({error.strerror})", "name a directory") from None

    def close(self) -> None:
        os.close(self._root)

    def size(self, name: str) -> int:
        try:
            fd = open_in_root(self._root, os.fsencode(name), os.O_PATH)
        except OSError:
            return -1
        try:
            status = os.fstat(fd)
            return status.st_size if stat.S_ISREG(status.st_mode) else -1
        finally:
            os.close(fd)

    def open(self, name: str) -> AbstractContextManager[Readable]:
        try:
            # Not to wait for whoever would open the other end, should it be a pipe.
            fd = open_in_root(self._root, os.fsencode(name), os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise BadImage(f"the image layout lacks {name[:120]!r} ({error.strerror})") from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise BadImage(f"{name[:120]!r} in the image layout is no regular file")
        return Section(fd, 0, status.st_size)


class _FileFeed(Feed):
    """A feed that seeks over what nobody reads, and knows where it is."""

    def __init__(self, fd: int) -> None:
        super().__init__(iter(()))
        self._fd = fd
        self._length = os.fstat(fd).st_size
        self.at = 0

    def take(self, size: int) -> bytes:
        data = os.pread(self._fd, size, self.at)
        self.at += len(data)
        return data

    def pieces(self, size: int) -> Iterator[bytes]:
        while size > 0 and (piece := self.take(min(size, 1 << 20))):
            size -= len(piece)
            yield piece

    def skip(self, size: int) -> bool:
        self.at += size
        return self.at <= self._length


class Archive:
    """Files in a tar archive, which may be compressed with gzip or zstd.

    Arguments:
        path: the archive.
        tmp: where a compressed one is unpacked to while this is open.
    """

    def __init__(self, path: Path, tmp: Path, limits: Limits) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ImageNotFound(f"no image archive at {path} ({error.strerror})", "name a file") from None
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise BadImage(f"{path} is no regular file", "name an archive")
            kind = sniff(os.pread(self._fd, 16, 0))
            if kind != "none":
                plain = _inflate(self._fd, kind, tmp, limits)
                os.close(self._fd)
                self._fd = plain
            self._members, self._links = _members(self._fd, limits)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    def _find(self, name: str) -> tuple[int, int] | None:
        key = _normal(name)
        for _ in range(_HOPS):
            if key in self._members:
                return self._members[key]
            if key not in self._links:
                return None
            key = self._links[key]
        return None

    def size(self, name: str) -> int:
        found = self._find(name)
        return -1 if found is None else found[1]

    def open(self, name: str) -> AbstractContextManager[Readable]:
        found = self._find(name)
        if found is None:
            raise BadImage(f"the image archive lacks {name[:120]!r}")
        return Section(os.dup(self._fd), *found)


def _normal(name: str) -> str:
    return posixpath.normpath("/" + name.lstrip("/"))


def _members(fd: int, limits: Limits) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Where each regular file is, and what links point at."""
    feed = _FileFeed(fd)
    members: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    for count, entry in enumerate(TarReader(feed, limits)):
        if count >= MAX_MEMBERS:
            raise BadImage(f"the image archive has more than {MAX_MEMBERS} members")
        name = _normal(os.fsdecode(entry.name))
        if ".." in os.fsdecode(entry.name).split("/"):
            raise BadImage(f"the image archive has a name with '..': {ascii(name[:100])}")
        if entry.kind == tarstream.DIRECTORY:
            continue
        if name in members or name in links:
            raise BadImage(f"the image archive has {ascii(name[:100])} twice")  # readers differ on which one counts
        if entry.kind == tarstream.REGULAR and entry.fragments is None:
            members[name] = (feed.at, entry.stored)
        elif entry.kind == tarstream.SYMLINK:
            links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), os.fsdecode(entry.link)))
        elif entry.kind == tarstream.HARDLINK:
            links[name] = _normal(os.fsdecode(entry.link))
    return members, links


def _inflate(fd: int, kind: str, tmp: Path, limits: Limits) -> int:
    """Decompress an archive into a file without a name; its descriptor."""
    path = tmp / ids.new_id()[:16]
    plain = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(path)
        total, unchecked = 0, _CHECK_EVERY
        with Section(os.dup(fd), 0, os.fstat(fd).st_size) as source:
            for chunk in decompress(source, kind, limits):
                total += len(chunk)
                unchecked += len(chunk)
                if total > limits.blob_bytes:
                    raise BadImage(f"the image archive unpacks to more than {limits.blob_bytes} bytes")
                if unchecked >= _CHECK_EVERY:
                    unchecked = 0
                    check_space(tmp, 0, limits)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(plain, view) :]
    except OSError as error:
        os.close(plain)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostError(f"no space left below {tmp.parent}", "free some") from None
        raise
    except BaseException:
        os.close(plain)
        raise
    return plain


def check_space(directory: Path, size: int, limits: Limits) -> None:
    """See whether ``size`` bytes fit the disk beside what is to stay free.

    Raises:
        HostError: they do not.
    """
    state = os.statvfs(directory)
    free = state.f_bavail * state.f_frsize
    if free < size + limits.free_bytes:
        raise HostError(
            f"not enough space below {directory.parent}: {free >> 20} MiB are free, "
            f"{(size + limits.free_bytes) >> 20} MiB are needed",
            "free some, or remove images with 'casemate rmi'",
        )


@contextmanager
def opened(transport: str, path: Path, tmp: Path, limits: Limits) -> Iterator[Files]:
    """The files of a layout directory (``oci``, ``dir``) or an archive (any other transport)."""
    files: Directory | Archive = Directory(path) if transport in ("oci", "dir") else Archive(path, tmp, limits)
    try:
        yield files
    finally:
        files.close()
