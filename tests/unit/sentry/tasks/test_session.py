"""Process groups and sessions: rules that do not need a running process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from casemate.sentry.errno import SysError
from casemate.sentry.tasks.session import ProcessGroup, Session, find, setpgid, setsid
from tests.unit.sentry.spaces import namespaces


class World:
    """A kernel with processes, as far as sessions look at them."""

    def __init__(self) -> None:
        self.groups: dict[int, Any] = {}
        self.ns = namespaces(self)

    def process(self, pid: int, parent: Any = None) -> Any:
        process = SimpleNamespace(
            kernel=self, pid=pid, parent=parent, children={}, zombie=False, did_exec=False, ns=self.ns
        )
        process.signals = SimpleNamespace(stopped=0)
        if parent is None:
            process.process_group = ProcessGroup(pid, Session(pid))
            process.process_group.members[pid] = process
        else:
            parent.children[pid] = process
            process.process_group = parent.process_group
            parent.process_group.add(process)
        self.groups[pid] = process
        return process


@pytest.fixture
def world() -> World:
    return World()


def fails(name: str, caller: Any, pid: int, pgid: int) -> None:
    with pytest.raises(SysError, match=name):
        setpgid(caller, pid, pgid)


def test_groups_come_and_go(world: World) -> None:
    shell = world.process(1)
    job = world.process(2, shell)
    setpgid(shell, 2, 0)
    assert job.process_group.pgid == 2
    assert find(world.ns.pid, 2) is job.process_group
    other = world.process(3, shell)
    setpgid(shell, 3, 2)
    assert other.process_group is job.process_group
    session = shell.process_group.session
    session.foreground = job.process_group
    setpgid(shell, 2, 1)
    assert find(world.ns.pid, 2) is other.process_group
    setpgid(other, 0, 1)
    assert find(world.ns.pid, 2) is None
    assert session.foreground is None
    assert list(session.groups) == [1]


def test_rules(world: World) -> None:
    shell = world.process(1)
    child = world.process(2, shell)
    fails("ESRCH", shell, 9, 0)
    fails("EPERM", shell, 2, 77)
    fails("EPERM", shell, 0, 2)  # the leader of a session stays where it is
    fails("ESRCH", child, 1, 0)
    child.did_exec = True
    fails("EACCES", shell, 2, 0)
    child.did_exec = False
    assert setsid(child) == 2
    fails("EPERM", shell, 2, 2)
    with pytest.raises(SysError, match="EPERM"):
        setsid(child)


def test_a_group_is_orphaned_without_a_parent_in_its_session(world: World) -> None:
    shell = world.process(1)
    job = world.process(2, shell)
    setpgid(shell, 2, 0)
    assert shell.process_group.orphaned()
    assert not job.process_group.orphaned()
    assert job.process_group.orphaned(without=shell)
    job.parent = None
    assert job.process_group.orphaned()
    assert not job.process_group.has_stopped()
    job.signals.stopped = 19
    assert job.process_group.has_stopped()
    job.zombie = True
    assert not job.process_group.has_stopped()
