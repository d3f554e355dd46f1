"""UNIX domain sockets, unix(7): names, and what travels with data. The modules beside it have the kinds of sockets."""

from __future__ import annotations

import resource
import stat
import struct
from collections import deque
from errno import (
    EADDRINUSE,
    ECONNREFUSED,
    EEXIST,
    EINVAL,
    ENOENT,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
    EPROTOTYPE,
    ESOCKTNOSUPPORT,
    ETOOMANYREFS,
)
from socket import AF_UNIX, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET, SOCK_STREAM
from typing import TYPE_CHECKING

from casemate.sentry.abi import AT_FDCWD
from casemate.sentry.creds import CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, CAP_SYS_RESOURCE
from casemate.sentry.errno import SysError
from casemate.sentry.net.buffer import SCARCE
from casemate.sentry.net.options import (
    SCM_CREDENTIALS,
    SCM_RIGHTS,
    SO_PASSCRED,
    SO_PEERCRED,
    SO_PEERGROUPS,
    SOL_SOCKET,
)
from casemate.sentry.net.socket import MSG_PEEK, MSG_TRUNC, Control, Message, Socket
from casemate.sentry.vfs import path as paths
from casemate.sentry.vfs.file import READABLE

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File
    from casemate.sentry.vfs.inode import Inode

UNNAMED = struct.pack("<H", AF_UNIX)
MAX_ADDRESS = 110
"""``sizeof(struct sockaddr_un)``."""
SCM_MAX_FD = 253
OVERHEAD = 256
"""What a packet costs beside its data, of the sender's buffer."""

Ids = tuple[int, int, int]
"""The key of a process (:class:`casemate.sentry.tasks.namespaces.PidNamespace`), uid and gid."""


class Names:
    """What the UNIX sockets of one sandbox share: abstract names, and how many files each user has in flight."""

    def __init__(self) -> None:
        self.abstract: dict[bytes, UnixSocket] = {}
        self.in_flight: dict[int, int] = {}
        self.next_auto = 0
        self.sockets: dict[UnixSocket, None] = {}
        """All of them, for ``/proc/net/unix``."""


def names(kernel: Kernel) -> Names:
    """The sandbox's."""
    found = kernel.subsystems.get("unix")
    if found is None:
        found = kernel.subsystems["unix"] = Names()
    assert isinstance(found, Names)
    return found


class Packet:
    """One send's data on its way, with what goes along."""

    __slots__ = ("address", "creds", "data", "files", "names", "offset", "uid")

    def __init__(self, data: bytes, creds: Ids, address: bytes = b"") -> None:
        self.data = data
        self.offset = 0
        """How much of it was received."""
        self.creds = creds
        self.address = address
        self.files: list[File] = []
        self.names: Names | None = None
        """Which counts its files as in flight."""
        self.uid = 0

    def take_files(self) -> list[File]:
        """Its files, that are in flight no more: the references go to the caller."""
        files = self.files
        if files:
            self.files = []
            assert self.names is not None
            self.names.in_flight[self.uid] -= len(files)
        return files

    def drop(self) -> None:
        """Nobody will receive it."""
        for file in self.take_files():
            file.decref()


class UnixSocket(Socket):
    """What all UNIX sockets have: a name, credentials of the peer, control messages."""

    def __init__(self, task: Task, kind: int, flags: int = 0) -> None:
        super().__init__(task, AF_UNIX, kind, 0, flags)
        self.names = names(task.kernel)
        self.names.sockets[self] = None
        self.address = b""
        """As ``struct sockaddr_un``; empty for none."""
        self.bound: Inode | None = None
        """The file that it is bound to. Holding it keeps it the same object for all who look it up."""
        self.receiving: deque[Packet] = deque()
        self.bytes = 0
        """In :attr:`receiving`."""
        self.closed = False
        self.read_shut = False
        self.write_shut = False
        self.peer_ids: Ids | None = None
        self.peer_groups: tuple[int, ...] = ()

    def set_option(self, task: Task, level: int, name: int, value: bytes) -> None:
        if level != SOL_SOCKET:
            raise SysError(EOPNOTSUPP)
        super().set_option(task, level, name, value)

    # Names.

    def bind(self, task: Task, address: bytes) -> None:
        if _family(address) != AF_UNIX:
            raise SysError(EINVAL)
        if len(address) > 2 and address[2]:
            self._bind_path(task, address[2:].split(b"\0")[0])
        elif self.address:
            raise SysError(EINVAL)
        elif len(address) == 2:
            self.auto_bind()
        else:
            if address in self.names.abstract:
                raise SysError(EADDRINUSE)
            self.names.abstract[address] = self
            self.address = address

    def _bind_path(self, task: Task, path: bytes) -> None:
        found = paths.walk_parent(task, AT_FDCWD, path)
        if found.dentry is not None or found.parent is None:
            raise SysError(EADDRINUSE)
        if found.slash:
            raise SysError(ENOENT)
        if self.address:
            raise SysError(EINVAL)
        directory = found.parent.inode
        paths.writable(task, found.parent_mount, directory)
        mode = stat.S_IFSOCK | 0o777 & ~task.fs.umask
        creds = task.creds
        try:
            inode = directory.mknod(task, found.name, mode, 0, creds.fsuid, creds.fsgid)
        except SysError as error:
            raise SysError(EADDRINUSE if error.errno == EEXIST else error.errno) from None
        inode.extra["socket"] = self
        self.bound = inode
        self.address = UNNAMED + path + b"\0"

    def auto_bind(self) -> None:
        """A free abstract name of five hexadecimal digits; nothing where it has a name."""
        table = self.names
        while not self.address:
            name = UNNAMED + b"\0%05x" % (table.next_auto & 0xFFFFF)
            table.next_auto += 1
            if name not in table.abstract:
                table.abstract[name] = self
                self.address = name

    def name(self) -> bytes:
        return self.address or UNNAMED

    def find(self, task: Task, address: bytes) -> UnixSocket:
        """Who is bound to an address. Raises SysError: ECONNREFUSED for nobody, EPROTOTYPE for another kind, EACCES."""
        if _family(address) != AF_UNIX or len(address) < 3:
            raise SysError(EINVAL)
        found: object
        if address[2] == 0:
            found = self.names.abstract.get(address)
        else:
            inode = paths.walk(task, AT_FDCWD, address[2:].split(b"\0")[0]).inode
            paths.may(task, inode, paths.MAY_WRITE)
            found = inode.extra.get("socket") if inode.kind == stat.S_IFSOCK else None
        if not isinstance(found, UnixSocket):
            raise SysError(ECONNREFUSED)
        if found.kind != self.kind:
            raise SysError(EPROTOTYPE)
        return found

    def join(self, other: UnixSocket) -> None:
        """Connect two new sockets of a kind to each other."""
        raise NotImplementedError

    def release(self) -> None:
        self.closed = True
        self.names.sockets.pop(self, None)
        if self.names.abstract.get(self.address) is self:
            del self.names.abstract[self.address]
        if self.bound is not None:
            self.bound.extra.pop("socket", None)
            self.bound = None
        while self.receiving:
            self.receiving.popleft().drop()
        self.budget.used -= self.bytes
        self.bytes = 0

    # What travels.

    def packet(self, task: Task, data: bytes, control: Control | None) -> Packet:
        """A packet with what the control messages say. Raises SysError: EINVAL, EPERM, EBADF, ETOOMANYREFS."""
        creds = task.creds
        packet = Packet(data, (task.group.ns.pid.key(task.group.pid), creds.uid, creds.gid), self.address)
        if not control:
            return packet
        files: list[File] = []
        for level, kind, value in control:
            if level != SOL_SOCKET:
                continue
            if kind == SCM_RIGHTS:
                count = len(value) // 4
                if len(files) + count > SCM_MAX_FD:
                    raise SysError(EINVAL)
                files += [task.files.get(fd) for fd in struct.unpack_from(f"<{count}I", value)]
            elif kind == SCM_CREDENTIALS:
                packet.creds = _claimed(task, value)
            else:
                raise SysError(EINVAL)
        if files:
            flying = self.names.in_flight.get(creds.uid, 0) + len(files)
            privileged = creds.capable(CAP_SYS_RESOURCE) or creds.capable(CAP_SYS_ADMIN)
            if flying > task.group.limits.soft(resource.RLIMIT_NOFILE) and not privileged:
                raise SysError(ETOOMANYREFS)
            self.names.in_flight[creds.uid] = flying
            packet.files = [file.incref() for file in files]
            packet.names = self.names
            packet.uid = creds.uid
        return packet

    def room(self, receiver: UnixSocket, limit: int) -> int:
        """How much of ``limit`` a receiver has left for it."""
        if self.budget.used > self.budget.limit and limit > SCARCE:
            limit = SCARCE
            self.starved = True
        return limit - receiver.bytes - OVERHEAD * len(receiver.receiving)

    def deliver(self, packet: Packet) -> None:
        """A packet has come."""
        self.receiving.append(packet)
        self.bytes += len(packet.data)
        self.budget.used += len(packet.data)
        self.queue.notify(READABLE)

    def whole(self, task: Task, size: int, flags: int) -> Message:
        """Receive the first packet, the rest of which is lost."""
        packet = self.receiving[0]
        message = Message(packet.data[:size], packet.address, length=len(packet.data))
        if size < message.length:
            message.flags |= MSG_TRUNC
        if flags & MSG_PEEK:
            message.files = [file.incref() for file in packet.files]
        else:
            self.receiving.popleft()
            self.bytes -= len(packet.data)
            self.budget.used -= len(packet.data)
            message.files = packet.take_files()
        self.say_creds(message, packet)
        return message

    def say_creds(self, message: Message, packet: Packet) -> None:
        """Add ``SCM_CREDENTIALS`` where they are wanted."""
        if self.options.get(SO_PASSCRED):
            key, uid, gid = packet.creds
            message.control.append((SOL_SOCKET, SCM_CREDENTIALS, struct.pack("<iII", self.pids.shown(key), uid, gid)))

    def cost(self) -> int:
        """What is to be received, with its overhead."""
        return self.bytes + OVERHEAD * len(self.receiving)

    def note_peer(self, task: Task) -> None:
        """The peer is this task, for ``SO_PEERCRED``."""
        creds = task.creds
        self.peer_ids = (task.group.ns.pid.key(task.group.pid), creds.euid, creds.egid)
        self.peer_groups = tuple(creds.groups)

    def get_option(self, task: Task, level: int, name: int, size: int) -> bytes:
        if level == SOL_SOCKET and self.peer_ids is not None:
            if name == SO_PEERCRED:
                key, uid, gid = self.peer_ids
                return struct.pack("<iII", self.pids.shown(key), uid, gid)
            if name == SO_PEERGROUPS:
                return struct.pack(f"<{len(self.peer_groups)}I", *self.peer_groups)
        return super().get_option(task, level, name, size)


def _family(address: bytes) -> int:
    """The family of an address that is as long as one of ours. Raises SysError(EINVAL)."""
    if not 2 <= len(address) <= MAX_ADDRESS:
        raise SysError(EINVAL)
    return int.from_bytes(address[:2], "little")


def _claimed(task: Task, value: bytes) -> Ids:
    """The ids of ``SCM_CREDENTIALS``, which must be the sender's own unless it is privileged. Raises EINVAL, EPERM."""
    if len(value) != 12:
        raise SysError(EINVAL)
    pid, uid, gid = struct.unpack("<iII", value)
    creds = task.creds
    if pid != task.group.pid and not creds.capable(CAP_SYS_ADMIN):
        raise SysError(EPERM)
    if uid not in (creds.uid, creds.euid, creds.suid) and not creds.capable(CAP_SETUID):
        raise SysError(EPERM)
    if gid not in (creds.gid, creds.egid, creds.sgid) and not creds.capable(CAP_SETGID):
        raise SysError(EPERM)
    return task.group.ns.pid.key(pid), uid, gid


def create(task: Task, kind: int, protocol: int, flags: int) -> UnixSocket:
    """socket(2) of ``AF_UNIX``. Raises SysError: EPROTONOSUPPORT, ESOCKTNOSUPPORT."""
    from casemate.sentry.net.unix_connection import UnixSeqpacket, UnixStream
    from casemate.sentry.net.unix_datagram import UnixDatagram

    if protocol not in (0, AF_UNIX):
        raise SysError(EPROTONOSUPPORT)
    if kind == SOCK_STREAM:
        return UnixStream(task, kind, flags)
    if kind == SOCK_SEQPACKET:
        return UnixSeqpacket(task, kind, flags)
    if kind in (SOCK_DGRAM, SOCK_RAW):
        return UnixDatagram(task, SOCK_DGRAM, flags)
    raise SysError(ESOCKTNOSUPPORT)


def pair(task: Task, kind: int, protocol: int, flags: int) -> tuple[UnixSocket, UnixSocket]:
    """socketpair(2)."""
    one, other = create(task, kind, protocol, flags), create(task, kind, protocol, flags)
    one.join(other)
    for sock in (one, other):
        sock.note_peer(task)
    return one, other


