"""Job control: processes that signals stop and continue, signal(7), and what their parents get to know."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from casemate.sentry.signals.info import CLD_CONTINUED, CLD_STOPPED, SigInfo
from casemate.sentry.signals.state import SA_NOCLDSTOP, SIG_IGN
from casemate.sentry.tasks.task import State
from casemate.sentry.wait import Restart

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task, ThreadGroup


def stop(group: ThreadGroup, signo: int, current: Task | None = None) -> None:
    """Stop all threads of a process.

    Arguments:
        signo: the signal that does it, for wait(2).
        current: the thread that found the signal, which stands still already.
    """
    shared = group.signals
    if shared.stopped:
        return
    shared.stopped = signo
    shared.tell_stop = signo
    shared.tell_continue = False
    for task in list(group.tasks.values()):
        if task is current:
            task.state = State.STOPPED
        else:
            _halt(task)
    _tell_parent(group, CLD_STOPPED, signo)


def _halt(task: Task) -> None:
    if task.thread is None:
        return
    if task.block is not None:
        if task.block.restart is Restart.KILL:
            return  # it stops when that wait is over
        # The call is made again when the process is continued.
        task.kernel.unpark(task)
        task.state = State.STOPPED
    elif task.number == -1 and task.state is State.RUNNING and task.thread.interrupt():
        task.state = State.STOPPED
    # Else it is in the kernel, or about to enter it: it finds that it is to stop on its way out.


def resume(group: ThreadGroup) -> None:
    """Continue a stopped process; nothing for others."""
    shared = group.signals
    if not shared.stopped:
        return
    shared.stopped = 0
    shared.tell_stop = 0
    shared.tell_continue = True
    for task in list(group.tasks.values()):
        if task.state is State.STOPPED and task.thread is not None:
            task.state = State.RUNNING
            if task.number != -1:
                task.kernel.ready.append(task)
            else:
                task.kernel.resume(task)
    _tell_parent(group, CLD_CONTINUED, signal.SIGCONT)


def _tell_parent(group: ThreadGroup, code: int, signo: int) -> None:
    from casemate.sentry.signals.send import send

    parent = group.parent
    if parent is None:
        return
    action = parent.signals.actions[signal.SIGCHLD]
    if action.handler != SIG_IGN and not action.flags & SA_NOCLDSTOP:
        task = group.any_task
        uid = task.creds.uid if task is not None else 0
        send(parent, SigInfo.child(code, group.pid, uid, signo))
    parent.child_wait.notify()
