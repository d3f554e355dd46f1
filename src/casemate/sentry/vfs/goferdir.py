"""Directories of the host (:mod:`casemate.sentry.vfs.goferfs`)."""

from __future__ import annotations

import os
import stat
from errno import EEXIST, EINVAL, EISDIR, ENOENT, EROFS, EXDEV
from typing import TYPE_CHECKING

from casemate.gofer import frames
from casemate.sentry.errno import SysError
from casemate.sentry.vfs.goferinode import WRITES, GoferInode, GoferRegular
from casemate.sentry.vfs.inode import Inode

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File
    from casemate.sentry.vfs.goferfs import GoferFs

MAX_AHEAD = 8192
"""The largest directory, in entries, whose listing makes that they are asked for many at a time, ..."""
MAX_LISTED = 64
"""How many directories have that; ..."""
MISSES = 2
"""... once more than so many of them were asked for; ..."""
FEW = 8
"""... at once where there are no more than these."""
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_ATTRIBUTES = frames.ATTRIBUTES


class GoferDirectory(GoferInode):
    """A directory."""

    kind = stat.S_IFDIR

    def __init__(self, fs: GoferFs, key: tuple[int, int], fid: int, path_fd: int) -> None:
        super().__init__(fs, key, fid, path_fd)
        self.entries: dict[bytes, GoferInode | None] = {}
        """What names stand for, None for nothing."""
        self.stamp = -1
        """Change time as of which :attr:`entries` hold."""
        self.listing: list[tuple[bytes, int, int]] | None = None
        """All entries, as long as that is known."""
        self.ahead: list[bytes] | None = None
        """Names that a listing has told, the first last: who lists a directory often looks at each."""
        self.missed = 0
        """How many names were asked for since."""

    def forget(self) -> None:
        super().forget()
        self.entries.clear()
        self.listing = self.ahead = None

    def open(self, task: Task, flags: int) -> File:
        if flags & WRITES:
            raise SysError(EISDIR)
        return super().open(task, flags)

    def unchanged(self) -> bool:
        """Whether what is kept of a shared directory still holds; it is dropped when not."""
        if self.path_fd < 0:
            self.entries.clear()
            self.listing = None
            return False
        stamp = os.fstat(self.path_fd).st_ctime_ns
        if stamp == self.stamp:
            return True
        self.entries.clear()
        self.listing = None
        self.stamp = stamp
        return False

    def lookup(self, task: Task, name: bytes) -> GoferInode:
        if self.fs.exclusive or self.unchanged():
            try:
                found = self.entries[name]
            except KeyError:
                return self.ask(name)
            if found is None:
                raise SysError(ENOENT)
            return found
        return self.ask(name)

    def ask(self, name: bytes) -> GoferInode:
        """Have the gofer look for an entry."""
        fs = self.fs
        if self.ahead and self.trusted():
            self.missed += 1
            if self.missed > MISSES or len(self.ahead) <= FEW:
                return self._ask_ahead(name, self.ahead)
        fid = fs.client.new_fid()
        fds: list[int] = []
        try:
            if fs.exclusive:
                body = fs.call(frames.TWALK, (self.fid, fid, 0), (name,))
            else:
                body, fds = fs.call_fds(frames.TWALK, (self.fid, fid, fs.flags), (name,))
        except SysError as error:
            if error.errno == ENOENT:
                self.note(name, None)
            raise
        child = fs.adopt(frames.parse_walk(body, 1)[1][0], fid, fds)
        self.note(name, child)
        return child

    def _ask_ahead(self, name: bytes, ahead: list[bytes]) -> GoferInode:
        """The same, and have it look for entries that nobody has asked for yet."""
        fs = self.fs
        names = [name]
        while ahead and len(names) < frames.MAX_NAMES:
            other = ahead.pop()
            if other not in self.entries and other != name:
                names.append(other)
        fid = fs.client.new_fid(len(names))
        body, fds = fs.call_fds(frames.TLOOKUP, (self.fid, fid, fs.flags), tuple(names))
        fds.reverse()
        answers = frames.parse_lookup(body, len(names))
        found = None
        for number, told in enumerate(answers):
            if len(told) > 1:
                child = fs.adopt(told, fid + number, [fds.pop()] if fds else [])
                self.note(names[number], child)
                if number == 0:
                    found = child
            elif told[0] == ENOENT:
                self.note(names[number], None)
        if found is None:
            if answers[0][0] == ENOENT:
                raise SysError(ENOENT)
            self.ahead = None
            return self.ask(name)  # by itself: there may not have been room for so many
        return found

    def trusted(self) -> bool:
        """Whether what a name stands for now can be kept."""
        return self.fs.exclusive or (self.stamp >= 0 and self.settled(self.stamp))

    def note(self, name: bytes, child: GoferInode | None) -> None:
        """Keep what a name stands for, where that can be relied on."""
        if self.trusted():
            self.entries[name] = child
            self.fs.keep(self, name)

    def readdir(self, task: Task) -> list[tuple[bytes, int, int]]:
        if (self.fs.exclusive or self.unchanged()) and self.listing is not None:
            return self.listing
        found: list[tuple[bytes, int, int]] = []
        last = False
        anew = 1
        while not last:
            last, entries = frames.parse_entries(self.fs.call(frames.TREADDIR, (self.fid, anew)))
            found += [(name, number, kind << 12) for name, number, kind in entries]
            anew = 0
        if len(found) <= MAX_AHEAD:
            self.ahead = [name for name, _, _ in reversed(found)]
            self.missed = 0
            listed = self.fs.listed
            listed.pop(self, None)
            listed[self] = None
            if len(listed) > MAX_LISTED:
                oldest = next(iter(listed))
                del listed[oldest]
                oldest.listing = oldest.ahead = None
            if self.trusted():
                self.listing = found
        return found

    # New entries.

    def _made(self, kind: int, numbers: tuple[int, ...], strings: tuple[bytes, ...]) -> GoferInode:
        """Have the gofer make something, whose name is the first string."""
        if self.fs.read_only:
            raise SysError(EROFS)
        if self.entries.get(strings[0]) is not None and self.fs.exclusive:
            raise SysError(EEXIST)
        fs = self.fs
        fid = fs.client.new_fid()
        body = fs.call(kind, (self.fid, fid, *numbers), strings)
        self.cached = self.listing = None
        if fs.exclusive:
            child = fs.adopt(_ATTRIBUTES.unpack(body), fid, [])
            self.note(strings[0], child)
            return child
        fs.client.clunk(fid)
        self.entries.pop(strings[0], None)
        return self.ask(strings[0])  # which brings a descriptor along

    def create(self, task: Task, name: bytes, mode: int, uid: int, gid: int) -> GoferInode:
        return self._create(frames.TLCREATE, (mode & 0o7777, *self.fs.outside(uid, gid)), (name,))

    def tmpfile(self, task: Task, mode: int, uid: int, gid: int) -> GoferInode:
        return self._create(frames.TTMPFILE, (mode & 0o7777, *self.fs.outside(uid, gid)), ())

    def _create(self, kind: int, numbers: tuple[int, ...], strings: tuple[bytes, ...]) -> GoferInode:
        fs = self.fs
        if fs.read_only:
            raise SysError(EROFS)
        fid = fs.client.new_fid()
        body, fds = fs.call_fds(kind, (self.fid, fid, *numbers), strings)
        child = fs.adopt(_ATTRIBUTES.unpack(body), fid, [])
        if len(fds) != 1 or not isinstance(child, GoferRegular) or child.rw >= 0:
            raise SysError(EINVAL)
        child.rw = fds[0]
        if fs.exclusive:
            fs.unused(child)
        if strings:
            self.cached = self.listing = None
            self.entries.pop(strings[0], None)
            self.note(strings[0], child)
        return child

    def mkdir(self, task: Task, name: bytes, mode: int, uid: int, gid: int) -> GoferInode:
        return self._made(frames.TMKDIR, (mode & 0o7777, *self.fs.outside(uid, gid)), (name,))

    def mknod(self, task: Task, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> GoferInode:
        return self._made(frames.TMKNOD, (mode & 0xFFFF, *self.fs.outside(uid, gid), rdev), (name,))

    def symlink(self, task: Task, name: bytes, target: bytes, uid: int, gid: int) -> GoferInode:
        return self._made(frames.TSYMLINK, self.fs.outside(uid, gid), (name, target))

    def link(self, task: Task, name: bytes, inode: Inode) -> None:
        if not isinstance(inode, GoferInode) or inode.fs is not self.fs:
            raise SysError(EXDEV)
        if self.fs.read_only:
            raise SysError(EROFS)
        inode.update(_ATTRIBUTES.unpack(self.fs.call(frames.TLINK, (self.fid, inode.fid), (name,))))
        self.cached = self.listing = None
        self.entries.pop(name, None)
        if self.fs.exclusive:
            self.note(name, inode)

    # Entries that go.

    def unlink(self, task: Task, name: bytes) -> None:
        self._remove(name, 0)

    def rmdir(self, task: Task, name: bytes) -> None:
        self._remove(name, 1)

    def _remove(self, name: bytes, directory: int) -> None:
        if self.fs.read_only:
            raise SysError(EROFS)
        self.fs.call(frames.TUNLINKAT, (self.fid, directory), (name,))
        self._gone(self.entries.pop(name, None))
        self.cached = self.listing = None
        if self.fs.exclusive:
            self.note(name, None)

    def _gone(self, child: GoferInode | None) -> None:
        """A name of a file is gone."""
        if child is not None:
            child.cached = None
            # The host frees its blocks only when nobody has it open.
            if isinstance(child, GoferRegular) and child.users == 0:
                self.fs.idle.pop(child, None)
                child.close_handles()

    def rename(self, task: Task, name: bytes, directory: Inode, new_name: bytes, flags: int) -> None:
        if not isinstance(directory, GoferDirectory) or directory.fs is not self.fs:
            raise SysError(EXDEV)
        if self.fs.read_only:
            raise SysError(EROFS)
        self.fs.call(frames.TRENAMEAT, (self.fid, directory.fid, flags), (name, new_name))
        moved = self.entries.pop(name, None)
        other = directory.entries.pop(new_name, None)
        self.cached = self.listing = directory.cached = directory.listing = None
        for inode in (moved, other):
            if inode is not None:
                inode.cached = None
        if other is not moved and not flags & RENAME_EXCHANGE:
            self._gone(other)
        if self.fs.exclusive:
            if moved is not None:
                directory.note(new_name, moved)
            if not flags & RENAME_EXCHANGE and other is not moved:
                self.note(name, None)
