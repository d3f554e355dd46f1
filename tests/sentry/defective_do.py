"""``casemate do`` with a defect in the sentry: run as ``python defective_do.py WHICH CMD...``.

What goes wrong is an exception in what the kernel's loop tells, mostly for programs whose name is ``victim`` alone; for
``signals`` it is in what the sandbox cannot do without.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from casemate.sentry import foreground
from casemate.sentry.ipc.epoll import Epoll
from casemate.sentry.tasks.task import Task
from casemate.sentry.timers.itimer import ITimer
from casemate.sentry.vfs.hostfile import HostFile


def spoil(owner: Any, name: str, concerns: Any) -> None:
    """Have a method fail for those that ``concerns`` says yes to."""
    whole = getattr(owner, name)

    def method(self: Any, *args: Any) -> Any:
        if concerns(self, *args):
            raise ZeroDivisionError("spoilt")
        return whole(self, *args)

    setattr(owner, name, method)


def main() -> int:
    which = sys.argv[1]
    if which == "deadline":
        spoil(Task, "expire", lambda task, timer: task.name == b"victim")
    elif which == "timer":
        spoil(ITimer, "ring", lambda timer: True)
    elif which == "wake":
        spoil(Task, "wake", lambda task, mask: task.name == b"victim")
    elif which == "ready":
        once = iter((True,))
        spoil(HostFile, "ready", lambda file, mask: next(once, False))
    elif which == "handler":
        spoil(Epoll, "__init__", lambda *_: True)
    elif which == "signals":
        spoil(foreground._Signals, "ready", lambda *_: True)
    wanted = foreground.Wanted(sys.argv[2:], dict(os.environ), "/tmp", 54322, debug=True)
    return foreground.run(wanted)


if __name__ == "__main__":
    sys.exit(main())
