"""Descriptors of the host as open files: what the sandbox was given as its standard input and outputs."""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import stat
import struct
import termios
from errno import EAGAIN, EINTR, EINVAL, ENODEV, ENOTTY, ENXIO, EPIPE, ESPIPE
from typing import TYPE_CHECKING, Any

from casemate.sentry.errno import SysError, from_os
from casemate.sentry.vfs.file import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLPRI, READABLE, WRITABLE, File
from casemate.sentry.vfs.inode import Attributes, FileSystem, FsStat, Inode, Stat
from casemate.sentry.vfs.termios import TERMIOS_SIZE
from casemate.sentry.wait import Waiter, WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

_POLLRDHUP = 0x2000
_POLL_MASK = POLLIN | POLLPRI | POLLOUT | _POLLRDHUP
PIPEFS_MAGIC = 0x50495045


class HostQueue(WaitQueue):
    """Who waits for a host's descriptor. The host is asked to tell of it only while somebody waits."""

    __slots__ = ("_file",)

    def __init__(self, file: HostFile) -> None:
        super().__init__()
        self._file = file

    def add(self, waiter: Waiter) -> None:
        super().add(waiter)
        self._file.arm()

    def remove(self, waiter: Waiter) -> None:
        super().remove(waiter)
        if not self._waiters:
            self._file.disarm()


class HostFs(FileSystem):
    """No mounted thing: what inodes of host descriptors belong to."""

    name = "hostfs"

    def statfs(self, task: Task | None) -> FsStat:
        return FsStat(PIPEFS_MAGIC)


def host_fs(kernel: Any) -> FileSystem:
    host: FileSystem | None = kernel.subsystems.get("hostfs")
    if host is None:
        host = kernel.subsystems["hostfs"] = HostFs(0xFFFF0)
    return host


class HostInode(Inode):
    """The inode behind a host's descriptor.

    Arguments:
        fd: the descriptor; it belongs to the file. An ``O_PATH`` descriptor of the application can hold the inode for
            longer than that, when the number may be another file's: see :meth:`gone`.
    """

    opens_itself = True

    def __init__(self, fs: FileSystem, fd: int, kernel: Any) -> None:
        super().__init__(fs)
        self._fd = fd
        self._kernel = kernel
        self.uid = self.gid = 0
        """Whose it is in the sandbox; on the host it stays whose it was."""
        self._mode: int | None = None

    def gone(self) -> None:
        """The descriptor is closed: from now on there is nothing behind this."""
        self._fd = -1

    def _live(self) -> int:
        if self._fd < 0:
            raise SysError(ENXIO)
        return self._fd

    def stat(self) -> Stat:
        try:
            host = os.fstat(self._live())
        except OSError as error:
            raise from_os(error) from None
        return Stat(
            mode=host.st_mode if self._mode is None else self._mode,
            ino=host.st_ino,
            uid=self.uid,
            gid=self.gid,
            size=host.st_size,
            nlink=host.st_nlink,
            dev=self.fs.device,
            rdev=host.st_rdev,
            blksize=host.st_blksize,
            blocks=host.st_blocks,
            atime=host.st_atime_ns,
            mtime=host.st_mtime_ns,
            ctime=host.st_ctime_ns,
        )

    def setattr(self, task: Task, attributes: Attributes) -> None:
        if attributes.uid is not None:
            self.uid = attributes.uid
        if attributes.gid is not None:
            self.gid = attributes.gid
        if attributes.mode is not None:
            self._mode = stat.S_IFMT(os.fstat(self._live()).st_mode) | attributes.mode
        if attributes.size is not None:
            try:
                os.ftruncate(self._live(), attributes.size)
            except OSError as error:
                raise from_os(error) from None

    def open(self, task: Task, flags: int) -> File:
        """Open it again, as ``/dev/stdout`` does. It is the same descriptor: offsets are shared."""
        file = HostFile(fcntl.fcntl(self._live(), fcntl.F_DUPFD_CLOEXEC, 0), flags, self._kernel)
        if flags & os.O_TRUNC and stat.S_ISREG(file.mode):
            self.setattr(task, Attributes(size=0))
        return file


class HostFile(File):
    """A descriptor of the host.

    The sentry never waits in it, and never changes ``O_NONBLOCK`` of a description that others may share: a pipe or
    terminal is opened a second time with it where the host allows that, a socket is read with ``MSG_DONTWAIT``, and
    for all else poll(2) is asked first.

    Arguments:
        fd: the descriptor. It is taken over: closed when the last holder of this file is gone.
        flags: access mode and status flags as the application sees them.
        kernel: whose platform tells when the descriptor is ready (:class:`casemate.sentry.kernel.Kernel`).
    """

    def __init__(self, fd: int, flags: int, kernel: Any) -> None:
        self.mode = os.fstat(fd).st_mode
        fd, self._safe = own_description(fd, self.mode, flags)
        self.fd = fd
        super().__init__(flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY), None)
        self.inode = self._inode = HostInode(host_fs(kernel), fd, kernel)
        self._kernel = kernel
        self._socket = socket.socket(fileno=fd) if stat.S_ISSOCK(self.mode) else None
        self._pollable = not stat.S_ISREG(self.mode) and not stat.S_ISDIR(self.mode)
        self.bulk = stat.S_ISREG(self.mode)
        self._poll = select.poll()
        self._poll.register(fd, _POLL_MASK)
        self._armed = 0
        self.queue = HostQueue(self)

    def release(self) -> None:
        self.disarm()
        if self.fd >= 0:
            self._inode.gone()
            if self._socket is not None:
                self._socket.detach()
            os.close(self.fd)
            self.fd = -1

    # Readiness. The platform tells as long as the descriptor is ready, and who is told need not do anything about it:
    # so each event is asked for once, and again after somebody has looked and found nothing, or has read or written.

    def arm(self, mask: int = _POLL_MASK) -> None:
        """Have the waiters told of these events, once."""
        if self._pollable and mask & ~self._armed and self.fd >= 0:
            self._armed |= mask
            self._kernel.platform.watch(self.fd, self._armed, self)

    def disarm(self) -> None:
        """Nobody waits."""
        if self._armed:
            self._armed = 0
            self._kernel.platform.watch(self.fd, 0, self)

    def ready(self, mask: int) -> None:
        """The platform tells: these events are there."""
        if not self._armed:
            return
        # Errors and hang-ups are told whether asked for or not, and stay.
        self._armed = 0 if mask & (POLLERR | POLLHUP) else self._armed & ~mask
        self._kernel.platform.watch(self.fd, self._armed, self)
        self.queue.notify(_with_bands(mask))

    def broken(self) -> None:
        """The platform tells no more, for :meth:`ready` went wrong: whoever waits is to look for itself."""
        self._armed = 0
        self.queue.notify(POLLERR | POLLHUP)

    def _state(self) -> int:
        if not self._pollable:
            return POLLIN | POLLOUT
        found = self._poll.poll(0)
        return found[0][1] if found else 0

    def poll(self, task: Task) -> int:
        state = self._state()
        if not self.can_read:
            state &= ~POLLIN
        if not self.can_write:
            state &= ~POLLOUT
        if len(self.queue):
            self.arm(_POLL_MASK & ~state)
        return _with_bands(state)

    def _can(self, mask: int) -> None:
        """Raise what makes the caller wait unless the host would answer at once."""
        if not self._safe and self._pollable and not self._state() & (mask | POLLERR | POLLHUP):
            if len(self.queue):
                self.arm()
            raise self.wait()

    def _failed(self, task: Task, error: OSError) -> Exception:
        if error.errno in (EAGAIN, EINTR):
            if len(self.queue):
                self.arm()
            return self.wait()
        if error.errno == EPIPE and task is not None:
            from casemate.sentry.signals.send import send_signal

            send_signal(task, 13)
        return from_os(error)

    # Data.

    def read(self, task: Task, size: int) -> bytes:
        self._can(POLLIN)
        try:
            data = self._socket.recv(size, socket.MSG_DONTWAIT) if self._socket else os.read(self.fd, size)
        except OSError as error:
            raise self._failed(task, error) from None
        if len(self.queue):
            self.arm(POLLIN)
        return data

    def write(self, task: Task, data: bytes) -> int:
        self._can(POLLOUT)
        if not self._safe and not self._socket and self._pollable:
            # A blocking description that is writable takes PIPE_BUF bytes without waiting.
            data = data[: select.PIPE_BUF]
        try:
            if self._socket is not None:
                done = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            else:
                done = os.write(self.fd, data)
        except OSError as error:
            raise self._failed(task, error) from None
        if len(self.queue):
            self.arm(POLLOUT)
        return done

    @property
    def offset(self) -> int:
        """Of a regular file the host's own, which descriptors outside of the sandbox may share."""
        return os.lseek(self.fd, 0, os.SEEK_CUR) if self.bulk else 0

    @offset.setter
    def offset(self, value: int) -> None:
        if self.bulk:
            os.lseek(self.fd, value, os.SEEK_SET)

    def _seekable(self) -> None:
        if self._pollable and not stat.S_ISBLK(self.mode):
            raise SysError(ESPIPE)

    def pread(self, task: Task, size: int, offset: int) -> bytes:
        self._seekable()
        try:
            return os.pread(self.fd, size, offset)
        except OSError as error:
            raise from_os(error) from None

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        self._seekable()
        try:
            return os.pwrite(self.fd, data, offset)
        except OSError as error:
            raise from_os(error) from None

    def seek(self, task: Task, offset: int, whence: int) -> int:
        try:
            return os.lseek(self.fd, offset, whence)
        except OSError as error:
            raise from_os(error) from None

    def truncate(self, task: Task, size: int) -> None:
        if not stat.S_ISREG(self.mode):
            raise SysError(EINVAL)
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise from_os(error) from None

    def sync(self, task: Task, data_only: bool) -> None:
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise from_os(error) from None

    def host_fd(self, shared: bool, writable: bool) -> int:
        if not stat.S_ISREG(self.mode):
            raise SysError(ENODEV)
        return self.fd

    # The rest.

    def ioctl(self, task: Task, command: int, argument: int) -> int:
        """How many bytes are there; and of a terminal its settings and size, as a program has it that was given but one
        side of it. One that was given all of it has a :class:`casemate.sentry.vfs.console.Console`: nothing else
        (no TIOCSTI, above all) is passed on."""
        if command == termios.FIONREAD:
            count = array.array("i", [0])
            self._host_ioctl(command, count)
            task.mem.put_u32(argument, count[0])
            return 0
        if command in (termios.TCGETS, termios.TIOCGWINSZ) and stat.S_ISCHR(self.mode):
            data = bytearray(TERMIOS_SIZE if command == termios.TCGETS else 8)
            self._host_ioctl(command, data)
            task.mem.write(argument, bytes(data))
            return 0
        if command in (termios.TCSETS, termios.TCSETSW, termios.TCSETSF) and os.isatty(self.fd):
            self._host_ioctl(command, bytearray(task.mem.read(argument, TERMIOS_SIZE)))
            return 0
        raise SysError(ENOTTY)

    def _host_ioctl(self, command: int, buffer: Any) -> None:
        try:
            fcntl.ioctl(self.fd, command, buffer)
        except OSError as error:
            raise from_os(error) from None

    def describe(self) -> bytes:
        inode = os.fstat(self.fd).st_ino
        if stat.S_ISFIFO(self.mode):
            return b"pipe:[%d]" % inode
        if stat.S_ISSOCK(self.mode):
            return b"socket:[%d]" % inode
        if stat.S_ISCHR(self.mode):
            return b"/dev/null" if os.fstat(self.fd).st_rdev == os.makedev(1, 3) else b"/dev/host-terminal"
        return b"/host-file:[%d] (deleted)" % inode


def own_description(fd: int, mode: int, flags: int) -> tuple[int, bool]:
    """The descriptor, opened anew with ``O_NONBLOCK`` where that gives the same pipe or terminal; and whether it can be
    read and written without asking poll(2) first."""
    if stat.S_ISSOCK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return fd, True
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK:
        return fd, True
    if stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(fd) and not _is_master(fd)):
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        try:
            again = os.open(f"/proc/self/fd/{fd}", access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            return fd, False
        if os.fstat(again).st_ino != os.fstat(fd).st_ino:
            os.close(again)
            return fd, False
        os.close(fd)
        return again, True
    return fd, False


def _is_master(fd: int) -> bool:
    """Whether it is the master's side of a pseudo-terminal: opening that again makes another terminal."""
    try:
        fcntl.ioctl(fd, 0x80045430, struct.pack("I", 0))  # TIOCGPTN
    except OSError:
        return False
    return True


def _with_bands(mask: int) -> int:
    """poll(2)'s ``POLLRDNORM`` and ``POLLWRNORM`` beside what they stand for."""
    if mask & POLLIN:
        mask |= READABLE
    if mask & POLLOUT:
        mask |= WRITABLE
    return mask
