"""The output side of a terminal's line discipline, termios(3): what programs write, and the echo of what is typed."""

from __future__ import annotations

from casemate.sentry.vfs import termios as t
from casemate.sentry.vfs.file import POLLPRI, READABLE, WRITABLE
from casemate.sentry.wait import WaitQueue

OUTPUT_LIMIT = 65536
"""How much output waits for the master before the slave's writes do."""


class Output:
    """Output on its way from the slave to the master."""

    def __init__(self) -> None:
        self.settings = t.Termios()
        self.master_queue = WaitQueue()
        self.slave_queue = WaitQueue()
        self.packet = False
        """The master reads a byte before the data that tells of what happened, TIOCPKT."""
        self.packet_status = 0
        self.output = bytearray()
        """Processed, for the master."""
        self.stopped = False
        """By ^S or TCOOFF."""
        self.held = False
        """By TCOOFF of tcflow(3), so that only TCOON lets it go on."""
        self.column = 0
        self._line_column = 0
        """The column that the line being edited starts in."""

    def _continues(self, char: int) -> bool:
        """Whether it is a further byte of a UTF-8 character."""
        return bool(self.settings.iflag & t.IUTF8) and char & 0xC0 == 0x80

    def _echo(self, char: int) -> None:
        """Show what was typed: control characters as ``^X`` with ECHOCTL."""
        if self.settings.lflag & t.ECHOCTL and (char < 32 or char == 127) and char != 9:
            self._emit(bytes((94, char ^ 64)))
            if not self.settings.oflag & t.OPOST:
                self.column += 2
        else:
            self._emit(bytes((char,)))

    def _emit(self, data: bytes) -> None:
        # Echoes do not wait: they are dropped where nobody reads.
        if len(self.output) < OUTPUT_LIMIT + 4096:
            self.output += self._processed(data)

    def _processed(self, data: bytes) -> bytes:
        """Output processing, ``OPOST`` and what belongs to it; the column is kept."""
        oflag = self.settings.oflag
        if not oflag & t.OPOST:
            return data
        if oflag & t.ONLCR and not oflag & (t.OLCUC | t.OCRNL | t.ONOCR) and oflag & t.TABDLY != t.XTABS:
            start = max(data.rfind(b"\r"), data.rfind(b"\n")) + 1
            if start:
                self.column = self._line_column = 0
            for char in data[max(start, len(data) - 1024) :]:
                self._advance(char)
            return data.replace(b"\n", b"\r\n")
        parts = bytearray()
        for char in data:
            if char == 10:
                if oflag & (t.ONLRET | t.ONLCR):
                    self.column = 0
                self._line_column = self.column
                parts += b"\r\n" if oflag & t.ONLCR else b"\n"
                continue
            if char == 13:
                if oflag & t.ONOCR and self.column == 0:
                    continue
                if oflag & t.OCRNL:
                    parts += b"\n"
                    if oflag & t.ONLRET:
                        self.column = self._line_column = 0
                    continue
                self.column = self._line_column = 0
            elif char == 9 and oflag & t.TABDLY == t.XTABS:
                step = 8 - (self.column & 7)
                self.column += step
                parts += b" " * step
                continue
            else:
                self._advance(char)
                if oflag & t.OLCUC and 97 <= char <= 122:
                    char -= 32
            parts.append(char)
        return bytes(parts)

    def _advance(self, char: int) -> None:
        """Keep the column for a character that is no end of line."""
        if char == 9:
            self.column = (self.column | 7) + 1
        elif char == 8:
            self.column = max(0, self.column - 1)
        elif char >= 32 and char != 127 and not self._continues(char):
            self.column += 1

    def send(self, data: bytes) -> int:
        """What the slave writes: how much of it was taken, 0 when there is no room or output is stopped."""
        room = 0 if self.stopped else OUTPUT_LIMIT - len(self.output)
        if room <= 0:
            return 0
        data = data[:room]
        self.output += self._processed(data)
        self.master_queue.notify(READABLE)
        return len(data)

    def collect(self, size: int) -> bytes:
        """Output for the master, as much as there is up to ``size`` bytes."""
        data = bytes(self.output[:size])
        del self.output[:size]
        if data:
            self.slave_queue.notify(WRITABLE)
        return data

    def start(self, held: bool = False) -> None:
        """Output goes on: ^Q, or TCOON with ``held``."""
        if self.held and held:
            self.held = False
        elif held:
            return
        if self.stopped and not self.held:
            self.stopped = False
            self._packet(t.TIOCPKT_START, t.TIOCPKT_STOP)
            self.slave_queue.notify(WRITABLE)
            self.master_queue.notify(READABLE)

    def stop(self, held: bool = False) -> None:
        """Output stops: ^S, or TCOOFF with ``held``."""
        self.held = self.held or held
        if not self.stopped:
            self.stopped = True
            self._packet(t.TIOCPKT_STOP, t.TIOCPKT_START)

    def _packet(self, bits: int, instead: int = 0) -> None:
        if self.packet:
            self.packet_status = self.packet_status & ~instead | bits
            self.master_queue.notify(READABLE | POLLPRI)

    def flush_output(self) -> None:
        """Discard what the master has not read, TCOFLUSH."""
        self.output.clear()
        self._packet(t.TIOCPKT_FLUSHWRITE)
        self.slave_queue.notify(WRITABLE)
