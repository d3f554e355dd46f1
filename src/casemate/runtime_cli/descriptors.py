"""Descriptors that a caller wants the container's process to have: ``--preserve-fds``, and systemd's ``LISTEN_FDS``.

A container's kernel cannot have a descriptor of the host. What is a stream of bytes is carried, as standard input and
output are: pipes, connections, ``/dev/null``. Anything else is refused.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from typing import Any

from casemate.errors import UsageError

FIRST = 3
"""The first after the standard ones (sd_listen_fds(3) calls it SD_LISTEN_FDS_START)."""
MOST = 16
_WAYS = {os.O_RDONLY: "in", os.O_WRONLY: "out", os.O_RDWR: "both"}


def take(count: int, process: dict[str, Any]) -> list[str]:
    """Look at the descriptors that the container's process is to get.

    As runc does it: those of socket activation (sd_listen_fds(3)) come first and are told to the process in its
    environment, then come ``count`` others.

    Arguments:
        count: of ``--preserve-fds``.
        process: the OCI ``process`` object; its environment is changed where there are some of socket activation.

    Returns:
        what each is, from descriptor 3 on: ``in`` is read by the process, ``out`` is written, ``both`` is a connection,
        ``null`` leads nowhere.

    Raises:
        UsageError: one is not open, or cannot be carried.
    """
    if count < 0:
        raise UsageError(f"--preserve-fds {count} is negative", "give the number of descriptors from 3 on")
    listen = _listen_fds()
    if listen:
        environment = [word for word in process.get("env", ()) if not word.startswith(("LISTEN_FDS=", "LISTEN_PID="))]
        process["env"] = [*environment, f"LISTEN_FDS={listen}", "LISTEN_PID=1"]
    if listen + count > MOST:
        raise UsageError(f"{listen + count} descriptors are to be preserved", f"{MOST} can be at most")
    kinds = [_kind(number) for number in range(FIRST, FIRST + listen + count)]
    for number in range(FIRST, FIRST + len(kinds)):
        os.set_inheritable(number, False)  # not for the programs that this one starts
    return kinds


def named(kinds: list[str]) -> dict[str, int]:
    """The descriptors by the names that the keeper knows."""
    return {f"kept{place}": FIRST + place for place in range(len(kinds))}


def close(kinds: list[str]) -> None:
    """Let go of them: the keeper has them, and the other side of a pipe is to notice when nobody else has."""
    for number in range(FIRST, FIRST + len(kinds)):
        os.close(number)


def _listen_fds() -> int:
    count = os.environ.get("LISTEN_FDS", "")
    ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    return int(count) if ours and count.isascii() and count.isdigit() and len(count) < 6 else 0


def _kind(number: int) -> str:
    try:
        # What this program has opened itself is closed when it executes another one; what it was given is not.
        inherited = not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        mode = os.fstat(number).st_mode
        way = _WAYS.get(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE, "both")
    except OSError:
        inherited = False
    if not inherited:
        raise UsageError(f"descriptor {number} is to be preserved, and is not open", "open it, or ask for fewer")
    if stat.S_ISSOCK(mode):
        return _socket(number)
    if stat.S_ISFIFO(mode) and way != "both":
        return way
    if stat.S_ISCHR(mode) and os.fstat(number).st_rdev == os.makedev(1, 3):
        return "null"
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        raise UsageError(
            f"descriptor {number} is a file, which the container's kernel cannot have", "mount it: --volume, --device"
        )
    raise UsageError(
        f"descriptor {number} cannot be given to another kernel", "pipes, connections and /dev/null can be preserved"
    )


def _socket(number: int) -> str:
    sock = socket.socket(fileno=os.dup(number))
    with sock:
        kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise UsageError(
                f"descriptor {number} is a socket that listens, which the container's kernel cannot have",
                "let the container listen itself and publish its port",
            )
        try:
            sock.getpeername()
        except OSError:
            kind = 0
    if kind != socket.SOCK_STREAM:
        raise UsageError(
            f"descriptor {number} is a socket without a connection, or of packets", "connected stream sockets can be"
        )
    return "both"
