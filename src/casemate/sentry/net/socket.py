"""What all sockets have, socket(7): the file, options, time limits, and how calls wait."""

from __future__ import annotations

import os
import signal
import stat
from errno import EAGAIN, EINVAL, ENOPROTOOPT, ENOTCONN, ENOTTY, EOPNOTSUPP, EPIPE
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.ipc.anon import AnonFs, AnonInode
from casemate.sentry.net import interfaces, options
from casemate.sentry.net.buffer import Budget, budget
from casemate.sentry.signals import send as signals
from casemate.sentry.vfs.file import File
from casemate.sentry.wait import Block, Restart, WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

MSG_OOB, MSG_PEEK, MSG_CTRUNC, MSG_TRUNC, MSG_DONTWAIT = 0x1, 0x2, 0x8, 0x20, 0x40
MSG_EOR, MSG_WAITALL, MSG_ERRQUEUE, MSG_NOSIGNAL = 0x80, 0x100, 0x2000, 0x4000
MSG_WAITFORONE, MSG_CMSG_CLOEXEC = 0x10000, 0x4000_0000
SHUT_RD, SHUT_WR, SHUT_RDWR = 0, 1, 2

SOCKFS_MAGIC = 0x534F434B
DEFAULT_BUFFER = 212992
"""``net.core.wmem_default`` and ``rmem_default``."""
FIONREAD, SIOCOUTQ, FIOSETOWN, SIOCSPGRP, FIOGETOWN, SIOCGPGRP = 0x541B, 0x5411, 0x8901, 0x8902, 0x8903, 0x8904
SIOCATMARK = 0x8905

Control = list[tuple[int, int, bytes]]
"""Control messages, cmsg(3): level, type and data of each."""


def _inode(task: Task) -> AnonInode:
    """A socket's inode, which fstat(2) shows and fchown(2) changes."""
    kernel = task.kernel
    fs = kernel.subsystems.get("sockfs")
    if fs is None:
        fs = kernel.subsystems["sockfs"] = AnonFs(os.makedev(0, 8), "sockfs", SOCKFS_MAGIC)
        fs.last = 1000
    creds = task.creds
    return AnonInode(fs, stat.S_IFSOCK | 0o777, creds.fsuid, creds.fsgid, kernel.clock.realtime())


class Message:
    """What one receive gives: the data, and what recvmsg(2) tells of it."""

    __slots__ = ("address", "control", "data", "files", "flags", "length")

    def __init__(self, data: bytes, address: bytes = b"", flags: int = 0, length: int | None = None) -> None:
        self.data = data
        self.address = address
        """The sender's, as ``struct sockaddr``; empty for none."""
        self.control: Control = []
        self.files: list[File] = []
        """Of ``SCM_RIGHTS``: a reference to each is handed over."""
        self.flags = flags
        """``MSG_TRUNC``, ``MSG_EOR``, … of ``msg_flags``."""
        self.length = len(data) if length is None else length
        """Of the whole datagram, where ``MSG_TRUNC`` asks for that."""


class Socket(File):
    """A socket. Families override what they can do.

    Addresses are ``struct sockaddr`` as bytes, at most 128 of them. Methods raise SysError or Block.

    Arguments:
        task: who makes it; it owns the inode.
        family, kind, protocol: as of socket(2), without ``SOCK_NONBLOCK`` and ``SOCK_CLOEXEC``.
        flags: ``O_NONBLOCK`` or 0.
    """

    stream = False
    """Bytes without boundaries: what was sent may be received in other pieces."""
    max_datagram = 1 << 20
    """The most that one send takes; longer ones are EMSGSIZE, or go in several steps for streams."""

    def __init__(self, task: Task, family: int, kind: int, protocol: int, flags: int = 0) -> None:
        inode = _inode(task)
        super().__init__(os.O_RDWR | flags, inode)
        self.ino = inode.ino
        self.family = family
        self.kind = kind
        self.protocol = protocol
        self.uid = task.creds.euid
        self.pids = task.group.ns.pid
        self.options: dict[int, int] = {}
        """Options of ``SOL_SOCKET`` that are kept as they are; see :mod:`casemate.sentry.net.options`."""
        self.sndbuf = DEFAULT_BUFFER
        self.rcvbuf = DEFAULT_BUFFER
        self.send_timeout: int | None = None
        """Nanoseconds; None for no limit."""
        self.receive_timeout: int | None = None
        self.linger: int | None = None
        """Seconds of ``SO_LINGER``; None while it is off."""
        self.budget: Budget = budget(task.kernel)
        self.starved = False
        """A send found little room because of what other sockets hold."""
        self.error = 0
        """Pending, for ``SO_ERROR`` or the next call."""

    # What families do.

    def bind(self, task: Task, address: bytes) -> None:
        """bind(2)."""
        raise SysError(EOPNOTSUPP)

    def connect(self, task: Task, address: bytes) -> None:
        """connect(2)."""
        raise SysError(EOPNOTSUPP)

    def listen(self, task: Task, backlog: int) -> None:
        """listen(2)."""
        raise SysError(EOPNOTSUPP)

    def accept(self, task: Task, flags: int) -> Socket:
        """accept4(2): the connection, with ``flags`` (``O_NONBLOCK`` or 0) as its status flags."""
        raise SysError(EOPNOTSUPP)

    def name(self) -> bytes:
        """getsockname(2)."""
        raise SysError(EOPNOTSUPP)

    def peer_name(self) -> bytes:
        """getpeername(2)."""
        raise SysError(ENOTCONN)

    def send(self, task: Task, data: bytes, flags: int, address: bytes = b"", control: Control | None = None) -> int:
        """sendmsg(2): how much was sent."""
        raise SysError(EOPNOTSUPP)

    def receive(self, task: Task, size: int, flags: int) -> Message:
        """recvmsg(2)."""
        raise SysError(EOPNOTSUPP)

    def error_queue(self) -> None:
        """``MSG_ERRQUEUE``: nothing is ever in it. Raises SysError(EAGAIN)."""
        raise SysError(EAGAIN)

    def shutdown(self, task: Task, how: int) -> None:
        """shutdown(2); ``how`` is valid."""
        raise SysError(EOPNOTSUPP)

    def pending(self) -> int:
        """``FIONREAD``: bytes that can be read, or the next datagram's length."""
        return 0

    def unsent(self) -> int:
        """``SIOCOUTQ``: bytes that the peer has not taken."""
        return 0

    @property
    def at_mark(self) -> bool:
        """``SIOCATMARK``: reading has come to where urgent data was sent."""
        return False

    @property
    def listening(self) -> bool:
        """``SO_ACCEPTCONN``."""
        return False

    # As a file.

    def read(self, task: Task, size: int) -> bytes:
        if not size:
            return b""
        message = self.receive(task, size, 0)
        if message.files:
            for file in message.files:
                file.decref()
        return message.data

    def write(self, task: Task, data: bytes) -> int:
        return self.send(task, data, 0)

    def describe(self) -> bytes:
        return b"socket:[%d]" % self.ino

    def ioctl(self, task: Task, command: int, argument: int) -> int:
        """Of socket(7) and netdevice(7)."""
        if command == FIONREAD:
            if self.listening:
                raise SysError(EINVAL)
            task.mem.put_u32(argument, self.pending())
        elif command == SIOCOUTQ:
            if self.listening:
                raise SysError(EINVAL)
            task.mem.put_u32(argument, self.unsent())
        elif command == SIOCATMARK:
            task.mem.put_u32(argument, int(self.at_mark))
        elif command in (FIOSETOWN, SIOCSPGRP):
            self.owner = task.mem.s32(argument)
        elif command in (FIOGETOWN, SIOCGPGRP):
            task.mem.put_u32(argument, self.owner)
        elif command >> 8 == 0x89:
            if task.kernel.subsystems.get("network") == "host":
                from casemate.sentry.net import host

                host.ask(task, command, argument)
            else:
                interfaces.ioctl(task, command, argument)
        else:
            raise SysError(ENOTTY)
        return 0

    # Waiting and failing.

    def wait_for(self, task: Task, flags: int, timeout: int | None, *queues: WaitQueue, partial: int = 0) -> Exception:
        """What to raise where a call cannot go on.

        Arguments:
            flags: of the call (``MSG_DONTWAIT``).
            timeout: :attr:`send_timeout` or :attr:`receive_timeout`.
            queues: what to wait for; the socket's own when there are none.
            partial: how much is done: the result where a signal interrupts the call.
        """
        if flags & MSG_DONTWAIT or self.flags & os.O_NONBLOCK:
            return SysError(EAGAIN)
        queues = queues or (self.queue,)
        if timeout is None:
            block = Block(*queues)
        else:
            deadline: int | None = task.blocked.get("deadline")
            if deadline is None:
                deadline = task.blocked["deadline"] = task.kernel.clock.monotonic() + timeout
            elif task.timed_out:
                return SysError(EAGAIN)
            # With a time limit a call is not made again after a handler, signal(7).
            block = Block(*queues, deadline=deadline, restart=Restart.NOHAND)
        block.partial = partial
        # The call goes on with this socket, even if another thread has its descriptor refer to something else by then.
        fd = task.args[0]
        if task.files.peek(fd) is self:
            task.blocked["file"] = (fd, self)
        return block

    def tell_owner(self, kernel: Kernel, signo: int) -> None:
        """Send a signal to whom ``F_SETOWN`` names, fcntl(2), where who made the socket might."""
        owner = self.owner
        if not owner:
            return
        for group in self.pids.groups():
            if group.pid != owner and group.process_group.pgid != -owner:
                continue
            task = group.any_task
            if task is None or group.zombie:
                continue
            if self.uid in (0, task.creds.uid, task.creds.suid):
                signals.send_signal(group, signo)

    def broken_pipe(self, task: Task, flags: int) -> SysError:
        """EPIPE, with the signal unless the caller wants none."""
        if not flags & MSG_NOSIGNAL:
            signals.send_signal(task, signal.SIGPIPE)
        return SysError(EPIPE)

    def take_error(self) -> int:
        """The pending error, which is told once."""
        error, self.error = self.error, 0
        return error

    def check_error(self) -> None:
        """Raise the pending error if there is one."""
        if self.error:
            raise SysError(self.take_error())

    # Options.

    def get_option(self, task: Task, level: int, name: int, size: int) -> bytes:
        """getsockopt(2): the value, of which the caller takes ``size`` bytes at most."""
        if level != options.SOL_SOCKET:
            raise SysError(EOPNOTSUPP)
        return options.get(self, name)

    def set_option(self, task: Task, level: int, name: int, value: bytes) -> None:
        """setsockopt(2)."""
        if level != options.SOL_SOCKET:
            raise SysError(ENOPROTOOPT)
        options.change(self, task, name, value)
