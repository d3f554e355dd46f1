"""System V semaphores, sysvipc(7)."""

from __future__ import annotations

import struct
from errno import EAGAIN, EFBIG, ENOSPC, ERANGE
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.ipc import sysv
from casemate.sentry.wait import WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.tasks.namespaces import IpcNamespace
    from casemate.sentry.tasks.task import Task, ThreadGroup

SEMMSL = 32000
"""Semaphores of one set."""
SEMMNI = 32000
"""Sets; the sum of all their semaphores is bounded by :data:`SEMMNS`."""
SEMMNS = 1 << 20
SEMOPM = 500
SEMVMX = 32767
SEM_UNDO = 0x1000


class SemSet(sysv.IpcObject):
    """One set."""

    def __init__(self, task: Task, key: int, mode: int, count: int) -> None:
        super().__init__(task, key, mode)
        self.values = [0] * count
        self.pids = [0] * count
        """Who operated last on each."""
        self.operated = 0
        """``sem_otime``, seconds."""
        self.queue = WaitQueue()
        self.undo: dict[ThreadGroup, dict[int, int]] = {}
        """What is added to semaphores when a process ends."""
        self.waiting: dict[Task, tuple[int, bool]] = {}
        """Who waits, for which semaphore, and whether for zero."""

    def remove(self) -> None:
        super().remove()
        self.undo.clear()
        self.queue.notify()

    def operate(self, task: Task, operations: list[tuple[int, int, int]]) -> tuple[int, bool] | None:
        """All of the operations or none, semop(2).

        Arguments:
            operations: number, operation and flags of each.

        Returns None when done; else for which semaphore to wait, and whether for zero.

        Raises:
            SysError: EFBIG, ERANGE, EAGAIN.
        """
        if any(number >= len(self.values) for number, _, _ in operations):
            raise SysError(EFBIG)
        changed: dict[int, int] = {}
        undo: dict[int, int] = {}
        own = self.undo.get(task.group, {})
        for number, change, flags in operations:
            value = changed.get(number, self.values[number])
            if change == 0 and value or value + change < 0:
                if flags & sysv.IPC_NOWAIT:
                    raise SysError(EAGAIN)
                return number, change == 0
            value += change
            if value > SEMVMX:
                raise SysError(ERANGE)
            if flags & SEM_UNDO:
                back = undo.get(number, own.get(number, 0)) - change
                if not -SEMVMX - 1 < back <= SEMVMX:
                    raise SysError(ERANGE)
                undo[number] = back
            changed[number] = value
        for number, value in changed.items():
            self.values[number] = value
            self.pids[number] = task.pid
        if undo:
            self.undo.setdefault(task.group, {}).update(undo)
        self.operated = task.kernel.clock.realtime() // 1_000_000_000
        if any(change for _, change, _ in operations):
            self.queue.notify()
        return None

    def count(self, number: int, zero: bool) -> int:
        """How many wait for it: GETNCNT, GETZCNT of semctl(2). Calls that a signal ended have let go of their note."""
        for task in [t for t in self.waiting if t.thread is None or t.blocked.get("sem") is not self]:
            del self.waiting[task]
        return sum(waits == (number, zero) for waits in self.waiting.values())

    def set(self, task: Task, numbers: list[int], values: list[int]) -> None:
        """SETVAL and SETALL, which also forget what was to be undone. Raises ERANGE."""
        if any(not 0 <= value <= SEMVMX for value in values):
            raise SysError(ERANGE)
        for number, value in zip(numbers, values, strict=True):
            self.values[number] = value
            self.pids[number] = task.pid
            for undo in self.undo.values():
                undo.pop(number, None)
        self.changed = task.kernel.clock.realtime() // 1_000_000_000
        self.queue.notify()

    def pack(self) -> bytes:
        """``struct semid64_ds``."""
        return self.perm() + struct.pack("<qQqQQQQ", self.operated, 0, self.changed, 0, len(self.values), 0, 0)


class SemTable(sysv.IpcTable[SemSet]):
    """All sets."""

    total = 0
    """Semaphores of all of them."""

    def make(self, task: Task, key: int, mode: int, count: int) -> SemSet:
        """A new set. Raises ENOSPC."""
        if self.total + count > SEMMNS:
            raise SysError(ENOSPC)
        self.total += count
        return SemSet(task, key, mode, count)

    def remove(self, found: SemSet) -> None:
        super().remove(found)
        self.total -= len(found.values)

    def proc(self, name: str) -> bytes:
        """The lines of ``/proc/sysvipc/sem`` below its head, proc_sysvipc(5)."""
        return b"".join(
            b"%10d %10d  %4o %10d %5d %5d %5d %5d %10d %10d\n"
            % (
                one.key, one.id, one.mode, len(one.values), one.uid, one.gid, one.cuid, one.cgid, one.operated,
                one.changed,
            )  # fmt: skip
            for one in self.by_index.values()
        )


def sets(ipc: IpcNamespace) -> SemTable:
    """A namespace's sets."""
    table = ipc.subsystems.get("sem")
    if table is None:
        sysv.mark(ipc)
        table = ipc.subsystems["sem"] = SemTable(SEMMNI)
    assert isinstance(table, SemTable)
    return table


def exit_group(ipc: IpcNamespace, group: ThreadGroup) -> None:
    """Undo what an ended process did with SEM_UNDO."""
    for known in sets(ipc).by_index.values():
        undo = known.undo.pop(group, None)
        if undo:
            for number, change in undo.items():
                known.values[number] = min(max(known.values[number] + change, 0), SEMVMX)
                known.pids[number] = group.pid
            known.queue.notify()
