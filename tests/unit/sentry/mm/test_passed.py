"""What becomes of memory that the host was to give by itself, where it does otherwise than was expected."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from casemate.sentry.mm import passed
from casemate.sentry.mm.layout import Layout
from casemate.sentry.mm.memory import TASK_SIZE
from casemate.sentry.mm.space import AddressSpace
from casemate.sentry.wait import Passed

PAGE = 4096
READ_WRITE = 3
PLAIN = 0x22
CEILING = 0x7F00_0000_0000


class Thread:
    """Of a host that says what it has mapped, and notes what it is asked for."""

    def __init__(self) -> None:
        self.theirs: list[tuple[int, int]] = []
        self.calls: list[tuple[int, ...]] = []
        self.killed = False

    def mappings(self) -> list[tuple[int, int]]:
        return self.theirs

    def syscall(self, number: int, *args: int) -> int:
        self.calls.append((number, *args))
        return args[0] if number == 12 else 0

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def thread() -> Thread:
    return Thread()


@pytest.fixture
def mm(thread: Any) -> Iterator[AddressSpace]:
    """With a fence, and a memory file in which nothing can be read."""
    reserved = [(CEILING, CEILING + PAGE, "[vdso]")]
    made = AddressSpace(os.open("/dev/null", os.O_RDONLY), reserved, Layout(ceiling=CEILING))
    passed.fence_in(made, thread)
    assert made.fence == (made.mmap_base, CEILING)
    thread.calls.clear()
    yield made
    made.close()


def expect(mm: AddressSpace, thread: Any, pages: int) -> passed.ExpectedMapping:
    expected = passed.expect(mm, thread, pages * PAGE, READ_WRITE, PLAIN)
    assert expected is not None
    return expected


def ours(mm: AddressSpace) -> list[tuple[int, int]]:
    return [(vma.start, vma.end) for vma in mm.regions if vma.end <= mm.mmap_base]


def test_what_is_where_it_was_expected_stays_in_the_list(mm: AddressSpace, thread: Any) -> None:
    top = mm.mmap_base
    expected = expect(mm, thread, 3)
    thread.theirs = [(top - 8 * PAGE, CEILING)]  # one with its neighbours
    expected.confirm()
    assert ours(mm) == [(top - 3 * PAGE, top)] and mm.foretold and not thread.killed
    assert expected.instead()[:2] == (top - 3 * PAGE, 3 * PAGE)


def test_what_the_host_refused_is_in_the_list_no_more(mm: AddressSpace, thread: Any) -> None:
    top = mm.mmap_base
    first = expect(mm, thread, 2)
    thread.theirs = [(top - 2 * PAGE, CEILING + PAGE)]
    first.confirm()
    expect(mm, thread, 3).confirm()
    assert ours(mm) == [(top - 2 * PAGE, top)] and mm.foretold and not thread.killed


def test_what_is_elsewhere_is_found_and_nothing_is_foretold_again(mm: AddressSpace, thread: Any) -> None:
    top = mm.mmap_base
    first = expect(mm, thread, 2)
    thread.theirs = [(top - 2 * PAGE, CEILING), (CEILING, CEILING + PAGE)]
    first.confirm()
    second = expect(mm, thread, 3)
    thread.theirs = [(top - 9 * PAGE, top - 6 * PAGE), *thread.theirs, (TASK_SIZE + PAGE, TASK_SIZE + 2 * PAGE)]
    second.confirm()
    assert ours(mm) == [(top - 9 * PAGE, top - 6 * PAGE), (top - 2 * PAGE, top)]
    assert passed.expect(mm, thread, PAGE, READ_WRITE, PLAIN) is None and not thread.killed


def test_a_program_of_whose_memory_nobody_knows_is_killed(mm: AddressSpace, thread: Any) -> None:
    top = mm.mmap_base
    expected = expect(mm, thread, 3)
    thread.theirs = [(top - 9 * PAGE, top - 7 * PAGE), (top, CEILING)]
    expected.confirm()
    assert thread.killed and ours(mm) == []


def test_the_fence_goes_where_it_is_in_the_way(mm: AddressSpace, thread: Any) -> None:
    assert mm.fence is not None
    low, high = mm.fence
    assert not mm.unfence(thread, low - PAGE, low) and not mm.unfence(thread, high, high + PAGE) and not thread.calls
    assert mm.unfence(thread, low - PAGE, low + PAGE) and mm.fence is None
    assert thread.calls == [(11, low, high - low)]
    assert passed.expect(mm, thread, PAGE, READ_WRITE, PLAIN) is None


def test_no_fence_where_something_is(thread: Any) -> None:
    layout = Layout(ceiling=CEILING)
    layout.mmap_base = CEILING - 64 * PAGE
    reserved = [(CEILING - PAGE, CEILING, "[vdso]")]
    mm = AddressSpace(os.open("/dev/null", os.O_RDONLY), reserved, layout)
    passed.fence_in(mm, thread)
    assert mm.fence is None and not thread.calls
    mm.close()


def test_a_heap_that_the_host_has_no_memory_for_ends_where_it_did(mm: AddressSpace, thread: Any) -> None:
    mm.set_heap(0x1000_0000)
    mm.heap_told = True
    with pytest.raises(Passed) as caught:
        mm.set_brk(thread, 0x1000_0000 + 2 * PAGE, passing=True)
    assert mm.brk == 0x1000_0000 + 2 * PAGE and ours(mm) == [(0x1000_0000, mm.brk)] and not thread.calls
    assert caught.value.expected.instead() == (mm.brk,)
    caught.value.expected.confirm()
    assert mm.brk == 0x1000_0000 and ours(mm) == []


def test_a_heap_with_something_else_in_it_is_no_longer_the_hosts(mm: AddressSpace, thread: Any) -> None:
    mm.set_heap(0x1000_0000)
    mm.heap_told = True
    assert mm.set_brk(thread, 0x1000_0000 + 4 * PAGE) == mm.brk == 0x1000_0000 + 4 * PAGE
    assert thread.calls == [(12, mm.brk)]
    mm.unmap(thread, 0x1000_0000 + 2 * PAGE, PAGE)
    thread.calls.clear()
    assert mm.set_brk(thread, 0x1000_0000 + PAGE, passing=True) == 0x1000_0000 + PAGE
    assert [call[0] for call in thread.calls] == [11] and not mm.heap_told
    assert mm.set_brk(thread, 0x1000_0000 + 2 * PAGE, passing=True) == 0x1000_0000 + 2 * PAGE
    assert [call[0] for call in thread.calls] == [11, 9]
