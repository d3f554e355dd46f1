"""The application's own filters on its system calls, seccomp(2)."""

from __future__ import annotations

import struct
from errno import EACCES, EINVAL, ENOMEM, ENOSYS, ESRCH
from signal import SIGKILL, SIGSYS
from typing import TYPE_CHECKING, Protocol

from casemate.sentry.creds import CAP_SYS_ADMIN
from casemate.sentry.errno import SysError
from casemate.sentry.signals.info import SigInfo
from casemate.sentry.signals.send import force_signal
from casemate.sentry.syscalls.numbers import NUMBERS
from casemate.sentry.tasks import bpf
from casemate.sentry.tasks import exit as exits

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SECCOMP_MODE_DISABLED, SECCOMP_MODE_STRICT, SECCOMP_MODE_FILTER = 0, 1, 2
SECCOMP_FILTER_FLAG_TSYNC, SECCOMP_FILTER_FLAG_LOG, SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1, 2, 4
SECCOMP_FILTER_FLAG_TSYNC_ESRCH = 16
SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD, SECCOMP_RET_TRAP = 0x80000000, 0x00000000, 0x00030000
SECCOMP_RET_ERRNO, SECCOMP_RET_USER_NOTIF, SECCOMP_RET_TRACE = 0x00050000, 0x7FC00000, 0x7FF00000
SECCOMP_RET_LOG, SECCOMP_RET_ALLOW = 0x7FFC0000, 0x7FFF0000
SECCOMP_RET_ACTION_FULL, SECCOMP_RET_DATA = 0xFFFF0000, 0x0000FFFF
AUDIT_ARCH_X86_64 = 0xC000003E
MAX_ERRNO = 4095
MAX_INSNS_PER_PATH = (1 << 18) // 8

_STRICT = frozenset(NUMBERS[name] for name in ("read", "write", "exit", "rt_sigreturn"))
_DATA = struct.Struct("<IIQ6Q")
_WORDS = struct.Struct("<16I")


class Program(Protocol):
    """What a filter is made of."""

    def __len__(self) -> int:
        """Its instructions."""

    def run(self, words: tuple[int, ...], /) -> tuple[int, bool]:
        """What it says of a call (``struct seccomp_data`` as 16 words), and whether it has looked at more than the
        call's number."""


class Filter:
    """One filter, which tasks may share. What it says of calls by their number alone is kept."""

    __slots__ = ("known", "program")

    def __init__(self, program: Program | None) -> None:
        self.program = program
        """None for strict mode."""
        self.known: dict[int, int] = {}


STRICT = Filter(None)


def mode(task: Task) -> int:
    """``PR_GET_SECCOMP``."""
    if not task.seccomp:
        return SECCOMP_MODE_DISABLED
    return SECCOMP_MODE_STRICT if task.seccomp[0] is STRICT else SECCOMP_MODE_FILTER


def set_strict(task: Task) -> int:
    """``SECCOMP_SET_MODE_STRICT``. Raises SysError(EINVAL) where there are filters already."""
    if mode(task) == SECCOMP_MODE_FILTER:
        raise SysError(EINVAL)
    task.mm.settle_heap()
    task.seccomp = [STRICT]
    return 0


def add(task: Task, flags: int, address: int) -> int:
    """``SECCOMP_SET_MODE_FILTER``: one more filter.

    Arguments:
        flags: ``SECCOMP_FILTER_FLAG_*``; listeners (``NEW_LISTENER``) are not there.
        address: of the ``struct sock_fprog``.

    Returns 0, or with ``TSYNC`` the number of a thread that cannot be brought along.

    Raises:
        SysError: EACCES without the right to, EINVAL for bad programs and flags, EFAULT, ENOMEM.
    """
    known = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG | SECCOMP_FILTER_FLAG_SPEC_ALLOW
    if flags & ~(known | SECCOMP_FILTER_FLAG_TSYNC_ESRCH):
        raise SysError(EINVAL)
    if mode(task) == SECCOMP_MODE_STRICT:
        raise SysError(EINVAL)
    count, pointer = struct.unpack("<H6xQ", task.mem.read(address, 16))
    if not 0 < count <= bpf.BPF_MAXINSNS:
        raise SysError(EINVAL)
    if not task.no_new_privs and not task.creds.capable(CAP_SYS_ADMIN):
        raise SysError(EACCES)
    program = bpf.Program(task.mem.read(pointer, count * 8))
    if sum(len(item.program) + 4 for item in task.seccomp) + len(program) > MAX_INSNS_PER_PATH:
        raise SysError(ENOMEM)
    chain = [*task.seccomp, Filter(program)]
    if flags & SECCOMP_FILTER_FLAG_TSYNC:
        others = [other for other in task.group.tasks.values() if other is not task]
        for other in others:
            if other.seccomp != task.seccomp[: len(other.seccomp)]:
                if flags & SECCOMP_FILTER_FLAG_TSYNC_ESRCH:
                    raise SysError(ESRCH)
                return other.tid
        for other in others:
            other.mm.settle_heap()
            other.seccomp = chain
            other.no_new_privs = other.no_new_privs or task.no_new_privs
    task.mm.settle_heap()
    task.seccomp = chain
    return 0


def evaluate(task: Task, number: int, args: tuple[int, ...]) -> int | None:
    """What the task's filters say of a call.

    Returns None where it is to be made, else its result (a negative errno, or the call's number where a signal says the
    rest). The task may have ended afterwards.
    """
    verdict = SECCOMP_RET_ALLOW
    words: tuple[int, ...] | None = None
    assert task.thread is not None
    for item in reversed(task.seccomp):
        if item.program is None:
            if number not in _STRICT:
                exits.exit_task(task, SIGKILL)
                return -ENOSYS
            continue
        said = item.known.get(number)
        if said is None:
            if words is None:
                packed = _DATA.pack(number & 0xFFFF_FFFF, AUDIT_ARCH_X86_64, task.thread.regs.rip, *args)
                words = _WORDS.unpack(packed)
            said, looked = item.program.run(words)
            if not looked:
                item.known[number] = said
        # The lowest action counts, as signed numbers; of equal ones the newest filter's.
        if _signed(said & SECCOMP_RET_ACTION_FULL) < _signed(verdict & SECCOMP_RET_ACTION_FULL):
            verdict = said
    return None if verdict == SECCOMP_RET_ALLOW else _act(task, number, verdict)


def _signed(action: int) -> int:
    return action - (1 << 32) if action & 0x8000_0000 else action


def _act(task: Task, number: int, verdict: int) -> int | None:
    action, data = verdict & SECCOMP_RET_ACTION_FULL, verdict & SECCOMP_RET_DATA
    if action in (SECCOMP_RET_ALLOW, SECCOMP_RET_LOG):
        return None
    if action == SECCOMP_RET_ERRNO:
        return -min(data, MAX_ERRNO)
    if action == SECCOMP_RET_TRAP:
        assert task.thread is not None
        force_signal(task, SigInfo.sys(task.thread.regs.rip, number, AUDIT_ARCH_X86_64, data))
        return number
    if action in (SECCOMP_RET_TRACE, SECCOMP_RET_USER_NOTIF):
        return -ENOSYS
    if action == SECCOMP_RET_KILL_THREAD and len(task.group.tasks) > 1:
        exits.exit_task(task, SIGSYS)
    else:
        exits.exit_group(task.group, SIGSYS)
    return -ENOSYS
