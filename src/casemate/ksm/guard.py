"""A process beside the throttler that puts the settings back when the throttler is killed.

Nothing that a process does for itself survives SIGKILL. So a child waits for the throttler's end, told by the end of a
socket, and then does what the throttler could not. It shares the throttler's turn, so nobody changes settings between
the one's end and the other's work. Signals meant for the throttler do not reach it: it has a session of its own and
ignores those that ask for an end. Killing both leaves ``found.json``, for ``casemate ksm --restore`` or the next start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from casemate.errors import CasemateError
from casemate.ksm.kept import Home

NAME = b"casemate-ksm-gd"
"""How it shows in a list of processes; 15 bytes are the most."""
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Guard:
    """The child.

    Arguments:
        home: the throttler's files.
        turn: the descriptor of the turn, which the child keeps open.
        say: told when something went wrong in the child.
    """

    def __init__(self, home: Home, turn: int, say: Callable[[str], None]) -> None:
        ours, theirs = socket.socketpair()
        try:
            self.pid = os.fork()
        except BaseException:
            ours.close()
            theirs.close()
            raise
        if self.pid == 0:
            _watch(home, turn, theirs.fileno(), say)
        theirs.close()
        self._ours = ours
        ours.recv(1)  # from now on nothing that ends the throttler, or its whole group, ends the child; or it has ended

    def fileno(self) -> int:
        """Readable once the child has ended."""
        return self._ours.fileno()

    def end(self) -> None:
        """End the child, which has nothing to do any more. May be called when it has ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._ours.close()


def _watch(home: Home, turn: int, link: int, say: Callable[[str], None]) -> NoReturn:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        os.chdir("/")
        with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as file:
            file.write(NAME)
        keep = sorted({2, turn, link})
        for low, high in zip([-1, *keep], [*keep, os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        with contextlib.suppress(OSError):  # it has ended already, or with this word unread
            os.write(link, b"+")
            os.read(link, 1)  # nobody writes: this ends with the throttler
        if home.restore() is not None:
            home.clear()
            say("the throttler was killed: the settings that it had found are in force again")
        status = 0
    except (CasemateError, OSError) as error:
        with contextlib.suppress(OSError, ValueError):
            say(f"the throttler was killed, and its settings stay in force: {error}")
    finally:
        os._exit(status)
