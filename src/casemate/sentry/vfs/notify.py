"""inotify(7): who watches which file, and telling them.

What happens to files is told here by the system calls that do it. Nearly always nobody watches, so they look at
:data:`watching` first.
"""

from __future__ import annotations

import os
import stat
import struct
from collections import deque
from errno import EEXIST, EINVAL, EMFILE, ENOSPC
from typing import TYPE_CHECKING
from weakref import WeakSet

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.file import READABLE, File

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.inode import FileSystem, Inode
    from casemate.sentry.vfs.place import Dentry

IN_ACCESS, IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_CLOSE_NOWRITE, IN_OPEN = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400, 0x800
IN_ALL_EVENTS = 0xFFF
IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED = 0x2000, 0x4000, 0x8000
IN_ONLYDIR, IN_DONT_FOLLOW, IN_EXCL_UNLINK = 0x0100_0000, 0x0200_0000, 0x0400_0000
IN_MASK_CREATE, IN_MASK_ADD, IN_ISDIR, IN_ONESHOT = 0x1000_0000, 0x2000_0000, 0x4000_0000, 0x8000_0000

MAX_QUEUED = 16384
"""``/proc/sys/fs/inotify/max_queued_events``."""
MAX_INSTANCES = 128
"""``/proc/sys/fs/inotify/max_user_instances``."""
MAX_WATCHES = 65536
"""``/proc/sys/fs/inotify/max_user_watches``."""

watching = 0
"""How many watches there are at all. Only a hint that saves work: what is watched hangs on the inodes."""
_cookie = 0


class Watch:
    """One file that one inotify file watches."""

    __slots__ = ("inode", "inotify", "mask", "wd")

    def __init__(self, inotify: Inotify, wd: int, inode: Inode, mask: int) -> None:
        self.inotify = inotify
        self.wd = wd
        self.inode = inode
        self.mask = mask


class Inotify(File):
    """What inotify_init1(2) gives.

    Arguments:
        inode: what fstat(2) of it shows.

    Raises SysError(EMFILE) when there are as many in the sandbox as may be.
    """

    anonymous = "anon_inode:inotify"

    def __init__(self, kernel: Kernel, flags: int, inode: Inode | None = None) -> None:
        others = instances(kernel)
        if len(others) >= MAX_INSTANCES:
            raise SysError(EMFILE)
        super().__init__(flags, inode)
        self._others = others
        others.add(self)
        self.watches: dict[int, Watch] = {}
        self._events: deque[bytes] = deque()
        self._last = 0
        self._overflown = False

    def add(self, inode: Inode, mask: int) -> int:
        """inotify_add_watch(2): the number of the watch. Raises SysError: EEXIST, ENOSPC."""
        global watching
        mine = watches_of(inode)
        for watch in mine:
            if watch.inotify is self:
                if mask & IN_MASK_CREATE:
                    raise SysError(EEXIST)
                watch.mask = watch.mask | mask if mask & IN_MASK_ADD else mask
                return watch.wd
        if len(self.watches) >= MAX_WATCHES:
            raise SysError(ENOSPC)
        self._last += 1
        watch = Watch(self, self._last, inode, mask)
        self.watches[watch.wd] = watch
        inode.extra["inotify"] = [*mine, watch]
        watching += 1
        return watch.wd

    def remove(self, watch: Watch, tell: bool = True) -> None:
        """End a watch, with IN_IGNORED."""
        global watching
        if self.watches.pop(watch.wd, None) is None:
            return
        rest = [one for one in watches_of(watch.inode) if one is not watch]
        if rest:
            watch.inode.extra["inotify"] = rest
        else:
            watch.inode.extra.pop("inotify", None)
        watching -= 1
        if tell:
            self.put(watch.wd, IN_IGNORED, 0, b"")

    def put(self, wd: int, mask: int, cookie: int, name: bytes) -> None:
        """Queue an event; one that equals the last one that waits is left out."""
        if name:
            name += bytes(16 - len(name) % 16)
        event = struct.pack("<iIII", wd, mask, cookie, len(name)) + name
        if len(self._events) >= MAX_QUEUED:
            if self._overflown:
                return
            self._overflown = True
            event = struct.pack("<iIII", -1, IN_Q_OVERFLOW, 0, 0)
        elif self._events and self._events[-1] == event:
            return
        self._events.append(event)
        self.queue.notify(READABLE)

    def read(self, task: Task, size: int) -> bytes:
        if not self._events:
            raise self.wait()
        parts: list[bytes] = []
        while self._events and len(self._events[0]) <= size:
            event = self._events.popleft()
            size -= len(event)
            parts.append(event)
        if not parts:
            raise SysError(EINVAL)
        self._overflown = False
        return b"".join(parts)

    def poll(self, task: Task) -> int:
        return READABLE if self._events else 0

    def ioctl(self, task: Task, command: int, argument: int) -> int:
        if command == 0x541B:  # FIONREAD
            task.mem.put_u32(argument, sum(len(event) for event in self._events))
            return 0
        return super().ioctl(task, command, argument)

    def release(self) -> None:
        for watch in tuple(self.watches.values()):
            self.remove(watch, tell=False)
        self._others.discard(self)

    def fdinfo(self) -> bytes:
        return b"".join(
            b"inotify wd:%x ino:%x sdev:%x mask:%x ignored_mask:0\n"
            % (watch.wd, watch.inode.stat().ino, watch.inode.fs.device, watch.mask)
            for watch in self.watches.values()
        )


def watches_of(inode: Inode) -> list[Watch]:
    """Who watches this file."""
    found = inode.extra.get("inotify")
    return found if isinstance(found, list) else []


def _tell(inode: Inode, mask: int, name: bytes = b"", cookie: int = 0) -> None:
    for watch in watches_of(inode):
        if watch.mask & mask & IN_ALL_EVENTS:
            watch.inotify.put(watch.wd, mask, cookie, name)
            if watch.mask & IN_ONESHOT:
                watch.inotify.remove(watch)


def happened(dentry: Dentry, mask: int) -> None:
    """Something happened to a file (it was read, changed, opened, closed): those who watch it or its directory hear."""
    inode = dentry.inode
    if inode.kind == stat.S_IFDIR:
        mask |= IN_ISDIR
    parent = dentry.parent
    if parent is not None and "inotify" in parent.inode.extra:
        for watch in watches_of(parent.inode):
            if watch.mask & mask & IN_ALL_EVENTS and not (dentry.deleted and watch.mask & IN_EXCL_UNLINK):
                watch.inotify.put(watch.wd, mask, 0, dentry.name)
                if watch.mask & IN_ONESHOT:
                    watch.inotify.remove(watch)
    if "inotify" in inode.extra:
        _tell(inode, mask)


def on_file(file: File, mask: int) -> None:
    """The same for an open file."""
    if file.place is not None:
        happened(file.place.dentry, mask)


def closed(file: File) -> None:
    """The last descriptor of a file is being closed."""
    if not file.flags & os.O_PATH:
        on_file(file, IN_CLOSE_WRITE if file.can_write else IN_CLOSE_NOWRITE)


def entry(directory: Inode, mask: int, name: bytes, inode: Inode, cookie: int = 0) -> None:
    """An entry of a directory came or went."""
    if "inotify" in directory.extra:
        _tell(directory, mask | (IN_ISDIR if inode.kind == stat.S_IFDIR else 0), name, cookie)


def gone(inode: Inode) -> None:
    """A name of a file was removed; with the last one, its watches end."""
    if "inotify" not in inode.extra:
        return
    links = inode.stat().nlink
    if inode.kind != stat.S_IFDIR:
        _tell(inode, IN_ATTRIB)
    if links == 0 or inode.kind == stat.S_IFDIR:
        _tell(inode, IN_DELETE_SELF)
        for watch in watches_of(inode):
            watch.inotify.remove(watch)


def instances(kernel: Kernel) -> WeakSet[Inotify]:
    """All that inotify_init1(2) has given in this sandbox and that are open still."""
    found = kernel.subsystems.get("inotify")
    if found is None:
        found = kernel.subsystems["inotify"] = WeakSet()
    assert isinstance(found, WeakSet)
    return found


def unmounted(kernel: Kernel, fs: FileSystem) -> None:
    """A file system is mounted nowhere any more: all watches of its files end."""
    for one in list(instances(kernel)):
        for watch in list(one.watches.values()):
            if watch.inode.fs is fs:
                one.put(watch.wd, IN_UNMOUNT | (IN_ISDIR if watch.inode.kind == stat.S_IFDIR else 0), 0, b"")
                one.remove(watch)


def moved(directory: Inode, name: bytes, to: Inode, new_name: bytes, inode: Inode) -> None:
    """An entry was renamed."""
    global _cookie
    _cookie = _cookie % 0xFFFF_FFFF + 1
    entry(directory, IN_MOVED_FROM, name, inode, _cookie)
    entry(to, IN_MOVED_TO, new_name, inode, _cookie)
    if "inotify" in inode.extra:
        _tell(inode, IN_MOVE_SELF)
