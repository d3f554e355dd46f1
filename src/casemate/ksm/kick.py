"""Tell the throttler that a sandbox has started: one datagram, which nobody has to be there for.

Every keeper calls this, so the module imports nothing that a keeper has not got, and neither waits nor fails.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

DIRECTORY = "ksm"
"""Where the throttler keeps its files, below the run directory."""
SOCKET = "kick"
"""Its socket there. Only its owner, root, can send to it."""


def kick(run: Path) -> None:
    """Say that there is new memory to look through.

    Arguments:
        run: the run directory (``config.run``).
    """
    # Nobody there, nobody who reads, no socket left for this process: a start goes on all the same.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"start", socket.MSG_DONTWAIT, str(run / DIRECTORY / SOCKET))
