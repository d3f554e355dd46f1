"""Address spaces: what the sentry believes of a memory is what the host says of it."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.sentry.errno import SysError
from casemate.sentry.mm import remap
from casemate.sentry.mm.mapping import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
)
from casemate.sentry.mm.space import AddressSpace
from casemate.sentry.mm.vma import VM_SEALED, VM_SHARED
from casemate.sentry.platform.base import HostThread
from casemate.sentry.platform.ptrace import PtracePlatform
from casemate.sentry.vfs.file import File

PAGE = 4096
BASE = 0x1000_0000
ROOM = 48
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


class HostBacked(File):
    """A file in memory, as tmpfs has them."""

    def __init__(self, flags: int) -> None:
        super().__init__(flags)
        self.fd = os.memfd_create("test", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, 4 * ROOM * PAGE)

    def host_fd(self, shared: bool, writable: bool) -> int:
        return self.fd

    def release(self) -> None:
        os.close(self.fd)


@pytest.fixture(scope="module")
def platform() -> Iterator[PtracePlatform]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    made = PtracePlatform(os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    yield made
    made.close()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Space:
    """A fresh space, and the thread in it."""

    def __init__(self, platform: PtracePlatform) -> None:
        self.thread: HostThread = platform.spawn()
        self.mm = AddressSpace(platform.open_memory(self.thread), platform.reserved)

    def close(self) -> None:
        self.mm.decref()
        self.thread.kill()


@pytest.fixture
def space(platform: PtracePlatform) -> Iterator[Space]:
    made = Space(platform)
    yield made
    made.close()


def host_pages(thread: HostThread) -> dict[int, tuple[str, bool, int]]:
    """What the host maps, page by page: rights, whether shared, which page of the file (0 for anonymous memory)."""
    pages = {}
    with open(f"/proc/{thread.pid}/maps", encoding="utf-8") as maps:
        for line in maps:
            fields = line.split()
            start, end = (int(word, 16) for word in fields[0].split("-"))
            offset, name = int(fields[2], 16), fields[5] if len(fields) > 5 else ""
            if name.startswith("[v"):
                continue
            for at in range(start, end, PAGE):
                page = (offset + at - start) // PAGE if name.startswith("/memfd") else 0
                pages[at // PAGE] = (fields[1][:3], fields[1][3] == "s", page)
    return pages


def own_pages(mm: AddressSpace) -> dict[int, tuple[str, bool, int]]:
    """The same from the sentry's list."""
    pages = {}
    for vma in mm.regions:
        if vma.flags & VM_SEALED:
            continue
        letters = "".join(letter if vma.prot & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))
        for at in range(vma.start, vma.end, PAGE):
            page = (vma.offset + at - vma.start) // PAGE if vma.file is not None else 0
            pages[at // PAGE] = (letters, bool(vma.flags & VM_SHARED), page)
    return pages


place = st.integers(0, ROOM - 1)
length = st.integers(1, 12)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("map"), place, length, st.integers(0, 7), st.booleans(), st.sampled_from("a-rw"), place),
        st.tuples(st.just("anywhere"), length, st.integers(0, 3)),
        st.tuples(st.just("unmap"), place, length),
        st.tuples(st.just("protect"), place, length, st.integers(0, 7)),
        st.tuples(st.just("remap"), place, st.integers(0, 4), length, st.sampled_from([0, 1, 1, 3, 3, 5, 7]), place),
        st.tuples(st.just("advise"), place, length, st.sampled_from([0, 1, 2, 4, 8, 9, 10, 11, 14, 18, 22, 23, 99])),
        st.tuples(st.just("brk"), st.integers(-3, 20)),
        st.tuples(st.just("lock"), place, length),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions)
def test_the_host_agrees(platform: PtracePlatform, steps: list[Any]) -> None:
    space = Space(platform)
    mm, thread = space.mm, space.thread
    read, write = HostBacked(os.O_RDONLY), HostBacked(os.O_RDWR)
    mm.set_heap(BASE + 2 * ROOM * PAGE)
    gate = list(host_pages(thread))
    # So that much of what is tried finds something.
    mm.map(thread, BASE, 16 * PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    mm.map(thread, BASE + 24 * PAGE, 8 * PAGE, READ_WRITE, MAP_SHARED | MAP_FIXED, write, 3 * PAGE)
    try:
        for step in steps:
            with suppress(SysError):
                perform(mm, thread, read, write, step)
            theirs = {page: what for page, what in host_pages(thread).items() if page not in gate}
            assert own_pages(mm) == theirs, step
        held = {id(file): sum(vma.file is file for vma in mm.regions) for file in (read, write)}
        assert (read.refs, write.refs) == (1 + held[id(read)], 1 + held[id(write)])
    finally:
        space.close()
    assert (read.refs, write.refs) == (1, 1)
    read.decref()
    write.decref()


def perform(mm: AddressSpace, thread: HostThread, read: File, write: File, step: Any) -> None:
    name, *rest = step
    if name == "map":
        at, size, prot, shared, what, offset = rest
        file = {"r": read, "w": write}.get(what)
        flags = (MAP_SHARED if shared else MAP_PRIVATE) | (MAP_FIXED_NOREPLACE if what == "-" else MAP_FIXED)
        flags |= 0 if file else MAP_ANONYMOUS
        mm.map(thread, BASE + at * PAGE, size * PAGE, prot, flags, file, offset * PAGE if file else 0)
    elif name == "anywhere":
        size, prot = rest
        mm.map(thread, 0, size * PAGE - 5, prot, MAP_PRIVATE | MAP_ANONYMOUS)
    elif name == "unmap":
        mm.unmap(thread, BASE + rest[0] * PAGE, rest[1] * PAGE)
    elif name == "protect":
        mm.protect(thread, BASE + rest[0] * PAGE, rest[1] * PAGE, rest[2])
    elif name == "remap":
        at, old, new, flags, to = rest
        remap.remap(mm, thread, BASE + at * PAGE, old * PAGE, new * PAGE, flags, BASE + to * PAGE)
    elif name == "advise":
        remap.advise(mm, thread, BASE + rest[0] * PAGE, rest[1] * PAGE, rest[2])
    elif name == "brk":
        mm.set_brk(thread, mm.start_brk + rest[0] * PAGE + 7)
    elif name == "lock":
        remap.lock(mm, thread, BASE + rest[0] * PAGE, BASE + (rest[0] + rest[1]) * PAGE, False)


def test_memory_is_touched_only_as_the_application_could(space: Space) -> None:
    mm, thread = space.mm, space.thread
    anonymous = MAP_PRIVATE | MAP_ANONYMOUS
    at = mm.map(thread, 0, 3 * PAGE, READ_WRITE, anonymous)
    mm.write(at, b"a" * 3 * PAGE)
    mm.protect(thread, at + PAGE, PAGE, mmap.PROT_READ)
    mm.protect(thread, at + 2 * PAGE, PAGE, 0)
    assert mm.read(at + PAGE - 1, 2) == b"aa"
    for address, size in ((at + PAGE, 1), (at + PAGE - 1, 2), (at - 1, 2), (0, 1), (1 << 47, 1), ((1 << 64) - 1, 1)):
        with pytest.raises(SysError, match="EFAULT"):
            mm.write(address, b"b" * size)
    for address, size in ((at + 2 * PAGE, 1), (at + 2 * PAGE - 1, 2), (at - 1, 2), ((1 << 64) - 1, 2)):
        with pytest.raises(SysError, match="EFAULT"):
            mm.read(address, size)
    assert mm.readable_size(at + 5, 3 * PAGE) == 2 * PAGE - 5
    assert mm.readable_size(at + 5, 3 * PAGE, mmap.PROT_WRITE) == PAGE - 5
    assert mm.readable_size(at - 1, 3) == 0


def test_a_huge_reservation_costs_nothing(space: Space) -> None:
    mm, thread = space.mm, space.thread
    size = 1 << 44
    at = mm.map(thread, 0, size, 0, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    mm.protect(thread, at + (1 << 40), 64 * PAGE, READ_WRITE)
    mm.write(at + (1 << 40), b"here")
    assert mm.read(at + (1 << 40), 5) == b"here\0"
    remap.advise(mm, thread, at + (1 << 40), 64 * PAGE, remap.MADV_DONTNEED)
    assert mm.read(at + (1 << 40), 5) == bytes(5)
    mm.unmap(thread, at, size)
    assert mm.regions.find(at) is None


def test_the_platforms_pages_are_not_the_applications(space: Space, platform: PtracePlatform) -> None:
    mm, thread = space.mm, space.thread
    for start, end, _ in platform.reserved:
        refused: list[tuple[Callable[..., object], tuple[int, ...]]] = [
            (mm.unmap, (start, end - start)),
            (mm.unmap, (start - PAGE, 3 * PAGE)),
            (mm.protect, (start, PAGE, 7)),
            (mm.map, (start, PAGE, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)),
            (partial(remap.remap, mm), (start, PAGE, PAGE, 3, BASE)),
            (partial(remap.advise, mm), (start, PAGE, remap.MADV_DONTNEED)),
        ]
        for call, arguments in refused:
            with pytest.raises(SysError, match="EPERM"):
                call(thread, *arguments)
        with pytest.raises(SysError, match="EFAULT"):
            mm.write(start, b"x")


def test_a_fork_has_a_memory_of_its_own(space: Space, platform: PtracePlatform) -> None:
    mm, thread = space.mm, space.thread
    private = mm.map(thread, 0, PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    shared = mm.map(thread, 0, PAGE, READ_WRITE, MAP_SHARED | MAP_ANONYMOUS)
    gone = mm.map(thread, 0, PAGE, READ_WRITE, MAP_SHARED | MAP_ANONYMOUS)
    remap.advise(mm, thread, gone, PAGE, remap.MADV_DONTFORK)
    mm.write(private, b"one")
    child = thread.clone(share_memory=False, same_group=False)
    other = mm.fork(platform.open_memory(child))
    try:
        other.write(private, b"two")
        other.write(shared, b"two")
        assert (mm.read(private, 3), mm.read(shared, 3), other.read(private, 3)) == (b"one", b"two", b"two")
        assert mm.identity(shared + 4) == other.identity(shared + 4)
        assert mm.identity(private) != other.identity(private)
        with pytest.raises(SysError, match="EFAULT"):
            other.read(gone, 1)
        reserved = {page for start, end, _ in platform.reserved for page in range(start // PAGE, end // PAGE)}
        assert own_pages(other).keys() == host_pages(child).keys() - reserved
        other.unmap(child, private, PAGE)
        assert mm.read(private, 3) == b"one"
    finally:
        other.decref()
        child.kill()


def test_what_grows_down_grows_as_far_as_its_limit(space: Space) -> None:
    mm, thread = space.mm, space.thread
    top = mm.map_stack(thread, 0)
    size = mm.layout.stack_size(0)
    assert mm.regions.find(top - size) and not mm.regions.find(top - size - 1)
    assert not mm.grow(thread, top - size - 8, size)
    assert mm.grow(thread, top - size - 5 * PAGE + 8, size + 8 * PAGE)
    mm.write(top - size - 5 * PAGE, b"deep")
    vma = mm.regions.find(top - 1)
    assert vma is not None and (vma.start, vma.name) == (top - size - 5 * PAGE, b"[stack]")
    mm.map(thread, vma.start - 64 * PAGE, PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    assert not mm.grow(thread, vma.start - 2 * PAGE, 1 << 30), "into the gap that guards what is below"
    assert not mm.grow(thread, BASE, 1 << 47)
