"""Timers, counters, semaphores and messages by themselves, with a clock that stands still."""

from __future__ import annotations

import struct
from errno import EAGAIN, EIDRM, EINVAL, ERANGE
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.clock import Clock
from casemate.sentry.errno import SysError
from casemate.sentry.ipc import msg, sem
from casemate.sentry.ipc.signalfd import SIZE, pack
from casemate.sentry.ipc.timerfd import CLOCK_MONOTONIC, CLOCK_REALTIME, TimerFd
from casemate.sentry.signals.info import SI_QUEUE, SI_TIMER, SI_USER, SigInfo
from tests.unit.sentry.vfs.calls import SCRATCH, Caller, Waits


class Still(Clock):
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000

    def monotonic(self) -> int:
        return self.now

    def realtime(self) -> int:
        return self.now + 50_000

    def go(self, nanoseconds: int) -> None:
        self.now += nanoseconds
        self.run()


def still() -> Any:
    return SimpleNamespace(clock=Still(), subsystems={})


@given(st.integers(1, 1000), st.integers(0, 50), st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=20))
def test_a_timer_counts_its_expirations(value: int, interval: int, steps: list[tuple[int, bool]]) -> None:
    kernel = still()
    task: Any = SimpleNamespace(kernel=kernel)
    timer = TimerFd(kernel, 0o4000, CLOCK_MONOTONIC)
    timer.set(value, interval, absolute=False)
    start, told = kernel.clock.now, 0
    for step, read in steps:
        kernel.clock.go(step)
        passed = kernel.clock.now - start - value
        due = 0 if passed < 0 else 1 + (passed // interval if interval else 0)
        assert bool(timer.poll(task)) == (due > told)
        if read:
            if due > told:
                assert int.from_bytes(timer.read(task, 8), "little") == due - told
                told = due
            else:
                with pytest.raises(SysError) as caught:
                    timer.read(task, 8)
                assert caught.value.errno == EAGAIN
        left, every = timer.remaining()
        assert every == interval
        if not due:
            assert left == -passed
        elif interval:
            assert left == interval - passed % interval
        else:
            assert left == 0


def test_absolute_times_are_of_the_timer_s_clock() -> None:
    kernel = still()
    task: Any = SimpleNamespace(kernel=kernel)
    timer = TimerFd(kernel, 0, CLOCK_REALTIME)
    timer.set(kernel.clock.realtime() + 500, 0, absolute=True)
    kernel.clock.go(499)
    assert not timer.poll(task)
    kernel.clock.go(1)
    assert timer.poll(task)
    timer.set(5, 0, absolute=True)
    kernel.clock.go(0)
    assert timer.poll(task)
    timer.release()
    assert kernel.clock.next() is None


class Process:
    """What a process is to semaphores."""

    def __init__(self, pid: int, limits: Any) -> None:
        self.pid = pid
        self.limits = limits


def worker(like: Caller | None = None, pid: int = 1) -> Caller:
    caller = Caller(like=like, pid=pid)
    caller.task.group = Process(pid, caller.task.group.limits)
    caller.task.group.ns = caller.kernel.ns
    return caller


Operation = tuple[int, int, bool]
OPERATIONS = st.lists(st.tuples(st.integers(0, 2), st.integers(-4, 4), st.booleans()), min_size=1, max_size=4)


@given(st.lists(st.tuples(st.integers(0, 1), OPERATIONS), max_size=25))
def test_semaphores_change_all_or_not_at_all_and_are_undone(steps: list[tuple[int, list[Operation]]]) -> None:
    first = worker()
    first.kernel.clock = Clock()
    workers = [first, worker(first, 2)]
    number = first("semget", 0, 3, 0o600)
    values = [0, 0, 0]
    undo: list[dict[int, int]] = [{}, {}]
    for who, operations in steps:
        after, back, fits = list(values), dict(undo[who]), True
        for which, change, undone in operations:
            if after[which] + change < 0 or (change == 0 and after[which]):
                fits = False
                break
            after[which] += change
            if undone:
                back[which] = back.get(which, 0) - change
        data = b"".join(
            struct.pack("<Hhh", which, change, 0o4000 | (0x1000 if undone else 0))
            for which, change, undone in operations
        )
        workers[who].memory.write(SCRATCH, data)
        assert workers[who]("semop", number, SCRATCH, len(operations)) == (0 if fits else -EAGAIN)
        if fits:
            values, undo[who] = after, back
        assert [first("semctl", number, which, 12) for which in range(3)] == values
    for who in (0, 1):
        sem.exit_group(first.kernel.ns.ipc, workers[who].task.group)
        for which, change in undo[who].items():
            values[which] = min(max(values[which] + change, 0), 32767)
        assert [first("semctl", number, which, 12) for which in range(3)] == values


def test_a_semaphore_that_goes_tells_who_waits() -> None:
    caller = worker()
    number = caller("semget", 0, 1, 0o600)
    caller.memory.write(SCRATCH, struct.pack("<Hhh", 0, -1, 0))
    with pytest.raises(Waits):
        caller.raw("semop", number, SCRATCH, 1)
    assert caller.kernel.ns.ipc.subsystems["sem"].find(number).count(0, zero=False) == 1
    kept = caller.task.blocked
    other = worker(caller, 2)
    assert other("semctl", number, 0, 0) == 0
    caller.task.blocked = kept
    assert caller("semop", number, SCRATCH, 1) == -EIDRM
    assert caller("semop", number, SCRATCH, 1) == -EINVAL


def test_a_semaphore_has_a_largest_value() -> None:
    caller = worker()
    number = caller("semget", 0, 1, 0o600)
    assert caller("semctl", number, 0, 16, 32767) == 0
    caller.memory.write(SCRATCH, struct.pack("<Hhh", 0, 1, 0))
    assert caller("semop", number, SCRATCH, 1) == -ERANGE


MESSAGES = st.lists(st.tuples(st.integers(1, 4), st.binary(max_size=8)), max_size=12)


@given(MESSAGES, st.integers(-5, 5), st.booleans())
def test_messages_are_found_by_type(messages: list[tuple[int, bytes]], kind: int, other: bool) -> None:
    caller = Caller()
    queue = msg.MsgQueue(caller.task, 0, 0o600)
    for one, text in messages:
        queue.send(caller.task, one, text)
    if kind == 0:
        wanted = list(range(len(messages)))
    elif kind > 0:
        wanted = [at for at, (one, _) in enumerate(messages) if (one == kind) != other]
    else:
        low = min((one for one, _ in messages if one <= -kind), default=0)
        wanted = [at for at, (one, _) in enumerate(messages) if one == low]
    assert queue.search(kind, other) == (wanted[0] if wanted else -1)
    if wanted:
        assert queue.take(caller.task, wanted[0]) == messages[wanted[0]]
        assert queue.size == sum(len(text) for _, text in messages) - len(messages[wanted[0]][1])


def test_signals_as_files_tell_of_them() -> None:
    told = pack(SigInfo.user(10, SI_USER, 7, 1000))
    assert len(told) == SIZE
    assert struct.unpack_from("<IiiII", told) == (10, 0, SI_USER, 7, 1000)
    told = pack(SigInfo.queued(34, 7, 1000, 0xFFFF_FFFF_0000_0005, SI_QUEUE))
    assert struct.unpack_from("<iQ", told, 44) == (5, 0xFFFF_FFFF_0000_0005)
    told = pack(SigInfo.timer(14, 3, 9, 77))
    assert struct.unpack_from("<I", told, 24) == (3,) and struct.unpack_from("<I", told, 32) == (9,)
    assert struct.unpack_from("<i", told, 8) == (SI_TIMER,)
    told = pack(SigInfo.child(1, 55, 1000, 3, 20, 30))
    assert struct.unpack_from("<II", told, 12) == (55, 1000)
    assert struct.unpack_from("<i", told, 40) == (3,) and struct.unpack_from("<QQ", told, 56) == (20, 30)
    told = pack(SigInfo.fault(11, 1, 0xDEAD000))
    assert struct.unpack_from("<Q", told, 72) == (0xDEAD000,)
