"""Queues, masks and information of signals."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.errno import SysError
from casemate.sentry.signals.info import SI_TIMER, SI_USER, SigInfo
from casemate.sentry.signals.state import (
    ALL,
    SIG_IGN,
    SS_AUTODISARM,
    SS_DISABLE,
    SS_ONSTACK,
    Action,
    AltStack,
    GroupSignals,
    Pending,
    TaskSignals,
    TemporaryMask,
    bit,
    bits,
)
from casemate.sentry.wait import Block

LIMIT = 1000


def test_ordinary_signals_do_not_queue_and_real_time_ones_do() -> None:
    pending = Pending()
    assert pending.add(SigInfo.user(10, SI_USER, 1, 0), LIMIT)
    assert not pending.add(SigInfo.user(10, SI_USER, 2, 0), LIMIT)
    for pid in (3, 4, 5):
        assert pending.add(SigInfo.user(40, SI_USER, pid, 0), LIMIT)
    first = pending.take(ALL)
    assert first is not None and (first.signo, first.pid) == (10, 1)
    taken = [pending.take(ALL) for _ in range(3)]
    assert [info.pid for info in taken if info is not None] == [3, 4, 5]
    assert pending.take(ALL) is None and pending.bits == 0 and not pending.queues


def test_what_the_program_itself_caused_comes_first() -> None:
    pending = Pending()
    for signo in (signal.SIGHUP, signal.SIGSEGV, 50):
        pending.add(SigInfo(signo), LIMIT)
    order = [pending.take(ALL) for _ in range(3)]
    assert [info.signo for info in order if info is not None] == [signal.SIGSEGV, signal.SIGHUP, 50]


def test_only_what_is_allowed_is_taken() -> None:
    pending = Pending()
    pending.add(SigInfo(1), LIMIT)
    pending.add(SigInfo(64), LIMIT)
    assert pending.take(bit(2)) is None
    last = pending.take(bit(64))
    assert last is not None and last.signo == 64
    assert pending.bits == bit(1)


def test_the_queue_has_a_limit() -> None:
    pending = Pending()
    for _ in range(4):
        pending.add(SigInfo(33), 4)
    assert not pending.add(SigInfo(33), 4)
    # One of another number is pending all the same, as nothing else would tell of it.
    assert pending.add(SigInfo(34), 4)
    assert pending.count() == 5


class Noted:
    """A sender that wants to know."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def taken(self, info: SigInfo) -> None:
        self.events.append("taken")

    def dropped(self, info: SigInfo) -> None:
        self.events.append("dropped")


def test_senders_learn_what_became_of_their_signal() -> None:
    noted, pending = Noted(), Pending()
    for signo in (20, 21):
        info = SigInfo(signo)
        info.source = noted
        pending.add(info, LIMIT)
    pending.take(bit(20))
    pending.discard(bits(20, 21))
    assert noted.events == ["taken", "dropped"]
    assert pending.bits == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 64)), max_size=60))
def test_pending_bits_are_those_that_can_be_taken(steps: list[tuple[bool, int]]) -> None:
    pending = Pending()
    model: list[int] = []
    for add, signo in steps:
        if add:
            if pending.add(SigInfo(signo), LIMIT):
                model.append(signo)
        else:
            info = pending.take(bit(signo))
            assert (info is not None) == (signo in model)
            if info is not None:
                model.remove(signo)
        assert pending.bits == bits(*set(model))
        assert pending.count() == len(model)


def test_siginfo_has_linux_layout() -> None:
    data = SigInfo.child(1, 77, 1000, 9, utime=5, stime=6).pack()
    assert len(data) == 128
    words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, 48, 4)]
    assert words == [17, 0, 1, 0, 77, 1000, 9, 0, 5, 0, 6, 0]
    again = SigInfo.parse(SigInfo.queued(40, 3, 4, 1 << 63).pack())
    assert (again.signo, again.code, again.pid, again.uid, again.value) == (40, -1, 3, 4, 1 << 63)
    timer = SigInfo.timer(14, 2, 9, 7)
    assert (timer.code, timer.timer_id, timer.overrun, timer.value) == (SI_TIMER, 2, 9, 7)
    assert SigInfo.fault(11, 1, 0xFFFF_8000_0000_0000).address == 0xFFFF_8000_0000_0000
    assert SigInfo(11).address == 0  # nothing told


def test_fork_and_exec() -> None:
    group = GroupSignals()
    group.actions[10] = Action(0x1234)
    group.actions[12] = Action(SIG_IGN, 4)
    group.add(SigInfo(10), LIMIT)
    copy, shared = group.fork(), group.fork(share_actions=True)
    group.actions[11] = Action(0x99)
    assert copy.bits == 0 and copy.actions[10].handler == 0x1234 and copy.actions[11].handler == 0
    assert shared.actions[11].handler == 0x99
    assert group.caught() == bits(10, 11) and group.ignored() == bit(12)
    group.exec()
    assert group.actions[10].handler == 0 and group.actions[12].handler == SIG_IGN and group.actions[12].flags == 0
    assert shared.actions[10].handler == 0x1234  # whose it is alone now
    assert group.bits == bit(10)


def test_alternate_stack() -> None:
    stack = AltStack(0x1000, 0x2000)
    assert not stack.in_use(0x1000) and stack.in_use(0x1001) and stack.in_use(0x3000) and not stack.in_use(0x3001)
    assert stack.status(0x2000) == SS_ONSTACK and stack.status(0x9000) == 0
    disarming = AltStack(0x1000, 0x2000, SS_AUTODISARM)
    assert disarming.holds(0x2000) and not disarming.in_use(0x2000) and disarming.status(0x2000) == SS_AUTODISARM
    assert AltStack().status(0) == SS_DISABLE


def test_a_mask_for_one_call() -> None:
    signals = TaskSignals(GroupSignals(), bit(10))
    task: Any = SimpleNamespace(signals=signals)
    with TemporaryMask(task, ALL):
        assert signals.mask & bit(12) and not signals.mask & bits(signal.SIGKILL, signal.SIGSTOP)
    assert signals.mask == bit(10) and signals.saved is None
    for _ in range(2):  # the call is made again: the mask to come back to is still the first
        with pytest.raises(Block), TemporaryMask(task, 0):
            raise Block
        assert signals.mask == 0 and signals.saved == bit(10)
    with pytest.raises(SysError), TemporaryMask(task, 0):
        raise SysError(22)
    assert signals.mask == bit(10) and signals.saved is None
    with TemporaryMask(task, None):
        assert signals.mask == bit(10)


def test_new_threads_have_the_mask_that_counts() -> None:
    shared = GroupSignals()
    signals = TaskSignals(shared, 0)
    signals.saved = bit(5)
    signals.altstack = AltStack(1, 4096)
    signals.add(SigInfo(7), LIMIT)
    thread = signals.clone(shared, keep_altstack=False)
    assert thread.mask == bit(5) and thread.bits == 0 and thread.altstack.size == 0
    assert signals.clone(GroupSignals(), keep_altstack=True).altstack.size == 4096
