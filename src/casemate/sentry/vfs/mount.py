"""Mounts: which file systems are seen where."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EBUSY, EINVAL
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.place import Dentry, Place

if TYPE_CHECKING:
    from casemate.sentry.vfs.inode import FileSystem, Inode

# mount(2)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT = 1, 2, 4, 8, 16, 32
MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_MOVE, MS_REC, MS_SILENT = 1024, 2048, 4096, 8192, 16384, 32768
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_STRICTATIME, MS_LAZYTIME = 1 << 21, 1 << 24, 1 << 25
PER_MOUNT = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_RELATIME
OPTIONS = (
    (MS_NOSUID, b"nosuid"),
    (MS_NODEV, b"nodev"),
    (MS_NOEXEC, b"noexec"),
    (MS_NOATIME, b"noatime"),
    (MS_NODIRATIME, b"nodiratime"),
    (MS_RELATIME, b"relatime"),
)


class Mount:
    """A file system, or a directory or file of one, seen at a place.

    Arguments:
        fs: whose files these are.
        root: its topmost dentry: the file system's own root, or what was bound, MS_BIND of mount(2).
        source: what ``/proc/mounts`` names as the device.
        flags: ``MS_RDONLY``, ``MS_NOEXEC``, … of this mount.
    """

    __slots__ = ("children", "detached", "flags", "fs", "id", "parent", "point", "root", "source")

    def __init__(self, fs: FileSystem, root: Dentry, source: bytes = b"none", flags: int = 0) -> None:
        self.fs = fs
        self.root = root
        self.source = source
        self.flags = flags
        self.id = 0
        """As ``/proc/PID/mountinfo`` shows it; 0 until it is mounted."""
        self.parent: Mount | None = None
        self.point: Dentry | None = None
        """What it hides of its parent."""
        self.children: dict[Dentry, Mount] = {}
        self.detached = True
        """Not (or not any more) seen from the namespace's root."""

    @property
    def read_only(self) -> bool:
        """Nothing can be changed through it."""
        return bool(self.flags & MS_RDONLY) or self.fs.read_only

    @property
    def place(self) -> Place:
        """Its topmost directory."""
        return Place(self, self.root)

    def below(self) -> Iterator[Mount]:
        """It and all that is mounted on it, parents first."""
        yield self
        for child in tuple(self.children.values()):
            yield from child.below()


class Mounts:
    """The mount namespace of a sandbox.

    Arguments:
        fs: what ``/`` is.
        source: what ``/proc/mounts`` calls it.
        flags: of that mount.
    """

    def __init__(self, fs: FileSystem, source: bytes = b"none", flags: int = 0) -> None:
        self._ids = 0
        self._devices = 64
        self.root = Mount(fs, Dentry(fs.root), source, flags)
        self._enter(self.root)

    def device(self) -> int:
        """A number for a new file system to show as ``st_dev``: major 0 and a minor of its own, as Linux gives them."""
        self._devices += 1
        return os.makedev(0, self._devices)

    def anonymous(self, inode: Inode, name: bytes) -> Place:
        """A place for a file that is in no directory (a pipe, a socket, …), for "magic" links to lead to.

        Arguments:
            name: what ``/proc/PID/fd`` shows, e.g. ``pipe:[17]``.
        """
        dentry = Dentry(inode, None, name)
        return Place(Mount(inode.fs, dentry), dentry)

    def _enter(self, mount: Mount) -> None:
        self._ids += 1
        mount.id = self._ids
        mount.detached = False

    def all(self) -> list[Mount]:
        """All mounts, parents first."""
        return list(self.root.below())

    def top(self, place: Place) -> Place:
        """What is seen at a place: the root of what is mounted there, if anything is."""
        mount, dentry = place.mount, place.dentry
        while (child := mount.children.get(dentry)) is not None:
            mount, dentry = child, child.root
        return Place(mount, dentry)

    def mount(self, fs: FileSystem, place: Place, source: bytes = b"none", flags: int = 0) -> Mount:
        """Have ``fs`` seen at ``place``, over what is mounted there already."""
        # One that is mounted somewhere has its dentries already.
        root = next((one.root for one in self.all() if one.fs is fs and one.root.parent is None), None)
        return self.attach(Mount(fs, root or Dentry(fs.root), source, flags), place)

    def bind(self, source: Place, place: Place, recursive: bool = False, flags: int | None = None) -> Mount:
        """Have what ``source`` is seen at ``place`` too, MS_BIND and MS_REC of mount(2)."""
        copy = self._copy(source.mount, source.dentry, recursive, frozenset(source.mount.below()))
        if flags is not None:
            copy.flags = flags
        return self.attach(copy, place)

    def _copy(self, mount: Mount, root: Dentry, recursive: bool, among: frozenset[Mount]) -> Mount:
        copy = Mount(mount.fs, root, mount.source, mount.flags)
        if recursive:
            for point, child in tuple(mount.children.items()):
                if child in among and point.inside(root):
                    below = self._copy(child, child.root, True, among)
                    below.parent, below.point = copy, point
                    copy.children[point] = below
        return copy

    def attach(self, mount: Mount, place: Place) -> Mount:
        """Put a mount (and what is mounted on it) where it is seen."""
        place = self.top(place)
        mount.parent, mount.point = place.mount, place.dentry
        place.mount.children[place.dentry] = mount
        for one in mount.below():
            self._enter(one)
        return mount

    def detach(self, mount: Mount) -> None:
        """Take a mount, and what is mounted on it, out of sight (MNT_DETACH); who stands in it stays there."""
        if mount.parent is None or mount.point is None:
            raise SysError(EINVAL if mount.detached else EBUSY)
        del mount.parent.children[mount.point]
        mount.parent = mount.point = None
        for one in mount.below():
            one.detached = True

    def move(self, mount: Mount, place: Place) -> None:
        """MS_MOVE of mount(2)."""
        if mount.parent is None or mount.point is None:
            raise SysError(EINVAL)
        at: Mount | None = place.mount
        while at is not None:
            if at is mount:
                raise SysError(EINVAL)
            at = at.parent
        del mount.parent.children[mount.point]
        place = self.top(place)
        mount.parent, mount.point = place.mount, place.dentry
        place.mount.children[place.dentry] = mount

    def pivot(self, before: Mount, new: Place, old: Place) -> None:
        """pivot_root(2): ``new``, the topmost directory of a mount, takes the place of the root ``before`` (of the
        namespace, or of a container), which is then mounted at ``old``, below ``new``. Raises SysError(EINVAL)."""
        mount = new.mount
        if new.dentry is not mount.root or mount.parent is None or mount.point is None or mount.detached:
            raise SysError(EINVAL)
        at = old
        while not (at.mount is mount and at.dentry is mount.root):
            above = at.up()
            if above == at:
                raise SysError(EINVAL)
            at = above
        del mount.parent.children[mount.point]
        mount.parent, mount.point = before.parent, before.point
        if before.parent is not None and before.point is not None:
            before.parent.children[before.point] = mount
        else:
            self.root = mount
        before.parent, before.point = old.mount, old.dentry
        old.mount.children[old.dentry] = before

    def used(self, fs: FileSystem) -> bool:
        """Whether a file system is mounted anywhere."""
        return any(one.fs is fs for one in self.all())

    # What /proc shows.

    def mounts_text(self, root: Place) -> bytes:
        """``/proc/PID/mounts``, proc_pid_mounts(5), for a task whose root is ``root``."""
        lines = []
        for mount in self.all():
            path, reachable = mount.place.text(root)
            if reachable:
                fields = (_escape(mount.source), _escape(path), mount.fs.name.encode(), _options(mount))
                lines.append(b" ".join(fields) + b" 0 0\n")
        return b"".join(lines)

    def mountinfo_text(self, root: Place) -> bytes:
        """``/proc/PID/mountinfo``, proc_pid_mountinfo(5)."""
        lines = []
        for mount in self.all():
            path, reachable = mount.place.text(root)
            if not reachable:
                continue
            names: list[bytes] = []
            at = mount.root
            while at.parent is not None:
                names.append(at.name)
                at = at.parent
            inner = b"/" + b"/".join(reversed(names))
            parent = mount.parent.id if mount.parent is not None else mount.id
            device = mount.fs.device
            lines.append(
                b"%d %d %d:%d %s %s %s - %s %s %s\n"
                % (
                    mount.id, parent, os.major(device), os.minor(device), _escape(inner),
                    _escape(path), _options(mount), mount.fs.name.encode(), _escape(mount.source),
                    b"ro" if mount.fs.read_only else b"rw",
                )
            )
        return b"".join(lines)


def _options(mount: Mount) -> bytes:
    parts = [b"ro" if mount.read_only else b"rw"]
    parts += [text for flag, text in OPTIONS if mount.flags & flag]
    return b",".join(parts)


def _escape(text: bytes) -> bytes:
    """Blanks and backslashes as getmntent(3) reads them."""
    for byte in (b"\\", b" ", b"\t", b"\n", b"#"):
        text = text.replace(byte, b"\\%03o" % byte[0])
    return text
