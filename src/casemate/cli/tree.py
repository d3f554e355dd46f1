"""Pack a file or directory into a tar stream, and unpack one, so that nothing outside the destination is touched.

Where the result goes follows Docker's ``cp``: a directory that exists takes the source in under its own name, a source
that ends in ``/.`` gives its contents alone, and a destination that does not exist becomes the new name.

Unpacking works with directory descriptors. Every component below the destination is opened without following links
(or, inside a container's own root directory, following them), and files are always made anew with ``O_EXCL``, never
opened: what stands there may be a device or a link that somebody put in the way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from casemate.cli import output
from casemate.errors import CasemateError

CHUNK = 1 << 20
MOST_DEPTH = 256
"""Directories inside directories; each takes a descriptor for a moment."""
NO_PROBLEM = CasemateError("")
"""Raised where the other side has already said what is wrong."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to copy.

    ``owners``: keep user and group. ``special_bits``: keep set-user-id and set-group-id. ``follow_source``: a source
    that is a link stands for its target. ``follow_links``: links to directories below the destination may be passed
    through. ``must_be_directory``: the destination has to be one.
    """

    owners: bool = False
    special_bits: bool = False
    follow_source: bool = False
    follow_links: bool = False
    must_be_directory: bool = False


# ---- packing


def pack(source: str, descriptor: int, options: Options) -> None:
    """Write ``source`` to ``descriptor`` as a tar stream.

    The first entry is the source itself: under its own name, or ``.`` for the contents of a directory.

    Raises:
        CasemateError: it is not there, or cannot be read.
    """
    contents = source.rstrip("/").endswith("/.") or source.rstrip("/") in (".", "")
    path = source.rstrip("/") or "/"
    try:
        if options.follow_source:
            path = os.path.realpath(path)
        status = os.stat(path) if contents or source.endswith("/") else os.lstat(path)
    except FileNotFoundError:
        raise CasemateError(f"there is no {source}") from None
    if (contents or source.endswith("/")) and not stat.S_ISDIR(status.st_mode):
        raise CasemateError(f"{source} is not a directory")
    name = "." if contents else os.path.basename(source.rstrip("/") if options.follow_source else path)
    if name in ("", ".."):
        name = "."
    with os.fdopen(os.dup(descriptor), "wb", CHUNK) as file, tarfile.open(
        fileobj=file, mode="w|", bufsize=CHUNK, format=tarfile.PAX_FORMAT
    ) as tar:
        links: dict[tuple[int, int], str] = {}
        if stat.S_ISDIR(status.st_mode):
            tar.addfile(_entry(name, status))
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            _pack_directory(tar, os.open(path, flags), name, links, 0)
        else:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            parent = os.open(os.path.dirname(path) or ".", flags)
            try:
                _pack_entry(tar, parent, os.path.basename(path), name, links, 0)
            finally:
                os.close(parent)


def _pack_directory(
    tar: tarfile.TarFile, descriptor: int, name: str, links: dict[tuple[int, int], str], depth: int
) -> None:
    """Pack what a directory holds; closes the descriptor."""
    try:
        if depth > MOST_DEPTH:
            raise CasemateError(f"{name} is nested more than {MOST_DEPTH} deep")
        for child in sorted(os.listdir(descriptor)):
            # In a running container files come and go while they are copied.
            with contextlib.suppress(FileNotFoundError):
                _pack_entry(tar, descriptor, child, f"{name}/{child}", links, depth)
    finally:
        os.close(descriptor)


def _pack_entry(
    tar: tarfile.TarFile, parent: int, child: str, name: str, links: dict[tuple[int, int], str], depth: int
) -> None:
    status = os.stat(child, dir_fd=parent, follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        descriptor = os.open(child, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        tar.addfile(_entry(name, status))
        _pack_directory(tar, descriptor, name, links, depth + 1)
    elif kind == stat.S_IFLNK:
        entry = _entry(name, status)
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(child, dir_fd=parent)
        tar.addfile(entry)
    elif kind == stat.S_IFREG:
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in links:
            entry = _entry(name, status)
            entry.type, entry.linkname = tarfile.LNKTYPE, links[key]
            tar.addfile(entry)
            return
        # O_NONBLOCK: should it have become a pipe since, opening it must not wait.
        descriptor = os.open(child, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        with os.fdopen(descriptor, "rb", 0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return
            entry = _entry(name, status)
            entry.size = status.st_size
            tar.addfile(entry, file)
        links[key] = name
    elif kind != stat.S_IFSOCK:
        output.warn(f"{name} is neither file, directory nor link: left out")


def _entry(name: str, status: os.stat_result) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = stat.S_IMODE(status.st_mode), status.st_mtime_ns / 1e9
    entry.uid, entry.gid = status.st_uid, status.st_gid
    if stat.S_ISDIR(status.st_mode):
        entry.type = tarfile.DIRTYPE
    return entry


# ---- unpacking


def unpack(descriptor: int, destination: str, options: Options, *, foreign: bool = False) -> None:
    """Read a tar stream from ``descriptor`` and put what is in it at ``destination``.

    Arguments:
        foreign: the stream is not from :func:`pack` but somebody's own; its entries go below ``destination``, which has
            to be a directory.

    Raises:
        CasemateError: the destination does not fit the source, or an entry leads out of it.
    """
    with os.fdopen(os.dup(descriptor), "rb", CHUNK) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|*" if foreign else "r|", bufsize=CHUNK) as tar:
                first = tar.next()
                if first is None:
                    if foreign:
                        return  # an empty archive
                    raise NO_PROBLEM
                base, rename = _place(first, destination, options, foreign)
                with _Target(base, options) as target:
                    _unpack_all(tar, first, target, rename)
            if foreign:
                while file.read(CHUNK):  # padding after the end; the writer must not get a broken pipe for it
                    pass
        except (tarfile.TarError, EOFError) as error:
            if not foreign:
                raise NO_PROBLEM from None  # cut off because the packing side failed, which tells why
            raise CasemateError(f"standard input is no whole tar archive ({error})") from None


def _place(
    first: tarfile.TarInfo, destination: str, options: Options, foreign: bool
) -> tuple[str, tuple[str, str] | None]:
    """The directory to unpack in, and the first component to rename: from what to what."""
    try:
        is_directory = stat.S_ISDIR(os.stat(destination).st_mode)
    except FileNotFoundError:
        if foreign or options.must_be_directory:
            raise CasemateError(f"there is no directory {destination}") from None
        if destination.endswith("/") and not first.isdir():
            raise CasemateError(f"there is no directory {destination}") from None
        parent = os.path.dirname(destination.rstrip("/")) or "."
        if not os.path.isdir(parent):
            raise CasemateError(f"there is no directory {parent}") from None
        if os.path.islink(destination.rstrip("/")):
            raise CasemateError(f"{destination} is a link that leads nowhere") from None
        return parent, (first.name, os.path.basename(destination.rstrip("/")))
    if is_directory:
        return destination, None
    if foreign or options.must_be_directory or destination.endswith("/"):
        raise CasemateError(f"{destination} is not a directory")
    if first.isdir():
        raise CasemateError(f"{destination} is a file, and a directory cannot replace it")
    real = os.path.realpath(destination)
    return os.path.dirname(real), (first.name, os.path.basename(real))


def _unpack_all(
    tar: tarfile.TarFile, first: tarfile.TarInfo, target: _Target, rename: tuple[str, str] | None
) -> None:
    entry: tarfile.TarInfo | None = first
    while entry is not None:
        target.add(tar, entry, _components(entry.name, rename), rename)
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every entry for ever otherwise
        entry = tar.next()
    target.finish()


def _components(name: str, rename: tuple[str, str] | None) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise CasemateError(f"the entry {name!r} leads out of the destination")
    if rename is None:
        return parts
    old, new = rename
    return [new, *parts] if old == "." else [new, *parts[1:]]


class _Target:
    """A directory that entries are put in.

    Arguments:
        path: it exists.
    """

    def __init__(self, path: str, options: Options) -> None:
        self.options = options
        self.root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.times: list[tuple[list[str], int, float]] = []

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.root)

    @contextlib.contextmanager
    def _parent(self, parts: list[str], *, make: bool = True) -> Iterator[int]:
        """A descriptor of the directory that holds ``parts``, whose missing directories are made."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if self.options.follow_links else os.O_NOFOLLOW)
        if len(parts) > MOST_DEPTH:
            raise CasemateError(f"an entry is nested more than {MOST_DEPTH} deep")
        current = os.dup(self.root)
        try:
            for part in parts[:-1]:
                try:
                    following = os.open(part, flags, dir_fd=current)
                except FileNotFoundError:
                    if not make:
                        raise
                    os.mkdir(part, 0o755, dir_fd=current)
                    following = os.open(part, flags | os.O_NOFOLLOW, dir_fd=current)
                except OSError as error:
                    if error.errno in (errno.ELOOP, errno.ENOTDIR):
                        raise CasemateError(f"{'/'.join(parts)}: {part} at the destination is no directory") from None
                    raise
                os.close(current)
                current = following
            yield current
        finally:
            os.close(current)

    def add(
        self, tar: tarfile.TarFile, entry: tarfile.TarInfo, parts: list[str], rename: tuple[str, str] | None
    ) -> None:
        """Put one entry in its place, instead of whatever is there that is no directory."""
        if not parts:
            return  # the destination itself: it is there, and stays as it is
        leaf = parts[-1]
        mode = stat.S_IMODE(entry.mode) & (0o7777 if self.options.special_bits else 0o1777)
        with self._parent(parts) as parent:
            if entry.isdir():
                self._directory(parent, leaf, mode)
            elif entry.isreg():
                self._clear(parent, leaf, parts)
                self._file(tar, entry, parent, leaf, mode)
            elif entry.issym():
                if not entry.linkname or "\0" in entry.linkname:
                    raise CasemateError(f"the entry {entry.name!r} is a link to nothing")
                self._clear(parent, leaf, parts)
                os.symlink(entry.linkname, leaf, dir_fd=parent)
            elif entry.islnk():
                self._clear(parent, leaf, parts)
                origin = _components(entry.linkname, rename)
                if not origin:
                    raise CasemateError(f"the entry {entry.name!r} is a hard link to a directory")
                with self._parent(origin, make=False) as other:
                    os.link(origin[-1], leaf, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
                return
            else:
                output.warn(f"{entry.name} is neither file, directory nor link: left out")
                return
            if self.options.owners:
                os.chown(leaf, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
                if entry.isreg() and mode & 0o6000:
                    os.chmod(leaf, mode, dir_fd=parent)  # chown took the bits away
            if entry.isdir():
                self.times.append((parts, mode, entry.mtime))
            else:
                with contextlib.suppress(OverflowError):
                    os.utime(leaf, (entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _clear(self, parent: int, leaf: str, parts: list[str]) -> None:
        try:
            os.unlink(leaf, dir_fd=parent)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            raise CasemateError(f"{'/'.join(parts)} is a directory, and a file cannot replace it") from None

    def _directory(self, parent: int, leaf: str, mode: int) -> None:
        try:
            # Writable until its contents are there; finish() gives it its mode.
            os.mkdir(leaf, mode | 0o700, dir_fd=parent)
        except FileExistsError:
            status = os.stat(leaf, dir_fd=parent, follow_symlinks=self.options.follow_links)
            if not stat.S_ISDIR(status.st_mode):
                raise CasemateError(f"{leaf} at the destination is no directory") from None

    def _file(self, tar: tarfile.TarFile, entry: tarfile.TarInfo, parent: int, leaf: str, mode: int) -> None:
        source = tar.extractfile(entry)
        if source is None:
            raise CasemateError(f"{entry.name} cannot be read")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(leaf, flags, 0o600, dir_fd=parent)
        with os.fdopen(descriptor, "wb", 0) as file:
            remaining = entry.size
            while remaining:
                data = source.read(min(CHUNK, remaining))
                if not data:
                    raise tarfile.ReadError("unexpected end of data")
                file.write(data)
                remaining -= len(data)
            os.fchmod(descriptor, mode)

    def finish(self) -> None:
        """Give directories their modes and times, the innermost first, now that nothing more is put in them."""
        for parts, mode, mtime in reversed(self.times):
            with contextlib.suppress(FileNotFoundError, OverflowError), self._parent(parts, make=False) as parent:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                flags |= 0 if self.options.follow_links else os.O_NOFOLLOW
                descriptor = os.open(parts[-1], flags, dir_fd=parent)
                try:
                    os.fchmod(descriptor, mode)
                    os.utime(descriptor, (mtime, mtime))
                finally:
                    os.close(descriptor)


