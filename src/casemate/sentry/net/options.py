"""Socket options of level ``SOL_SOCKET``, socket(7)."""

from __future__ import annotations

import struct
from errno import EACCES, EDOM, EINVAL, ENODEV, ENOPROTOOPT, EOPNOTSUPP, EPERM
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_NET_ADMIN
from casemate.sentry.errno import SysError

if TYPE_CHECKING:
    from casemate.sentry.net.socket import Socket
    from casemate.sentry.tasks.task import Task

# <asm-generic/socket.h>
SOL_SOCKET = 1
SO_DEBUG, SO_REUSEADDR, SO_TYPE, SO_ERROR, SO_DONTROUTE, SO_BROADCAST, SO_SNDBUF, SO_RCVBUF = range(1, 9)
SO_KEEPALIVE, SO_OOBINLINE, SO_NO_CHECK, SO_PRIORITY, SO_LINGER, SO_BSDCOMPAT, SO_REUSEPORT = range(9, 16)
SO_PASSCRED, SO_PEERCRED, SO_RCVLOWAT, SO_SNDLOWAT, SO_RCVTIMEO, SO_SNDTIMEO = range(16, 22)
SO_BINDTODEVICE, SO_PEERNAME, SO_TIMESTAMP, SO_ACCEPTCONN, SO_PEERSEC = 25, 28, 29, 30, 31
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_PASSSEC, SO_TIMESTAMPNS, SO_MARK = 32, 33, 34, 35, 36
SO_PROTOCOL, SO_DOMAIN, SO_RXQ_OVFL, SO_INCOMING_CPU, SO_COOKIE, SO_PEERGROUPS = 38, 39, 40, 49, 57, 59
SO_RCVTIMEO_NEW, SO_SNDTIMEO_NEW = 66, 67
SCM_RIGHTS, SCM_CREDENTIALS = 1, 2

MAX_BUFFER = 212992
"""``net.core.wmem_max`` and ``rmem_max``: of the option's value, which is doubled."""
MAX_FORCED = 8 << 20

BOOLEANS = frozenset(
    (
        SO_DEBUG, SO_REUSEADDR, SO_DONTROUTE, SO_BROADCAST, SO_KEEPALIVE, SO_OOBINLINE, SO_NO_CHECK, SO_BSDCOMPAT,
        SO_REUSEPORT, SO_PASSCRED, SO_PASSSEC, SO_TIMESTAMP, SO_TIMESTAMPNS, SO_RXQ_OVFL,
    )
)  # fmt: skip
"""Options that are on or off, at first off."""
_READ_ONLY = frozenset((SO_TYPE, SO_PROTOCOL, SO_DOMAIN, SO_ERROR, SO_ACCEPTCONN, SO_PEERCRED, SO_COOKIE, SO_PEERNAME))
_TIMEVAL = struct.Struct("<qq")


def get(sock: Socket, name: int) -> bytes:
    """The value of an option. Raises SysError(ENOPROTOOPT)."""
    kept = sock.options
    if name in BOOLEANS:
        return word(kept.get(name, 0))
    if name == SO_ERROR:
        return word(sock.take_error())
    if name in (SO_RCVTIMEO, SO_RCVTIMEO_NEW):
        return _timeval(sock.receive_timeout)
    if name in (SO_SNDTIMEO, SO_SNDTIMEO_NEW):
        return _timeval(sock.send_timeout)
    if name == SO_LINGER:
        return struct.pack("<ii", sock.linger is not None, sock.linger or 0)
    if name == SO_COOKIE:
        return sock.ino.to_bytes(8, "little")
    if name == SO_BINDTODEVICE:
        return b"lo\0" if kept.get(SO_BINDTODEVICE) else b""
    if name == SO_PEERCRED:
        return struct.pack("<iii", 0, -1, -1)
    if name == SO_PEERNAME:
        return sock.peer_name()
    value = {
        SO_TYPE: sock.kind,
        SO_PROTOCOL: sock.protocol,
        SO_DOMAIN: sock.family,
        SO_SNDBUF: sock.sndbuf,
        SO_RCVBUF: sock.rcvbuf,
        SO_RCVLOWAT: kept.get(SO_RCVLOWAT, 1),
        SO_SNDLOWAT: 1,
        SO_PRIORITY: kept.get(SO_PRIORITY, 0),
        SO_MARK: kept.get(SO_MARK, 0),
        SO_INCOMING_CPU: 0,
        SO_ACCEPTCONN: int(sock.listening),
    }.get(name)
    if value is None:
        raise SysError(ENOPROTOOPT)
    return word(value)


def change(sock: Socket, task: Task, name: int, value: bytes) -> None:
    """Set an option. Raises SysError: EINVAL, ENOPROTOOPT, EPERM, EACCES, EDOM, ENODEV."""
    kept = sock.options
    if name == SO_BINDTODEVICE:
        device = value[:15].split(b"\0")[0]
        if device not in (b"", b"lo"):
            raise SysError(ENODEV)
        kept[name] = int(bool(device))
        return
    if name in _READ_ONLY:
        raise SysError(ENOPROTOOPT)
    number = integer(value)
    if name in BOOLEANS:
        if name == SO_DEBUG and number and not task.creds.capable(CAP_NET_ADMIN):
            raise SysError(EACCES)
        if name == SO_REUSEPORT and number and sock.family not in (AF_INET, AF_INET6):
            raise SysError(EOPNOTSUPP)
        kept[name] = int(bool(number))
    elif name in (SO_RCVTIMEO, SO_RCVTIMEO_NEW):
        sock.receive_timeout = _nanoseconds(value)
    elif name in (SO_SNDTIMEO, SO_SNDTIMEO_NEW):
        sock.send_timeout = _nanoseconds(value)
    elif name == SO_LINGER:
        if len(value) < 8:
            raise SysError(EINVAL)
        on, seconds = struct.unpack_from("<ii", value)
        sock.linger = max(0, seconds) if on else None
    elif name in (SO_SNDBUF, SO_SNDBUFFORCE):
        sock.sndbuf = _buffer(task, number, name == SO_SNDBUFFORCE, 4608)
        kept[SO_SNDBUF] = 1
    elif name in (SO_RCVBUF, SO_RCVBUFFORCE):
        sock.rcvbuf = _buffer(task, number, name == SO_RCVBUFFORCE, 2304)
        kept[SO_RCVBUF] = 1
    elif name == SO_RCVLOWAT:
        kept[name] = max(1, number) if number >= 0 else 0x7FFF_FFFF
    elif name in (SO_PRIORITY, SO_MARK):
        if (name == SO_MARK or not 0 <= number <= 6) and not task.creds.capable(CAP_NET_ADMIN):
            raise SysError(EPERM)
        kept[name] = number
    elif name != SO_INCOMING_CPU:
        raise SysError(ENOPROTOOPT)


def word(value: int) -> bytes:
    """A value as C's ``int``."""
    return (value & 0xFFFF_FFFF).to_bytes(4, "little")


def integer(value: bytes) -> int:
    """An ``int`` that the application gave. Raises SysError(EINVAL) when it is too short."""
    if len(value) < 4:
        raise SysError(EINVAL)
    return int.from_bytes(value[:4], "little", signed=True)


def _buffer(task: Task, size: int, force: bool, least: int) -> int:
    """The size of a buffer that the application wants: doubled, within the limits."""
    if not force:
        return max(least, 2 * (size if 0 <= size < MAX_BUFFER else MAX_BUFFER))
    if not task.creds.capable(CAP_NET_ADMIN):
        raise SysError(EPERM)
    return max(least, min(max(size, 0), MAX_FORCED) * 2)


def _timeval(nanoseconds: int | None) -> bytes:
    return _TIMEVAL.pack(*divmod((nanoseconds or 0) // 1000, 1_000_000))


def _nanoseconds(value: bytes) -> int | None:
    """A time limit from ``struct timeval``: None for zero. Raises SysError: EINVAL, EDOM when it is no time."""
    if len(value) < 16:
        raise SysError(EINVAL)
    seconds, microseconds = _TIMEVAL.unpack_from(value)
    if not 0 <= microseconds < 1_000_000:
        raise SysError(EDOM)
    if seconds < 0:
        return 0
    if seconds > 1 << 40:
        return None
    return (int(seconds) * 1_000_000 + int(microseconds)) * 1000 or None
