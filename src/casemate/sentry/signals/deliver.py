"""Delivering signals: what happens when a thread that has some is about to run application code, or waits in a call."""

from __future__ import annotations

import resource
import signal
from errno import EINTR

from casemate.sentry.errno import SysError
from casemate.sentry.signals import frame, jobs
from casemate.sentry.signals.info import (
    BUS_ADRALN,
    FPE_INTDIV,
    SEGV_ACCERR,
    SEGV_MAPERR,
    SI_KERNEL,
    TRAP_TRACE,
    SigInfo,
)
from casemate.sentry.signals.send import force_signal, set_mask
from casemate.sentry.signals.state import (
    DEFAULT,
    SA_NODEFER,
    SA_RESETHAND,
    SA_RESTART,
    SIG_DFL,
    SIG_IGN,
    STOPS,
    SYNCHRONOUS,
    Action,
    bit,
)
from casemate.sentry.tasks.task import State, Task
from casemate.sentry.wait import Block, Restart

SYSCALL_SIZE = 2
"""Bytes of the ``syscall`` instruction: a call is made again by going back so far."""
PF_PROTECTION, PF_WRITE, PF_USER = 1, 2, 4
"""The error code of page faults."""
TRAP_DIVIDE, TRAP_DEBUG, TRAP_BREAKPOINT, TRAP_OPCODE, TRAP_PROTECTION, TRAP_PAGE, TRAP_X87, TRAP_ALIGN = (
    0,
    1,
    3,
    6,
    13,
    14,
    16,
    17,
)


def pending(task: Task) -> bool:
    """Whether the task has to look at signals before it goes on."""
    signals = task.signals
    shared = signals.shared
    return bool((signals.bits | shared.bits) & ~signals.mask or shared.stopped)


def killed(task: Task) -> bool:
    """Whether a signal is there that ends the process."""
    return bool(_fatal(task))


def _fatal(task: Task) -> int:
    signals = task.signals
    shared = signals.shared
    found = (signals.bits | shared.bits) & ~signals.mask & ~STOPS
    while found:
        lowest = found & -found
        found ^= lowest
        signo = lowest.bit_length()
        if shared.actions[signo].handler == SIG_DFL and not shared.ignores(signo) and not shared.unkillable:
            return signo
    return 0


def _next(task: Task) -> tuple[SigInfo, Action] | None:
    """The next signal that has a handler. Those that do nothing are dropped on the way, and default actions are done.
    None when there is none, and when the task has stopped or ended."""
    signals = task.signals
    shared = signals.shared
    group = task.group
    while task.thread is not None and group.exit_code is None:
        if shared.stopped:
            task.state = State.STOPPED
            return None
        allowed = ~signals.mask
        info = signals.take(SYNCHRONOUS & allowed) or signals.take(allowed) or shared.take(allowed)
        if info is None:
            return None
        signo = info.signo
        action = shared.actions[signo]
        if action.handler == SIG_IGN:
            continue
        if action.handler != SIG_DFL:
            if action.flags & SA_RESETHAND:
                shared.actions[signo] = Action(SIG_DFL, action.flags, action.restorer, action.mask)
            return info, action
        if shared.ignores(signo) or (shared.unkillable and signo != signal.SIGSTOP):
            continue
        if bit(signo) & STOPS:
            if signo != signal.SIGSTOP and group.process_group.orphaned():
                continue
            jobs.stop(group, signo, task)
            continue
        from casemate.sentry.tasks.exit import exit_group

        exit_group(group, signo)
    return None


def deliver(task: Task) -> bool:
    """Deal with all signals of a task that stands still, in no call. Returns false when it has ended, or is stopped."""
    while True:
        found = _next(task)
        if found is None:
            return task.thread is not None and task.group.exit_code is None and task.state is not State.STOPPED
        _handle(task, *found)


def interrupted(task: Task, block: Block) -> bool:
    """A call that waits, or would, has signals to deal with first.

    Returns whether the call is over: a handler is to run (its result, or making it again, has been prepared), or the
    task has ended. False when the call goes on waiting, or the task is stopped within it.
    """
    if block.restart is Restart.KILL:
        from casemate.sentry.tasks.exit import exit_group

        exit_group(task.group, _fatal(task))
        return True
    found = _next(task)
    thread = task.thread
    if thread is None or task.group.exit_code is not None:
        return True
    if found is None:
        return False
    action = found[1]
    hook = task.blocked.get("eintr")
    result = block.partial or (hook(task) if hook is not None else None)
    if result is not None:
        thread.finish(result)
    elif block.restart is Restart.NOINTR or (block.restart is Restart.SYS and action.flags & SA_RESTART):
        thread.finish(task.number)
        thread.regs.rip -= SYSCALL_SIZE
    else:
        thread.finish(-EINTR)
    task.number = -1
    _handle(task, *found)
    return True


def _handle(task: Task, info: SigInfo, action: Action) -> None:
    """Have the handler run."""
    signals = task.signals
    # A call that put another mask in place is interrupted by the signal: the handler comes back to the mask before.
    back = signals.mask if signals.saved is None else signals.saved
    try:
        frame.push(task, info, action, back)
    except SysError:
        segv(task, info.signo)
        return
    signals.saved = None
    mask = signals.mask | action.mask
    if not action.flags & SA_NODEFER:
        mask |= bit(info.signo)
    if mask != signals.mask:
        set_mask(task, mask)


def segv(task: Task, signo: int = 0) -> None:
    """There is no stack for a signal's handler, or none to come back from: the thread gets SIGSEGV.

    Arguments:
        signo: the signal whose handler was to run; when it is SIGSEGV itself, there is no use in trying again.
    """
    if signo == signal.SIGSEGV:
        task.signals.shared.actions[signo] = DEFAULT
    force_signal(task, SigInfo(signal.SIGSEGV, SI_KERNEL))


def fault(task: Task, signum: int, info: bytes) -> None:
    """The processor raised an exception in the task's code, that stands still: it gets the signal, blocked or not.
    Unless it was a touch below a stack that may grow: then that grows, and the task goes on.

    Arguments:
        info: the host's ``siginfo_t``.
    """
    told = SigInfo.parse(info)
    if signum == signal.SIGSEGV and told.code == SEGV_MAPERR and task.thread is not None:
        limit = task.group.limits.soft(resource.RLIMIT_STACK)
        if task.mm.grow(task.thread, told.address, limit):
            return
    told.signo = signum
    task.signals.trap = _trap(task, told)
    force_signal(task, told)


def _trap(task: Task, info: SigInfo) -> tuple[int, int, int]:
    """The trap's number, error code and cr2, as far as the host's ``siginfo_t`` lets conclude."""
    signo, code = info.signo, info.code
    number, error, address = TRAP_PAGE, 0, task.signals.trap[2]
    if signo in (signal.SIGSEGV, signal.SIGBUS):
        if code == SI_KERNEL:
            number = TRAP_PROTECTION
        elif signo == signal.SIGBUS and code == BUS_ADRALN:
            number = TRAP_ALIGN
        else:
            address = info.address
            error = PF_USER
            if signo == signal.SIGSEGV and code == SEGV_ACCERR:
                error |= PF_PROTECTION
                if task.mem.readable(address, 1):
                    error |= PF_WRITE
    elif signo == signal.SIGFPE:
        number = TRAP_DIVIDE if code == FPE_INTDIV else TRAP_X87
    elif signo == signal.SIGILL:
        number = TRAP_OPCODE
    elif signo == signal.SIGTRAP:
        number = TRAP_DEBUG if code == TRAP_TRACE else TRAP_BREAKPOINT
    return number, error, address
