"""User and group ids and capabilities, credentials(7)."""

from __future__ import annotations

import struct
from errno import EFAULT, EINVAL, EPERM
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32, u32
from casemate.sentry.creds import ALL_CAPS, CAP_SETGID, CAP_SETPCAP, CAP_SETUID, NGROUPS_MAX
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.process import find_task
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.tasks.attributes import PR_SET_PDEATHSIG

if TYPE_CHECKING:
    from casemate.sentry.creds import Credentials
    from casemate.sentry.tasks.task import Task

NO_ID = 0xFFFF_FFFF
"""-1: the id stays as it is, or an id that nobody can have."""
_CAPABILITY_VERSION_1, _CAPABILITY_VERSION_2, _CAPABILITY_VERSION_3 = 0x19980330, 0x20071026, 0x20080522


def _apply(task: Task, old: Credentials, new: Credentials) -> None:
    """Give the task its changed credentials, with what else Linux changes along with them."""
    if new.euid != old.euid or new.egid != old.egid or new.permitted & ~old.permitted:
        task.group.dumpable = 0
        task.prctl.pop(PR_SET_PDEATHSIG, None)
    task.creds = new


@syscall("getuid")
def getuid(task: Task) -> int:
    """getuid(2)."""
    return task.creds.uid


@syscall("geteuid")
def geteuid(task: Task) -> int:
    """geteuid(2)."""
    return task.creds.euid


@syscall("getgid")
def getgid(task: Task) -> int:
    """getgid(2)."""
    return task.creds.gid


@syscall("getegid")
def getegid(task: Task) -> int:
    """getegid(2)."""
    return task.creds.egid


@syscall("getresuid")
def getresuid(task: Task, real: int, effective: int, saved: int) -> int:
    """getresuid(2)."""
    creds = task.creds
    task.mem.put_u32(real, creds.uid)
    task.mem.put_u32(effective, creds.euid)
    task.mem.put_u32(saved, creds.suid)
    return 0


@syscall("getresgid")
def getresgid(task: Task, real: int, effective: int, saved: int) -> int:
    """getresgid(2)."""
    creds = task.creds
    task.mem.put_u32(real, creds.gid)
    task.mem.put_u32(effective, creds.egid)
    task.mem.put_u32(saved, creds.sgid)
    return 0


@syscall("setuid")
def setuid(task: Task, uid: int) -> int:
    """setuid(2)."""
    uid = u32(uid)
    old = task.creds
    if uid == NO_ID:
        raise SysError(EINVAL)
    new = old.copy()
    if old.capable(CAP_SETUID):
        new.set_uids(uid, uid, uid)
    elif uid in (old.uid, old.suid):
        new.set_uids(old.uid, uid, old.suid)
    else:
        raise SysError(EPERM)
    _apply(task, old, new)
    return 0


@syscall("setgid")
def setgid(task: Task, gid: int) -> int:
    """setgid(2)."""
    gid = u32(gid)
    old = task.creds
    if gid == NO_ID:
        raise SysError(EINVAL)
    new = old.copy()
    if old.capable(CAP_SETGID):
        new.set_gids(gid, gid, gid)
    elif gid in (old.gid, old.sgid):
        new.set_gids(old.gid, gid, old.sgid)
    else:
        raise SysError(EPERM)
    _apply(task, old, new)
    return 0


@syscall("setreuid")
def setreuid(task: Task, real: int, effective: int) -> int:
    """setreuid(2)."""
    real, effective = u32(real), u32(effective)
    old = task.creds
    allowed = real in (NO_ID, old.uid, old.euid) and effective in (NO_ID, old.uid, old.euid, old.suid)
    if not allowed and not old.capable(CAP_SETUID):
        raise SysError(EPERM)
    uid = old.uid if real == NO_ID else real
    euid = old.euid if effective == NO_ID else effective
    suid = euid if real != NO_ID or (effective != NO_ID and effective != old.uid) else old.suid
    new = old.copy()
    new.set_uids(uid, euid, suid)
    _apply(task, old, new)
    return 0


@syscall("setregid")
def setregid(task: Task, real: int, effective: int) -> int:
    """setregid(2)."""
    real, effective = u32(real), u32(effective)
    old = task.creds
    allowed = real in (NO_ID, old.gid, old.egid) and effective in (NO_ID, old.gid, old.egid, old.sgid)
    if not allowed and not old.capable(CAP_SETGID):
        raise SysError(EPERM)
    gid = old.gid if real == NO_ID else real
    egid = old.egid if effective == NO_ID else effective
    sgid = egid if real != NO_ID or (effective != NO_ID and effective != old.gid) else old.sgid
    new = old.copy()
    new.set_gids(gid, egid, sgid)
    _apply(task, old, new)
    return 0


@syscall("setresuid")
def setresuid(task: Task, real: int, effective: int, saved: int) -> int:
    """setresuid(2)."""
    old = task.creds
    had = (old.uid, old.euid, old.suid)
    wanted = [mine if u32(id_) == NO_ID else u32(id_) for id_, mine in zip((real, effective, saved), had, strict=True)]
    if not old.capable(CAP_SETUID) and not set(wanted) <= set(had):
        raise SysError(EPERM)
    new = old.copy()
    new.set_uids(wanted[0], wanted[1], wanted[2])
    _apply(task, old, new)
    return 0


@syscall("setresgid")
def setresgid(task: Task, real: int, effective: int, saved: int) -> int:
    """setresgid(2)."""
    old = task.creds
    had = (old.gid, old.egid, old.sgid)
    wanted = [mine if u32(id_) == NO_ID else u32(id_) for id_, mine in zip((real, effective, saved), had, strict=True)]
    if not old.capable(CAP_SETGID) and not set(wanted) <= set(had):
        raise SysError(EPERM)
    new = old.copy()
    new.set_gids(wanted[0], wanted[1], wanted[2])
    _apply(task, old, new)
    return 0


@syscall("setfsuid")
def setfsuid(task: Task, fsuid: int) -> int:
    """setfsuid(2): gives the old id, whether or not there is a change."""
    fsuid = u32(fsuid)
    old = task.creds
    if fsuid != NO_ID and (fsuid in (old.uid, old.euid, old.suid, old.fsuid) or old.capable(CAP_SETUID)):
        new = old.copy()
        new.set_fsuid(fsuid)
        task.creds = new
    return old.fsuid


@syscall("setfsgid")
def setfsgid(task: Task, fsgid: int) -> int:
    """setfsgid(2): gives the old id, whether or not there is a change."""
    fsgid = u32(fsgid)
    old = task.creds
    if fsgid != NO_ID and (fsgid in (old.gid, old.egid, old.sgid, old.fsgid) or old.capable(CAP_SETGID)):
        new = old.copy()
        new.fsgid = fsgid
        task.creds = new
    return old.fsgid


@syscall("getgroups")
def getgroups(task: Task, size: int, groups: int) -> int:
    """getgroups(2)."""
    room = s32(size)
    mine = task.creds.groups
    if room < 0:
        raise SysError(EINVAL)
    if room:
        if len(mine) > room:
            raise SysError(EINVAL)
        task.mem.write(groups, struct.pack(f"<{len(mine)}I", *mine))
    return len(mine)


@syscall("setgroups")
def setgroups(task: Task, size: int, groups: int) -> int:
    """setgroups(2)."""
    count = u32(size)
    if not task.creds.capable(CAP_SETGID):
        raise SysError(EPERM)
    if count > NGROUPS_MAX:
        raise SysError(EINVAL)
    wanted = struct.unpack(f"<{count}I", task.mem.read(groups, 4 * count))
    if NO_ID in wanted:
        raise SysError(EINVAL)
    new = task.creds.copy()
    new.groups = tuple(sorted(wanted))
    task.creds = new
    return 0


def _words(task: Task, header: int) -> tuple[int, int]:
    """How many words the caller's structures have for each set, and whom it is about, capget(2).

    Raises SysError(EINVAL) for an unknown version, having told the newest.
    """
    version = task.mem.u32(header)
    pid = task.mem.s32(header + 4)
    if version == _CAPABILITY_VERSION_1:
        return 1, pid
    if version in (_CAPABILITY_VERSION_2, _CAPABILITY_VERSION_3):
        return 2, pid
    task.mem.put_u32(header, _CAPABILITY_VERSION_3)
    raise SysError(EINVAL)


@syscall("capget")
def capget(task: Task, header: int, data: int) -> int:
    """capget(2)."""
    try:
        count, pid = _words(task, header)
    except SysError as error:
        if error.errno == EINVAL and not data:
            return 0  # the caller asked for the version
        raise
    if pid < 0:
        raise SysError(EINVAL)
    creds = find_task(task, pid).creds
    if not data:
        return 0
    sets = (creds.effective, creds.permitted, creds.inheritable)
    words = [value >> 32 * index & 0xFFFF_FFFF for index in range(count) for value in sets]
    task.mem.write(data, struct.pack(f"<{3 * count}I", *words))
    return 0


@syscall("capset")
def capset(task: Task, header: int, data: int) -> int:
    """capset(2)."""
    count, pid = _words(task, header)
    if pid not in (0, task.tid):
        raise SysError(EPERM)
    if not data:
        raise SysError(EFAULT)
    words = struct.unpack(f"<{3 * count}I", task.mem.read(data, 12 * count))
    effective, permitted, inheritable = (
        sum(words[3 * index + which] << 32 * index for index in range(count)) & ALL_CAPS for which in range(3)
    )
    old = task.creds
    if not old.capable(CAP_SETPCAP) and inheritable & ~(old.inheritable | old.permitted):
        raise SysError(EPERM)
    if (
        inheritable & ~(old.inheritable | old.bounding)
        or permitted & ~old.permitted
        or effective & ~permitted
    ):
        raise SysError(EPERM)
    new = old.copy()
    new.effective, new.permitted, new.inheritable = effective, permitted, inheritable
    new.limit_ambient()
    task.creds = new
    return 0
