"""Unpacking a layer into a directory of its own, in the format that overlayfs mounts.

Each layer is unpacked alone, so that images share it. A whiteout (``.wh.NAME``) becomes a character device 0/0, an
opaque directory (``.wh..wh..opq``) gets ``trusted.overlay.opaque``. Nothing is written outside the directory whatever
the layer says: names with ``..`` are refused, absolute ones taken from the layer's root, and links that a name leads
through are followed inside the layer, as Docker does in its chroot; a link as the last component is replaced.

Sources: OCI image specification 1.1 ``layer.md``; Linux ``filesystems/overlayfs.rst``.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import BadImage, CasemateError, HostError
from casemate.oci import tarstream
from casemate.oci.layerstream import LayerStream
from casemate.oci.limits import DEFAULT, Limits
from casemate.oci.tarstream import Entry, Feed, TarReader
from casemate.oci.trees import OPAQUE, Root, is_whiteout, mark_opaque

WHITEOUT = b".wh."
META = b".wh..wh."
OPAQUE_NAME = b".wh..wh..opq"
_LATEST = 1 << 33  # seconds; file systems do not reach further than the year 2242 or so
_ENTRY_COST = 4096  # bytes of disk that an entry takes beside its data, counted against what is free
_CHECK_EVERY = 64 << 20
_NO_MODE = (tarstream.SYMLINK,)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a layer turned out to be. ``opaque``: it hides every layer below it."""

    size: int
    entries: int
    opaque: bool


def unpack(stream: LayerStream, directory: Path, limits: Limits = DEFAULT) -> Unpacked:
    """Unpack a layer into an empty directory and check its digests.

    On any error the directory holds a part of the layer; the caller removes it.

    Arguments:
        stream: the layer.
        directory: exists and is empty; on a file system that keeps device nodes and ``trusted`` attributes.

    Raises:
        BadImage: a wrong digest, a damaged or hostile archive, or a bound exceeded.
        HostError: no space, no privileges, or a file system that cannot hold layers.
    """
    unpacker = _Unpacker(directory, limits)
    feed = Feed(iter(stream))
    try:
        reader = TarReader(feed, limits)
        for entry in reader:
            unpacker.add(entry, reader)
        feed.drain()
        stream.check()
        unpacker.finish()
    except OSError as error:
        raise explain(error, directory) from error
    finally:
        unpacker.root.close()
    return Unpacked(unpacker.size, unpacker.entries, unpacker.opaque)


def explain(error: OSError, directory: Path) -> CasemateError:
    """The error of the tree that says what an :class:`OSError` while unpacking means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostError(f"no space left below {directory.parent}", "free some, or remove images with 'casemate rmi'")
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EMLINK, errno.EINVAL, errno.ENOTDIR, errno.ENOENT):
        return BadImage(f"a layer cannot be unpacked ({error.strerror}: {str(error.filename)[:100]})")
    if error.errno in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
        return HostError(
            f"a layer cannot be unpacked below {directory.parent} ({error.strerror})",
            "run as root, with the root directory on ext4, xfs or btrfs",
        )
    return HostError(f"a layer cannot be unpacked: {error}")


class _Unpacker:
    def __init__(self, directory: Path, limits: Limits) -> None:
        self._limits = limits
        self.entries = 0
        self.size = 0
        self.opaque = False
        self._unchecked = _CHECK_EVERY  # bytes since free space was looked at
        self._times: dict[bytes, int] = {}  # of directories, by path
        self._names = 0
        self.root = Root(directory, self._count)
        os.fchmod(self.root.fd, 0o755)

    def add(self, entry: Entry, reader: TarReader) -> None:
        self.root.settle()
        parts = self._parts(entry.name)
        self._names += len(entry.name)
        if self._names > self._limits.names:
            raise BadImage(f"a layer has more than {self._limits.names} bytes of names")
        if not parts:
            if entry.kind != tarstream.DIRECTORY:
                raise BadImage("a layer has a root that is no directory")
            self._attributes(self.root.fd, entry)
            self._times[b""] = _time(entry)
            return
        if any(part.startswith(META) for part in parts[:-1]) or (
            parts[-1].startswith(META) and parts[-1] != OPAQUE_NAME
        ):
            return  # bookkeeping of the aufs file system, no content
        if any(part.startswith(WHITEOUT) for part in parts[:-1]):
            raise BadImage(f"a layer has a whiteout for a directory: {_show(entry.name)}")
        self._count()
        parent, name = self.root.make(parts[:-1]), parts[-1]
        if name.startswith(WHITEOUT):
            self._whiteout(parent, name, entry)
        elif entry.kind == tarstream.DIRECTORY:
            self._directory(parent, name, entry)
            self._times[b"/".join(parts)] = _time(entry)
        elif entry.kind == tarstream.REGULAR:
            self._file(parent, name, entry, reader)
        elif entry.kind == tarstream.HARDLINK:
            self._hardlink(parent, name, entry)
        elif entry.kind == tarstream.SYMLINK:
            self._symlink(parent, name, entry)
        else:
            self._node(parent, name, entry)

    def finish(self) -> None:
        """Set the directories' times, which filling them has changed."""
        for path, mtime in self._times.items():
            self.root.settle()
            with suppress(OSError):  # it was replaced by a later entry
                fd = self.root.find(tuple(path.split(b"/")) if path else ())
                os.utime(f"/proc/self/fd/{fd}", ns=(mtime, mtime))  # through /proc, as fd may be of O_PATH

    def _count(self) -> None:
        self.entries += 1
        if self.entries > self._limits.entries:
            raise BadImage(f"a layer has more than {self._limits.entries} entries")
        self._space(_ENTRY_COST)

    def _space(self, size: int) -> None:
        self._unchecked += size
        if self._unchecked >= _CHECK_EVERY:
            self._unchecked = 0
            state = os.fstatvfs(self.root.fd)
            if state.f_bavail * state.f_frsize < self._limits.free_bytes + _CHECK_EVERY:
                raise HostError(
                    f"a layer does not fit the disk, of which {self._limits.free_bytes >> 20} MiB are kept free",
                    "free some, or remove images with 'casemate rmi'",
                )

    def _parts(self, name: bytes) -> tuple[bytes, ...]:
        """The components of a name.

        Raises:
            BadImage: it is too long, too deep or holds ``..``.
        """
        if not name or len(name) > self._limits.path:
            raise BadImage(f"a layer has an empty name or one longer than {self._limits.path} bytes")
        parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
        if b".." in parts:
            raise BadImage(f"a layer has a name with '..': {_show(name)}")
        if len(parts) > self._limits.depth:
            raise BadImage(f"a layer has a name more than {self._limits.depth} directories deep: {_show(name)}")
        return parts

    def _clear(self, parent: int, name: bytes) -> bool:
        """Make way for a new file; whether a whiteout was there."""
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        self.root.remove(parent, name)
        return is_whiteout(status)

    def _whiteout(self, parent: int, name: bytes, entry: Entry) -> None:
        if name == OPAQUE_NAME:
            where = self._parts(entry.name)[:-1]
            if where:
                fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
                try:
                    self._opaque(fd)
                finally:
                    os.close(fd)
            else:
                self.opaque = True  # overlayfs does not look at a layer's root: the store leaves lower layers out
            return
        hidden = name[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise BadImage(f"a layer has a bad whiteout {_show(entry.name)}")
        # A whiteout hides what lower layers have; what this layer has under the name stays, in either order.
        try:
            status = os.stat(hidden, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            os.mknod(hidden, stat.S_IFCHR | 0o600, 0, dir_fd=parent)
        else:
            if stat.S_ISDIR(status.st_mode):
                mark_opaque(parent, hidden)

    def _opaque(self, fd: int) -> None:
        os.setxattr(fd, OPAQUE, b"y")

    def _directory(self, parent: int, name: bytes, entry: Entry) -> None:
        opaque = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                opaque = self._clear(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if opaque:
                self._opaque(fd)
            self._attributes(fd, entry)
        finally:
            os.close(fd)

    def _file(self, parent: int, name: bytes, entry: Entry, reader: TarReader) -> None:
        self.size += entry.size
        if self.size > self._limits.layer_bytes:
            raise BadImage(f"a layer unpacks to more than {self._limits.layer_bytes} bytes")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, name)
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            if entry.fragments is None:
                for piece in reader.data():
                    self._space(len(piece))
                    _write(fd, piece)
            else:
                self._sparse(fd, entry, reader)
            self._attributes(fd, entry)
            mtime = _time(entry)
            os.utime(fd, ns=(mtime, mtime))
        finally:
            os.close(fd)

    def _sparse(self, fd: int, entry: Entry, reader: TarReader) -> None:
        os.ftruncate(fd, entry.size)
        data, piece = reader.data(), b""
        for offset, length in entry.fragments or ():
            os.lseek(fd, offset, os.SEEK_SET)
            while length:
                piece = piece or next(data)
                self._space(min(length, len(piece)))
                _write(fd, piece[:length])
                used = min(length, len(piece))
                length -= used
                piece = piece[used:]

    def _hardlink(self, parent: int, name: bytes, entry: Entry) -> None:
        target = self._parts(entry.link)
        if not target:
            raise BadImage(f"a layer has a hard link to its root: {_show(entry.name)}")
        try:
            source = os.dup(self.root.find(target[:-1]))  # making way below may drop the cached one
        except OSError:
            raise BadImage(f"a layer has a hard link to {_show(entry.link)}, which it does not hold") from None
        try:
            try:
                status = os.stat(target[-1], dir_fd=source, follow_symlinks=False)
            except FileNotFoundError:
                raise BadImage(f"a layer has a hard link to {_show(entry.link)}, which it does not hold") from None
            if stat.S_ISDIR(status.st_mode) or is_whiteout(status):
                raise BadImage(f"a layer has a hard link to {_show(entry.link)}, which is no file")
            with suppress(FileNotFoundError):
                old = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if (old.st_dev, old.st_ino) == (status.st_dev, status.st_ino):
                    return  # a link to itself
                if stat.S_ISDIR(old.st_mode):
                    # Removing the directory may remove the target: link first, then put it in place.
                    spare = b".casemate-" + os.urandom(8).hex().encode()
                    os.link(target[-1], spare, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
                    self.root.remove(parent, name)
                    os.rename(spare, name, src_dir_fd=parent, dst_dir_fd=parent)
                    return
                self.root.remove(parent, name)
            os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _symlink(self, parent: int, name: bytes, entry: Entry) -> None:
        if not entry.link or len(entry.link) >= self._limits.path:
            raise BadImage(f"a layer has a symbolic link with a bad target: {_show(entry.name)}")
        try:
            os.symlink(entry.link, name, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, name)
            os.symlink(entry.link, name, dir_fd=parent)
        self._attributes_at(parent, name, entry)

    def _node(self, parent: int, name: bytes, entry: Entry) -> None:
        kinds = {tarstream.CHARACTER: stat.S_IFCHR, tarstream.BLOCKDEV: stat.S_IFBLK, tarstream.FIFO: stat.S_IFIFO}
        if entry.kind == tarstream.CHARACTER and entry.device == 0:
            raise BadImage(f"a layer has a character device 0/0, which overlayfs keeps for itself: {_show(entry.name)}")
        self._clear(parent, name)
        os.mknod(name, kinds[entry.kind] | 0o600, entry.device, dir_fd=parent)
        self._attributes_at(parent, name, entry)

    def _attributes(self, fd: int, entry: Entry) -> None:
        os.fchown(fd, entry.uid, entry.gid)  # first: it takes set-uid bits and capabilities away
        os.fchmod(fd, entry.mode)
        for key, value in entry.xattrs.items():
            if kept(key):
                try:
                    os.setxattr(fd, key, value)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE) and len(value) > 2048:
                        raise BadImage(f"an extended attribute of {len(value)} bytes is too large here") from None
                    if error.errno != errno.EOPNOTSUPP or key == "security.capability":
                        raise

    def _attributes_at(self, parent: int, name: bytes, entry: Entry) -> None:
        """For what cannot be opened for writing. ``name`` was made a moment ago, in a directory only we write to."""
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind not in _NO_MODE:
            os.chmod(name, entry.mode, dir_fd=parent)
        mtime = _time(entry)
        os.utime(name, ns=(mtime, mtime), dir_fd=parent, follow_symlinks=False)


def kept(xattr: str) -> bool:
    """Whether an extended attribute of a layer is set on the file.

    ``trusted.`` and ``user.overlay.`` are not: they steer overlayfs. Nor are labels that belong to the host's policy.
    """
    if xattr.startswith("user."):
        return not xattr.startswith("user.overlay.")
    return xattr in ("security.capability", "system.posix_acl_access", "system.posix_acl_default")


def _time(entry: Entry) -> int:
    return entry.mtime_ns if 0 <= entry.mtime_ns < _LATEST * 10**9 else 0


def _write(fd: int, data: bytes) -> None:
    done = os.write(fd, data)
    while done < len(data):
        done += os.write(fd, data[done:])


def _show(name: bytes) -> str:
    text = os.fsdecode(name)
    return ascii(text if len(text) <= 100 else text[:100] + "...")
