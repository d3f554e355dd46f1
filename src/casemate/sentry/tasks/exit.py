"""How tasks and processes end, exit(2) and wait(2)."""

from __future__ import annotations

import contextlib
from signal import SIGCHLD, SIGCONT, SIGHUP, SIGKILL
from typing import TYPE_CHECKING

from casemate.late import Logger
from casemate.sentry.errno import SysError
from casemate.sentry.mm import futex
from casemate.sentry.signals.info import CLD_DUMPED, CLD_EXITED, CLD_KILLED, SI_KERNEL, SI_USER, SigInfo
from casemate.sentry.signals.send import leaving, send, send_group
from casemate.sentry.signals.state import SA_NOCLDWAIT, SIG_IGN
from casemate.sentry.tasks import usage
from casemate.sentry.tasks.attributes import PR_SET_PDEATHSIG
from casemate.sentry.tasks.task import State

if TYPE_CHECKING:
    from casemate.sentry.platform.base import HostThread
    from casemate.sentry.tasks.session import ProcessGroup
    from casemate.sentry.tasks.task import Task, ThreadGroup

WCOREFLAG = 0x80

log = Logger("casemate.sentry")


def exit_task(task: Task, code: int) -> None:
    """End one thread; its process as well where it was the last.

    Arguments:
        code: as wait(2) tells it: ``status << 8``, or the signal that killed it.
    """
    group = task.group
    if task.thread is None:
        return
    if len(group.tasks) == 1:
        exit_group(group, code)
        return
    leaving(task)
    thread = _leave(task, code)
    if thread is not None:
        thread.end()
    # exec and stops wait for threads to be gone.
    group.exit_queue.notify()


def exit_group(group: ThreadGroup, code: int) -> None:
    """End a process with all its threads; ``code`` as of :func:`exit_task`. The first code given counts."""
    if group.zombie or group.exit_code is not None:
        return
    group.exit_code = code
    usage.process_ended(group)
    last: HostThread | None = None
    for task in list(group.tasks.values()):
        last = _leave(task, code) or last
    if last is not None:
        last.kill()
    _ended(group, code)


def host_died(task: Task, status: int) -> None:
    """A host thread died without the kernel's doing: its process ends as if killed by that signal.

    Arguments:
        status: as waitpid(2) gave it for the host's thread.
    """
    exit_group(task.group, status & 0x7F or SIGKILL)


def end_siblings(task: Task) -> None:
    """End all other threads of the task's process, but for their host threads: the caller ends those, execve(2)."""
    for other in list(task.group.tasks.values()):
        if other is not task:
            _leave(other, SIGKILL)


def _leave(task: Task, code: int) -> HostThread | None:
    """Take a task out of everything that knows it. Gives its host thread, which is still to be ended."""
    kernel = task.kernel
    thread = task.thread
    if thread is None:
        return None
    kernel.unpark(task)
    kernel.clock.disarm(task.timer)
    # From here on nobody takes it for alive: what is given back below may send signals and wake others.
    thread.owner = None
    task.thread = None
    task.number = -1
    task.exit_code = code
    task.blocked = {}
    task.state = State.DEAD
    task.group.tasks.pop(task.tid, None)
    if task.leader:
        # Its number, name and credentials are still seen until the process is waited for.
        task.state = State.ZOMBIE
    elif (key := task.group.ns.pid.key(task.tid)) in kernel.tasks and kernel.tasks[key] is task:
        del kernel.tasks[key]
    try:
        release_memory(task)
        task.files.decref(task)
        task.fs.decref()
    except Exception:
        # A defect elsewhere must not keep a task from ending.
        log.exception("%s: could not give everything back", task)
    return thread


def release_memory(task: Task) -> None:
    """The task uses its memory no more: it ended or runs another program. Others that share it are told."""
    mm = task.mm
    with contextlib.suppress(SysError):
        futex.exit_robust(task)
    if task.clear_child_tid and mm.refs > 1:
        with contextlib.suppress(SysError):
            mm.put_u32(task.clear_child_tid, 0)
            futex.wake(mm, task.clear_child_tid, 1)
    task.clear_child_tid = 0
    mm.decref()
    done, task.vfork_done = task.vfork_done, None
    if done is not None:
        done.notify()


def _ended(group: ThreadGroup, code: int) -> None:
    """All tasks of a process are gone: tell its parent, children and session."""
    kernel = group.kernel
    group.zombie = True
    if group.executable is not None:
        group.executable.decref()
        group.executable = None
    group.signals.end()
    if "sysv" in group.ns.ipc.subsystems:
        from casemate.sentry.ipc import sysv

        sysv.exit_group(group)
    pids = group.ns.pid
    if pids.init is group:
        # The end of a PID namespace's first process is the end of all, pid_namespaces(7).
        pids.ended = True
        for other in pids.groups():
            exit_group(other, SIGKILL)
        if group.door is None:
            kernel.running = False
    process_group = group.process_group
    session = process_group.session
    if session.sid == group.pid and session.terminal is not None:
        session.terminal.leader_exited(session)
    _orphan_groups(group)
    _reparent(group)
    group.exit_queue.notify()
    if group.door is not None:
        group.door.ended(code)
    _tell_parent(group)


def first_process(group: ThreadGroup) -> ThreadGroup | None:
    """The first process of the same PID namespace, which gets its orphans and whose end is that of all."""
    return group.ns.pid.init


def _reparent(group: ThreadGroup) -> None:
    """Give a process's children to who collects orphans: the nearest ancestor that asked for it, or pid 1."""
    if not group.children:
        return
    heir = group.parent
    while heir is not None and (heir.zombie or not heir.subreaper):
        heir = heir.parent
    if heir is None:
        first = first_process(group)
        heir = first if first is not None and not first.zombie else None
    children = list(group.children.values())
    group.children.clear()
    for child in children:
        child.parent = heir
        if heir is not None:
            heir.children[child.pid] = child
            # Whoever collects orphans gets the usual signal from them.
            child.exit_signal = SIGCHLD
        if child.zombie:
            _tell_parent(child)
            continue
        for task in list(child.tasks.values()):
            signum = task.prctl.get(PR_SET_PDEATHSIG, 0)
            if signum:
                send(task, SigInfo.user(signum, SI_USER, group.pid, uid(group)))


def _orphan_groups(group: ThreadGroup) -> None:
    """Where the end of a process leaves stopped process groups that nobody could continue: hang them up, setpgid(2)."""
    own = group.process_group
    affected: dict[int, ProcessGroup] = {}
    parent = group.parent
    if parent is not None and parent.process_group is not own and parent.process_group.session is own.session:
        affected[own.pgid] = own
    for child in group.children.values():
        other = child.process_group
        if other is not own and other.session is own.session:
            affected[other.pgid] = other
    for process_group in affected.values():
        if process_group.has_stopped() and process_group.orphaned(without=group):
            send_group(process_group, SigInfo(SIGHUP, SI_KERNEL))
            send_group(process_group, SigInfo(SIGCONT, SI_KERNEL))


def _tell_parent(group: ThreadGroup) -> None:
    """Signal the parent, and forget the process where nobody is going to wait for it."""
    parent = group.parent
    if parent is None:
        reap(group)
        return
    action = parent.signals.actions[SIGCHLD]
    ignored = group.exit_signal == SIGCHLD and (action.handler == SIG_IGN or bool(action.flags & SA_NOCLDWAIT))
    # clone(2) takes any number; one that is no signal tells nothing.
    if 0 < group.exit_signal <= 64 and not (ignored and action.handler == SIG_IGN):
        send(parent, child_info(group, group.exit_signal))
    if ignored:
        reap(group)
    parent.child_wait.notify()


def uid(group: ThreadGroup) -> int:
    """Whose process it is, dead or alive."""
    task = group.ns.pid.task(group.pid) or group.any_task
    return task.creds.uid if task is not None else 0


def child_info(group: ThreadGroup, signum: int = SIGCHLD) -> SigInfo:
    """What a parent is told of a process that has ended, ``SIGCHLD`` of sigaction(2)."""
    code = group.exit_code or 0
    ticks = usage.process_time(group) // usage.TICK_NS
    if code & 0x7F:
        kind = CLD_DUMPED if code & WCOREFLAG else CLD_KILLED
        return SigInfo.child(kind, group.pid, uid(group), code & 0x7F, ticks, signo=signum)
    return SigInfo.child(CLD_EXITED, group.pid, uid(group), code >> 8 & 0xFF, ticks, signo=signum)


def reap(group: ThreadGroup) -> None:
    """A zombie has been waited for: its number is free again."""
    kernel = group.kernel
    parent = group.parent
    if parent is not None:
        usage.waited(parent, group)
        parent.children.pop(group.pid, None)
        group.parent = None
    key = group.ns.pid.key(group.pid)
    if kernel.groups.get(key) is group:
        del kernel.groups[key]
    leader = kernel.tasks.get(key)
    if leader is not None and leader.group is group:
        del kernel.tasks[key]
    group.process_group.remove(group)


