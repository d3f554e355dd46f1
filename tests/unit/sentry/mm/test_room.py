"""When the host is trusted to do what nobody sees the result of."""

from __future__ import annotations

from typing import Any

import pytest

from casemate.sentry.mm import room
from casemate.sentry.mm.room import Room
from casemate.sentry.mm.vma import PROT_EXEC, PROT_READ, PROT_WRITE, VM_SHARED, Vma

LIMIT = 1000


class Thread:
    """Of a memory with so many mappings on the host."""

    def __init__(self) -> None:
        self.count = 10
        self.asked = 0
        self.fails = False

    def mappings(self) -> list[tuple[int, int]]:
        self.asked += 1
        if self.fails:
            raise OSError(24, "no descriptor is left")
        return [(at << 13, (at << 13) + 4096) for at in range(self.count)]


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "host_bounds", lambda: (LIMIT, room.WRITABLE))


def test_mappings_are_counted_only_near_the_bound() -> None:
    thread: Any = Thread()
    one = Room()
    assert all(one.for_more(thread) for _ in range(100))
    assert thread.asked == 0
    assert all(one.for_more(thread) for _ in range(10_000)), "it has no more than ten all the while"
    assert thread.asked <= 10_000 * 2 / (LIMIT / 4 - thread.count) + 1


def test_near_the_bound_nothing_is_sure() -> None:
    thread: Any = Thread()
    one = Room()
    for _ in range(10_000):
        thread.count += 2
        if not one.for_more(thread):
            break
    assert LIMIT / 2 - 2 <= thread.count < LIMIT - 2
    thread.count = LIMIT
    asked = thread.asked
    assert not any(one.for_more(thread) for _ in range(10_000))
    assert thread.asked - asked <= 10_000 * 2 / (LIMIT / 4 - 2) + 1, "and counting is not what all time goes to"
    assert not Room(one).for_more(thread), "a copy has as many"
    thread.count = 10
    assert any(one.for_more(thread) for _ in range(LIMIT))


def test_what_cannot_be_counted_is_not_sure() -> None:
    thread: Any = Thread()
    thread.fails = True
    one = Room()
    assert not all(one.for_more(thread) for _ in range(LIMIT))


def test_rights_that_a_host_may_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Room()
    file: Any = object()
    memory, code = Vma(0, 1 << 40, PROT_READ, 0), Vma(0, 1 << 40, PROT_READ, 0, file)
    shared = Vma(0, 1 << 40, PROT_READ, VM_SHARED)
    assert one.grants(memory, PROT_READ | PROT_WRITE, room.WRITABLE)
    assert not one.grants(memory, PROT_READ | PROT_WRITE, room.WRITABLE + 1)
    assert one.grants(memory, 0, 1 << 40) and one.grants(code, PROT_READ, 1 << 40)
    for vma in (code, shared):
        one.granted(vma, PROT_EXEC)
    assert not any(one.grants(vma, PROT_READ | PROT_EXEC, 1) for vma in (memory, code, shared))
    one.granted(memory, PROT_READ | PROT_EXEC)
    for known in (one, Room(one)):
        assert known.grants(memory, PROT_READ | PROT_EXEC, 1)
        assert not known.grants(code, PROT_READ | PROT_EXEC, 1) and not known.grants(shared, PROT_EXEC, 1)
    monkeypatch.setattr(room, "host_bounds", lambda: (LIMIT, 0))
    assert not one.grants(memory, PROT_READ | PROT_WRITE, 4096), "the host bounds what could be written"
