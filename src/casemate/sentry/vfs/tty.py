"""Pseudo-terminals, pty(7): the line discipline between a master and its slave, termios(3).

A :class:`Terminal` is a pair. What the master writes is *input*: it is edited, echoed and made into signals here, and
the slave reads it. What the slave writes is *output*: it is processed and the master reads it. The open files of both
sides are in :mod:`casemate.sentry.vfs.ttyfile`.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from casemate.sentry.signals.info import SigInfo
from casemate.sentry.vfs import termios as t
from casemate.sentry.vfs.file import POLLHUP, READABLE, WRITABLE
from casemate.sentry.vfs.ttyinput import INPUT_LIMIT, LINE_LIMIT, Input

if TYPE_CHECKING:
    from casemate.sentry.tasks.session import ProcessGroup, Session

__all__ = ["INPUT_LIMIT", "LINE_LIMIT", "PTS_MAJOR", "Terminal"]

PTS_MAJOR = 136


class Terminal(Input):
    """A pseudo-terminal.

    Arguments:
        index: its number in devpts.
        device: st_rdev of the slave, as ``/proc/PID/stat`` shows it.
    """

    def __init__(self, index: int, device: int) -> None:
        super().__init__()
        self.index = index
        self.device = device
        self.window = bytes(8)
        """``struct winsize``."""
        self.session: Session | None = None
        """Whose controlling terminal it is."""
        self.fs: Any = None
        """The devpts that it is listed in."""
        self.exclusive = False
        self.locked = True
        """The slave cannot be opened before unlockpt(3)."""
        self.master_open = True
        self.slaves = 0
        """How many open files the slave has."""
        self.slave_seen = False
        self.generation = 0
        """How often it was hung up: files that were opened before the last time are dead."""

    def configure(self, settings: t.Termios) -> None:
        """Take other settings; input that is there is read as the new ones say."""
        old = self.settings
        self.settings = settings
        if (old.lflag ^ settings.lflag) & t.ICANON:
            if settings.lflag & t.ICANON:
                if self.raw:
                    self._queue(bytes(self.raw))
                    self.raw.clear()
            else:
                self.raw += b"".join(self.lines) + bytes(self.edit)
                self.lines.clear()
                self.queued = 0
                self.edit.clear()
        if self.stopped and old.iflag & t.IXON and not settings.iflag & t.IXON:
            self.start()
        if self.packet:
            flow = bool(old.iflag & t.IXON), bool(settings.iflag & t.IXON)
            if flow == (True, False):
                self._packet(t.TIOCPKT_NOSTOP, t.TIOCPKT_DOSTOP)
            elif flow == (False, True):
                self._packet(t.TIOCPKT_DOSTOP, t.TIOCPKT_NOSTOP)
            if (old.lflag | settings.lflag) & t.EXTPROC:
                self._packet(t.TIOCPKT_IOCTL)
        self.slave_queue.notify(READABLE | WRITABLE)

    def resize(self, rows: int, columns: int, x_pixels: int = 0, y_pixels: int = 0) -> None:
        """Another size of the window; the foreground is told, SIGWINCH."""
        self.set_window(b"".join(value.to_bytes(2, "little") for value in (rows, columns, x_pixels, y_pixels)))

    def set_window(self, window: bytes) -> None:
        """The same with a ``struct winsize``."""
        if window != self.window:
            self.window = window
            self.signal_foreground(signal.SIGWINCH)

    def signal_foreground(self, signo: int) -> None:
        """Send a signal to the foreground process group, if there is one."""
        from casemate.sentry.signals.send import send_group

        group = self.foreground
        if group is not None:
            send_group(group, SigInfo(signo))

    @property
    def foreground(self) -> ProcessGroup | None:
        """The process group that may read from it."""
        return None if self.session is None else self.session.foreground

    # Its beginning and end as a controlling terminal.

    def control(self, session: Session, foreground: ProcessGroup) -> None:
        """Become the session's controlling terminal."""
        if self.session is not None and self.session is not session:
            self.release()
        session.terminal = self
        session.foreground = foreground
        self.session = session

    def release(self) -> None:
        """Be nobody's controlling terminal any more."""
        session = self.session
        self.session = None
        if session is not None and session.terminal is self:
            session.terminal = None
            session.foreground = None

    def leader_exited(self, session: Session, gave_up: bool = False) -> None:
        """The leader of its session ended (or gave it up): the foreground is told, and the session has no terminal any
        more, credentials(7)."""
        if self.session is not session:
            return
        self.signal_foreground(signal.SIGHUP)
        if gave_up:
            self.signal_foreground(signal.SIGCONT)
        self.release()

    def hang_up(self, gone: bool = False) -> None:
        """The session's leader is told, and open files of the slave are of no use any more: reads find the end, writes
        fail, vhangup(2).

        Arguments:
            gone: the master is, so the slave cannot be opened again either.
        """
        if self.hung_up:
            return
        self.hung_up = gone
        self.generation += 1
        self.flush_input()
        self.configure(t.Termios())
        session = self.session
        if session is not None:
            from casemate.sentry.signals.send import send

            members = [member for group in session.groups.values() for member in group.members.values()]
            for member in members:
                if member.pid == session.sid:
                    send(member, SigInfo(signal.SIGHUP), force=True)
                    send(member, SigInfo(signal.SIGCONT), force=True)
            self.release()
        self.slave_queue.notify(READABLE | WRITABLE | POLLHUP)
        self.master_queue.notify(READABLE | WRITABLE | POLLHUP)
