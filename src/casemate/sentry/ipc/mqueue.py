"""POSIX message queues, mq_overview(7)."""

from __future__ import annotations

import heapq
import os
import stat
import time
from errno import EACCES, EINVAL, EMFILE, ENOENT, ENOSPC
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SYS_RESOURCE
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.anon import MQUEUE_MAGIC, AnonFs, AnonInode
from casemate.sentry.signals.info import SI_MESGQ, SigInfo
from casemate.sentry.vfs.file import READABLE, WRITABLE, File
from casemate.sentry.vfs.inode import Inode, Stat
from casemate.sentry.wait import WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.net.netlink import NetlinkSocket
    from casemate.sentry.tasks.namespaces import IpcNamespace
    from casemate.sentry.tasks.task import Task, ThreadGroup

MQ_PRIO_MAX = 32768
DEFAULT_MESSAGES, DEFAULT_SIZE = 10, 8192
"""What a queue gets that nobody described, and the most without CAP_SYS_RESOURCE."""
HARD_MESSAGES, HARD_SIZE = 65536, 16 << 20
QUEUES = 256
NOTIFY_WOKENUP, NOTIFY_REMOVED = 1, 2
RLIMIT_MSGQUEUE = 12
QUEUE_FILE_SIZE = 80
"""What stat(2) tells of any queue's file."""
OVERHEAD = 80
"""What each message is counted as beyond its text."""


class Notification:
    """Whom to tell of the next message, mq_notify(3).

    Arguments:
        signo: the signal; 0 to register only.
        value: what it tells.
        socket, cookie: for SIGEV_THREAD: where the C library's thread reads the cookie that it gave.
    """

    def __init__(
        self, group: ThreadGroup, signo: int, value: int, socket: NetlinkSocket | None = None, cookie: bytes = b""
    ) -> None:
        self.group = group
        self.signo = signo
        self.value = value
        self.socket = socket
        self.cookie = cookie
        if socket is not None:
            socket.incref()

    def end(self, why: int) -> None:
        """It is used up (NOTIFY_WOKENUP) or gone (NOTIFY_REMOVED): the thread is told in the cookie's last byte."""
        if self.socket is not None:
            self.socket.answer(self.cookie[:-1] + bytes([why]))
            self.socket.decref()
            self.socket = None


class MessageQueue(AnonInode):
    """One queue."""

    fs: MqueueFs

    def __init__(self, fs: MqueueFs, mode: int, task: Task, messages: int, size: int) -> None:
        creds = task.creds
        self.charged = messages * (size + OVERHEAD)
        """What it counts for its maker, RLIMIT_MSGQUEUE."""
        fs.charge(task, self.charged)
        super().__init__(fs, stat.S_IFREG | mode & 0o777, creds.fsuid, creds.fsgid, task.kernel.clock.realtime())
        self.max_messages = messages
        self.max_size = size
        self.heap: list[tuple[int, int, bytes]] = []
        """Messages: negative priority, when it came, text."""
        self._count = 0
        self.size = 0
        self.poll_queue = WaitQueue()
        self.arrivals = WaitQueue()
        self.space = WaitQueue()
        self.notification: Notification | None = None
        self.user = creds.uid
        self.opens = 0
        self.linked = True

    def open(self, task: Task, flags: int) -> MqFile:
        return MqFile(flags, self)

    def stat(self) -> Stat:
        found = super().stat()
        found.size = QUEUE_FILE_SIZE
        return found

    def send(self, task: Task, text: bytes, priority: int) -> None:
        """Append; the caller has seen that there is room."""
        was_empty = not self.heap
        self._count += 1
        heapq.heappush(self.heap, (-priority, self._count, text))
        self.size += len(text)
        notification = self.notification
        if was_empty and notification is not None and not len(self.arrivals):
            self.notification = None
            notification.end(NOTIFY_WOKENUP)
            if notification.signo:
                self._tell(task, notification)
        self.arrivals.notify()
        self.poll_queue.notify(READABLE)

    def unregister(self) -> None:
        """Nobody is to be told any more."""
        if self.notification is not None:
            self.notification.end(NOTIFY_REMOVED)
            self.notification = None

    def _tell(self, task: Task, notification: Notification) -> None:
        from casemate.sentry.signals.send import send

        if not notification.group.zombie:
            info = SigInfo.queued(notification.signo, task.pid, task.creds.uid, notification.value, SI_MESGQ)
            send(notification.group, info)

    def receive(self) -> tuple[int, bytes]:
        """The oldest message of the highest priority: priority and text."""
        priority, _, text = heapq.heappop(self.heap)
        self.size -= len(text)
        self.space.notify()
        self.poll_queue.notify(WRITABLE)
        return -priority, text


class MqDirectory(Inode):
    """The directory of all queues, which may be mounted (at ``/dev/mqueue``); mq_open(3) looks here in any case."""

    kind = stat.S_IFDIR
    fs: MqueueFs

    def __init__(self, fs: MqueueFs) -> None:
        super().__init__(fs)
        self.ino = fs.next()
        self.by_name: dict[bytes, MessageQueue] = {}
        self.time = time.time_ns()

    def access(self) -> tuple[int, int, int]:
        return stat.S_IFDIR | 0o1777, 0, 0

    def stat(self) -> Stat:
        return Stat(
            stat.S_IFDIR | 0o1777, self.ino, nlink=2, dev=self.fs.device, atime=self.time, mtime=self.time,
            ctime=self.time,
        )  # fmt: skip

    def lookup(self, task: Task, name: bytes) -> MessageQueue:
        queue = self.by_name.get(name)
        if queue is None:
            raise SysError(ENOENT)
        return queue

    def readdir(self, task: Task) -> list[tuple[bytes, int, int]]:
        return [(name, queue.ino, stat.S_IFREG) for name, queue in self.by_name.items()]

    def create(self, task: Task, name: bytes, mode: int, uid: int, gid: int) -> MessageQueue:
        return self.make(task, name, mode, DEFAULT_MESSAGES, DEFAULT_SIZE)

    def unlink(self, task: Task, name: bytes) -> None:
        queue = self.lookup(task, name)
        del self.by_name[name]
        queue.linked = False
        self.fs.closed(queue)

    def make(self, task: Task, name: bytes, mode: int, messages: int, size: int) -> MessageQueue:
        """A new queue; ``mode`` has the umask applied. Raises EINVAL, ENOSPC, EMFILE."""
        strong = task.creds.capable(CAP_SYS_RESOURCE)
        most, largest = (HARD_MESSAGES, HARD_SIZE) if strong else (DEFAULT_MESSAGES, DEFAULT_SIZE)
        if not 0 < messages <= most or not 0 < size <= largest:
            raise SysError(EINVAL)
        if len(self.by_name) >= (16 * QUEUES if strong else QUEUES):
            raise SysError(ENOSPC)
        queue = self.by_name[name] = MessageQueue(self.fs, mode, task, messages, size)
        return queue


class MqueueFs(AnonFs):
    """All queues of a namespace."""

    def __init__(self) -> None:
        super().__init__(os.makedev(0, 18), "mqueue", MQUEUE_MAGIC)
        self.charged: dict[int, int] = {}
        """Bytes that each user's queues may hold."""
        self.directory = MqDirectory(self)

    @property
    def root(self) -> MqDirectory:
        return self.directory

    def charge(self, task: Task, size: int) -> None:
        """Count a new queue for its maker. Raises EMFILE beyond RLIMIT_MSGQUEUE."""
        user = task.creds.uid
        total = self.charged.get(user, 0) + size
        if total > task.group.limits.soft(RLIMIT_MSGQUEUE):
            raise SysError(EMFILE)
        self.charged[user] = total

    def closed(self, queue: MessageQueue) -> None:
        """A name or an open description of the queue went: the last one's end is the queue's."""
        if not queue.linked and not queue.opens and queue.charged:
            self.charged[queue.user] = self.charged.get(queue.user, 0) - queue.charged
            queue.charged = 0
            if not self.charged[queue.user]:
                del self.charged[queue.user]


def queues(ipc: IpcNamespace) -> MqueueFs:
    """A namespace's queues."""
    known = ipc.subsystems.get("mqueue")
    if known is None:
        known = ipc.subsystems["mqueue"] = MqueueFs()
    assert isinstance(known, MqueueFs)
    return known


class MqFile(File):
    """An open queue."""

    inode: MessageQueue

    spliceable = False

    def __init__(self, flags: int, inode: MessageQueue) -> None:
        super().__init__(flags, inode)
        self.queue = inode.poll_queue
        inode.opens += 1

    def flush(self, task: Task) -> None:
        notification = self.inode.notification
        if notification is not None and notification.group is task.group:
            self.inode.unregister()

    def release(self) -> None:
        self.inode.opens -= 1
        self.inode.fs.closed(self.inode)

    def read(self, task: Task, size: int) -> bytes:
        queue = self.inode
        notification = queue.notification
        signo = notification.signo if notification else 0
        pid = notification.group.pid if notification else 0
        text = b"QSIZE:%-10d NOTIFY:%-5d SIGNO:%-5d NOTIFY_PID:%-6d\n" % (queue.size, 0, signo, pid)
        part = text[self.offset : self.offset + size]
        self.offset += len(part)
        return part

    def poll(self, task: Task) -> int:
        queue = self.inode
        mask = READABLE if queue.heap else 0
        if len(queue.heap) < queue.max_messages:
            mask |= WRITABLE
        return mask

    def describe(self) -> bytes:
        names = self.inode.fs.directory.by_name
        return b"/" + next((name for name, queue in names.items() if queue is self.inode), b" (deleted)")


def unlink(task: Task, name: bytes) -> None:
    """mq_unlink(3): the directory is sticky. Raises ENOENT, EACCES."""
    directory = queues(task.group.ns.ipc).directory
    queue = directory.lookup(task, name)
    if task.creds.fsuid != queue.uid and not task.creds.capable(CAP_FOWNER):
        raise SysError(EACCES)
    directory.unlink(task, name)


def permit(task: Task, queue: MessageQueue, flags: int) -> None:
    """Raise EACCES unless the task may open it so."""
    wanted = {os.O_RDONLY: 4, os.O_WRONLY: 2}.get(flags & os.O_ACCMODE, 6)
    mode = queue.mode
    creds = task.creds
    if creds.fsuid == queue.uid:
        mode >>= 6
    elif creds.in_group(queue.gid):
        mode >>= 3
    if wanted & ~mode and not creds.capable(CAP_DAC_OVERRIDE):
        raise SysError(EACCES)
