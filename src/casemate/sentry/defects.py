"""Exceptions that are defects of the sentry's own: told once each, and kept to what they concern.

A handler's exception is its call's error. One that comes out of a timer, a descriptor's readiness or a queue's news
belongs to whom that was for: a process, which is killed, for nobody knows what state it is in; a file or a timer of no
one process, which is not told any more. What the sandbox cannot do without (its gofer, the doors' requests) and what
cannot even be killed ends it: no call is ever let through because of a defect.
"""

from __future__ import annotations

import sys
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

from casemate.late import Logger
from casemate.sentry.tasks.task import Task, ThreadGroup

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel

log = Logger("casemate.sentry")
MAX_PLACES = 100
"""How many different ones are told: programs may bring about as many as they like."""
_WAYS = ("group", "_group", "task", "of", "owner", "receiver")
"""Attributes of timers and what they belong to that lead to a process."""


class Defects:
    """The defects of one sandbox.

    Arguments:
        kernel: ended by those that cannot be kept to a part of it.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.counts: dict[tuple[str, str, int], int] = {}
        """How often each came, by its type and place."""

    def report(self, text: str, *args: Any) -> None:
        """Log the exception that is being handled, with its trace, unless one from the same place was logged before."""
        error = sys.exc_info()[1]
        if error is None:
            return
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = ("", 0) if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        key = (type(error).__name__, *place)
        if key not in self.counts and len(self.counts) >= MAX_PLACES:
            return
        self.counts[key] = self.counts.get(key, 0) + 1
        if self.counts[key] == 1:
            log.exception(text + " (a defect of the sentry; from this place it is told once)", *args)

    def kill(self, group: ThreadGroup) -> None:
        """Kill a process whose state nobody knows. Where not even that can be done, the sandbox ends."""
        from casemate.sentry.tasks import exit as exits

        try:
            exits.exit_group(group, SIGKILL)
        except Exception:
            log.exception("%s cannot be ended", group)
        if not group.zombie:  # it went wrong now, or it was ending when something did
            log.error("%s is left half ended: the sandbox ends", group)
            self._kernel.running = False

    def confine(self, what: object, text: str, *args: Any) -> None:
        """Deal with the exception that is being handled, which came out of what was told of something.

        Arguments:
            what: who was told: a timer's owner, a watcher, somebody in a queue.
            text, args: for the log.
        """
        self.report(text, *args)
        if getattr(what, "vital", False):
            log.error("%s is what the sandbox cannot do without: it ends", type(what).__name__)
            self._kernel.running = False
            return
        group = concerned(what)
        if group is not None:
            log.error("%s is killed for it", group)
            self.kill(group)


def concerned(what: object) -> ThreadGroup | None:
    """The process that something belongs to; None where it is no single one's."""
    todo, seen = [what], 0
    while todo and seen < 16:
        one = todo.pop(0)
        seen += 1
        if isinstance(one, ThreadGroup):
            return one
        if isinstance(one, Task):
            return one.group
        todo += [found for way in _WAYS if (found := getattr(one, way, None)) is not None]
    return None
