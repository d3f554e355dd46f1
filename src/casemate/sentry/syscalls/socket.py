"""Sockets: socket(2) and what works on them."""

from __future__ import annotations

import os
from errno import EAFNOSUPPORT, EAGAIN, EBADF, EFAULT, EINVAL, ENOTSOCK, EOPNOTSUPP, EPERM, ESOCKTNOSUPPORT
from socket import AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32, u32
from casemate.sentry.creds import CAP_NET_RAW
from casemate.sentry.errno import SysError
from casemate.sentry.mm.memory import MAX_RW_COUNT, TASK_SIZE
from casemate.sentry.net import host, inet, netlink, unix
from casemate.sentry.net.control import CHUNK, MSGHDR, Header, read_address, send_vectors, store, write_address
from casemate.sentry.net.socket import (
    MSG_DONTWAIT,
    MSG_ERRQUEUE,
    MSG_OOB,
    MSG_TRUNC,
    MSG_WAITFORONE,
    Socket,
)
from casemate.sentry.syscalls.readwrite import kept
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.wait import Block

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File

HOSTED = (AF_INET, AF_INET6, AF_NETLINK)
"""Families that are the host's where the sandbox shares its network."""
MAX_OPTION = 1024
SOCK_MAX = 11
"""The first kind that there is none of."""
UIO_MAXIOV = 1024
MSG_CMSG_COMPAT = 0x8000_0000
_SELDOM = MSG_ERRQUEUE | MSG_OOB
MMSGHDR = 64
"""``sizeof(struct mmsghdr)``: a msghdr and how much was moved."""


def sock(task: Task, fd: int) -> Socket:
    """The socket behind a descriptor. Raises SysError: EBADF, ENOTSOCK."""
    file: File = kept(task, fd) or task.files.get(fd)
    if not isinstance(file, Socket):
        raise SysError(EBADF if file.flags & os.O_PATH else ENOTSOCK)
    return file


def _kind(kind: int) -> tuple[int, int, bool]:
    """The second argument of socket(2): the kind, status flags, and whether execve(2) closes it."""
    kind = u32(kind)
    if kind & ~(0xF | SOCK_NONBLOCK | SOCK_CLOEXEC):
        raise SysError(EINVAL)
    if kind & 0xF >= SOCK_MAX:
        raise SysError(EINVAL)
    return kind & 0xF, os.O_NONBLOCK if kind & SOCK_NONBLOCK else 0, bool(kind & SOCK_CLOEXEC)


@syscall("socket", Support.PARTIAL, "AF_UNIX, AF_INET, AF_INET6, netlink's routes; raw ones only to ping, no others")
def socket(task: Task, family: int, kind: int, protocol: int) -> int:
    """socket(2): AF_UNIX, AF_INET and AF_INET6 (streams and datagrams), and AF_NETLINK's routes."""
    family, protocol = s32(family), s32(protocol)
    what, flags, cloexec = _kind(kind)
    made: Socket
    if family == AF_UNIX:
        made = unix.create(task, what, protocol, flags)
    elif family in HOSTED and task.kernel.subsystems.get("network") == "host":
        made = host.create(task, family, what, protocol, flags)
    elif family in (AF_INET, AF_INET6):
        made = inet.create(task, family, what, protocol, flags)
    elif family == AF_NETLINK:
        made = netlink.create(task, what, protocol, flags)
    elif family == AF_PACKET and not task.creds.capable(CAP_NET_RAW):
        raise SysError(EPERM)
    else:
        raise SysError(EAFNOSUPPORT)
    return _install(task, made, cloexec)


def _install(task: Task, made: Socket, cloexec: bool) -> int:
    try:
        return task.files.install(made, cloexec)
    except SysError:
        made.decref()
        raise


@syscall("socketpair")
def socketpair(task: Task, family: int, kind: int, protocol: int, vector: int) -> int:
    """socketpair(2): AF_UNIX only, as in Linux."""
    family, protocol = s32(family), s32(protocol)
    what, flags, cloexec = _kind(kind)
    if vector + 8 > TASK_SIZE or not task.mem.writable(vector, 8):
        raise SysError(EFAULT)  # before all that depends on the family
    if family in HOSTED:
        raise SysError(EOPNOTSUPP if what else ESOCKTNOSUPPORT)
    if family != AF_UNIX:
        raise SysError(EAFNOSUPPORT)
    task.files.reserve(2)
    one, other = unix.pair(task, what, protocol, flags)
    first = task.files.install(one, cloexec)
    second = task.files.install(other, cloexec)
    try:
        task.mem.write(vector, first.to_bytes(4, "little") + second.to_bytes(4, "little"))
    except SysError:
        task.files.close(task, first)
        task.files.close(task, second)
        raise
    return 0


@syscall("bind")
def bind(task: Task, fd: int, address: int, size: int) -> int:
    """bind(2)."""
    found = sock(task, fd)
    found.bind(task, read_address(task, address, size))
    return 0


@syscall("connect")
def connect(task: Task, fd: int, address: int, size: int) -> int:
    """connect(2)."""
    found = sock(task, fd)
    found.connect(task, read_address(task, address, size))
    return 0


@syscall("listen")
def listen(task: Task, fd: int, backlog: int) -> int:
    """listen(2)."""
    sock(task, fd).listen(task, s32(backlog))
    return 0


@syscall("accept4")
def accept4(task: Task, fd: int, address: int, size_at: int, flags: int) -> int:
    """accept4(2)."""
    flags = u32(flags)
    if flags & ~(SOCK_NONBLOCK | SOCK_CLOEXEC):
        raise SysError(EINVAL)
    found = sock(task, fd)
    task.files.reserve()
    made = found.accept(task, os.O_NONBLOCK if flags & SOCK_NONBLOCK else 0)
    if address:
        try:
            write_address(task, address, size_at, _peer(made))
        except SysError:
            made.decref()
            raise
    return _install(task, made, bool(flags & SOCK_CLOEXEC))


def _peer(made: Socket) -> bytes:
    """The address of a connection that may be gone again."""
    try:
        return made.peer_name()
    except SysError:
        return made.family.to_bytes(2, "little")


@syscall("accept")
def accept(task: Task, fd: int, address: int, size_at: int) -> int:
    """accept(2)."""
    return accept4(task, fd, address, size_at, 0)


@syscall("getsockname")
def getsockname(task: Task, fd: int, address: int, size_at: int) -> int:
    """getsockname(2)."""
    write_address(task, address, size_at, sock(task, fd).name())
    return 0


@syscall("getpeername")
def getpeername(task: Task, fd: int, address: int, size_at: int) -> int:
    """getpeername(2)."""
    write_address(task, address, size_at, sock(task, fd).peer_name())
    return 0


@syscall("shutdown")
def shutdown(task: Task, fd: int, how: int) -> int:
    """shutdown(2)."""
    found = sock(task, fd)
    if not 0 <= s32(how) <= 2:
        raise SysError(EINVAL)
    found.shutdown(task, how)
    return 0


# Options.


@syscall("getsockopt")
def getsockopt(task: Task, fd: int, level: int, name: int, value: int, size_at: int) -> int:
    """getsockopt(2)."""
    found = sock(task, fd)
    size = task.mem.s32(size_at)
    if size < 0:
        raise SysError(EINVAL)
    data = found.get_option(task, s32(level), s32(name), size)[:size]
    task.mem.write(value, data)
    task.mem.put_u32(size_at, len(data))
    return 0


@syscall("setsockopt")
def setsockopt(task: Task, fd: int, level: int, name: int, value: int, size: int) -> int:
    """setsockopt(2)."""
    found = sock(task, fd)
    size = s32(size)
    if size < 0:
        raise SysError(EINVAL)
    found.set_option(task, s32(level), s32(name), task.mem.read(value, min(size, MAX_OPTION)))
    return 0


# Data.


@syscall("sendto")
def sendto(task: Task, fd: int, buffer: int, size: int, flags: int, address: int, address_size: int) -> int:
    """sendto(2)."""
    found = sock(task, fd)
    to = read_address(task, address, address_size) if address else b""
    if size <= CHUNK:
        return found.send(task, task.mem.read(buffer, size), u32(flags), to)
    return send_vectors(task, found, [(buffer, min(size, MAX_RW_COUNT))], u32(flags), to, None)


def _send_message(task: Task, found: Socket, at: int, flags: int) -> int:
    header = Header(task, at)
    mem = task.mem
    return send_vectors(task, found, header.vectors, flags, header.address(mem), header.controls(mem))


@syscall("sendmsg")
def sendmsg(task: Task, fd: int, message: int, flags: int) -> int:
    """sendmsg(2)."""
    flags = _message_flags(flags)
    return _send_message(task, sock(task, fd), message, flags)


@syscall("sendmmsg")
def sendmmsg(task: Task, fd: int, vector: int, count: int, flags: int) -> int:
    """sendmmsg(2): how many messages were sent; an error only where it was none."""
    flags = _message_flags(flags)
    found = sock(task, fd)
    count = min(u32(count), UIO_MAXIOV)
    done: int = task.blocked.get("messages", 0)
    while done < count:
        at = vector + done * MMSGHDR
        try:
            sent = _send_message(task, found, at, flags)
            task.mem.put_u32(at + MSGHDR, sent)
        except SysError:
            if done:
                return done
            raise
        except Block:
            # What was sent is told; the caller comes again with the rest.
            if done:
                return done
            raise
        done += 1
        task.blocked = {"messages": done}
    return done


@syscall("recvfrom")
def recvfrom(task: Task, fd: int, buffer: int, size: int, flags: int, address: int, size_at: int) -> int:
    """recvfrom(2)."""
    found = sock(task, fd)
    flags = u32(flags)
    if flags & _SELDOM:
        _seldom(found, flags)
    if size > MAX_RW_COUNT:
        size = MAX_RW_COUNT
    if buffer + size > TASK_SIZE:
        raise SysError(EFAULT)
    message = found.receive(task, size, flags)
    data = message.data
    for file in message.files:
        file.decref()
    if data:
        task.mem.write(buffer, data)
    if address and size_at:
        write_address(task, address, size_at, message.address)
    return message.length if flags & MSG_TRUNC else len(data)


def _seldom(found: Socket, flags: int) -> None:
    """What hardly any call asks for. Raises SysError: what is in the queue of errors; EOPNOTSUPP."""
    if flags & MSG_ERRQUEUE:
        found.error_queue()
    if flags & MSG_OOB and found.family == AF_UNIX:
        raise SysError(EOPNOTSUPP)


def _message_flags(flags: int) -> int:
    """Flags of calls that take a ``struct msghdr``. Raises SysError(EINVAL) for those of 32-bit programs."""
    flags = u32(flags)
    if flags & MSG_CMSG_COMPAT:
        raise SysError(EINVAL)
    return flags


def _receive_message(task: Task, found: Socket, at: int, flags: int) -> int:
    header = Header(task, at)
    if flags & _SELDOM:
        _seldom(found, flags)
    message = found.receive(task, sum([size for _, size in header.vectors]), flags)
    try:
        task.mem.scatter(header.vectors, message.data)
    except SysError:
        for file in message.files:
            file.decref()
        raise
    store(task, header, message, flags)
    return message.length if flags & MSG_TRUNC else len(message.data)


@syscall("recvmsg")
def recvmsg(task: Task, fd: int, message: int, flags: int) -> int:
    """recvmsg(2)."""
    flags = _message_flags(flags)
    return _receive_message(task, sock(task, fd), message, flags)


@syscall("recvmmsg")
def recvmmsg(task: Task, fd: int, vector: int, count: int, flags: int, timeout: int) -> int:
    """recvmmsg(2): how many messages came. The time limit is looked at after each one only, as in Linux."""
    flags = _message_flags(flags)
    found = sock(task, fd)
    count = min(u32(count), UIO_MAXIOV)
    done: int = task.blocked.get("messages", 0)
    limit: int | None = task.blocked.get("limit")
    if limit is None and timeout:
        limit = task.blocked["limit"] = task.kernel.clock.monotonic() + task.mem.timespec(timeout)
    while done < count:
        at = vector + done * MMSGHDR
        wait = flags & ~MSG_WAITFORONE
        if done and flags & MSG_WAITFORONE:
            wait |= MSG_DONTWAIT
        try:
            received = _receive_message(task, found, at, wait)
            task.mem.put_u32(at + MSGHDR, received)
        except SysError as error:
            if done:
                # The next call tells it.
                if error.errno != EAGAIN:
                    found.error = error.errno
                return done
            raise
        except Block as block:
            block.partial = done
            raise
        done += 1
        task.blocked = {"messages": done, "limit": limit}
        if limit is not None and task.kernel.clock.monotonic() >= limit:
            break
    return done
