"""Who gets a signal, and what it does at once: with real tasks, and a kernel that only notes."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from casemate.sentry.clock import Clock
from casemate.sentry.creds import Credentials
from casemate.sentry.errno import SysError
from casemate.sentry.limits import Limits
from casemate.sentry.signals import deliver
from casemate.sentry.signals.info import CLD_CONTINUED, CLD_STOPPED, SI_USER, SigInfo
from casemate.sentry.signals.send import kill, leaving, permitted, send, send_signal, set_mask
from casemate.sentry.signals.state import SA_NOCLDSTOP, SIG_IGN, Action, GroupSignals, TaskSignals, bit
from casemate.sentry.tasks import exit as exits
from casemate.sentry.tasks.session import ProcessGroup, Session
from casemate.sentry.tasks.task import State, Task, ThreadGroup
from casemate.sentry.wait import Block
from tests.unit.sentry.spaces import namespaces

TERM, CHLD, CONT, STOP, TSTP, USR1 = (
    signal.SIGTERM, signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGUSR1,
)  # fmt: skip


class Thread:
    """A host thread that can always be stopped."""

    def interrupt(self) -> bool:
        return True


class Kernel:
    """Notes who was told to look, and who runs on."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.tasks: dict[int, Task] = {}
        self.groups: dict[int, ThreadGroup] = {}
        self.ns = namespaces(self)
        self.ready: list[Task] = []
        self.told: list[int] = []
        self.resumed: list[int] = []

    def interrupt(self, task: Task) -> None:
        self.told.append(task.tid)

    def resume(self, task: Task) -> None:
        self.resumed.append(task.tid)

    def unpark(self, task: Task) -> None:
        task.block = None
        task.state = State.RUNNING


class World:
    """A parent (pid 10, its own process group) with a child of two threads (20 and 21), in one session."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        session = Session(10)
        self.parent = self.process(10, None, ProcessGroup(10, session))
        self.child = self.process(20, self.parent, ProcessGroup(20, session))
        self.first = self.child.tasks[20]
        self.second = self.thread(self.child, 21)

    def process(self, pid: int, parent: ThreadGroup | None, group: ProcessGroup) -> ThreadGroup:
        kernel: Any = self.kernel
        made = ThreadGroup(kernel, pid, parent, group, GroupSignals(), Limits())
        group.add(made)
        self.thread(made, pid)
        return made

    def thread(self, group: ThreadGroup, tid: int, uid: int = 0) -> Task:
        kernel: Any = self.kernel
        rest: Any = None
        host: Any = Thread()
        signals = TaskSignals(group.signals)
        task = Task(kernel, tid, group, host, rest, rest, rest, Credentials(uid, uid), signals, b"test")
        group.tasks[tid] = task
        return task


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(exits, "exit_group", lambda group, code: setattr(group, "exit_code", code))
    return made


def user(signo: int) -> SigInfo:
    return SigInfo.user(signo, SI_USER, 1, 0)


def handle(group: ThreadGroup, signo: int, flags: int = 0) -> None:
    group.signals.actions[signo] = Action(0x1000, flags)


def test_what_is_ignored_is_dropped_unless_it_is_blocked(world: World) -> None:
    assert not send(world.child, user(CHLD))
    world.child.signals.actions[TERM] = Action(SIG_IGN)
    assert not send(world.child, user(TERM)) and world.child.signals.bits == 0
    world.first.signals.mask = bit(TERM) | bit(CHLD)
    assert send(world.child, user(TERM)) and send(world.child, user(CHLD))
    assert world.child.signals.bits == bit(TERM) | bit(CHLD)
    # The other thread does not block them: it looks, and finds that they are ignored.
    assert world.kernel.told == [21, 21]


def test_a_thread_that_does_not_block_it_is_told(world: World) -> None:
    handle(world.child, USR1)
    send(world.child, user(USR1))
    assert world.kernel.told == [20]
    world.child.signals.discard(bit(USR1))
    world.first.signals.mask = bit(USR1)
    send(world.child, user(USR1))
    assert world.kernel.told == [20, 21]
    world.second.signals.mask = bit(USR1)
    send(world.second, user(USR1))
    assert world.kernel.told == [20, 21] and world.second.signals.bits == bit(USR1)


def test_who_unblocks_or_leaves_hands_on_what_is_the_processs(world: World) -> None:
    handle(world.child, USR1)
    world.first.signals.mask = world.second.signals.mask = bit(USR1)
    send(world.child, user(USR1))
    assert not world.kernel.told and deliver.pending(world.first) is False
    world.second.signals.mask = 0
    assert deliver.pending(world.second)
    world.first.signals.mask = 0
    set_mask(world.second, bit(USR1))
    assert world.kernel.told == [20]
    leaving(world.first)
    assert world.kernel.told == [20]  # the other one blocks it
    world.second.signals.mask = 0
    leaving(world.first)
    assert world.kernel.told == [20, 21]


def test_kill_ends_at_once_and_the_first_process_of_a_container_only_from_outside(world: World) -> None:
    assert send(world.child, user(signal.SIGKILL)) and world.child.exit_code == signal.SIGKILL
    assert not send(world.child, user(TERM))
    world.parent.signals.unkillable = True
    assert not send(world.parent, user(signal.SIGKILL)) and world.parent.exit_code is None
    assert not send(world.parent, user(TERM)) and not send(world.parent, user(STOP))
    handle(world.parent, TERM)
    assert send(world.parent, user(TERM))
    assert send(world.parent, user(signal.SIGKILL), force=True)
    assert world.parent.exit_code == signal.SIGKILL


def test_stops_and_continues_take_each_other_away(world: World) -> None:
    for task in (world.first, world.second):
        task.signals.mask = bit(TSTP) | bit(CONT)
    send(world.child, user(TSTP))
    send(world.second, user(TSTP))
    assert world.child.signals.bits == bit(TSTP)
    send(world.child, user(CONT))
    assert world.child.signals.bits == bit(CONT) and world.second.signals.bits == 0
    send(world.first, user(TSTP))
    assert world.child.signals.bits == 0 and world.first.signals.bits == bit(TSTP)


def test_a_stop_stops_all_threads_and_tells_the_parent(world: World) -> None:
    handle(world.parent, CHLD)
    world.second.block = Block()
    world.second.number = 0
    world.second.state = State.BLOCKED
    send(world.child, user(STOP))
    assert not deliver.deliver(world.first)
    assert world.first.state is State.STOPPED and world.second.state is State.STOPPED
    assert world.child.signals.stopped == world.child.signals.tell_stop == STOP
    told = world.parent.signals.take(bit(CHLD))
    assert told is not None and (told.code, told.pid, told.status) == (CLD_STOPPED, 20, STOP)
    assert deliver.pending(world.first) and not deliver.deliver(world.first)
    # What is sent meanwhile waits; SIGCONT lets the call go on, and the other thread run.
    send(world.child, user(CONT))
    assert not world.child.signals.stopped and world.child.signals.tell_continue
    assert world.kernel.ready == [world.second] and world.kernel.resumed == [20]
    told = world.parent.signals.take(bit(CHLD))
    assert told is not None and told.code == CLD_CONTINUED


def test_parents_that_do_not_want_to_know_of_stops(world: World) -> None:
    handle(world.parent, CHLD, SA_NOCLDSTOP)
    send(world.child, user(STOP))
    deliver.deliver(world.first)
    assert world.parent.signals.bits == 0 and world.child.signals.stopped == STOP


def test_orphaned_process_groups_are_not_stopped_by_terminals(world: World) -> None:
    world.child.parent = None
    send(world.child, user(TSTP))
    assert deliver.deliver(world.first) and not world.child.signals.stopped
    send(world.child, user(STOP))
    assert not deliver.deliver(world.first)


def test_default_actions(world: World) -> None:
    send_signal(world.child, TERM)
    assert deliver.killed(world.first) and not deliver.deliver(world.first)
    assert world.child.exit_code == TERM


def test_permission(world: World) -> None:
    sender = world.thread(world.parent, 11, uid=1000)
    assert permitted(sender, world.parent, TERM)
    assert not permitted(sender, world.child, TERM)
    assert permitted(sender, world.child, CONT)  # of the same session
    world.first.creds = Credentials(1000, 1000)
    assert permitted(sender, world.child, TERM)
    world.first.creds = Credentials(0, 0)
    with pytest.raises(SysError):
        kill(sender, [world.child], user(TERM), TERM)
    with pytest.raises(SysError):
        kill(sender, [], None, 0)
    kill(sender, [world.child, world.parent], None, 0)
