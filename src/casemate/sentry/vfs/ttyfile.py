"""Open files of pseudo-terminals: the slave's, which is what programs call their terminal, and the master's, pty(7)."""

from __future__ import annotations

import os
import signal
from errno import EAGAIN, EBUSY, EINVAL, EIO, ESPIPE
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_SYS_ADMIN
from casemate.sentry.errno import SysError
from casemate.sentry.signals.info import SigInfo
from casemate.sentry.signals.state import SIG_IGN, bit
from casemate.sentry.vfs import termios as t
from casemate.sentry.vfs.file import POLLHUP, POLLPRI, READABLE, WRITABLE, File
from casemate.sentry.vfs.tty import INPUT_LIMIT, Terminal
from casemate.sentry.vfs.ttyctl import control
from casemate.sentry.wait import Block

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.inode import Inode

_TENTH = 100_000_000
"""What VTIME counts in, nanoseconds."""


def background(task: Task, terminal: Terminal, signo: int) -> None:
    """Have a process that is not in the foreground stop rather than use its terminal, "job control" of setpgid(2).

    Arguments:
        signo: SIGTTIN for reading, SIGTTOU for the rest.

    Raises:
        SysError(EIO): it may read and cannot be stopped.
        Block: it was sent the signal; when it is continued the call is made again.
    """
    session = terminal.session
    own = task.group.process_group
    if session is None or own.session is not session or session.foreground in (None, own):
        return
    ignored = task.signals.mask & bit(signo) or task.group.signals.actions[signo].handler == SIG_IGN
    if ignored:
        if signo == signal.SIGTTIN:
            raise SysError(EIO)
        return
    if _orphaned(task):
        raise SysError(EIO)
    from casemate.sentry.signals.send import send_group

    send_group(own, SigInfo(signo))
    # The signal is pending by now, so this does not wait: it is dealt with first.
    raise Block(terminal.slave_queue)


def _orphaned(task: Task) -> bool:
    """Whether nobody could continue the process group: no parent is in the same session and another group."""
    own = task.group.process_group
    for member in own.members.values():
        parent = member.parent
        if parent is not None and parent.process_group is not own and parent.process_group.session is own.session:
            return False
    return True


class TerminalFile(File):
    """What both sides have in common."""

    anonymous = "/dev/pts/?"

    def __init__(self, flags: int, inode: Inode | None, terminal: Terminal) -> None:
        super().__init__(flags & ~os.O_NOCTTY, inode)
        self.terminal = terminal

    def seek(self, task: Task, offset: int, whence: int) -> int:
        raise SysError(ESPIPE)


class SlaveFile(TerminalFile):
    """The slave's side: a terminal as programs know it."""

    def __init__(self, flags: int, inode: Inode | None, terminal: Terminal) -> None:
        super().__init__(flags, inode, terminal)
        self.queue = terminal.slave_queue
        terminal.slaves += 1
        terminal.slave_seen = True
        self._generation = terminal.generation

    @property
    def dead(self) -> bool:
        """The terminal was hung up since this was opened."""
        return self._generation != self.terminal.generation

    @classmethod
    def open(cls, task: Task, terminal: Terminal, inode: Inode | None, flags: int) -> SlaveFile:
        """Open it; it becomes the controlling terminal of a session leader that has none, unless O_NOCTTY.

        Raises:
            SysError(EIO): it is locked, or the master is gone.
            SysError(EBUSY): another has it for itself, TIOCEXCL.
        """
        if terminal.locked or terminal.hung_up:
            raise SysError(EIO)
        if terminal.exclusive and not task.creds.capable(CAP_SYS_ADMIN):
            raise SysError(EBUSY)
        file = cls(flags, inode, terminal)
        process_group = task.group.process_group
        session = process_group.session
        leads = session.sid == task.group.pid and session.terminal is None and terminal.session is None
        if leads and not flags & os.O_NOCTTY and file.can_read:
            terminal.control(session, process_group)
        return file

    def release(self) -> None:
        terminal = self.terminal
        terminal.slaves -= 1
        if terminal.slaves == 0:
            terminal.exclusive = False
            terminal.master_queue.notify(READABLE | POLLHUP)

    def describe(self) -> bytes:
        return b"/dev/pts/%d" % self.terminal.index

    def poll(self, task: Task) -> int:
        terminal = self.terminal
        if self.dead:
            return READABLE | WRITABLE | POLLHUP
        mask = READABLE if terminal.readable() else 0
        if not terminal.stopped and len(terminal.output) < INPUT_LIMIT:
            mask |= WRITABLE
        return mask

    def read(self, task: Task, size: int) -> bytes:
        terminal = self.terminal
        if self.dead:
            return b""
        background(task, terminal, signal.SIGTTIN)
        full = terminal.room() == 0
        data = self._canonical(task, size) if terminal.canonical else self._raw(task, size)
        if full and terminal.room():
            terminal.master_queue.notify(WRITABLE)
        return data

    def _canonical(self, task: Task, size: int) -> bytes:
        if not self.terminal.lines:
            raise self.wait()
        return self.terminal.take_line(size) if size else b""

    def _raw(self, task: Task, size: int) -> bytes:
        """termios(3), "Canonical and noncanonical mode": the four cases of MIN and TIME."""
        terminal = self.terminal
        raw = terminal.raw
        cc = terminal.settings.cc
        least, tenths = min(cc[t.VMIN], size), cc[t.VTIME]
        have = len(raw)
        if not (have and have >= least) and not (have and self.nonblocking) and size:
            self._wait_raw(task, have, least, tenths)
        data = bytes(raw[:size])
        del raw[:size]
        return data

    def _wait_raw(self, task: Task, have: int, least: int, tenths: int) -> None:
        """Return if the read ends with what there is; else raise what makes it wait."""
        if least == 0 and tenths == 0:
            return
        if self.nonblocking:
            raise SysError(EAGAIN)
        if tenths == 0 or (least and not have):
            raise self.wait()
        # The timer runs from the call on (MIN 0), or from the last byte.
        now = task.kernel.clock.monotonic()
        last, deadline = task.blocked.get("vtime", (-1, 0))
        if last != have:
            deadline = now + tenths * _TENTH
            task.blocked["vtime"] = (have, deadline)
        if now < deadline and not task.timed_out:
            raise self.wait(deadline=deadline)

    def write(self, task: Task, data: bytes) -> int:
        terminal = self.terminal
        if self.dead:
            raise SysError(EIO)
        if terminal.settings.lflag & t.TOSTOP:
            background(task, terminal, signal.SIGTTOU)
        if not data:
            return 0
        done = terminal.send(data)
        if done == 0:
            raise self.wait()
        return done

    def ioctl(self, task: Task, command: int, argument: int) -> int:
        if self.dead:
            raise SysError(EIO)
        return control(task, self.terminal, command, argument, master=False)

    def sync(self, task: Task, data_only: bool) -> None:
        raise SysError(EINVAL)


class MasterFile(TerminalFile):
    """The master's side: what a terminal emulator has."""

    def __init__(self, flags: int, inode: Inode | None, terminal: Terminal) -> None:
        super().__init__(flags, inode, terminal)
        self.queue = terminal.master_queue

    def release(self) -> None:
        terminal = self.terminal
        terminal.master_open = False
        if terminal.fs is not None:
            terminal.fs.remove(terminal)
        terminal.hang_up(gone=True)

    def describe(self) -> bytes:
        return b"/dev/ptmx"

    def _closed(self) -> bool:
        """Whether the slave was open and is not any more."""
        return self.terminal.slave_seen and self.terminal.slaves == 0

    def poll(self, task: Task) -> int:
        terminal = self.terminal
        mask = POLLHUP if self._closed() else 0
        if terminal.output and not terminal.stopped:
            mask |= READABLE
        if terminal.packet and terminal.packet_status:
            mask |= READABLE | POLLPRI
        if terminal.room():
            mask |= WRITABLE
        return mask

    def read(self, task: Task, size: int) -> bytes:
        terminal = self.terminal
        if size == 0:
            return b""
        if terminal.packet and terminal.packet_status:
            status = terminal.packet_status
            terminal.packet_status = 0
            return bytes((status,))
        if not terminal.output or terminal.stopped:
            if self._closed():
                raise SysError(EIO)
            raise self.wait()
        if terminal.packet:
            return b"\0" + terminal.collect(size - 1)
        return terminal.collect(size)

    def write(self, task: Task, data: bytes) -> int:
        terminal = self.terminal
        if self._closed():
            raise SysError(EIO)
        if not data:
            return 0
        room = terminal.room()
        if room == 0:
            raise self.wait()
        data = data[:room]
        terminal.receive(data)
        return len(data)

    def ioctl(self, task: Task, command: int, argument: int) -> int:
        if command == t.TIOCGPTPEER:
            from casemate.sentry.vfs.devpts import open_peer

            return open_peer(task, self.terminal, argument)
        return control(task, self.terminal, command, argument, master=True)
