"""What every daemon does: tell the service manager that it is ready, and hear the signals that ask for its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def ready() -> None:
    """Tell it that all is set up (``sd_notify(3)``); nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"READY=1", address.replace("@", "\0", 1) if address[0] == "@" else address)


@contextlib.contextmanager
def signals(*more: signal.Signals) -> Iterator[socket.socket]:
    """A socket that is readable once one of :data:`ENDING` has come, with a byte for each, its number (signal(7)).

    Arguments:
        more: others that are heard, too.
    """
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in (*ENDING, *more)}
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        ours.close()
        theirs.close()
