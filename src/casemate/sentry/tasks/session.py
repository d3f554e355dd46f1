"""Sessions and process groups, credentials(7)."""

from __future__ import annotations

from errno import EACCES, EPERM, ESRCH
from typing import TYPE_CHECKING, Any

from casemate.sentry.errno import SysError

if TYPE_CHECKING:
    from casemate.sentry.tasks.namespaces import PidNamespace
    from casemate.sentry.tasks.task import ThreadGroup


class Session:
    """A session: process groups that may share a terminal."""

    def __init__(self, sid: int) -> None:
        self.sid = sid
        self.terminal: Any = None
        """The controlling terminal (:class:`casemate.sentry.vfs.tty.Terminal`), if it has one."""
        self.foreground: ProcessGroup | None = None
        self.groups: dict[int, ProcessGroup] = {}


class ProcessGroup:
    """A process group: what job control works on."""

    def __init__(self, pgid: int, session: Session) -> None:
        self.pgid = pgid
        self.session = session
        self.members: dict[int, ThreadGroup] = {}
        session.groups[pgid] = self

    def add(self, group: ThreadGroup) -> None:
        """Take a process in; it leaves the group that it was in."""
        old = group.process_group
        if old is not self:
            old.remove(group)
        self.members[group.pid] = group
        self.session.groups[self.pgid] = self
        group.process_group = self

    def remove(self, group: ThreadGroup) -> None:
        """Let a process go; a group without members is forgotten."""
        self.members.pop(group.pid, None)
        if not self.members:
            self.session.groups.pop(self.pgid, None)
            if self.session.foreground is self:
                self.session.foreground = None

    def orphaned(self, without: ThreadGroup | None = None) -> bool:
        """Whether nobody in its session could continue it: no member's parent is in another group of the session.

        Arguments:
            without: a process to be taken as gone, as member and as parent.
        """
        for member in self.members.values():
            parent = member.parent
            if member is without or member.zombie or parent is None or parent is without:
                continue
            other = parent.process_group
            if other is not self and other.session is self.session:
                return False
        return True

    def has_stopped(self) -> bool:
        """Whether a member is stopped."""
        return any(member.signals.stopped for member in self.members.values() if not member.zombie)


def find(pids: PidNamespace, pgid: int) -> ProcessGroup | None:
    """The process group of that number, in whichever session."""
    leader = pids.group(pgid)
    if leader is not None and leader.process_group.pgid == pgid:
        return leader.process_group
    for group in pids.groups():
        if group.process_group.pgid == pgid:
            return group.process_group
    return None


def setsid(group: ThreadGroup) -> int:
    """setsid(2) for this process. Raises SysError(EPERM) for a leader of a process group."""
    if find(group.ns.pid, group.pid) is not None:
        raise SysError(EPERM)
    ProcessGroup(group.pid, Session(group.pid)).add(group)
    return group.pid


def setpgid(caller: ThreadGroup, pid: int, pgid: int) -> None:
    """setpgid(2), with its rules.

    Raises:
        SysError: ESRCH for what is neither the caller nor its child, EPERM across sessions and for session leaders,
            EACCES for a child that has made an execve(2).
    """
    group = caller
    if pid not in (0, caller.pid):
        child = caller.children.get(pid)
        if child is None or child.zombie:
            raise SysError(ESRCH)
        group = child
        if group.process_group.session is not caller.process_group.session:
            raise SysError(EPERM)
        if group.did_exec:
            raise SysError(EACCES)
    session = group.process_group.session
    if session.sid == group.pid:
        raise SysError(EPERM)
    if pgid == 0:
        pgid = group.pid
    if pgid == group.process_group.pgid:
        return
    target = find(caller.ns.pid, pgid)
    if target is None:
        if pgid != group.pid:
            raise SysError(EPERM)
        target = ProcessGroup(pgid, session)
    elif target.session is not session:
        raise SysError(EPERM)
    target.add(group)
