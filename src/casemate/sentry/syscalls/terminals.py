"""vhangup(2); all else about terminals is ioctl(2), :mod:`casemate.sentry.vfs.ttyctl`."""

from __future__ import annotations

from errno import EPERM
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_SYS_TTY_CONFIG
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.table import syscall

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task


@syscall("vhangup")
def vhangup(task: Task) -> int:
    """vhangup(2): the caller's controlling terminal is hung up, if it has one."""
    if not task.creds.capable(CAP_SYS_TTY_CONFIG):
        raise SysError(EPERM)
    terminal = task.group.process_group.session.terminal
    if terminal is not None:
        terminal.hang_up()
    return 0
