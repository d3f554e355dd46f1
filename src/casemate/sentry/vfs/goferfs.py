"""Files of the host, as the gofer hands them out (:mod:`casemate.gofer`).

An *exclusive* tree is changed by this sandbox alone: names, attributes, the text of links and open descriptors are
kept, and what is known costs no question. In a *shared* one others change things too. There every file comes with a
descriptor (``O_PATH``), and what is kept counts only while fstat(2) shows the same change time; for a directory that is
one cheap call of the host's instead of a question to the gofer.

All opens of a file share its descriptors, one for reading and one for both: offsets are ours, data is moved with
pread(2) and pwrite(2). Where nobody has the file open they are kept for the next open, as many as :data:`MAX_IDLE`.
"""

from __future__ import annotations

import functools
import os
import stat
from errno import ENFILE, ENOTDIR, ESTALE
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from casemate.gofer import frames
from casemate.sentry.errno import SysError
from casemate.sentry.vfs.goferdir import GoferDirectory
from casemate.sentry.vfs.goferinode import GoferInode, GoferLink, GoferRegular
from casemate.sentry.vfs.inode import FileSystem, FsStat
from casemate.sentry.vfs.place import forget

if TYPE_CHECKING:
    from casemate.gofer.client import GoferClient
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.ids import IdMap

MAX_NAMES = 16384
"""How many names a file system keeps, those of files that are not there included."""
MAX_IDLE = 1024
"""How many files keep descriptors that nobody uses."""
EXT4_SUPER_MAGIC, FUSE_SUPER_MAGIC = 0xEF53, 0x65735546
KINDS = {stat.S_IFREG: GoferRegular, stat.S_IFDIR: GoferDirectory, stat.S_IFLNK: GoferLink}


@functools.cache
def _release() -> tuple[int, ...]:
    """The host kernel's."""
    return tuple(int(number) for number in os.uname().release.partition("-")[0].split(".")[:2] if number.isdigit())


def before_isolation() -> None:
    """Ask while that is answered."""
    _release()


class GoferFs(FileSystem):
    """One tree, or a directory of it.

    Arguments:
        client: the connection.
        tree: which of its trees.
        device: what stat(2) shows; files on other file systems of the host than the top get numbers derived from it.
        exclusive: nobody else changes it.
        read_only: nothing is changed.
        root: path of the directory that is shown, or of a file for a bind mount of one; its components are no links.
        ids: whom the host's owners are here, where they are not the same.
    """

    name = "gofer"

    def __init__(
        self, client: GoferClient, tree: int, device: int, exclusive: bool, read_only: bool, root: bytes = b"",
        ids: IdMap | None = None,
    ) -> None:
        super().__init__(device)
        self.client = client
        self.exclusive = self.stable = exclusive
        self.read_only = read_only
        self.ids = ids
        self.closed = False
        """What is still held is given back to the host at once when it goes: somebody may want to unmount it."""
        self.flags = 0 if exclusive else frames.WANT_FD
        self.inodes: WeakValueDictionary[tuple[int, int], GoferInode] = WeakValueDictionary()
        self.names: dict[tuple[GoferDirectory, bytes], None] = {}
        """All names that directories keep, oldest first."""
        self.idle: dict[GoferRegular, None] = {}
        """Who keeps descriptors that nobody uses, the longest unused first."""
        self.listed: dict[GoferDirectory, None] = {}
        """Directories that were listed lately, the latest last."""
        self._fine: dict[int, bool] = {}
        self._devices: dict[int, int] = {}
        fid = client.new_fid()
        body, fds = client.call_fds(frames.TATTACH, (tree, fid, self.flags))
        inode = self.adopt(frames.parse_walk(body, 1)[1][0], fid, fds)
        for name in root.split(b"/"):
            if name:
                if not isinstance(inode, GoferDirectory):
                    raise SysError(ENOTDIR)
                inode = inode.ask(name)
        self._devices = {inode.key[0]: device}
        assert inode.cached is not None
        inode.cached.dev = device
        self._root: GoferInode | None = inode

    @property
    def root(self) -> GoferInode:
        if self._root is None:
            raise SysError(ESTALE)
        return self._root

    def statfs(self, task: Task | None) -> FsStat:
        found = FsStat(*frames.STATFS.unpack(self.client.call(frames.TSTATFS, (self.root.fid,))))
        if not self.exclusive:
            # Programs that follow a file look at it again and again where they take it for one on another machine;
            # of a local one they would wait to be told by inotify(7), which does not know of the host's changes.
            found.type = FUSE_SUPER_MAGIC
        return found

    def sync(self) -> None:
        if not self.read_only:
            self.client.call(frames.TFSYNC, (self.root.fid,))

    def close(self) -> None:
        self.closed = True
        self._root = None
        self.forget()
        self.client.flush()

    def forget(self) -> None:
        """Keep nothing: the host has changed something in an exclusive tree."""
        forget(self)
        for inode in list(self.inodes.values()):
            inode.forget()
        self.names.clear()
        self.listed.clear()
        while self.idle:
            self.idle.popitem()[0].close_handles()

    def call(self, kind: int, numbers: tuple[int, ...], strings: tuple[bytes, ...] = ()) -> bytes:
        """Ask the gofer; what is kept goes where it, or we, can have no more files open. Raises SysError."""
        try:
            return self.client.call(kind, numbers, strings)
        except SysError as error:
            if error.errno != ENFILE:
                raise
        self.forget()
        self.client.flush()
        return self.client.call(kind, numbers, strings)

    def call_fds(
        self, kind: int, numbers: tuple[int, ...], strings: tuple[bytes, ...] = ()
    ) -> tuple[bytes, list[int]]:
        """The same where descriptors come along."""
        try:
            return self.client.call_fds(kind, numbers, strings)
        except SysError as error:
            if error.errno != ENFILE:
                raise
        self.forget()
        self.client.flush()
        return self.client.call_fds(kind, numbers, strings)

    def outside(self, uid: int, gid: int) -> tuple[int, int]:
        """Who an owner is on the host. Raises SysError(EOVERFLOW) for one that is nobody there."""
        return (uid, gid) if self.ids is None else self.ids.outside(uid, gid)

    def fine(self, device: int, fid: int) -> bool:
        """Whether each change on this file system of the host's has a change time of its own, once somebody has looked
        at the one before it ("multigrain timestamps", Linux 6.13).

        Arguments:
            device: the host's number.
            fid: of a file on it.
        """
        known = self._fine.get(device)
        if known is None:
            kind = frames.STATFS.unpack(self.client.call(frames.TSTATFS, (fid,)))[0]
            known = self._fine[device] = kind == EXT4_SUPER_MAGIC and _release() >= (6, 13)
        return known

    def device_of(self, host: int) -> int:
        """The number shown for a device of the host's."""
        number = self._devices.get(host)
        if number is None:
            # Minor numbers from 256 on, which no mount of the sandbox has.
            number = self._devices[host] = self.device + (len(self._devices) << 20)
        return number

    def adopt(self, attributes: tuple[int, ...], fid: int, fds: list[int]) -> GoferInode:
        """The inode that a fid of the gofer's stands for, which is the one that is known if it is known.

        Arguments:
            attributes: as frames have them.
            fds: an ``O_PATH`` descriptor, or nothing; taken over.
        """
        key = (attributes[5], attributes[6])
        inode = self.inodes.get(key)
        if inode is None:
            made = KINDS.get(attributes[0] & 0o170000, GoferInode)
            inode = self.inodes[key] = made(self, key, fid, fds[0] if fds else -1)
        else:
            self.client.clunk(fid)
            if fds:
                if inode.path_fd < 0:
                    inode.path_fd = fds[0]
                else:
                    os.close(fds[0])
        inode.update(attributes)
        return inode

    def keep(self, directory: GoferDirectory, name: bytes) -> None:
        """A directory has begun to keep a name; the oldest ones go where there are too many."""
        names = self.names
        names[directory, name] = None
        if len(names) > MAX_NAMES:
            for old in list(names)[: MAX_NAMES // 4]:
                del names[old]
                child = old[0].entries.get(old[1])
                if child is not None and child.extra:
                    names[old] = None  # something else of the kernel hangs on it: it has to stay the same object
                else:
                    old[0].entries.pop(old[1], None)

    def unused(self, inode: GoferRegular) -> None:
        """Nobody has the file open any more."""
        if self.closed or (not self.exclusive and inode.rw >= 0):
            # Others cannot execute what somebody has open for writing (ETXTBSY).
            inode.close_handles()
            return
        self.idle[inode] = None
        if len(self.idle) > MAX_IDLE:
            oldest = next(iter(self.idle))
            del self.idle[oldest]
            oldest.close_handles()
