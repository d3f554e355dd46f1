"""The guest's console: read always, kept in a bounded file, its end kept for error messages."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from casemate.keeper.logs import RotatingFile

LIMIT = 512 << 10
TAIL = 8192


class Console:
    """Reads a guest's console until the guest is gone.

    Arguments:
        fd: our end of the socket; the console closes it.
        path: the file that keeps what is printed, ``path.1`` what was printed before.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._file = RotatingFile(path, LIMIT)
        self._tail = b""
        self._thread = threading.Thread(target=self._read, name="console", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._fd, 16384):
                self._tail = (self._tail + data)[-TAIL:]
                self._file.write(data)
        os.close(self._fd)
        self._file.close()

    def tail(self) -> str:
        """The last text that the guest printed, printable characters only."""
        text = self._tail.decode(errors="replace")
        return "".join(character if character.isprintable() or character == "\n" else " " for character in text)

    def last_line(self) -> str:
        """The last line that says something; empty when the guest printed nothing."""
        lines = [line.strip() for line in self.tail().splitlines() if line.strip()]
        for line in reversed(lines):
            if "Kernel panic" in line or "casemate" in line or "Out of memory" in line:
                return line[:300]
        return lines[-1][:300] if lines else ""

    def join(self, timeout: float) -> None:
        """Wait for the end of the console, after the end of the machine."""
        self._thread.join(timeout)
