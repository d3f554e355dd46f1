"""The input side of a terminal's line discipline, termios(3): what is typed is edited, echoed and made into signals."""

from __future__ import annotations

import signal
from collections import deque

from casemate.sentry.vfs import termios as t
from casemate.sentry.vfs.file import READABLE, WRITABLE
from casemate.sentry.vfs.ttyoutput import Output

INPUT_LIMIT = 65536
"""How much input waits to be read, bytes, before the master's writes do."""
LINE_LIMIT = 4095
"""How long a line can be while it is edited, termios(3)."""
_DISABLED = 0
"""``_POSIX_VDISABLE``: a special character that is none."""


class Input(Output):
    """Input on its way from the master to the slave, on top of the output that its echo is part of."""

    def __init__(self) -> None:
        super().__init__()
        self.hung_up = False
        """The master is gone: reads end, writes fail."""
        self.lines: deque[bytes] = deque()
        """Canonical mode: whole lines to be read; an empty one is the end of file."""
        self.queued = 0
        """What :attr:`lines` counts as: a byte more than its length for each, so that empty ones are bounded too."""
        self.edit = bytearray()
        """Canonical mode: the line that is being edited."""
        self.raw = bytearray()
        """Non-canonical mode: what is to be read."""
        self._literal = False

    def signal_foreground(self, signo: int) -> None:
        """Send a signal to the foreground process group, if there is one."""
        raise NotImplementedError

    @property
    def canonical(self) -> bool:
        """Input is read by lines."""
        return bool(self.settings.lflag & t.ICANON)

    @property
    def available(self) -> int:
        """How many bytes the slave could read now, FIONREAD."""
        return self.queued - len(self.lines) if self.canonical else len(self.raw)

    def readable(self) -> bool:
        """Whether poll(2) says that the slave can be read."""
        if self.canonical:
            return bool(self.lines)
        cc = self.settings.cc
        wanted = 1 if cc[t.VTIME] else max(1, cc[t.VMIN])
        return len(self.raw) >= wanted

    def room(self) -> int:
        """How many bytes of input can be taken now."""
        if self.hung_up:
            return INPUT_LIMIT
        return max(0, INPUT_LIMIT - len(self.raw) - self.queued)

    # Input: what the master writes.

    def receive(self, data: bytes) -> None:
        """Take what was typed. The caller has looked at :meth:`room`."""
        settings = self.settings
        special = settings.lflag & (t.ISIG | t.ICANON | t.ECHO | t.ECHONL | t.EXTPROC) or settings.iflag & (
            t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IUCLC | t.IXON | t.PARMRK
        )
        if not special and not self._literal:
            self.raw += data
        else:
            for char in data:
                self._char(char)
        self._tell_input()
        if self.output:
            self.master_queue.notify(READABLE)

    def _tell_input(self) -> None:
        if self.readable() or self.settings.cc[t.VTIME]:
            self.slave_queue.notify(READABLE)

    def _char(self, char: int) -> None:
        settings = self.settings
        iflag, lflag, cc = settings.iflag, settings.lflag, settings.cc
        if iflag & t.ISTRIP:
            char &= 0x7F
        if self._literal:
            self._literal = False
            self._put(char, literal=True)
            return
        if iflag & t.IUCLC and lflag & t.IEXTEN and 65 <= char <= 90:
            char += 32
        if iflag & t.IXON and not lflag & t.EXTPROC:
            if char == cc[t.VSTART] != _DISABLED:
                self.start()
                return
            if char == cc[t.VSTOP] != _DISABLED:
                self.stop()
                return
            if self.stopped and iflag & t.IXANY:
                self.start()
        if lflag & t.ISIG and char != _DISABLED and not lflag & t.EXTPROC:
            for index, signo in ((t.VINTR, signal.SIGINT), (t.VQUIT, signal.SIGQUIT), (t.VSUSP, signal.SIGTSTP)):
                if char == cc[index]:
                    self._signal(signo, char)
                    return
        if char == 13:
            if iflag & t.IGNCR:
                return
            if iflag & t.ICRNL:
                char = 10
                if not lflag & t.ICANON:
                    # Unlike one that was typed, it is echoed as what it does.
                    self.raw.append(char)
                    if lflag & t.ECHO:
                        self._emit(b"\n")
                    return
        elif char == 10 and iflag & t.INLCR:
            char = 13
        if lflag & t.ICANON and not lflag & t.EXTPROC and self._edited(char):
            return
        self._put(char)

    def _signal(self, signo: int, char: int) -> None:
        if not self.settings.lflag & t.NOFLSH:
            self.flush_input()
            self.flush_output()
        if self.settings.iflag & t.IXON:
            self.start()
        if self.settings.lflag & t.ECHO:
            self._echo(char)
        self.signal_foreground(signo)

    def _put(self, char: int, literal: bool = False) -> None:
        """A character that is nothing but itself."""
        settings = self.settings
        lflag = settings.lflag
        if not lflag & t.ICANON:
            if char == 0xFF and settings.iflag & t.PARMRK and not settings.iflag & t.ISTRIP:
                self.raw.append(char)
            self.raw.append(char)
            if lflag & t.ECHO:
                self._echo(char)
            return
        if len(self.edit) >= LINE_LIMIT:
            if settings.iflag & t.IMAXBEL:
                self._emit(b"\a")
            return
        if lflag & t.ECHO:
            if not self.edit:
                self._line_column = self.column
            self._echo(char)
        self.edit.append(char)

    def _edited(self, char: int) -> bool:
        """Canonical mode: whether the character edits or ends the line, which it then has done."""
        settings = self.settings
        lflag, cc = settings.lflag, settings.cc
        if char != _DISABLED:
            extended = lflag & t.IEXTEN
            if char == cc[t.VERASE]:
                self._erase(1, single=True)
                return True
            if char == cc[t.VKILL]:
                self._kill()
                return True
            if extended and char == cc[t.VWERASE]:
                self._erase_word()
                return True
            if extended and char == cc[t.VLNEXT]:
                self._literal = True
                if lflag & t.ECHO and lflag & t.ECHOCTL:
                    self._emit(b"^\b")
                return True
            if extended and lflag & t.ECHO and char == cc[t.VREPRINT]:
                self._echo(char)
                self._emit(b"\n")
                for one in self.edit:
                    self._echo(one)
                return True
            if char == cc[t.VEOF]:
                self._end_line(b"")
                return True
        if char == 10:
            if lflag & (t.ECHO | t.ECHONL):
                self._emit(b"\n")
            self._end_line(b"\n")
            return True
        if char != _DISABLED and (char == cc[t.VEOL] or (lflag & t.IEXTEN and char == cc[t.VEOL2])):
            if lflag & t.ECHO:
                self._echo(char)
            self._end_line(bytes((char,)))
            return True
        return False

    def _end_line(self, end: bytes) -> None:
        self._queue(bytes(self.edit) + end)
        self.edit.clear()

    def _queue(self, line: bytes) -> None:
        self.lines.append(line)
        self.queued += len(line) + 1

    def take_line(self, size: int) -> bytes:
        """Canonical mode: the next line, or the next ``size`` bytes of it. There is one."""
        line = self.lines.popleft()
        if len(line) > size:
            self.lines.appendleft(line[size:])
            self.queued -= size
            return line[:size]
        self.queued -= len(line) + 1
        return line

    # Editing.

    def _last(self) -> int:
        """Where the last character of the line starts; -1 where there is no whole one."""
        index = len(self.edit) - 1
        while index >= 0 and self._continues(self.edit[index]):
            index -= 1
        return index

    def _erase(self, count: int, single: bool = False) -> None:
        """Take characters off the line, on the screen too. ``single``: by VERASE, which ECHOE is about."""
        while count and (start := self._last()) >= 0:
            count -= 1
            char = self.edit[start]
            del self.edit[start:]
            if not self.settings.lflag & t.ECHO:
                continue
            if single and not self.settings.lflag & t.ECHOE:
                self._echo(self.settings.cc[t.VERASE])
            elif char == 9:
                back = self._tab()
                self._emit(b"\b" * back)
                if not self.settings.oflag & t.OPOST:  # the only way in which the column falls then
                    self.column = max(0, self.column - back)
            else:
                control = char < 32 or char == 127
                columns = (2 if self.settings.lflag & t.ECHOCTL else 0) if control else 1
                self._emit(b"\b \b" * columns)

    def _tab(self) -> int:
        """How many columns the tab behind the line has been echoed as."""
        columns = self._line_column
        for index in range(len(self.edit) - 1, -1, -1):
            char = self.edit[index]
            if char == 9:
                columns -= self._line_column
                break
            if char < 32 or char == 127:
                columns += 2 if self.settings.lflag & t.ECHOCTL else 0
            elif not self._continues(char):
                columns += 1
        return 8 - (columns & 7)

    def _kill(self) -> None:
        lflag = self.settings.lflag
        visually = t.ECHOK | t.ECHOKE | t.ECHOE
        if not self.edit:
            return
        if not lflag & t.ECHO:
            self.edit.clear()
        elif lflag & visually == visually:
            self._erase(len(self.edit))
        else:
            self.edit.clear()
            self._echo(self.settings.cc[t.VKILL])
            if lflag & t.ECHOK:
                self._emit(b"\n")

    def _erase_word(self) -> None:
        seen = False
        while (start := self._last()) >= 0:
            char = self.edit[start]
            # The kernel's isalnum() is that of Latin-1.
            word = chr(char).isalnum() if char < 128 else char >= 192 and char not in (215, 247)
            word = word or char == 95
            if seen and not word:
                break
            seen = seen or word
            self._erase(1)

    def flush_input(self) -> None:
        """Discard what was not read, TCIFLUSH."""
        self.lines.clear()
        self.queued = 0
        self.edit.clear()
        self.raw.clear()
        self._literal = False
        self._packet(t.TIOCPKT_FLUSHREAD)
        self.master_queue.notify(WRITABLE)
