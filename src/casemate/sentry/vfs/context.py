"""Where a task stands in the file system: its root, its working directory and its umask."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.sentry.vfs.place import Place


class FsContext:
    """What tasks share with CLONE_FS, clone(2).

    Arguments:
        root: what ``/`` is, chroot(2).
        cwd: the working directory.
        umask: permission bits that new files do not get, umask(2).
    """

    __slots__ = ("cwd", "refs", "root", "umask")

    def __init__(self, root: Place, cwd: Place, umask: int = 0o022) -> None:
        self.root = root
        self.cwd = cwd
        self.umask = umask
        self.refs = 1

    def fork(self) -> FsContext:
        """A copy of its own."""
        return FsContext(self.root, self.cwd, self.umask)

    def incref(self) -> FsContext:
        """One more task uses it."""
        self.refs += 1
        return self

    def decref(self) -> None:
        """A task uses it no more."""
        self.refs -= 1
