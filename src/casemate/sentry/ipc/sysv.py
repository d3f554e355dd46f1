"""What System V semaphores, messages and shared memory have in common: keys, numbers and permissions, sysvipc(7)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import EACCES, EEXIST, EIDRM, EINVAL, ENOENT, ENOSPC, EPERM
from typing import TYPE_CHECKING, Generic, TypeVar

from casemate.sentry.creds import CAP_IPC_OWNER, CAP_SYS_ADMIN
from casemate.sentry.errno import SysError

if TYPE_CHECKING:
    from casemate.sentry.tasks.namespaces import IpcNamespace
    from casemate.sentry.tasks.task import Task, ThreadGroup

IPC_PRIVATE = 0
IPC_CREAT = 0o1000
IPC_EXCL = 0o2000
IPC_NOWAIT = 0o4000
IPC_RMID, IPC_SET, IPC_STAT, IPC_INFO = 0, 1, 2, 3
INDEX_BITS = 15
"""An id is the object's index and, above that, how often the indexes had been gone through before."""
CYCLE = 64
"""How many indexes are gone through, where there are few objects."""
PERM_SIZE = 48
"""``sizeof (struct ipc64_perm)``."""
READ, WRITE = 0o444, 0o222
_PERM = struct.Struct("<iIIIIIHHxxxxQQ")


class IpcObject:
    """One semaphore set, message queue or segment.

    Arguments:
        task: who makes it.
        key: of ftok(3), or IPC_PRIVATE.
        mode: permissions; further bits are ignored.
    """

    def __init__(self, task: Task, key: int, mode: int) -> None:
        creds = task.creds
        self.id = 0
        self.sequence = 0
        self.key = key
        self.uid = self.cuid = creds.euid
        self.gid = self.cgid = creds.egid
        self.mode = mode & 0o777
        self.changed = task.kernel.clock.realtime() // 1_000_000_000
        """``*_ctime``, seconds."""
        self.removed = False

    def check(self, task: Task, wanted: int) -> None:
        """Raise EACCES unless the task has this access, sysvipc(7).

        Arguments:
            wanted: permission bits as in a mode, of any of owner, group and others.
        """
        wanted = wanted >> 6 | wanted >> 3 | wanted
        granted = self.mode
        creds = task.creds
        if creds.euid in (self.cuid, self.uid):
            granted >>= 6
        elif any(gid == creds.egid or gid in creds.groups for gid in (self.cgid, self.gid)):
            granted >>= 3
        if wanted & ~granted & 7 and not creds.capable(CAP_IPC_OWNER):
            raise SysError(EACCES)

    def own(self, task: Task) -> None:
        """Raise EPERM unless the task may change or remove it."""
        creds = task.creds
        if creds.euid not in (self.cuid, self.uid) and not creds.capable(CAP_SYS_ADMIN):
            raise SysError(EPERM)

    def alive(self) -> None:
        """Raise EIDRM when it was removed while a call waited."""
        if self.removed:
            raise SysError(EIDRM)

    def remove(self) -> None:
        """It has no number any more: whoever waits is to look again."""
        self.removed = True

    def perm(self) -> bytes:
        """``struct ipc64_perm``."""
        return _PERM.pack(
            self.key, self.uid, self.gid, self.cuid, self.cgid, self.mode, self.sequence & 0xFFFF, 0, 0, 0
        )

    def set_perm(self, task: Task, data: bytes) -> None:
        """Take owner, group and permissions from a ``struct ipc64_perm``, as IPC_SET does. Raises EPERM."""
        self.own(task)
        _, uid, gid, _, _, mode = struct.unpack_from("<iIIIII", data)
        if 0xFFFF_FFFF in (uid, gid):
            raise SysError(EINVAL)
        self.uid = uid
        self.gid = gid
        self.mode = self.mode & ~0o777 | mode & 0o777
        self.changed = task.kernel.clock.realtime() // 1_000_000_000


Kind = TypeVar("Kind", bound=IpcObject)


class IpcTable(Generic[Kind]):
    """All objects of one kind.

    Arguments:
        limit: how many there may be.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.by_index: dict[int, Kind] = {}
        self.by_key: dict[int, Kind] = {}
        self._sequence = 0
        self._last = -1
        """The index that was given last."""

    def get(self, task: Task, key: int, flags: int, make: Callable[[], Kind], fits: Callable[[Kind], None]) -> Kind:
        """semget(2), msgget(2), shmget(2).

        Arguments:
            make: a new object; its errors are the call's.
            fits: raises when an existing object is not what the call describes.

        Raises:
            SysError: EEXIST, ENOENT, EACCES, ENOSPC.
        """
        found = self.by_key.get(key) if key != IPC_PRIVATE else None
        if found is not None:
            if flags & IPC_CREAT and flags & IPC_EXCL:
                raise SysError(EEXIST)
            fits(found)
            found.check(task, flags & 0o777)
            return found
        if key != IPC_PRIVATE and not flags & IPC_CREAT:
            raise SysError(ENOENT)
        if len(self.by_index) >= self.limit:
            raise SysError(ENOSPC)
        new = make()
        index = self._next()
        new.sequence = self._sequence
        new.id = self._sequence << INDEX_BITS | index
        self.by_index[index] = new
        if key != IPC_PRIVATE:
            self.by_key[key] = new
        return new

    def _next(self) -> int:
        """A free index. They go round, so that a number comes again as late as can be, and each round counts up."""
        known = self.by_index
        most = max(len(known) * 3 // 2, CYCLE)
        index = self._last + 1
        while index in known:
            index += 1
        if index >= most:
            index = 0
            while index in known:
                index += 1
        if index <= self._last:
            self._sequence = (self._sequence + 1) & 0xFFFF
        self._last = index
        return index

    def find(self, number: int) -> Kind:
        """By its id. Raises EINVAL, also where another has taken its place."""
        found = self.by_index.get(number & (1 << INDEX_BITS) - 1) if number >= 0 else None
        if found is None or found.id != number:
            raise SysError(EINVAL)
        return found

    def at(self, index: int) -> Kind:
        """By its index, for ``*_STAT``. Raises EINVAL."""
        found = self.by_index.get(index)
        if found is None:
            raise SysError(EINVAL)
        return found

    def remove(self, found: Kind) -> None:
        """Its number and its key are free."""
        index = found.id & (1 << INDEX_BITS) - 1
        self.by_index.pop(index, None)
        self.hide(found)
        found.remove()

    def hide(self, found: Kind) -> None:
        """Its key is free; the number stays (a removed segment that is still attached)."""
        if self.by_key.get(found.key) is found:
            del self.by_key[found.key]

    def clear(self) -> None:
        """Nobody can reach them any more: remove all."""
        for found in list(self.by_index.values()):
            self.remove(found)

    def highest(self) -> int:
        """The highest index in use, which ``*_INFO`` calls return; 0 for none."""
        return max(self.by_index, default=0)


def exit_group(group: ThreadGroup) -> None:
    """A process has ended: undo its semaphore operations, semop(2)."""
    ipc = group.ns.ipc
    if "sem" in ipc.subsystems:
        from casemate.sentry.ipc import sem

        sem.exit_group(ipc, group)


def mark(ipc: IpcNamespace) -> None:
    """Say that there are objects, so that :func:`exit_group` is called."""
    ipc.subsystems.setdefault("sysv", True)
