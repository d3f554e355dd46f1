"""Calls that the host makes by itself: that they come in the order in which the sentry has noted them."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from casemate.sentry.abi import U64
from casemate.sentry.mm import passed
from casemate.sentry.mm.layout import Layout
from casemate.sentry.mm.mapping import MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_PRIVATE
from casemate.sentry.mm.space import AddressSpace
from casemate.sentry.platform.base import Events, HostThread, Watcher
from casemate.sentry.platform.notify import NATIVE, NotifyPlatform, NotifyThread, available
from casemate.sentry.platform.permits import PERMITS
from casemate.sentry.platform.tracing import PTRACE_INTERRUPT, WALL, ptrace
from casemate.sentry.syscalls.numbers import NUMBERS
from casemate.sentry.wait import Passed

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="as the sentry, which is started by root"),
    pytest.mark.skipif(not available(), reason="the host has no notifications"),
]

PAGE = 4096
SIZE = 4 * PAGE
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS
BRK, MMAP, MUNMAP, GETPID = NUMBERS["brk"], NUMBERS["mmap"], NUMBERS["munmap"], NUMBERS["getpid"]


class Told(Events):
    """Has a function serve the next call of an application."""

    def __init__(self) -> None:
        self.serve: Callable[[HostThread, int, tuple[int, ...]], None] = lambda *_: None
        self.calls: list[int] = []

    def on_syscall(self, thread: HostThread, number: int, args: tuple[int, ...]) -> int | None:
        self.calls.append(number)
        self.serve(thread, number, args)
        return None

    def on_fault(self, thread: HostThread, signum: int, info: bytes) -> None:
        pytest.fail(f"the application got signal {signum}")

    def on_gone(self, thread: HostThread, status: int) -> None:
        pytest.fail(f"the application died: {status:#x}")

    def on_failure(self, watcher: Watcher) -> None:
        pytest.fail("nothing is watched")


class World:
    """A process with two threads; the first one makes a call and then asks for its number."""

    def __init__(self, platform: NotifyPlatform) -> None:
        self.platform = platform
        self.told = Told()
        first = platform.spawn()
        assert isinstance(first, NotifyThread)
        self.first = first
        layout = Layout(ceiling=platform.ceiling)
        self.mm = AddressSpace(platform.open_memory(first), platform.reserved, layout)
        passed.fence_in(self.mm, first)
        self.place = self.mm.map(first, 0, SIZE, READ_WRITE, ANONYMOUS)
        code = self.mm.map(first, 0, PAGE, READ_WRITE | mmap.PROT_EXEC, ANONYMOUS)
        text = b"\x0f\x05\x49\x89\xc4"  # syscall; mov r12, rax
        text += b"\xb8" + struct.pack("<I", GETPID) + b"\x0f\x05\x0f\x0b"  # mov eax; syscall; ud2
        self.mm.write(code, text)
        self.second = first.clone(share_memory=True, same_group=True)
        self.code = code

    def begin(self, number: int, *args: int) -> None:
        """Have the first thread make its call, when nothing else is left to be told."""
        self.platform.wait(self.told, 0)
        regs = self.first.regs
        regs.rip, regs.orig_rax = self.code, U64
        regs.rax, regs.r12 = number, 77
        regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9 = (*args, *[0] * (6 - len(args)))
        self.first.resume()

    def result(self) -> Any:
        """What came of it, once the thread has gone on."""
        found: list[int] = []
        self.until(GETPID, lambda thread, number, args: found.append(thread.regs.r12))
        return found[0]

    def wait(self) -> None:
        """Serve for a while. Other threads of a test process may take the signal by which stops are learnt of."""
        self.platform.wait(self.told, 20_000_000)
        self.platform._collect(self.told)

    def until(self, number: int, serve: Callable[[HostThread, int, tuple[int, ...]], None]) -> None:
        """Have a function serve the first thread's next call, which must be this one."""
        self.told.serve, self.told.calls = serve, []
        for _ in range(1000):
            if self.told.calls:
                break
            self.wait()
        assert self.told.calls == [number]

    def mapped(self) -> bool:
        with open(f"/proc/{self.first.pid}/maps", encoding="ascii") as maps:
            return any(line.startswith(f"{self.place:x}-") for line in maps)

    def close(self) -> None:
        self.mm.decref()
        self.first.kill()


@pytest.fixture
def world() -> Iterator[World]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    platform = NotifyPlatform(os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    if not platform.passes:
        platform.close()
        pytest.skip("the host makes no call by itself, before Linux 5.5")
    made = World(platform)
    yield made
    made.close()
    platform.close()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def by_tracer(thread: NotifyThread) -> None:
    """A stop that was asked for comes late."""
    ptrace(PTRACE_INTERRUPT, thread.tid)


def by_host(thread: NotifyThread) -> None:
    """A signal that the sentry did not send."""
    os.kill(thread.pid, signal.SIGUSR1)


@pytest.mark.parametrize("interrupt", [None, by_tracer, by_host])
def test_memory_that_one_thread_gives_back_is_free_for_another(
    world: World, interrupt: Callable[[NotifyThread], None] | None
) -> None:
    """Also where the host has the thread make its call again, because a signal came before the answer."""

    def served(thread: HostThread, number: int, args: tuple[int, ...]) -> None:
        if interrupt is not None:
            interrupt(world.first)
            os.waitid(os.P_PID, world.first.tid, os.WSTOPPED | os.WNOWAIT | WALL)  # its notification is void now
        assert world.mm.unmap(thread, args[0], args[1], passing=thread.passes)
        thread.pass_on(number, args)
        assert (world.first.passed is not None) == (interrupt is not None)
        assert world.mm.map(world.second, world.place, SIZE, READ_WRITE, ANONYMOUS) == world.place
        world.mm.write(world.place, b"mine")

    world.begin(MUNMAP, world.place, SIZE)
    world.until(MUNMAP, served)
    assert world.result() == 0
    assert world.mapped() and world.mm.read(world.place, 4) == b"mine", "what came later is gone"


def test_what_is_passed_on_where_nothing_can_be_is_made_all_the_same(world: World) -> None:
    def served(thread: HostThread, number: int, args: tuple[int, ...]) -> None:
        HostThread.pass_on(thread, number, args)
        assert not world.mapped()

    world.begin(MUNMAP, world.place, SIZE)
    world.until(MUNMAP, served)
    assert world.result() == 0


@pytest.mark.parametrize("interrupt", [None, by_tracer, by_host])
def test_memory_that_the_host_gives_by_itself_is_nobody_elses(
    world: World, interrupt: Callable[[NotifyThread], None] | None
) -> None:
    places: list[int] = []

    def served(thread: HostThread, number: int, args: tuple[int, ...]) -> None:
        if interrupt is not None:
            interrupt(world.first)
            os.waitid(os.P_PID, world.first.tid, os.WSTOPPED | os.WNOWAIT | WALL)
        expected = passed.expect(world.mm, thread, SIZE, READ_WRITE, ANONYMOUS)
        assert expected is not None
        thread.pass_on(number, args, expected)
        places.append(expected.start)
        places.append(world.mm.map(world.second, 0, SIZE, READ_WRITE, ANONYMOUS))
        world.mm.write(places[1], b"mine")

    world.begin(MMAP, 0, SIZE, READ_WRITE, ANONYMOUS, U64, 0)
    world.until(MMAP, served)
    assert world.result() == places[0]
    assert (world.mm.read(places[0], 4), world.mm.read(places[1], 4)) == (bytes(4), b"mine")
    theirs = world.first.mappings()
    for place in places:
        assert any(start <= place and place + SIZE <= end for start, end in theirs)
        assert world.mm.regions.covered(place, place + SIZE) == place + SIZE


def test_memory_that_the_host_does_not_have_is_in_no_list(world: World) -> None:
    places: list[int] = []

    def served(thread: HostThread, number: int, args: tuple[int, ...]) -> None:
        expected = passed.expect(world.mm, thread, SIZE, READ_WRITE, ANONYMOUS)
        assert expected is not None
        places.append(expected.start)
        resource.prlimit(world.first.pid, resource.RLIMIT_AS, (PAGE, PAGE))
        thread.pass_on(number, args, expected)

    world.begin(MMAP, 0, SIZE, READ_WRITE, ANONYMOUS, U64, 0)
    world.until(MMAP, served)
    assert world.result() == U64 + 1 - errno.ENOMEM
    assert world.mm.regions.find(places[0]) is None


HEAP = 0x5000_0000
"""Where the first thread's heap begins, in :func:`permit`."""


def permit(world: World, end: int, most: int) -> None:
    """Have the host serve the first thread's brk(2), once it has made it ``end``."""
    mm = world.mm
    mm.set_heap(HEAP)
    passed.tell_heap(mm, world.first, world.place + SIZE)
    assert mm.heap_told
    assert mm.set_brk(world.second, HEAP + 9 * PAGE) == HEAP + 9 * PAGE

    def served(thread: HostThread, number: int, args: tuple[int, ...]) -> None:
        with pytest.raises(Passed) as caught:
            mm.set_brk(thread, args[0], thread.passes)
        assert caught.value.expected is None
        mm.permit_heap(thread, most)
        assert (mm.permitted is thread) == world.platform.native
        thread.pass_on(number, args)

    world.begin(BRK, end)
    world.until(BRK, served)
    assert world.result() == end


def made(world: World, end: int) -> int:
    """What the host makes of a brk(2) that nobody is told of."""
    world.begin(BRK, end)
    result: int = world.result()
    return result


def theirs(world: World) -> int:
    """Where the host has the heap end, or where it begins."""
    return max([end for start, end in world.first.mappings() if start == HEAP], default=HEAP)


def ours(world: World) -> int:
    return max([vma.end for vma in world.mm.regions if vma.start == HEAP], default=HEAP)


native = pytest.mark.skipif(NATIVE is None, reason="scripts/native has built nothing here")


@native
@pytest.mark.parametrize("ends", [[7], [3, 8, 2], [2, 3], [0, 5], [5, 0], [12], [12, 4, 11], [6]])
def test_a_heap_that_the_host_serves_is_seen_as_it_is(world: World, ends: list[int]) -> None:
    permit(world, HEAP + 6 * PAGE, HEAP + 12 * PAGE)
    for pages in ends:
        assert made(world, HEAP + pages * PAGE) == HEAP + pages * PAGE
    assert world.mm.permitted is world.first, "nobody has looked yet"
    assert world.mm.brk == HEAP + ends[-1] * PAGE
    assert world.mm.permitted is None and ours(world) == theirs(world) == world.mm.brk


@native
@pytest.mark.parametrize("end", [0, HEAP - 1, HEAP + 12 * PAGE + 1, U64])
def test_what_is_not_permitted_is_told(world: World, end: int) -> None:
    permit(world, HEAP + 6 * PAGE, HEAP + 12 * PAGE)
    assert made(world, HEAP + 2 * PAGE) == HEAP + 2 * PAGE
    world.begin(BRK, end)
    world.until(BRK, lambda thread, number, args: thread.answer(5))
    assert world.result() == 5 and theirs(world) == HEAP + 2 * PAGE


@native
def test_whoever_looks_ends_it(world: World) -> None:
    looks: list[Callable[[], object]] = [
        lambda: world.mm.regions,
        lambda: world.mm.brk,
        lambda: world.mm.readable(HEAP + 8 * PAGE, 1),
        world.mm.settle_heap,
        lambda: world.platform.permits.forget(world.first.tid),
        lambda: world.first.lose(0),
    ]
    permit(world, HEAP + 6 * PAGE, HEAP + 12 * PAGE)
    for look in looks:
        assert made(world, HEAP + 7 * PAGE) == HEAP + 7 * PAGE
        look()
        world.first.lost = None
        world.begin(BRK, HEAP + 6 * PAGE)

        def served(thread: HostThread, number: int, args: tuple[int, ...]) -> None:
            with pytest.raises(Passed):
                world.mm.set_brk(thread, args[0], thread.passes)
            world.mm.permit_heap(thread, HEAP + 12 * PAGE)
            thread.pass_on(number, args)

        world.until(BRK, served)
        assert world.result() == HEAP + 6 * PAGE
    assert ours(world) == theirs(world)


@native
@pytest.mark.parametrize("ends", [[8], [2, 8], [7, 8], [8, 7]])
def test_a_heap_that_the_host_cannot_make_larger_has_what_it_had(world: World, ends: list[int]) -> None:
    permit(world, HEAP + 6 * PAGE, HEAP + 12 * PAGE)
    have = 6
    for pages in ends:
        if pages > have:
            resource.prlimit(world.first.pid, resource.RLIMIT_AS, (PAGE, PAGE))
        else:
            have = pages
        assert made(world, HEAP + pages * PAGE) == HEAP + have * PAGE
    assert world.mm.brk == HEAP + have * PAGE
    assert ours(world) == theirs(world) == world.mm.brk


@native
@pytest.mark.parametrize("interrupt", [by_tracer, by_host])
def test_a_call_that_the_host_has_it_make_again_is_made_once(
    world: World, interrupt: Callable[[NotifyThread], None]
) -> None:
    """The signal comes while nobody waits, so before the notification is looked at; it may be told, then."""
    permit(world, HEAP + 6 * PAGE, HEAP + 12 * PAGE)
    results: list[int] = []

    def served(thread: HostThread, number: int, args: tuple[int, ...]) -> None:
        if number == GETPID:
            results.append(thread.regs.r12)
            return
        try:
            thread.answer(world.mm.set_brk(thread, args[0], thread.passes))
        except Passed as way:
            thread.pass_on(number, args, way.expected)

    for pages in (8, 3, 9, 2) * 5:
        world.begin(BRK, HEAP + pages * PAGE)
        interrupt(world.first)
        world.told.serve, results[:] = served, []
        while not results:
            world.wait()
        assert results == [HEAP + pages * PAGE]
    assert world.mm.brk == HEAP + 2 * PAGE and ours(world) == theirs(world) == HEAP + 2 * PAGE


@native
def test_what_another_thread_finds_has_been_made(world: World) -> None:
    """The first thread's call was seen by nobody, and the second one's must come after it."""
    permit(world, HEAP + 6 * PAGE, HEAP + 12 * PAGE)
    mm, first, second = world.mm, world.first, world.second
    assert made(world, HEAP + 8 * PAGE) == HEAP + 8 * PAGE
    world.begin(BRK, HEAP + 2 * PAGE)
    world.told.calls = []
    while first.platform.permits.table[0].last != HEAP + 2 * PAGE:
        world.platform.wait(world.told, 0)
        assert not world.told.calls
    assert mm.map(second, HEAP + 5 * PAGE, PAGE, READ_WRITE, ANONYMOUS | MAP_FIXED_NOREPLACE) == HEAP + 5 * PAGE
    mm.write(HEAP + 5 * PAGE, b"mine")
    assert world.result() == HEAP + 2 * PAGE
    assert mm.read(HEAP + 5 * PAGE, 4) == b"mine" and mm.brk == HEAP + 2 * PAGE


@native
def test_there_are_as_many_as_there_are_and_the_oldest_goes(world: World) -> None:
    permit(world, HEAP + 6 * PAGE, HEAP + 12 * PAGE)
    settled: list[int] = []
    permits = world.platform.permits
    places = []
    for number in range(PERMITS - 1):
        places.append(permits.give(1 << 30, 0, 0, partial(settled.append, number)))
    assert world.mm.permitted is not None and not settled
    assert permits.give(1 << 30, 0, 0, partial(settled.append, -1)) not in places
    assert world.mm.permitted is None and not settled
    permits.give(1 << 30, 0, 0, partial(settled.append, -2))
    assert settled == [0]
