"""The state of signals: masks, queues, actions and alternate stacks, signal(7), sigaction(2), sigaltstack(2).

Sets of signals are integers with the bits of ``sigset_t``: signal N is bit N - 1.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from casemate.sentry.signals.info import SI_USER, SigInfo
from casemate.sentry.wait import Block, WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

NSIG = 64
ALL = (1 << NSIG) - 1
SIGRTMIN = 32

SIG_DFL, SIG_IGN = 0, 1
SA_NOCLDSTOP, SA_NOCLDWAIT, SA_SIGINFO, SA_UNSUPPORTED, SA_EXPOSE_TAGBITS = 0x1, 0x2, 0x4, 0x400, 0x800
SA_RESTORER, SA_ONSTACK, SA_RESTART, SA_NODEFER = 0x04000000, 0x08000000, 0x10000000, 0x40000000
SA_RESETHAND = 0x80000000
SS_ONSTACK, SS_DISABLE, SS_AUTODISARM = 1, 2, 0x80000000


def bit(signo: int) -> int:
    """The set of this one signal."""
    return 1 << (signo - 1)


def bits(*signals: int) -> int:
    """The set of these signals."""
    result = 0
    for signo in signals:
        result |= 1 << (signo - 1)
    return result


KILL_OR_STOP = bits(signal.SIGKILL, signal.SIGSTOP)
"""What nobody can block, catch or ignore."""
STOPS = bits(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""Whose default action stops the process."""
IGNORED = bits(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)
"""Whose default action is nothing."""
CORES = bits(
    signal.SIGQUIT,
    signal.SIGILL,
    signal.SIGTRAP,
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGSEGV,
    signal.SIGXCPU,
    signal.SIGXFSZ,
    signal.SIGSYS,
)
"""Whose default action is to dump core."""
SYNCHRONOUS = bits(
    signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP, signal.SIGFPE, signal.SIGSYS
)
"""What the thread's own instructions cause: taken before all others."""


class Action:
    """What a process does about one signal, ``struct sigaction`` as the kernel has it. Never changed in place."""

    __slots__ = ("flags", "handler", "mask", "restorer")

    def __init__(self, handler: int = SIG_DFL, flags: int = 0, restorer: int = 0, mask: int = 0) -> None:
        self.handler = handler
        self.flags = flags
        self.restorer = restorer
        self.mask = mask


DEFAULT = Action()


class Pending:
    """Signals that have been sent and wait to be taken."""

    __slots__ = ("bits", "queues")

    def __init__(self) -> None:
        self.bits = 0
        self.queues: dict[int, deque[SigInfo]] = {}

    def add(self, info: SigInfo, limit: int) -> bool:
        """Queue one. Ordinary signals that are pending already are not queued a second time.

        Arguments:
            limit: of the signals queued here, ``RLIMIT_SIGPENDING``; a signal beyond it is pending, but tells nothing.

        Returns whether it was queued with all that it tells.
        """
        number = info.signo
        mask = 1 << (number - 1)
        if self.bits & mask:
            if number < SIGRTMIN:
                return False
            if self.count() >= limit:
                return False
        self.bits |= mask
        queue = self.queues.get(number)
        if queue is None:
            self.queues[number] = deque((info,))
        else:
            queue.append(info)
        return True

    def count(self) -> int:
        """How many signals are queued."""
        return sum(map(len, self.queues.values()))

    def take(self, allowed: int) -> SigInfo | None:
        """The next signal of the set, out of the queue: synchronous ones first, then the lowest; None without any."""
        found = self.bits & allowed
        if not found:
            return None
        found = found & SYNCHRONOUS or found
        lowest = found & -found
        number = lowest.bit_length()
        queue = self.queues.get(number)
        info = queue.popleft() if queue else SigInfo(number, SI_USER)
        if not queue:
            self.queues.pop(number, None)
            self.bits &= ~lowest
        if info.source is not None:
            info.source.taken(info)
        return info

    def discard(self, signals: int) -> None:
        """Forget the signals of the set."""
        found = self.bits & signals
        self.bits &= ~signals
        while found:
            lowest = found & -found
            found ^= lowest
            for info in self.queues.pop(lowest.bit_length(), ()):
                if info.source is not None:
                    info.source.dropped(info)


class AltStack:
    """An alternate signal stack, sigaltstack(2)."""

    __slots__ = ("flags", "size", "sp")

    def __init__(self, sp: int = 0, size: int = 0, flags: int = 0) -> None:
        self.sp = sp
        self.size = size
        self.flags = flags
        """``SS_AUTODISARM`` or nothing."""

    def holds(self, sp: int) -> bool:
        """Whether a stack pointer is within it."""
        return self.size > 0 and self.sp < sp <= self.sp + self.size

    def in_use(self, sp: int) -> bool:
        """Whether the thread runs on it: never so for one that is disarmed while handlers run."""
        return not self.flags & SS_AUTODISARM and self.holds(sp)

    def status(self, sp: int) -> int:
        """``ss_flags`` as sigaltstack(2) tells."""
        if not self.size:
            return SS_DISABLE
        return (SS_ONSTACK if self.in_use(sp) else 0) | self.flags


NO_STACK = AltStack()


class GroupSignals(Pending):
    """What the threads of a process share, and the process's state of job control.

    Arguments:
        actions: of the 64 signals (index 0 is unused); a list that clone(2) with ``CLONE_SIGHAND`` shares.
    """

    __slots__ = (
        "actions",
        "itimers",
        "queue",
        "stopped",
        "tell_continue",
        "tell_stop",
        "timers",
        "unkillable",
    )

    def __init__(self, actions: list[Action] | None = None) -> None:
        super().__init__()
        self.actions = actions if actions is not None else [DEFAULT] * (NSIG + 1)
        self.queue = WaitQueue()
        """Notified whenever a signal comes to the process or one of its threads, blocked or not: signalfd(2),
        sigwaitinfo(2)."""
        self.stopped = 0
        """The signal that stopped the process, while it is stopped."""
        self.tell_stop = 0
        """The signal of a stop that no wait(2) has told yet. Who tells of it (without WNOWAIT) sets it to 0."""
        self.tell_continue = False
        """A continuing that no wait(2) has told yet; likewise."""
        self.unkillable = False
        """Signals from inside the sandbox do nothing unless there is a handler: for pid 1, pid_namespaces(7)."""
        self.itimers: Any = None
        """The three timers of setitimer(2) (:class:`casemate.sentry.timers.itimer.Itimers`), once any was set."""
        self.timers: Any = None
        """Those of timer_create(2) (:class:`casemate.sentry.timers.posix.Timers`), once any was made."""

    def fork(self, share_actions: bool = False) -> GroupSignals:
        """For a new process: the same actions, nothing pending, no timers.

        Arguments:
            share_actions: changes in one show in the other, ``CLONE_SIGHAND``.
        """
        return GroupSignals(self.actions if share_actions else self.actions.copy())

    def exec(self) -> None:
        """execve(2): handlers become the default, ignored signals stay so, timers of timer_create(2) are deleted."""
        self.actions = [DEFAULT if action.handler != SIG_IGN else Action(SIG_IGN) for action in self.actions]
        if self.timers is not None:
            self.timers.close()
            self.timers = None

    def end(self) -> None:
        """The process ends: its timers stop, nothing is pending any more."""
        if self.timers is not None:
            self.timers.close()
            self.timers = None
        if self.itimers is not None:
            self.itimers.close()
            self.itimers = None
        self.discard(ALL)
        self.stopped = 0

    def ignores(self, signo: int) -> bool:
        """Whether the signal does nothing: ignored, or by default."""
        handler = self.actions[signo].handler
        return handler == SIG_IGN or (handler == SIG_DFL and bool(IGNORED >> (signo - 1) & 1))

    def ignored(self) -> int:
        """The set of signals that are ignored by ``SIG_IGN`` (``SigIgn`` of proc_pid_status(5))."""
        return sum(1 << (n - 1) for n in range(1, NSIG + 1) if self.actions[n].handler == SIG_IGN)

    def caught(self) -> int:
        """The set of signals with a handler (``SigCgt`` of proc_pid_status(5))."""
        return sum(1 << (n - 1) for n in range(1, NSIG + 1) if self.actions[n].handler > SIG_IGN)


class TaskSignals(Pending):
    """What each thread has of its own.

    Arguments:
        shared: its process's.
        mask: the blocked signals.
    """

    __slots__ = ("altstack", "mask", "saved", "shared", "trap", "xstate_size")

    def __init__(self, shared: GroupSignals, mask: int = 0) -> None:
        super().__init__()
        self.shared = shared
        self.mask = mask
        """Blocked signals, never ``SIGKILL`` or ``SIGSTOP``; set_mask() of signals.send changes it."""
        self.saved: int | None = None
        """The mask to come back to, while a call has put another one in its place; see :class:`TemporaryMask`."""
        self.altstack = NO_STACK
        self.trap = (0, 0, 0)
        """Trap number, error code and cr2 of the last fault, as signal frames show them."""
        self.xstate_size = 0
        """Bytes of the processor's extended state, once a frame was made."""

    def clone(self, shared: GroupSignals, keep_altstack: bool) -> TaskSignals:
        """For a new thread or process: the same mask, nothing pending.

        Arguments:
            shared: of the process that it belongs to.
            keep_altstack: false for threads, that have another stack (``CLONE_VM`` without ``CLONE_VFORK``).
        """
        new = TaskSignals(shared, self.mask if self.saved is None else self.saved)
        if keep_altstack:
            new.altstack = self.altstack
        return new

    def exec(self) -> None:
        """execve(2): the mask and what is pending stay, the alternate stack is gone."""
        self.altstack = NO_STACK
        self.trap = (0, 0, 0)


class TemporaryMask:
    """Another mask for the time of one call (ppoll(2), sigsuspend(2), …), to be used with ``with`` by the handler::

        with TemporaryMask(task, mask):
            ...

    The mask stays while the call waits (the handler leaves by ``Block``), also while a signal's handler is being
    prepared: that one gets the old mask to come back to. When the call ends otherwise, the old mask is back.

    Arguments:
        mask: None for no change.
    """

    __slots__ = ("_mask", "_task")

    def __init__(self, task: Task, mask: int | None) -> None:
        self._task = task
        self._mask = mask

    def __enter__(self) -> None:
        if self._mask is not None:
            signals = self._task.signals
            if signals.saved is None:
                signals.saved = signals.mask
            signals.mask = self._mask & ~KILL_OR_STOP

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._mask is not None and (kind is None or not issubclass(kind, Block)):
            signals = self._task.signals
            if signals.saved is not None:
                signals.mask = signals.saved
                signals.saved = None


Interrupted = Callable[["Task"], int]
"""What a waiting call may put into ``task.blocked["eintr"]``: called when a signal's handler ends the call, its result
is the call's in place of ``-EINTR`` (negative for an errno). For what was done so far, or for storing the time left."""
