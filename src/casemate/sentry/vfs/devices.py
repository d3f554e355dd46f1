"""Devices: what opening a device node gives, by its number, and the tree of /dev."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from errno import EINVAL, ENODEV, ENOSPC, ENXIO, EPERM
from typing import TYPE_CHECKING, Any

from casemate.late import Logger
from casemate.sentry.errno import SysError
from casemate.sentry.vfs.file import WRITABLE, File
from casemate.sentry.vfs.inode import Inode

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

log = Logger("casemate.sentry")

MEM_MAJOR, TTYAUX_MAJOR, PTS_MAJOR = 1, 5, 136
NULL = os.makedev(MEM_MAJOR, 3)
ZERO = os.makedev(MEM_MAJOR, 5)
FULL = os.makedev(MEM_MAJOR, 7)
RANDOM = os.makedev(MEM_MAJOR, 8)
URANDOM = os.makedev(MEM_MAJOR, 9)
KMSG = os.makedev(MEM_MAJOR, 11)
TTY = os.makedev(TTYAUX_MAJOR, 0)
CONSOLE = os.makedev(TTYAUX_MAJOR, 1)
PTMX = os.makedev(TTYAUX_MAJOR, 2)

_CAP_SYS_ADMIN = 21
_RNDGETENTCNT, _RNDADDTOENTCNT, _RNDADDENTROPY = 0x80045200, 0x40045201, 0x40085203
_RNDZAPENTCNT, _RNDCLEARPOOL, _RNDRESEEDCRNG = 0x5204, 0x5206, 0x5207


class NullFile(File):
    """``/dev/null``, null(4)."""

    anonymous = "/dev/null"

    def read(self, task: Task, size: int) -> bytes:
        return b""

    def write(self, task: Task, data: bytes) -> int:
        return len(data)

    def pread(self, task: Task, size: int, offset: int) -> bytes:
        return b""

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        return len(data)

    def seek(self, task: Task, offset: int, whence: int) -> int:
        """lseek(2): always at the start."""
        self.offset = 0
        return 0


class ZeroFile(NullFile):
    """``/dev/zero``, null(4). Mapped, it is memory of zeros: the host's own device does that."""

    bulk = True

    def read(self, task: Task, size: int) -> bytes:
        return bytes(size)

    def pread(self, task: Task, size: int, offset: int) -> bytes:
        return bytes(size)

    def host_fd(self, shared: bool, writable: bool) -> int:
        fd = host_zero()
        if fd < 0:
            raise SysError(ENODEV)
        return fd


class FullFile(ZeroFile):
    """``/dev/full``, full(4)."""

    def write(self, task: Task, data: bytes) -> int:
        raise SysError(ENOSPC)

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        raise SysError(ENOSPC)

    def host_fd(self, shared: bool, writable: bool) -> int:
        raise SysError(ENODEV)


class RandomFile(NullFile):
    """``/dev/random`` and ``/dev/urandom``, random(4). What is written is not mixed in: the host's pool is its own."""

    bulk = True

    def read(self, task: Task, size: int) -> bytes:
        return os.urandom(size)

    def pread(self, task: Task, size: int, offset: int) -> bytes:
        return os.urandom(size)

    def ioctl(self, task: Task, command: int, argument: int) -> int:
        if command == _RNDGETENTCNT:
            task.mem.put_u32(argument, 256)
            return 0
        if command in (_RNDADDTOENTCNT, _RNDADDENTROPY, _RNDZAPENTCNT, _RNDCLEARPOOL, _RNDRESEEDCRNG):
            if not task.creds.capable(_CAP_SYS_ADMIN):
                raise SysError(EPERM)
            return 0
        raise SysError(EINVAL)


class KmsgFile(File):
    """``/dev/kmsg``: there is no kernel log to read; what is written goes to the sentry's own, with a bound."""

    written = 0

    def read(self, task: Task, size: int) -> bytes:
        raise self.wait()

    def write(self, task: Task, data: bytes) -> int:
        if KmsgFile.written < 1000:
            KmsgFile.written += 1
            log.info("kmsg of %s: %r", task, data[:1024])
        return len(data)

    def seek(self, task: Task, offset: int, whence: int) -> int:
        if offset:
            raise SysError(EINVAL)
        return 0

    def poll(self, task: Task) -> int:
        return WRITABLE


_zero = -2


def before_isolation() -> None:
    """Open what mappings of ``/dev/zero`` need."""
    host_zero()


def host_zero() -> int:
    """The host's ``/dev/zero``, opened once; -1 where the host has none. Called when the sandbox is made too, while
    the host's files can still be opened."""
    global _zero
    if _zero == -2:
        try:
            _zero = os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            _zero = -1
    return _zero


def _open_tty(task: Task, inode: Inode, flags: int) -> File:
    """``/dev/tty``: the caller's controlling terminal, tty(4). ENXIO without one."""
    terminal = task.group.process_group.session.terminal
    if terminal is None:
        raise SysError(ENXIO)
    return _slave(task, terminal, inode, flags | os.O_NOCTTY)


def _open_console(task: Task, inode: Inode, flags: int) -> File:
    """``/dev/console``: the terminal of the container's first process (as container engines have it), or nothing."""
    container = task.group.container
    sessions = (one.process_group.session for one in task.kernel.groups.values() if one.container == container)
    terminal = next((session.terminal for session in sessions if session.terminal is not None), None)
    if terminal is None or terminal.hung_up:
        return NullFile(flags, inode)
    return _slave(task, terminal, inode, flags | os.O_NOCTTY)


def _slave(task: Task, terminal: Any, inode: Inode, flags: int) -> File:
    from casemate.sentry.vfs.ttyfile import SlaveFile

    return SlaveFile.open(task, terminal, inode, flags)


def _open_ptmx(task: Task, inode: Inode, flags: int) -> File:
    from casemate.sentry.vfs import devpts

    return devpts.open_ptmx(task, inode, flags)


_OPENERS: dict[int, Callable[[Task, Inode, int], File]] = {
    NULL: lambda task, inode, flags: NullFile(flags, inode),
    ZERO: lambda task, inode, flags: ZeroFile(flags, inode),
    FULL: lambda task, inode, flags: FullFile(flags, inode),
    RANDOM: lambda task, inode, flags: RandomFile(flags, inode),
    URANDOM: lambda task, inode, flags: RandomFile(flags, inode),
    KMSG: lambda task, inode, flags: KmsgFile(flags, inode),
    TTY: _open_tty,
    CONSOLE: _open_console,
    PTMX: _open_ptmx,
}


def open_device(task: Task, inode: Inode, flags: int) -> File:
    """Open a device node, open(2).

    Arguments:
        inode: the node; its ``rdev`` says which device.
        flags: of open(2).

    Raises:
        SysError(ENXIO): there is no such device (block devices among them: the sandbox has none).
    """
    status = inode.stat()
    if not stat.S_ISCHR(status.mode):
        raise SysError(ENXIO)
    opener = _OPENERS.get(status.rdev)
    if opener is None:
        if os.major(status.rdev) == PTS_MAJOR:
            from casemate.sentry.vfs import devpts

            return devpts.open_slave(task, inode, os.minor(status.rdev), flags)
        raise SysError(ENXIO)
    return opener(task, inode, flags)


NODES: list[tuple[bytes, int, int]] = [
    (b"null", 0o666, NULL),
    (b"zero", 0o666, ZERO),
    (b"full", 0o666, FULL),
    (b"random", 0o666, RANDOM),
    (b"urandom", 0o666, URANDOM),
    (b"kmsg", 0o644, KMSG),
    (b"tty", 0o666, TTY),
    (b"console", 0o600, CONSOLE),
]
"""What /dev has: name, permissions, number."""
LINKS: list[tuple[bytes, bytes]] = [
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
    (b"core", b"/proc/kcore"),
    (b"ptmx", b"pts/ptmx"),
]
DIRECTORIES: list[tuple[bytes, int]] = [(b"pts", 0o755), (b"shm", 0o1777), (b"mqueue", 0o1777)]
"""Where devpts, a tmpfs and the message queues are mounted."""


def populate(kernel: Kernel, root: Inode) -> None:
    """Fill the root of a fresh tmpfs with what /dev has.

    Arguments:
        root: the directory; everything in it belongs to user 0.
    """
    nobody: Any = None  # no task makes them
    for name, mode, number in NODES:
        root.mknod(nobody, name, stat.S_IFCHR | mode, number, 0, 0)
    for name, target in LINKS:
        root.symlink(nobody, name, target, 0, 0)
    for name, mode in DIRECTORIES:
        root.mkdir(nobody, name, mode, 0, 0)
    host_zero()


