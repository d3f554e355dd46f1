"""Signals: rt_sigaction(2), rt_sigprocmask(2), kill(2), sigaltstack(2) and what else belongs to them."""

from __future__ import annotations

import resource
import struct
from errno import EAGAIN, EINTR, EINVAL, EPERM, ESRCH

from casemate.sentry.abi import s32, u32
from casemate.sentry.errno import SysError
from casemate.sentry.signals import deliver, frame
from casemate.sentry.signals.info import SI_TKILL, SI_USER, SIZE, SigInfo
from casemate.sentry.signals.send import kill as kill_groups
from casemate.sentry.signals.send import permitted, send, set_mask
from casemate.sentry.signals.state import (
    KILL_OR_STOP,
    NSIG,
    SA_EXPOSE_TAGBITS,
    SA_NOCLDSTOP,
    SA_NOCLDWAIT,
    SA_NODEFER,
    SA_ONSTACK,
    SA_RESETHAND,
    SA_RESTART,
    SA_RESTORER,
    SA_SIGINFO,
    SIGRTMIN,
    Action,
    Pending,
    TemporaryMask,
    bit,
)
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.tasks import session
from casemate.sentry.tasks.exit import first_process
from casemate.sentry.tasks.task import Task, ThreadGroup
from casemate.sentry.wait import Block, Restart

FLAGS = (
    SA_NOCLDSTOP
    | SA_NOCLDWAIT
    | SA_SIGINFO
    | SA_EXPOSE_TAGBITS
    | SA_RESTORER
    | SA_ONSTACK
    | SA_RESTART
    | SA_NODEFER
    | SA_RESETHAND
)
"""What sigaction(2) keeps of ``sa_flags``; unknown ones read back as zero."""
SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK = 0, 1, 2
_ACTION = struct.Struct("<QQQQ")
_STACK = struct.Struct("<Qi4xQ")


def check_size(size: int) -> None:
    """``sigsetsize`` of the rt_sig* calls. Raises SysError(EINVAL) for all but 8."""
    if size != 8:
        raise SysError(EINVAL)


def read_mask(task: Task, address: int, size: int) -> int | None:
    """The mask that p* calls (ppoll(2), …) have as an argument; None where the address is zero. Raises SysError."""
    if not address:
        return None
    check_size(size)
    return task.mem.u64(address)


def _number(word: int, lowest: int = 1) -> int:
    signo = s32(word)
    if not lowest <= signo <= NSIG:
        raise SysError(EINVAL)
    return signo


# Actions, masks and stacks.


@syscall("rt_sigaction")
def rt_sigaction(task: Task, signum: int, act: int, oldact: int, size: int) -> int:
    """sigaction(2)."""
    check_size(size)
    signo = _number(signum)
    actions = task.group.signals.actions
    old = actions[signo]
    if act:
        handler, flags, restorer, mask = _ACTION.unpack(task.mem.read(act, _ACTION.size))
        if bit(signo) & KILL_OR_STOP:
            raise SysError(EINVAL)
        actions[signo] = Action(handler, flags & FLAGS, restorer, mask & ~KILL_OR_STOP)
        if task.group.signals.ignores(signo):
            # Even what is blocked is gone then, POSIX 2.4.3.
            task.group.signals.discard(bit(signo))
            for thread in task.group.tasks.values():
                thread.signals.discard(bit(signo))
    if oldact:
        task.mem.write(oldact, _ACTION.pack(old.handler, old.flags, old.restorer, old.mask))
    return 0


@syscall("rt_sigprocmask")
def rt_sigprocmask(task: Task, how: int, address: int, oldset: int, size: int) -> int:
    """sigprocmask(2)."""
    check_size(size)
    old = task.signals.mask
    if address:
        change = task.mem.u64(address)
        way = s32(how)
        if way == SIG_BLOCK:
            new = old | change
        elif way == SIG_UNBLOCK:
            new = old & ~change
        elif way == SIG_SETMASK:
            new = change
        else:
            raise SysError(EINVAL)
        if new != old:
            set_mask(task, new)
    if oldset:
        task.mem.put_u64(oldset, old)
    return 0


@syscall("rt_sigpending")
def rt_sigpending(task: Task, address: int, size: int) -> int:
    """sigpending(2)."""
    if size > 8:
        raise SysError(EINVAL)
    found = (task.signals.bits | task.group.signals.bits) & task.signals.mask
    task.mem.write(address, found.to_bytes(8, "little")[:size])
    return 0


@syscall("sigaltstack")
def sigaltstack(task: Task, new: int, old: int) -> int:
    """sigaltstack(2)."""
    thread = task.thread
    assert thread is not None
    stack = task.signals.altstack
    before = _STACK.pack(stack.sp, s32(stack.status(thread.regs.rsp)), stack.size)
    if new:
        sp, flags, size = _STACK.unpack(task.mem.read(new, _STACK.size))
        frame.set_altstack(task, sp, u32(flags), size)
    if old:
        task.mem.write(old, before)
    return 0


@syscall("rt_sigreturn")
def rt_sigreturn(task: Task) -> int:
    """sigreturn(2): a handler has returned."""
    try:
        frame.pop(task)
    except SysError:
        deliver.segv(task)
    task.kernel.leave(task)
    return 0


# Sending.


def _mine(task: Task, signo: int, code: int) -> SigInfo:
    return SigInfo.user(signo, code, task.group.pid, task.creds.uid)


@syscall("kill")
def kill(task: Task, pid: int, sig: int) -> int:
    """kill(2)."""
    signo = _number(sig, 0)
    number = s32(pid)
    info = _mine(task, signo, SI_USER) if signo else None
    groups: list[ThreadGroup]
    if number > 0:
        group = _process(task, number)
        groups = [] if group is None else [group]
    elif number == -1:
        but = (task.group, first_process(task.group))
        groups = [group for group in task.group.ns.pid.groups() if group not in but]
    else:
        if number == -0x8000_0000:
            raise SysError(ESRCH)
        members = task.group.process_group if number == 0 else session.find(task.group.ns.pid, -number)
        groups = [] if members is None else list(members.members.values())
    kill_groups(task, groups, info, signo)
    return 0


def _process(task: Task, number: int) -> ThreadGroup | None:
    """The process of that number, or of a thread of that number; None where there is none."""
    pids = task.group.ns.pid
    other = pids.task(number)
    return pids.group(number) if other is None else other.group


def _to_thread(task: Task, tgid: int | None, tid: int, signo: int, info: SigInfo) -> int:
    """Send to one thread; ``tgid`` None for any process. Raises SysError(ESRCH)."""
    group = _process(task, tid)
    if group is None or (tgid is not None and group.pid != tgid):
        raise SysError(ESRCH)
    if not permitted(task, group, signo):
        raise SysError(EPERM)
    other = task.group.ns.pid.task(tid)
    if signo and other is not None:
        _room(other.signals, other.group, info)
        send(other, info)
    return 0


def _room(pending: Pending, group: ThreadGroup, info: SigInfo) -> None:
    """Real-time signals are never lost silently. Raises SysError(EAGAIN) when too many are queued."""
    if info.signo < SIGRTMIN or info.code == SI_USER or not pending.bits & bit(info.signo):
        return
    if pending.count() >= group.limits.soft(resource.RLIMIT_SIGPENDING):
        raise SysError(EAGAIN)


@syscall("tkill")
def tkill(task: Task, tid: int, sig: int) -> int:
    """tkill(2)."""
    signo = _number(sig, 0)
    if s32(tid) <= 0:
        raise SysError(EINVAL)
    return _to_thread(task, None, s32(tid), signo, _mine(task, signo, SI_TKILL))


@syscall("tgkill")
def tgkill(task: Task, tgid: int, tid: int, sig: int) -> int:
    """tgkill(2)."""
    signo = _number(sig, 0)
    if s32(tid) <= 0 or s32(tgid) <= 0:
        raise SysError(EINVAL)
    return _to_thread(task, s32(tgid), s32(tid), signo, _mine(task, signo, SI_TKILL))


def _told(task: Task, pid: int, signo: int, address: int) -> SigInfo:
    """The information that the sender made itself. Nobody may pretend to be the kernel, or kill(2), to others."""
    info = SigInfo.parse(task.mem.read(address, SIZE))
    info.signo = signo
    if (info.code >= 0 or info.code == SI_TKILL) and pid != task.group.pid:
        raise SysError(EPERM)
    return info


@syscall("rt_sigqueueinfo")
def rt_sigqueueinfo(task: Task, pid: int, sig: int, address: int) -> int:
    """rt_sigqueueinfo(2)."""
    number = s32(pid)
    info = _told(task, number, s32(sig), address)
    signo = _number(sig, 0)
    group = _process(task, number)
    if group is None:
        raise SysError(ESRCH)
    if not permitted(task, group, signo):
        raise SysError(EPERM)
    if signo:
        _room(group.signals, group, info)
        send(group, info)
    return 0


@syscall("rt_tgsigqueueinfo")
def rt_tgsigqueueinfo(task: Task, tgid: int, tid: int, sig: int, address: int) -> int:
    """rt_tgsigqueueinfo(2)."""
    if s32(tid) <= 0 or s32(tgid) <= 0:
        raise SysError(EINVAL)
    info = _told(task, s32(tid), s32(sig), address)
    signo = _number(sig, 0)
    return _to_thread(task, s32(tgid), s32(tid), signo, info)


# Waiting.


@syscall("pause")
def pause(task: Task) -> int:
    """pause(2)."""
    raise Block(restart=Restart.NOHAND)


@syscall("rt_sigsuspend")
def rt_sigsuspend(task: Task, address: int, size: int) -> int:
    """sigsuspend(2)."""
    check_size(size)
    with TemporaryMask(task, task.mem.u64(address)):
        raise Block(restart=Restart.NOHAND)


@syscall("rt_sigtimedwait")
def rt_sigtimedwait(task: Task, address: int, info: int, timeout: int, size: int) -> int:
    """sigtimedwait(2), sigwaitinfo(2)."""
    check_size(size)
    notes = task.blocked
    if "set" not in notes:
        notes["set"] = task.mem.u64(address) & ~KILL_OR_STOP
        notes["deadline"] = task.kernel.clock.monotonic() + task.mem.timespec(timeout) if timeout else None
    wanted: int = notes["set"]
    signals = task.signals
    # While it waits the signals count as blocked: it takes them itself, and none that would be ignored is dropped.
    with TemporaryMask(task, (signals.mask if signals.saved is None else signals.saved) | wanted):
        found = signals.take(wanted) or signals.shared.take(wanted)
        if found is None:
            deadline = notes["deadline"]
            if deadline is not None and (task.timed_out or deadline <= task.kernel.clock.monotonic()):
                raise SysError(EAGAIN)
            raise Block(signals.shared.queue, deadline=deadline, restart=Restart.NOHAND)
    if info:
        task.mem.write(info, found.pack())
    return found.signo


@syscall("restart_syscall")
def restart_syscall(task: Task) -> int:
    """restart_syscall(2): calls go on by being made again, so there is never one to go on with."""
    raise SysError(EINTR)


@syscall("ptrace", Support.NONE, "no process can trace another one")
def ptrace(task: Task) -> int:
    """ptrace(2)."""
    raise SysError(EPERM)
