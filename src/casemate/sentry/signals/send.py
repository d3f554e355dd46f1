"""Sending signals: who gets them, and what happens at once, kill(2), signal(7)."""

from __future__ import annotations

import resource
import signal
from errno import EPERM, ESRCH

from casemate.sentry.creds import CAP_KILL
from casemate.sentry.errno import SysError
from casemate.sentry.signals import jobs
from casemate.sentry.signals.info import SigInfo
from casemate.sentry.signals.state import KILL_OR_STOP, SIG_DFL, STOPS, bit
from casemate.sentry.tasks.session import ProcessGroup
from casemate.sentry.tasks.task import State, Task, ThreadGroup
from casemate.sentry.vfs.file import POLLIN

SIGCONT_BIT = bit(signal.SIGCONT)


def send(target: Task | ThreadGroup, info: SigInfo, force: bool = False) -> bool:
    """Send a signal to one thread, or to a process (any of its threads that does not block it).

    Nothing is checked but that the signal means something to the receiver. SIGKILL ends the process before this
    returns, and SIGCONT continues it; other signals are delivered at once to threads that run or wait.

    Arguments:
        force: it comes from outside of the sandbox, or from the kernel: pid 1 cannot shield itself from SIGKILL and
            SIGSTOP.

    Returns whether it was queued (or done). False: ignored, pending already, or too many are queued.
    """
    if isinstance(target, Task):
        task: Task | None = target
        group = target.group
    else:
        task = None
        group = target
    if group.exit_code is not None or group.zombie or not group.tasks:
        return False
    shared = group.signals
    signo = info.signo
    mask = 1 << (signo - 1)
    if mask & KILL_OR_STOP and shared.unkillable and not force:
        return False
    if signo == signal.SIGKILL:
        from casemate.sentry.tasks.exit import exit_group

        exit_group(group, signal.SIGKILL)
        return True
    continues = signo == signal.SIGCONT
    if continues:
        _discard(group, STOPS)
    elif mask & STOPS:
        _discard(group, SIGCONT_BIT)
    queued = False
    if not _ignored(task or group.any_task, shared_ignores=_nothing(group, signo), mask=mask):
        pending = task.signals if task is not None else shared
        queued = pending.add(info, group.limits.soft(resource.RLIMIT_SIGPENDING))
    if continues:
        jobs.resume(group)
    if queued:
        shared.queue.notify(POLLIN)
        if task is not None:
            if not task.signals.mask & mask:
                task.kernel.interrupt(task)
        else:
            _choose(group, mask)
    return queued


def _nothing(group: ThreadGroup, signo: int) -> bool:
    shared = group.signals
    if signo == signal.SIGSTOP:
        return False  # from outside: from inside pid 1 is never stopped, and does not get so far
    return shared.ignores(signo) or (shared.unkillable and shared.actions[signo].handler == SIG_DFL)


def _ignored(task: Task | None, shared_ignores: bool, mask: int) -> bool:
    """Blocked signals are never ignored: the action can change until they are unblocked."""
    if not shared_ignores:
        return False
    if task is None:
        return True
    signals = task.signals
    return not (signals.mask | (signals.saved or 0)) & mask


def _discard(group: ThreadGroup, signals: int) -> None:
    group.signals.discard(signals)
    for task in group.tasks.values():
        task.signals.discard(signals)


def _choose(group: ThreadGroup, mask: int) -> None:
    """Have a thread that does not block it deal with a signal of the process: the first thread where it can."""
    chosen: Task | None = None
    first = group.leader
    if first is not None and not first.signals.mask & mask and first.state is not State.ZOMBIE:
        chosen = first
    if chosen is None or chosen.number != -1 and chosen.block is None:
        for task in group.tasks.values():
            if task.signals.mask & mask or task.thread is None:
                continue
            if chosen is None or (task.block is not None or task.number == -1):
                chosen = task
                break
    if chosen is not None:
        chosen.kernel.interrupt(chosen)


def send_signal(target: Task | ThreadGroup, signo: int) -> bool:
    """Send a signal of the kernel's own (``SI_KERNEL``), as :func:`send`."""
    return send(target, SigInfo(signo), force=True)


def send_group(group: ProcessGroup, info: SigInfo, force: bool = False) -> None:
    """Send a signal to all processes of a process group."""
    for member in list(group.members.values()):
        send(member, info, force)


def force_signal(task: Task, info: SigInfo) -> None:
    """A signal that the thread cannot go on without: it kills where it is blocked or ignored. To be called for a thread
    that stands still, and that looks at its signals before it goes on."""
    signals = task.signals
    shared = signals.shared
    mask = bit(info.signo)
    action = shared.actions[info.signo]
    if signals.mask & mask or shared.ignores(info.signo):
        shared.actions[info.signo] = type(action)()
        signals.mask &= ~mask
    if shared.actions[info.signo].handler == SIG_DFL:
        shared.unkillable = False
    signals.add(info, 0)


def permitted(sender: Task, group: ThreadGroup, signo: int) -> bool:
    """Whether the sender may send the signal to the process, kill(2)."""
    if sender.group is group:
        return True
    task = group.any_task
    if task is None:
        return True
    mine, theirs = sender.creds, task.creds
    if mine.euid in (theirs.suid, theirs.uid) or mine.uid in (theirs.suid, theirs.uid):
        return True
    if mine.capable(CAP_KILL):
        return True
    return signo == signal.SIGCONT and sender.group.process_group.session is group.process_group.session


def kill(sender: Task, groups: list[ThreadGroup], info: SigInfo | None, signo: int) -> None:
    """Send a signal to several processes as kill(2) does: it is enough that one gets it.

    Arguments:
        info: None where ``signo`` is 0, and only the permission is asked for.

    Raises SysError: ESRCH when there are none, EPERM when none may be sent to.
    """
    if not groups:
        raise SysError(ESRCH)
    done = False
    for group in groups:
        if permitted(sender, group, signo):
            done = True
            if info is not None:
                send(group, info)
    if not done:
        raise SysError(EPERM)


def set_mask(task: Task, mask: int) -> None:
    """Block these signals and no others. What is blocked now and pending for the process goes to another thread."""
    signals = task.signals
    old = signals.mask
    signals.mask = mask & ~KILL_OR_STOP
    shared = signals.shared
    if shared.bits & mask & ~old:
        retarget(task, shared.bits & mask & ~old)


def retarget(task: Task, signals: int) -> None:
    """Have other threads than this look at these signals, that are pending for the process."""
    for other in list(task.group.tasks.values()):
        if other is not task and signals & ~other.signals.mask:
            signals &= other.signals.mask
            other.kernel.interrupt(other)
            if not signals:
                return


def leaving(task: Task) -> None:
    """A thread ends while its process lives on: its signals are gone, and those of the process are for others."""
    signals = task.signals
    signals.discard((1 << 64) - 1)
    left = signals.shared.bits & ~signals.mask
    if left:
        retarget(task, left)
