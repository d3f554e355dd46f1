"""The runtime's log: the file that engines name, one entry a line, in runc's two formats (those of logrus)."""

from __future__ import annotations

import json
import os
import sys
import time

STANDARD_ERROR = "/dev/stderr"


class Log:
    """Where errors and warnings go.

    Arguments:
        path: of the file; empty or ``/dev/stderr`` for standard error.
        format: ``text`` or ``json``.
        debug: whether lines of the level ``debug`` are written.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str = "", format: str = "text", debug: bool = False) -> None:
        self.to_standard_error = path in ("", STANDARD_ERROR)
        self._json = format == "json"
        self._debug = debug
        self._fd = 2
        if not self.to_standard_error:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def error(self, message: str) -> None:
        """What makes the command fail; the last one is what the engine shows."""
        self._write("error", message)

    def warning(self, message: str) -> None:
        """What the user should know although the command succeeds."""
        self._write("warning", message)

    def debug(self, message: str) -> None:
        """What helps to find a fault."""
        if self._debug:
            self._write("debug", message)

    def fail(self, message: str) -> None:
        """Write an error, to standard error as well: an engine reads the one, a person the other."""
        self.error(message)
        if not self.to_standard_error:
            _put(2, message + "\n")

    def _write(self, level: str, message: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._json:
            line = json.dumps({"level": level, "msg": message, "time": now}, ensure_ascii=False)
        else:
            line = f'time="{now}" level={level} msg={_quoted(message)}'
        _put(self._fd, line + "\n")


def _put(fd: int, text: str) -> None:
    data = text.encode("utf-8", "replace")
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        if fd != 2:  # the disk is full, perhaps: a person may still read it
            sys.stderr.write(text)


def _quoted(text: str) -> str:
    r"""As Go's ``%q``: a message is one line, whatever it holds."""
    return json.dumps(text, ensure_ascii=False)
