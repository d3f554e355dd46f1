"""Sets of files whose events are collected, epoll(7)."""

from __future__ import annotations

import os
from errno import EEXIST, EINVAL, ELOOP, ENOENT, ENOSPC
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.ipc.anon import AnonFile
from casemate.sentry.vfs.file import POLLERR, POLLHUP, POLLIN, POLLRDNORM, READABLE, File

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

EPOLLEXCLUSIVE = 1 << 28
EPOLLWAKEUP = 1 << 29
EPOLLONESHOT = 1 << 30
EPOLLET = 1 << 31
SETTINGS = EPOLLEXCLUSIVE | EPOLLWAKEUP | EPOLLONESHOT | EPOLLET
"""Bits of ``events`` that are no events."""
ALWAYS = POLLERR | POLLHUP
EXCLUSIVE_ALLOWED = EPOLLEXCLUSIVE | EPOLLET | EPOLLWAKEUP | POLLIN | 0x4 | POLLRDNORM | 0x100 | ALWAYS
"""What an entry with EPOLLEXCLUSIVE may ask for: input and output."""
DEPTH = 6
"""How deep sets may hold sets."""
MAX_WATCHES = 200_000
"""``/proc/sys/fs/epoll/max_user_watches``, for each user of the sandbox together here."""


class Item:
    """One entry of a set: a descriptor as it was when added, what to look for and what to say."""

    __slots__ = ("data", "events", "fd", "file", "owner", "queue")

    def __init__(self, owner: Epoll, fd: int, file: File, events: int, data: bytes) -> None:
        self.owner = owner
        self.fd = fd
        self.file = file
        self.queue = file.queue
        """Where it waits, also when the file has another one by now (a signalfd that another process polled)."""
        self.events = events
        """Event bits and settings; no event bits at all while EPOLLONESHOT has it disabled."""
        self.data = data

    def wake(self, mask: int) -> None:
        """Something happened at the file: it may be ready, and who waits for the set looks."""
        if mask and not mask & self.events & ~SETTINGS:
            return
        if self.events & ~SETTINGS:
            owner = self.owner
            owner.ready[self] = None
            owner.queue.notify(READABLE)


class Epoll(AnonFile):
    """One set. Entries hold no reference: a file that is closed everywhere leaves the set, epoll(7); its entry is found
    dead by the count of its references."""

    anonymous = "anon_inode:[eventpoll]"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel, os.O_RDWR)
        self.items: dict[int, list[Item]] = {}
        """By descriptor: mostly one, but more when the number was used again while copies of the file are open."""
        self.inner: dict[Item, None] = {}
        """Those that are sets themselves."""
        self.ready: dict[Item, None] = {}
        """Entries that may have something to report, in the order in which it happened."""
        self.kernel = kernel

    def release(self) -> None:
        for items in list(self.items.values()):
            for item in tuple(items):
                self._drop(item)

    def poll(self, task: Task) -> int:
        for item in tuple(self.ready):
            if self._events(task, item):
                return READABLE
            self.ready.pop(item, None)
        return 0

    def _events(self, task: Task, item: Item) -> int:
        """What the entry would report now; an entry of a closed file goes."""
        if item.file.refs <= 0:
            self._drop(item)
            return 0
        wanted = item.events & ~SETTINGS
        return item.file.poll(task) & wanted if wanted else 0

    def _drop(self, item: Item) -> None:
        items = self.items.get(item.fd, [])
        if item in items:
            items.remove(item)
            if not items:
                del self.items[item.fd]
            self.kernel.subsystems["epoll.watches"] -= 1
        self.inner.pop(item, None)
        self.ready.pop(item, None)
        item.queue.remove(item)

    def _find(self, fd: int, file: File) -> Item | None:
        for item in self.items.get(fd, ()):
            if item.file is file:
                return item
        return None

    def add(self, task: Task, fd: int, file: File, events: int, data: bytes) -> None:
        """EPOLL_CTL_ADD, epoll_ctl(2)."""
        if file is self:
            raise SysError(EINVAL)
        if events & EPOLLEXCLUSIVE and (events & ~EXCLUSIVE_ALLOWED or isinstance(file, Epoll)):
            raise SysError(EINVAL)
        if isinstance(file, Epoll):
            if file.contains(self):
                raise SysError(ELOOP)
            if file.depth() + self.height(task.kernel) > DEPTH:
                raise SysError(ELOOP)
            task.kernel.subsystems.setdefault("epoll.nested", {})[self] = None
        if self._find(fd, file) is not None:
            raise SysError(EEXIST)
        subsystems = task.kernel.subsystems
        watches = subsystems.get("epoll.watches", 0)
        if watches >= MAX_WATCHES:
            raise SysError(ENOSPC)
        for old in [item for item in self.items.get(fd, ()) if item.file.refs <= 0]:
            self._drop(old)
        subsystems["epoll.watches"] = subsystems.get("epoll.watches", 0) + 1
        # Polled first: some files choose by it what they notify.
        ready = file.poll(task)
        item = Item(self, fd, file, events | ALWAYS, data)
        self.items.setdefault(fd, []).append(item)
        if isinstance(file, Epoll):
            self.inner[item] = None
        item.queue.add(item)
        if ready & item.events & ~SETTINGS:
            self.ready[item] = None
            self.queue.notify(READABLE)

    def modify(self, task: Task, fd: int, file: File, events: int, data: bytes) -> None:
        """EPOLL_CTL_MOD."""
        item = self._find(fd, file)
        if item is None:
            raise SysError(ENOENT)
        if events & EPOLLEXCLUSIVE or item.events & EPOLLEXCLUSIVE:
            raise SysError(EINVAL)
        item.events = events | ALWAYS
        item.data = data
        if self._events(task, item):
            self.ready[item] = None
            self.queue.notify(READABLE)

    def delete(self, fd: int, file: File) -> None:
        """EPOLL_CTL_DEL."""
        item = self._find(fd, file)
        if item is None:
            raise SysError(ENOENT)
        self._drop(item)

    def collect(self, task: Task, limit: int) -> list[bytes]:
        """The events to report now, at most ``limit``, each as ``struct epoll_event``."""
        ready = self.ready
        result: list[bytes] = []
        again: list[Item] = []
        for item in tuple(ready):
            if len(result) >= limit:
                break
            del ready[item]
            events = self._events(task, item)
            if not events:
                continue
            result.append(events.to_bytes(4, "little") + item.data)
            settings = item.events
            if settings & EPOLLONESHOT:
                item.events &= SETTINGS
            elif not settings & EPOLLET:
                # Still ready perhaps; behind the others, so that each has its turn.
                again.append(item)
        for item in again:
            ready[item] = None
        return result

    # Sets in sets.

    def _inner(self) -> list[Epoll]:
        return [item.file for item in self.inner if isinstance(item.file, Epoll) and item.file.refs > 0]

    def contains(self, other: Epoll) -> bool:
        """Whether the other set is in this one, at any depth."""
        return any(inner is other or inner.contains(other) for inner in self._inner())

    def depth(self) -> int:
        """How many levels of sets it has, itself one."""
        return 1 + max((inner.depth() for inner in self._inner()), default=0)

    def height(self, kernel: Kernel) -> int:
        """How many levels of sets hold it, itself one."""
        holders: dict[Epoll, None] = kernel.subsystems.get("epoll.nested", {})
        for dead in [holder for holder in holders if holder.refs <= 0]:
            del holders[dead]
        return 1 + max((holder.height(kernel) for holder in tuple(holders) if self in holder._inner()), default=0)

    def fdinfo(self) -> bytes:
        lines = []
        for item in [item for items in self.items.values() for item in items]:
            inode = item.file.inode
            ino, device = (inode.stat().ino, inode.fs.device) if inode is not None else (0, 0)
            data = int.from_bytes(item.data, "little")
            lines.append(
                b"tfd: %8d events: %8x data: %16x  pos:%d ino:%x sdev:%x\n"
                % (item.fd, item.events, data, item.file.offset, ino, device)
            )
        return b"".join(lines)
