"""Ending oneself: exit(2), exit_group(2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.sentry.syscalls.table import syscall
from casemate.sentry.tasks import exit as exits

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task


@syscall("exit")
def exit(task: Task, status: int) -> int:
    """_exit(2) of the calling thread alone."""
    exits.exit_task(task, (status & 0xFF) << 8)
    return 0


@syscall("exit_group")
def exit_group(task: Task, status: int) -> int:
    """exit_group(2)."""
    exits.exit_group(task.group, (status & 0xFF) << 8)
    return 0
