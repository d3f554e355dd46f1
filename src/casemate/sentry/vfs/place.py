"""Places: names that were found, and what they name.

A :class:`Dentry` is a name in a directory of one file system. There is one object for each name that anybody holds, so
that all holders see when it is renamed or removed; what nobody holds is forgotten, and asked of the file system again.
A :class:`Place` is a dentry as it is seen through one mount.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING
from weakref import ref

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.inode import FileSystem, Inode
    from casemate.sentry.vfs.mount import Mount

RECENT = 4096
recent: dict[Dentry, None] = {}
"""The dentries that were made last, so that they outlive the walk that made them. Nothing depends on it but speed."""
atexit.register(recent.clear)  # while what inodes need at their end is still there


def _keep(dentry: Dentry) -> None:
    recent[dentry] = None
    if len(recent) > RECENT:
        del recent[next(iter(recent))]


def forget(fs: FileSystem) -> None:
    """Keep no dentries of a file system that is not mounted any more, or that others have changed."""
    for dentry in [one for one in recent if one.inode.fs is fs]:
        del recent[dentry]


class Dentry:
    """A name in a directory, with what it names.

    Arguments:
        inode: what it names.
        parent: the directory that the name is in; None for the root of a file system.
        name: one component; for one without a parent what ``/proc/PID/fd`` shows.
    """

    __slots__ = ("__weakref__", "children", "deleted", "inode", "name", "parent")

    def __init__(self, inode: Inode, parent: Dentry | None = None, name: bytes = b"") -> None:
        self.inode = inode
        self.parent = parent
        self.name = name
        self.deleted = False
        """The name was removed; the file lives on for those who hold it."""
        self.children: dict[bytes, ref[Dentry]] | None = None
        """Entries that somebody holds, or held; to be changed by the methods here only."""

    def lookup(self, task: Task, name: bytes) -> Dentry:
        """The dentry of an entry. Raises SysError: ENOENT, ENOTDIR."""
        children = self.children
        if children is not None and (known := children.get(name)) is not None and self.inode.fs.stable:
            found = known()
            if found is not None:
                return found
        return self.child(name, self.inode.lookup(task, name))

    def child(self, name: bytes, inode: Inode) -> Dentry:
        """The dentry of an entry that the file system says is ``inode`` now."""
        children = self.children
        if children is None:
            children = self.children = {}
        known = children.get(name)
        found = None if known is None else known()
        if found is None or found.inode is not inode:
            if found is not None:
                recent.pop(found, None)
            found = Dentry(inode, self, name)
            if len(children) >= 64 and len(children) & (len(children) - 1) == 0:
                for dead in [key for key, other in children.items() if other() is None]:
                    del children[dead]
            children[name] = ref(found)
            _keep(found)
        return found

    def known(self, name: bytes) -> Dentry | None:
        """The dentry of an entry, if anybody holds one."""
        known = None if self.children is None else self.children.get(name)
        return None if known is None else known()

    def _take(self, name: bytes) -> Dentry | None:
        """Forget an entry; its dentry, if anybody holds it."""
        known = None if self.children is None else self.children.pop(name, None)
        return None if known is None else known()

    def _put(self, name: bytes, dentry: Dentry) -> None:
        """Have a dentry be the one of a name."""
        dentry.parent, dentry.name = self, name
        if self.children is None:
            self.children = {}
        self.children[name] = ref(dentry)

    def remove(self, name: bytes) -> None:
        """The entry was removed from the directory."""
        gone = self._take(name)
        if gone is not None:
            gone.deleted = True
            recent.pop(gone, None)

    def move(self, name: bytes, directory: Dentry, new_name: bytes, exchange: bool = False) -> None:
        """The entry has become ``new_name`` of ``directory``, whose own entry of that name is gone (or, with
        ``exchange``, has taken this one's place)."""
        moved = self._take(name)
        other = directory._take(new_name)
        if other is not None:
            if exchange:
                self._put(name, other)
            elif other is not moved:
                other.deleted = True
                recent.pop(other, None)
        if moved is not None:
            directory._put(new_name, moved)

    def inside(self, other: Dentry) -> bool:
        """Whether it is ``other`` or below it."""
        at: Dentry | None = self
        while at is not None:
            if at is other:
                return True
            at = at.parent
        return False


class Place:
    """A dentry seen through a mount."""

    __slots__ = ("dentry", "mount")

    def __init__(self, mount: Mount, dentry: Dentry) -> None:
        self.mount = mount
        self.dentry = dentry

    @property
    def inode(self) -> Inode:
        """What is there."""
        return self.dentry.inode

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and other.dentry is self.dentry and other.mount is self.mount

    def __hash__(self) -> int:
        return hash((id(self.dentry), id(self.mount)))

    def up(self, root: Place | None = None) -> Place:
        """The directory above, ``..``; the place itself at the root (of the namespace, or ``root``)."""
        mount = self.mount
        dentry = self.dentry
        while True:
            if root is not None and dentry is root.dentry and mount is root.mount:
                return Place(mount, dentry)
            if dentry is not mount.root:
                break
            if mount.parent is None or mount.point is None:
                return Place(mount, dentry)
            dentry = mount.point
            mount = mount.parent
        parent = dentry.parent
        return Place(mount, parent if parent is not None else dentry)

    def path(self, root: Place) -> bytes:
        """Its path as seen from ``root``, as ``/proc/PID/fd`` and getcwd(2) show it: with `` (deleted)`` behind a
        removed name, and ``(unreachable)`` before one that is outside of ``root``."""
        if self.mount.detached and self.dentry.parent is None and self.dentry.name:
            return self.dentry.name
        text, reachable = self.text(root)
        if self.dentry.deleted:
            text += b" (deleted)"
        return text if reachable else b"(unreachable)" + text

    def text(self, root: Place) -> tuple[bytes, bool]:
        """Its path from ``root``, and whether it is below that at all."""
        names: list[bytes] = []
        mount = self.mount
        dentry: Dentry = self.dentry
        reachable = True
        while not (dentry is root.dentry and mount is root.mount):
            if dentry is mount.root:
                if mount.parent is None or mount.point is None:
                    reachable = False
                    break
                dentry = mount.point
                mount = mount.parent
                continue
            if dentry.parent is None:
                reachable = False
                break
            names.append(dentry.name)
            dentry = dentry.parent
        names.reverse()
        return b"/" + b"/".join(names), reachable

    def __repr__(self) -> str:
        return f"<place {self.dentry.name!r} of {self.mount.fs.name}>"
