"""System V message queues, sysvipc(7)."""

from __future__ import annotations

import struct
from collections import deque
from errno import EPERM
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_SYS_RESOURCE
from casemate.sentry.errno import SysError
from casemate.sentry.ipc import sysv
from casemate.sentry.wait import WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.tasks.namespaces import IpcNamespace
    from casemate.sentry.tasks.task import Task

MSGMNI = 4096
"""Queues. Fewer than Linux allows: all of them full are 64 MiB."""
MSGMAX = 8192
"""Bytes of one message."""
MSGMNB = 16384
"""Bytes that a queue holds, unless it is told otherwise."""
LARGEST_QUEUE = 16 << 20


class MsgQueue(sysv.IpcObject):
    """One queue."""

    def __init__(self, task: Task, key: int, mode: int) -> None:
        super().__init__(task, key, mode)
        self.messages: deque[tuple[int, bytes]] = deque()
        """Type and text, oldest first."""
        self.size = 0
        self.capacity = MSGMNB
        self.sent = self.received = 0
        """Seconds; 0 for never."""
        self.sender = self.receiver = 0
        """Pids of the last ones."""
        self.arrivals = WaitQueue()
        self.space = WaitQueue()

    def remove(self) -> None:
        super().remove()
        self.messages.clear()
        self.arrivals.notify()
        self.space.notify()

    def fits(self, size: int) -> bool:
        """Whether there is room for a message; empty ones count too."""
        return self.size + size <= self.capacity and len(self.messages) < self.capacity

    def send(self, task: Task, kind: int, text: bytes) -> None:
        """Append; the caller has seen that there is room."""
        self.messages.append((kind, text))
        self.size += len(text)
        self.sent = task.kernel.clock.realtime() // 1_000_000_000
        self.sender = task.pid
        self.arrivals.notify()

    def search(self, kind: int, other: bool) -> int:
        """The index of the message that msgrcv(2) takes for this type, or -1.

        Arguments:
            kind: 0 for the first of all, positive for a type, negative for the lowest type up to its absolute value.
            other: the first that is *not* of the type, MSG_EXCEPT.
        """
        best = -1
        lowest = -kind + 1
        for at, (found, _) in enumerate(self.messages):
            if kind == 0 or (kind > 0 and (found == kind) != other):
                return at
            if kind < 0 and found < lowest:
                best, lowest = at, found
        return best

    def take(self, task: Task, at: int) -> tuple[int, bytes]:
        """Out of the queue."""
        kind, text = self.messages[at]
        del self.messages[at]
        self.size -= len(text)
        self.received = task.kernel.clock.realtime() // 1_000_000_000
        self.receiver = task.pid
        self.space.notify()
        return kind, text

    def configure(self, task: Task, data: bytes) -> None:
        """IPC_SET with a ``struct msqid64_ds``. Raises EPERM."""
        self.own(task)
        capacity = struct.unpack_from("<Q", data, sysv.PERM_SIZE + 40)[0]
        if capacity > MSGMNB and not task.creds.capable(CAP_SYS_RESOURCE):
            raise SysError(EPERM)
        self.set_perm(task, data)
        self.capacity = min(capacity, LARGEST_QUEUE)
        self.arrivals.notify()
        self.space.notify()

    def pack(self) -> bytes:
        """``struct msqid64_ds``."""
        return self.perm() + struct.pack(
            "<qqqQQQiiQQ", self.sent, self.received, self.changed, self.size, len(self.messages), self.capacity,
            self.sender, self.receiver, 0, 0,
        )  # fmt: skip


class MsgTable(sysv.IpcTable[MsgQueue]):
    """All queues."""

    def proc(self, name: str) -> bytes:
        """The lines of ``/proc/sysvipc/msg`` below its head, proc_sysvipc(5)."""
        return b"".join(
            b"%10d %10d  %4o  %10d %10d %5d %5d %5d %5d %5d %5d %10d %10d %10d\n"
            % (
                one.key, one.id, one.mode, one.size, len(one.messages), one.sender, one.receiver, one.uid, one.gid,
                one.cuid, one.cgid, one.sent, one.received, one.changed,
            )  # fmt: skip
            for one in self.by_index.values()
        )


def queues(ipc: IpcNamespace) -> MsgTable:
    """A namespace's queues."""
    table = ipc.subsystems.get("msg")
    if table is None:
        table = ipc.subsystems["msg"] = MsgTable(MSGMNI)
    assert isinstance(table, MsgTable)
    return table
