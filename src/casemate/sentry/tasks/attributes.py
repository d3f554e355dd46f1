"""The small attributes in ``task.prctl``: those of prctl(2) by its numbers, and others by numbers that it has not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

PR_SET_PDEATHSIG = 1
PERSONALITY = -1
"""personality(2)."""
POLICY, PRIORITY, NICE, AFFINITY = -2, -3, -4, -5
"""sched(7): the policy, its priority, the nice value, a set of processors."""
IOPRIO = -6
"""ioprio_set(2)."""
RESET = -7
"""Children have the ordinary policy, ``SCHED_RESET_ON_FORK``."""
LOGINUID = -9
"""The user that logged in, as ``/proc/PID/loginuid`` says."""
BARRIERS = -8
"""What the process has registered for, membarrier(2)."""


def inherited(task: Task) -> dict[int, int]:
    """What a child of fork(2) or a new thread has of its parent's attributes."""
    found = task.prctl
    if not found:
        return {}
    found = dict(found)
    found.pop(PR_SET_PDEATHSIG, None)
    if found.pop(RESET, 0):
        found.pop(POLICY, None)
        found.pop(PRIORITY, None)
        found[NICE] = max(0, found.get(NICE, 0))
    return found


def apply_affinity(task: Task) -> None:
    """Have the host run the task's thread on the processors that it asked for, where it asked at all.

    Raises OSError where the host does not let the sentry choose.
    """
    wanted = task.prctl.get(AFFINITY, 0)
    if wanted and task.thread is not None:
        os.sched_setaffinity(task.thread.tid, [cpu for cpu in range(wanted.bit_length()) if wanted >> cpu & 1])
