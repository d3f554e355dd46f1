"""Attributes of tasks and processes, prctl(2)."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENAMETOOLONG, ENODEV, ENXIO, EPERM
from typing import TYPE_CHECKING

from casemate.sentry import creds as cr
from casemate.sentry.abi import s32
from casemate.sentry.errno import SysError
from casemate.sentry.mm import remap
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.tasks import filters

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE = 1, 2, 3, 4
PR_GET_KEEPCAPS, PR_SET_KEEPCAPS, PR_GET_TIMING, PR_SET_TIMING = 7, 8, 13, 14
PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_SET_SECCOMP = 15, 16, 21, 22
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_GET_TSC, PR_SET_TSC = 23, 24, 25, 26
PR_GET_SECUREBITS, PR_SET_SECUREBITS, PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 27, 28, 29, 30
PR_MCE_KILL, PR_MCE_KILL_GET, PR_SET_MM = 33, 34, 35
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 36, 37, 38, 39
PR_GET_TID_ADDRESS, PR_SET_THP_DISABLE, PR_GET_THP_DISABLE, PR_CAP_AMBIENT = 40, 41, 42, 47
PR_GET_SPECULATION_CTRL, PR_SET_SPECULATION_CTRL, PR_SET_IO_FLUSHER, PR_GET_IO_FLUSHER = 52, 53, 57, 58
PR_CAP_AMBIENT_IS_SET, PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_LOWER, PR_CAP_AMBIENT_CLEAR_ALL = 1, 2, 3, 4
PR_SET_VMA, PR_SET_VMA_ANON_NAME = 0x53564D41, 0
PR_TSC_ENABLE = 1
SUID_DUMP_DISABLE, SUID_DUMP_USER = 0, 1
DEFAULT_TIMERSLACK = 50_000
NSIG = 64

Option = Callable[["Task", int, int, int, int], int]


def _zero(*args: int) -> None:
    """Raise SysError(EINVAL) unless these unused arguments are zero."""
    if any(args):
        raise SysError(EINVAL)


def _set_pdeathsig(task: Task, signum: int, _3: int, _4: int, _5: int) -> int:
    if signum > NSIG:
        raise SysError(EINVAL)
    task.prctl[PR_SET_PDEATHSIG] = signum
    return 0


def _get_pdeathsig(task: Task, address: int, _3: int, _4: int, _5: int) -> int:
    task.mem.put_u32(address, task.prctl.get(PR_SET_PDEATHSIG, 0))
    return 0


def _get_dumpable(task: Task, _2: int, _3: int, _4: int, _5: int) -> int:
    return task.group.dumpable


def _set_dumpable(task: Task, value: int, _3: int, _4: int, _5: int) -> int:
    if value not in (SUID_DUMP_DISABLE, SUID_DUMP_USER):
        raise SysError(EINVAL)
    task.group.dumpable = value
    return 0


def _get_keepcaps(task: Task, _2: int, _3: int, _4: int, _5: int) -> int:
    return int(bool(task.creds.securebits & cr.SECBIT_KEEP_CAPS))


def _set_keepcaps(task: Task, value: int, _3: int, _4: int, _5: int) -> int:
    if value > 1:
        raise SysError(EINVAL)
    if task.creds.securebits & cr.SECBIT_KEEP_CAPS << 1:
        raise SysError(EPERM)
    creds = task.creds.copy()
    creds.securebits = creds.securebits & ~cr.SECBIT_KEEP_CAPS | (cr.SECBIT_KEEP_CAPS if value else 0)
    task.creds = creds
    return 0


def _get_timing(task: Task, _2: int, _3: int, _4: int, _5: int) -> int:
    return 0


def _set_timing(task: Task, value: int, _3: int, _4: int, _5: int) -> int:
    if value:
        raise SysError(EINVAL)
    return 0


def _set_name(task: Task, address: int, _3: int, _4: int, _5: int) -> int:
    # Up to 15 bytes, which need not be followed by a zero that is there.
    name = b""
    for at in range(15):
        byte = task.mem.read(address + at, 1)
        if byte == b"\0":
            break
        name += byte
    task.name = name
    return 0


def _get_name(task: Task, address: int, _3: int, _4: int, _5: int) -> int:
    task.mem.write(address, task.name.ljust(16, b"\0"))
    return 0


def _get_seccomp(task: Task, _2: int, _3: int, _4: int, _5: int) -> int:
    return filters.mode(task)


def _set_seccomp(task: Task, mode: int, program: int, _4: int, _5: int) -> int:
    if mode == filters.SECCOMP_MODE_STRICT:
        return filters.set_strict(task)
    if mode == filters.SECCOMP_MODE_FILTER:
        return filters.add(task, 0, program)
    raise SysError(EINVAL)


def _capbset_read(task: Task, cap: int, _3: int, _4: int, _5: int) -> int:
    if cap > cr.CAP_LAST_CAP:
        raise SysError(EINVAL)
    return task.creds.bounding >> cap & 1


def _capbset_drop(task: Task, cap: int, _3: int, _4: int, _5: int) -> int:
    if not task.creds.capable(cr.CAP_SETPCAP):
        raise SysError(EPERM)
    if cap > cr.CAP_LAST_CAP:
        raise SysError(EINVAL)
    creds = task.creds.copy()
    creds.bounding &= ~(1 << cap)
    task.creds = creds
    return 0


def _get_tsc(task: Task, address: int, _3: int, _4: int, _5: int) -> int:
    task.mem.put_u32(address, PR_TSC_ENABLE)
    return 0


def _set_tsc(task: Task, mode: int, _3: int, _4: int, _5: int) -> int:
    # The processor's counter cannot be taken from an application here.
    if mode != PR_TSC_ENABLE:
        raise SysError(EINVAL)
    return 0


def _get_securebits(task: Task, _2: int, _3: int, _4: int, _5: int) -> int:
    return task.creds.securebits


def _set_securebits(task: Task, bits: int, _3: int, _4: int, _5: int) -> int:
    old = task.creds.securebits
    locked = (old & cr.SECURE_ALL_LOCKS) >> 1
    if (
        locked & (old ^ bits)
        or old & cr.SECURE_ALL_LOCKS & ~bits
        or bits & ~(cr.SECURE_ALL_BITS | cr.SECURE_ALL_LOCKS)
        or not task.creds.capable(cr.CAP_SETPCAP)
    ):
        raise SysError(EPERM)
    creds = task.creds.copy()
    creds.securebits = bits
    task.creds = creds
    return 0


def _set_timerslack(task: Task, value: int, _3: int, _4: int, _5: int) -> int:
    task.prctl[PR_SET_TIMERSLACK] = value if 0 < value < 1 << 63 else DEFAULT_TIMERSLACK
    return 0


def _get_timerslack(task: Task, _2: int, _3: int, _4: int, _5: int) -> int:
    return task.prctl.get(PR_SET_TIMERSLACK, DEFAULT_TIMERSLACK)


def _mce_kill(task: Task, op: int, policy: int, a4: int, a5: int) -> int:
    _zero(a4, a5)
    if op == 0 and policy == 0:
        task.prctl.pop(PR_MCE_KILL, None)
    elif op == 1 and policy <= 2:
        task.prctl[PR_MCE_KILL] = policy
    else:
        raise SysError(EINVAL)
    return 0


def _mce_kill_get(task: Task, a2: int, a3: int, a4: int, a5: int) -> int:
    _zero(a2, a3, a4, a5)
    return task.prctl.get(PR_MCE_KILL, 2)


def _set_mm(task: Task, _2: int, _3: int, _4: int, _5: int) -> int:
    raise SysError(EPERM)


def _set_subreaper(task: Task, value: int, _3: int, _4: int, _5: int) -> int:
    task.group.subreaper = bool(value)
    return 0


def _get_subreaper(task: Task, address: int, _3: int, _4: int, _5: int) -> int:
    task.mem.put_u32(address, int(task.group.subreaper))
    return 0


def _set_no_new_privs(task: Task, value: int, a3: int, a4: int, a5: int) -> int:
    _zero(a3, a4, a5, value != 1)
    task.no_new_privs = True
    return 0


def _get_no_new_privs(task: Task, a2: int, a3: int, a4: int, a5: int) -> int:
    _zero(a2, a3, a4, a5)
    return int(task.no_new_privs)


def _get_tid_address(task: Task, address: int, _3: int, _4: int, _5: int) -> int:
    task.mem.put_u64(address, task.clear_child_tid)
    return 0


def _set_thp_disable(task: Task, value: int, a3: int, a4: int, a5: int) -> int:
    _zero(a3, a4, a5)
    for other in task.group.tasks.values():
        other.prctl[PR_SET_THP_DISABLE] = int(bool(value))
    return 0


def _set_vma(task: Task, what: int, address: int, length: int, name: int) -> int:
    if what != PR_SET_VMA_ANON_NAME:
        raise SysError(EINVAL)
    text = b""
    if name:
        try:
            text = task.mem.cstring(name, 80)
        except SysError as error:
            raise SysError(EINVAL if error.errno == ENAMETOOLONG else error.errno) from None
        if any(not 0x20 <= byte < 0x7F or byte in b"\\`$[]" for byte in text):
            raise SysError(EINVAL)
    remap.set_name(task.mm, address, length, text)
    return 0


def _get_thp_disable(task: Task, a2: int, a3: int, a4: int, a5: int) -> int:
    _zero(a2, a3, a4, a5)
    return task.prctl.get(PR_SET_THP_DISABLE, 0)


def _cap_ambient(task: Task, op: int, cap: int, a4: int, a5: int) -> int:
    creds = task.creds
    if op == PR_CAP_AMBIENT_CLEAR_ALL:
        _zero(cap, a4, a5)
        creds = creds.copy()
        creds.ambient = 0
        task.creds = creds
        return 0
    _zero(a4, a5, cap > cr.CAP_LAST_CAP)
    if op == PR_CAP_AMBIENT_IS_SET:
        return creds.ambient >> cap & 1
    if op not in (PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_LOWER):
        raise SysError(EINVAL)
    bit = 1 << cap
    if op == PR_CAP_AMBIENT_RAISE and (
        not creds.permitted & creds.inheritable & bit or creds.securebits & cr.SECBIT_NO_CAP_AMBIENT_RAISE
    ):
        raise SysError(EPERM)
    creds = creds.copy()
    creds.ambient = creds.ambient | bit if op == PR_CAP_AMBIENT_RAISE else creds.ambient & ~bit
    task.creds = creds
    return 0


def _get_speculation(task: Task, _2: int, a3: int, a4: int, a5: int) -> int:
    _zero(a3, a4, a5)
    raise SysError(ENODEV)


def _set_speculation(task: Task, _2: int, _3: int, a4: int, a5: int) -> int:
    _zero(a4, a5)
    raise SysError(ENXIO)


def _set_io_flusher(task: Task, value: int, a3: int, a4: int, a5: int) -> int:
    if not task.creds.capable(cr.CAP_SYS_RESOURCE):
        raise SysError(EPERM)
    _zero(a3, a4, a5, value > 1)
    task.prctl[PR_SET_IO_FLUSHER] = value
    return 0


def _get_io_flusher(task: Task, a2: int, a3: int, a4: int, a5: int) -> int:
    if not task.creds.capable(cr.CAP_SYS_RESOURCE):
        raise SysError(EPERM)
    _zero(a2, a3, a4, a5)
    return task.prctl.get(PR_SET_IO_FLUSHER, 0)


OPTIONS: dict[int, Option] = {
    PR_SET_PDEATHSIG: _set_pdeathsig,
    PR_GET_PDEATHSIG: _get_pdeathsig,
    PR_GET_DUMPABLE: _get_dumpable,
    PR_SET_DUMPABLE: _set_dumpable,
    PR_GET_KEEPCAPS: _get_keepcaps,
    PR_SET_KEEPCAPS: _set_keepcaps,
    PR_GET_TIMING: _get_timing,
    PR_SET_TIMING: _set_timing,
    PR_SET_NAME: _set_name,
    PR_GET_NAME: _get_name,
    PR_GET_SECCOMP: _get_seccomp,
    PR_SET_SECCOMP: _set_seccomp,
    PR_CAPBSET_READ: _capbset_read,
    PR_CAPBSET_DROP: _capbset_drop,
    PR_GET_TSC: _get_tsc,
    PR_SET_TSC: _set_tsc,
    PR_GET_SECUREBITS: _get_securebits,
    PR_SET_SECUREBITS: _set_securebits,
    PR_SET_TIMERSLACK: _set_timerslack,
    PR_GET_TIMERSLACK: _get_timerslack,
    PR_MCE_KILL: _mce_kill,
    PR_MCE_KILL_GET: _mce_kill_get,
    PR_SET_MM: _set_mm,
    PR_SET_CHILD_SUBREAPER: _set_subreaper,
    PR_GET_CHILD_SUBREAPER: _get_subreaper,
    PR_SET_NO_NEW_PRIVS: _set_no_new_privs,
    PR_GET_NO_NEW_PRIVS: _get_no_new_privs,
    PR_GET_TID_ADDRESS: _get_tid_address,
    PR_SET_THP_DISABLE: _set_thp_disable,
    PR_GET_THP_DISABLE: _get_thp_disable,
    PR_SET_VMA: _set_vma,
    PR_CAP_AMBIENT: _cap_ambient,
    PR_GET_SPECULATION_CTRL: _get_speculation,
    PR_SET_SPECULATION_CTRL: _set_speculation,
    PR_SET_IO_FLUSHER: _set_io_flusher,
    PR_GET_IO_FLUSHER: _get_io_flusher,
}


@syscall("prctl", Support.PARTIAL, "not PR_SET_MM, memory-deny-write-execute, core scheduling")
def prctl(task: Task, option: int, arg2: int, arg3: int, arg4: int, arg5: int) -> int:
    """prctl(2). Options that are not there answer EINVAL, as those that a kernel does not know."""
    handler = OPTIONS.get(s32(option))
    if handler is None:
        raise SysError(EINVAL)
    return handler(task, arg2, arg3, arg4, arg5)

