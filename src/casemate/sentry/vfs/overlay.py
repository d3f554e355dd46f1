"""A file system that may be changed over one that is not: what ``casemate do`` shows of the host.

The upper half is a tmpfs (:mod:`casemate.sentry.vfs.tmpfs`) whose directories may have a *lower* one behind them. A
file of the lower file system is shown by an object that refers to it; it takes over the attributes when they are to
change and the data when somebody opens the file to write. Nothing of that is kept in the lower file system or in names
that applications could see, so unlike overlayfs of Linux

* a name that was removed is a note of its directory (:attr:`OverlayDirectory.hidden`), not a device;
* parents are not copied, a change of attributes does not copy data, and directories of the lower file system are
  renamed like others (no EXDEV);
* hard links of the lower file system stay links: a change through one name is seen through the other;
* a file that is open for reading when it is changed for the first time shows the change.

All ends with the sandbox.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from casemate.sentry.vfs.inode import FileSystem, FsStat, Inode
from casemate.sentry.vfs.overlaydir import OverlayDirectory
from casemate.sentry.vfs.shown import OverlayFile, OverlayLink, OverlayNode, Shown
from casemate.sentry.vfs.tmpfs import TmpFs

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

OVERLAYFS_MAGIC = 0x794C7630
FIRST_NEW = 1 << 44
"""Inode number of the first file that is not of the lower file system, whose numbers are shown as they are."""
MAX_SEEN = 16384
"""How many objects of unchanged files are kept for the next walk."""


class OverlayFs(TmpFs):
    """One overlay.

    Arguments:
        device: what stat(2) shows.
        lower: what is seen where nothing was changed; it is never written to.
        size: bytes of data that changes may take; half of the memory by default.
        inodes: how many files there may be that are new or looked at.
        settled: the lower file system does not change, so what a name stood for need not be asked again.
    """

    name = "overlay"

    def __init__(
        self, device: int, lower: FileSystem, size: int | None = None, inodes: int = 1 << 20, settled: bool = False
    ) -> None:
        super().__init__(device, size, inodes)
        self._last = FIRST_NEW
        self.lower = lower
        self.settled = self.stable = settled
        self.shown: WeakValueDictionary[Inode, Shown] = WeakValueDictionary()
        """What shows each file of the lower file system."""
        self.changed: dict[Shown, None] = {}
        """Those that hold a change, which must not be forgotten."""
        self.seen: dict[tuple[OverlayDirectory, bytes], None] = {}
        self._devices: dict[int, int] = {}
        self._root = self.show(lower.root)  # type: ignore[assignment]

    def statfs(self, task: Task | None) -> FsStat:
        found = super().statfs(task)
        found.type = OVERLAYFS_MAGIC
        # Programs take a file system of which nothing is used for one that is not there: its top counts.
        found.bfree = found.bavail = max(0, found.bfree - 1)
        return found

    def close(self) -> None:
        self.lower.close()

    def show(self, lower: Inode) -> Shown:
        """The object that shows a file of the lower file system."""
        found = self.shown.get(lower)
        if found is None:
            kind = lower.kind
            if kind == stat.S_IFREG:
                found = OverlayFile(self, lower)
            elif kind == stat.S_IFDIR:
                found = OverlayDirectory(self, lower)
            elif kind == stat.S_IFLNK:
                found = OverlayLink(self, lower)
            else:
                found = OverlayNode(self, lower)
            self.shown[lower] = found
        return found

    def number_of(self, device: int, number: int) -> int:
        """The inode number shown for a file of the lower file system, which may span several of the host's."""
        which = self._devices.get(device)
        if which is None:
            which = self._devices[device] = len(self._devices)
        return number + (which << 48) if which else number

    def keep(self, directory: OverlayDirectory, name: bytes) -> None:
        """A directory has begun to keep a name; the oldest ones go where there are too many."""
        seen = self.seen
        seen[directory, name] = None
        if len(seen) > MAX_SEEN:
            for old in list(seen)[: MAX_SEEN // 4]:
                del seen[old]
                shown = old[0].seen.get(old[1])
                if shown is not None and shown.extra:
                    seen[old] = None  # something else of the kernel hangs on it: it has to stay the same object
                else:
                    old[0].seen.pop(old[1], None)
