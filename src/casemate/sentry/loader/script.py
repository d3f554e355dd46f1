"""Scripts that begin with ``#!``, execve(2) "Interpreter scripts"."""

from __future__ import annotations

from errno import ENOEXEC

from casemate.sentry.errno import SysError

BINPRM_BUF_SIZE = 256
"""How much of a file is looked at, so the longest first line."""
MAX_DEPTH = 5
"""How many scripts can be each other's interpreters."""


def interpreter(head: bytes) -> tuple[bytes, bytes | None]:
    """The interpreter of a script, and the one argument that follows its name, if any.

    Arguments:
        head: the file's beginning, with the ``#!``.

    Raises:
        SysError: ENOEXEC when it names none, or its name is cut by the end of what is looked at.
    """
    line = head[2:BINPRM_BUF_SIZE]
    end = line.find(b"\n")
    if end < 0:
        # A line without end is fine when the file itself ends there, or the cut is in the argument.
        whole = len(head) < BINPRM_BUF_SIZE
        name = line.strip(b" \t")
        if not whole and not any(byte in b" \t\0" for byte in name):
            raise SysError(ENOEXEC)
    else:
        line = line[:end]
    line = line.strip(b" \t")
    name = line
    argument = None
    for at, byte in enumerate(line):
        if byte in b" \t\0":
            name = line[:at]
            if byte != 0:
                argument = line[at:].lstrip(b" \t").split(b"\0", 1)[0]
            break
    if not name:
        raise SysError(ENOEXEC)
    return name, argument or None
