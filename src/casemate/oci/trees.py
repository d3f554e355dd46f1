"""Directory trees whose contents cannot be trusted: walking into them, making things in them, removing them.

:class:`Root` confines every path to one directory with ``openat2(2)`` and ``RESOLVE_IN_ROOT``: the kernel resolves the
path as if the directory were ``/``, so that absolute links, ``..`` and links that change meanwhile all stay inside.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from casemate.errors import BadImage, HostError

OPAQUE = "trusted.overlay.opaque"

_OPENAT2 = 437  # the same number on every architecture (openat2 came after the tables were unified)
_NO_XDEV, _NO_MAGICLINKS, _IN_ROOT = 0x01, 0x02, 0x10
_CACHE = 64
_BATCH = 10_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)


def open_in_root(root: int, path: bytes, flags: int) -> int:
    """Open ``path`` as if the directory ``root`` were the file system's root.

    Arguments:
        root: descriptor of the directory.
        path: relative or absolute, both mean below ``root``.
        flags: as for ``open(2)``; the descriptor is closed on exec.

    Raises:
        OSError: as ``openat2(2)``.
        HostError: the kernel is older than 5.6 or a system call filter forbids it.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _IN_ROOT | _NO_MAGICLINKS | _NO_XDEV)
    while True:
        fd: int = _libc.syscall(_OPENAT2, root, path, ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return fd
        error = ctypes.get_errno()
        if error in (errno.EAGAIN, errno.EINTR):  # a rename somewhere on the machine met the walk: again
            continue
        if error == errno.ENOSYS:
            raise HostError("the kernel has no openat2", "use Linux 5.6 or newer")
        raise OSError(error, os.strerror(error), os.fsdecode(path))


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is overlayfs's mark for a removed file: a character device 0/0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


class Root:
    """A directory that is being filled. Paths are tuples of components without ``.`` and ``..``.

    Arguments:
        path: the directory.
        made: called once for each directory made on the way to another path.
    """

    def __init__(self, path: Path, made: Callable[[], None]) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._made = made
        self._cache: dict[tuple[bytes, ...], int] = {}
        self._dropped: list[int] = []

    def close(self) -> None:
        self.forget()
        self.settle()
        os.close(self.fd)

    def forget(self) -> None:
        """Drop cached directories: after something that paths lead through was removed.

        Descriptors that were given out stay open until :meth:`settle`.
        """
        self._dropped += self._cache.values()
        self._cache.clear()

    def settle(self) -> None:
        """Close what was dropped. To be called when no descriptor from :meth:`find` or :meth:`make` is in use."""
        while self._dropped:
            os.close(self._dropped.pop())

    def find(self, parts: tuple[bytes, ...]) -> int:
        """A descriptor (``O_PATH``) of a directory, links followed within the root.

        It stays this object's, and open until :meth:`settle`.

        Raises:
            OSError: there is none.
        """
        if not parts:
            return self.fd
        fd = self._cache.get(parts)
        if fd is None:
            fd = open_in_root(self.fd, b"/".join(parts), os.O_PATH | os.O_DIRECTORY)
            if len(self._cache) >= _CACHE:
                self.forget()
            self._cache[parts] = fd
        return fd

    def make(self, parts: tuple[bytes, ...]) -> int:
        """As :meth:`find`, making directories that are missing (0755, root's, as Docker does).

        Raises:
            BadImage: something that is no directory is in the way.
        """
        depth = len(parts)
        while True:  # the deepest directory that exists
            try:
                fd = self.find(parts[:depth])
                break
            except (FileNotFoundError, NotADirectoryError):
                depth -= 1
        for end in range(depth + 1, len(parts) + 1):
            name = parts[end - 1]
            try:
                os.mkdir(name, 0o755, dir_fd=fd)
            except FileExistsError:
                if not is_whiteout(os.stat(name, dir_fd=fd, follow_symlinks=False)):
                    raise BadImage(f"a layer puts a file below {_show(parts[:end])}, which is no directory") from None
                os.unlink(name, dir_fd=fd)
                os.mkdir(name, 0o755, dir_fd=fd)
                mark_opaque(fd, name)
            os.chmod(name, 0o755, dir_fd=fd)  # whatever the umask
            self._made()
            fd = self.find(parts[:end])
        return fd

    def remove(self, parent: int, name: bytes) -> None:
        """Remove whatever ``name`` in ``parent`` is, and what is below it."""
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            self.forget()
            remove_tree_at(parent, name)
        else:
            if stat.S_ISLNK(status.st_mode):
                self.forget()
            os.unlink(name, dir_fd=parent)


def mark_opaque(parent: int, name: bytes) -> None:
    """Let overlayfs hide what lower layers have in this directory."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.setxattr(fd, OPAQUE, b"y")
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove ``path``, if it is there, and everything below it; see :func:`remove_tree_at`."""
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree_at(parent, os.fsencode(path.name))
    except FileNotFoundError:
        pass
    finally:
        os.close(parent)


def remove_tree_at(parent: int, name: bytes) -> None:
    """Remove a directory and everything below it, however deep.

    A tree made by someone else may be deeper than the stack, the longest path or the descriptors allow for. So no
    walk: each directory that is found is moved up into one that holds them all, and emptied there in its turn.

    Raises:
        OSError: a file cannot be removed; the rest may be left.
    """
    top = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        while _unlink_files(top) is not None:
            label = b".casemate-" + os.urandom(8).hex().encode()
            try:
                os.mkdir(label, 0o700, dir_fd=top)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                _remove_leaf(top)  # a full disk is a reason for removing things: make room
                continue
            hold = os.open(label, _DIRECTORY, dir_fd=top)
            try:
                _flatten(top, hold, label)
            finally:
                os.close(hold)
            os.rmdir(label, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _unlink_files(directory: int) -> bytes | None:
    """Unlink everything but directories; the name of one of these, if there are any."""
    while True:
        one = None
        batch: list[str] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    one = os.fsencode(entry.name)
                elif len(batch) < _BATCH:
                    batch.append(entry.name)
        if not batch:
            return one
        for name in batch:
            os.unlink(name, dir_fd=directory)


def _remove_leaf(top: int) -> None:
    """Remove one directory that holds no other, wherever it is, and the files on the way to it."""
    here = os.dup(top)
    try:
        while (name := _unlink_files(here)) is not None:
            inner = os.open(name, _DIRECTORY, dir_fd=here)
            if _unlink_files(inner) is None:
                os.close(inner)
                os.rmdir(name, dir_fd=here)
                return
            os.close(here)
            here = inner
    finally:
        os.close(here)


def _flatten(top: int, hold: int, label: bytes) -> None:
    """Empty ``top`` but for the directory ``hold``, which is its ``label``, and that in the end as well."""
    todo, done = _move(top, hold, 0, label), 0
    while done < todo:
        name = b"%d" % done
        inner = os.open(name, _DIRECTORY, dir_fd=hold)
        try:
            todo = _move(inner, hold, todo)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=hold)
        done += 1


def _move(directory: int, hold: int, count: int, keep: bytes = b"") -> int:
    """Unlink the files of ``directory``, move its directories into ``hold``, numbered from ``count`` on."""
    while True:
        with os.scandir(directory) as entries:
            found = ((os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries)
            batch = list(islice((item for item in found if item[0] != keep), _BATCH))
        if not batch:
            return count
        for name, is_dir in batch:
            if is_dir:
                os.rename(name, b"%d" % count, src_dir_fd=directory, dst_dir_fd=hold)
                count += 1
            else:
                os.unlink(name, dir_fd=directory)


def _show(parts: tuple[bytes, ...]) -> str:
    text = os.fsdecode(b"/".join(parts))
    return repr(text if len(text) <= 80 else text[:80] + "...")
