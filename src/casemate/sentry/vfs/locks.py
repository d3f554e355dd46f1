"""Locks on files: POSIX record locks and those of open file descriptions (fcntl(2)), and flock(2).

Everything about one file's locks hangs on its inode, in ``extra["locks"]``.
"""

from __future__ import annotations

import os
from errno import EAGAIN, EDEADLK
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from casemate.sentry.errno import SysError
from casemate.sentry.tasks.namespaces import number_of
from casemate.sentry.wait import Block, WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.fdtable import FdTable
    from casemate.sentry.vfs.file import File
    from casemate.sentry.vfs.inode import Inode

F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
END = 1 << 63
"""Behind the last byte of any file: a lock to the end reaches to here."""


class Range:
    """One record lock: bytes from ``start`` to before ``end``, of one owner."""

    __slots__ = ("end", "exclusive", "key", "owner", "start")

    def __init__(self, owner: Any, start: int, end: int, exclusive: bool, key: int) -> None:
        self.owner = owner
        self.start = start
        self.end = end
        self.exclusive = exclusive
        self.key = key
        """Of the process (:class:`casemate.sentry.tasks.namespaces.PidNamespace`); -1 for an open description's."""


class Locks:
    """The locks of one file.

    Arguments:
        device, ino: which file it is, for ``/proc/locks``.
    """

    __slots__ = ("__weakref__", "device", "ino", "queue", "ranges", "whole")

    def __init__(self, device: int = 0, ino: int = 0) -> None:
        self.device = device
        self.ino = ino
        self.ranges: list[Range] = []
        """Record locks; those of one owner do not overlap."""
        self.whole: dict[File, tuple[bool, int]] = {}
        """flock(2): which open files hold it, whether exclusively, and who took it."""
        self.queue = WaitQueue()
        """Notified when any is given back."""

    # Record locks. Owners are descriptor tables (POSIX locks) or open files (F_OFD_*).

    def conflict(self, owner: Any, start: int, end: int, exclusive: bool) -> Range | None:
        """Whose lock is in the way, if any is."""
        for one in self.ranges:
            if one.owner is not owner and one.start < end and start < one.end and (exclusive or one.exclusive):
                return one
        return None

    def put(self, owner: Any, start: int, end: int, kind: int, key: int) -> None:
        """Make the range of this owner what it asks for: locked in some way, or not (F_UNLCK)."""
        kept: list[Range] = []
        freed = False
        exclusive = kind == F_WRLCK
        for one in self.ranges:
            if one.owner is not owner or one.end < start or end < one.start:
                kept.append(one)
                continue
            same = kind != F_UNLCK and one.exclusive == exclusive
            if same:
                # One lock of both, also where they only touch.
                start, end = min(start, one.start), max(end, one.end)
                continue
            freed = freed or (one.start < end and start < one.end)
            if one.start < start:
                kept.append(Range(owner, one.start, min(one.end, start), one.exclusive, one.key))
            if end < one.end:
                kept.append(Range(owner, max(one.start, end), one.end, one.exclusive, one.key))
        if kind != F_UNLCK:
            kept.append(Range(owner, start, end, exclusive, key))
        self.ranges = kept
        if freed:
            self.queue.notify()

    def drop(self, owner: Any) -> None:
        """Give back all record locks of an owner."""
        kept = [one for one in self.ranges if one.owner is not owner]
        if len(kept) != len(self.ranges):
            self.ranges = kept
            self.queue.notify()

    # flock(2).

    def lock_whole(self, file: File, exclusive: bool, key: int) -> bool:
        """Take the file's lock for an open file, in place of what that has of it; false when others are in the way."""
        others = [held for one, (held, _) in self.whole.items() if one is not file]
        if others and (exclusive or any(others)):
            return False
        weaker = file in self.whole and self.whole[file][0] and not exclusive
        self.whole[file] = exclusive, key
        if weaker:
            self.queue.notify()
        return True

    def unlock_whole(self, file: File) -> None:
        """Give it back."""
        if self.whole.pop(file, None) is not None:
            self.queue.notify()

    @property
    def empty(self) -> bool:
        """Nobody holds or waits for any."""
        return not self.ranges and not self.whole and not len(self.queue)


class Waiting:
    """A task that waits for a record lock."""

    __slots__ = ("end", "exclusive", "locks", "owner", "start", "task")

    def __init__(self, task: Task, locks: Locks, owner: Any, start: int, end: int, exclusive: bool) -> None:
        self.task = task
        self.locks = locks
        self.owner = owner
        self.start = start
        self.end = end
        self.exclusive = exclusive

    @property
    def goes_on(self) -> bool:
        """It waits still: no signal has ended its call, and it lives."""
        return self.task.thread is not None and self.task.blocked.get("lock") is self

    def blocker(self) -> Any:
        """The owner of a lock that is in its way; None when none is."""
        found = self.locks.conflict(self.owner, self.start, self.end, self.exclusive)
        return None if found is None else found.owner


class Registry:
    """All locks of a sandbox: ``kernel.subsystems["locks"]``."""

    def __init__(self) -> None:
        self.files: WeakSet[Locks] = WeakSet()
        self.waiting: dict[Any, Waiting] = {}
        """The last wait of each owner, which may be over."""

    def prune(self) -> None:
        """Forget waits that are over."""
        for owner, entry in list(self.waiting.items()):
            if not entry.goes_on:
                del self.waiting[owner]

    def proc(self) -> bytes:
        """``/proc/locks``, proc_locks(5)."""
        rows: list[tuple[bytes, bool, int, Locks, int, bytes]] = []
        for locks in self.files:
            for one in locks.ranges:
                kind = b"OFDLCK" if one.key < 0 else b"POSIX "
                last = b"EOF" if one.end == END else b"%d" % (one.end - 1)
                rows.append((kind, one.exclusive, one.key, locks, one.start, last))
            rows += [(b"FLOCK ", held, key, locks, 0, b"EOF") for held, key in locks.whole.values()]
        return b"".join(
            b"%d: %s ADVISORY  %s %d %02x:%02x:%d %d %s\n"
            % (
                number, kind, b"WRITE" if held else b"READ ", key if key < 0 else number_of(key),
                os.major(locks.device), os.minor(locks.device),
                locks.ino, start, last,
            )
            for number, (kind, held, key, locks, start, last) in enumerate(rows, 1)
        )


def registry(kernel: Kernel) -> Registry:
    """The sandbox's."""
    found = kernel.subsystems.get("locks")
    if found is None:
        found = kernel.subsystems["locks"] = Registry()
    assert isinstance(found, Registry)
    return found


def locks_of(kernel: Kernel, inode: Inode) -> Locks:
    """The locks of a file."""
    found = inode.extra.get("locks")
    if not isinstance(found, Locks):
        about = inode.stat()
        found = inode.extra["locks"] = Locks(about.dev, about.ino)
        registry(kernel).files.add(found)
    return found


def _tidy(inode: Inode, locks: Locks) -> None:
    if locks.empty:
        inode.extra.pop("locks", None)


def unlock_process(files: FdTable, inode: Inode) -> None:
    """A process closes a descriptor: all of its POSIX locks on the file go, fcntl(2)."""
    locks = inode.extra.get("locks")
    if isinstance(locks, Locks):
        locks.drop(files)
        _tidy(inode, locks)


def unlock_file(file: File, inode: Inode) -> None:
    """The last holder of an open file is gone, and its locks go."""
    locks = inode.extra.get("locks")
    if isinstance(locks, Locks):
        locks.drop(file)
        locks.unlock_whole(file)
        _tidy(inode, locks)


def wait_range(task: Task, locks: Locks, owner: Any, start: int, end: int, exclusive: bool, wait: bool) -> None:
    """Return when no other's lock is in the way. Raises Block, SysError(EAGAIN) without ``wait``, SysError(EDEADLK)
    when who is in the way waits for us."""
    waiting = registry(task.kernel).waiting
    entry = Waiting(task, locks, owner, start, end, exclusive)
    at = entry.blocker()
    if at is None:
        waiting.pop(owner, None)
        return
    if not wait:
        raise SysError(EAGAIN)
    # Follow who waits for whom: back at us means that nobody would ever go on. As in Linux this is for processes; what
    # holds an open file's locks need not be who waits.
    for _ in range(64):
        other = waiting.get(at)
        if other is None or not other.goes_on:
            break
        at = other.blocker()
        if at is owner:
            raise SysError(EDEADLK)
        if at is None:
            break
    registry(task.kernel).prune()
    waiting[owner] = task.blocked["lock"] = entry
    raise Block(locks.queue)
