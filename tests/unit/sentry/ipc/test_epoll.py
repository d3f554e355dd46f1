"""Sets of files: what they report is what polling each file says, and edges are told once."""

from __future__ import annotations

import os
import struct
from errno import EAGAIN, EBADF, EEXIST, EINVAL, ELOOP, ENOENT, EPERM

from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.vfs.file import POLLIN, POLLOUT
from tests.unit.sentry.vfs.calls import SCRATCH, Caller

ADD, DELETE, MODIFY = 1, 2, 3
EPOLLET, EPOLLONESHOT = 1 << 31, 1 << 30
EVENT = struct.Struct("<IQ")


def control(caller: Caller, epoll: int, op: int, fd: int, events: int, data: int = 0) -> int:
    caller.memory.write(SCRATCH, EVENT.pack(events, data))
    return caller("epoll_ctl", epoll, op, fd, SCRATCH)


def events(caller: Caller, epoll: int, limit: int = 64) -> dict[int, int]:
    """What is reported now: data to events."""
    count = caller("epoll_wait", epoll, SCRATCH, limit, 0)
    assert 0 <= count <= limit
    found = [EVENT.unpack(caller.memory.read(SCRATCH + at * EVENT.size, EVENT.size)) for at in range(count)]
    assert len(dict((data, mask) for mask, data in found)) == count
    return {data: mask for mask, data in found}


def counter(caller: Caller, value: int = 0) -> int:
    return caller("eventfd2", value, os.O_NONBLOCK)


def put(caller: Caller, fd: int, value: int = 1) -> int:
    return caller.write(fd, value.to_bytes(8, "little"))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "modify", "delete", "put", "take", "reopen", "wait", "wait few"]),
        st.integers(0, 4),
        st.sampled_from([0, POLLIN, POLLOUT, POLLIN | POLLOUT]),
    ),
    max_size=60,
)


@given(STEPS)
def test_levels_are_what_polling_says(steps: list[tuple[str, int, int]]) -> None:
    caller = Caller()
    epoll = caller("epoll_create1", 0)
    fds = [counter(caller) for _ in range(5)]
    watched: dict[int, int] = {}
    for what, at, mask in steps:
        fd = fds[at]
        if what == "add":
            assert control(caller, epoll, ADD, fd, mask, at) == (-EEXIST if at in watched else 0)
            watched.setdefault(at, mask)
        elif what == "modify":
            assert control(caller, epoll, MODIFY, fd, mask, at) == (0 if at in watched else -ENOENT)
            if at in watched:
                watched[at] = mask
        elif what == "delete":
            assert control(caller, epoll, DELETE, fd, 0) == (0 if at in watched else -ENOENT)
            watched.pop(at, None)
        elif what == "put":
            put(caller, fd)
        elif what == "take":
            caller("read", fd, SCRATCH, 8)
        elif what == "reopen":
            # A file that nobody has open is in no set any more, also when its number is used again.
            caller("close", fd)
            watched.pop(at, None)
            assert counter(caller) == fd
        expected = {
            one: caller.task.files.get(fds[one]).poll(caller.task) & wanted for one, wanted in watched.items()
        }
        expected = {one: found for one, found in expected.items() if found}
        assert bool(caller.task.files.get(epoll).poll(caller.task)) == bool(expected)
        if what == "wait few" and len(expected) > 2:
            first = events(caller, epoll, 2)
            assert first.items() <= expected.items()
            # The others have their turn before these come again.
            rest = events(caller, epoll, len(expected) - 2)
            assert not rest.keys() & first.keys() and first | rest == expected
        else:
            assert events(caller, epoll) == expected


@given(st.lists(st.sampled_from(["put", "take", "wait", "modify"]), max_size=40))
def test_edges_are_told_once(steps: list[str]) -> None:
    caller = Caller()
    epoll = caller("epoll_create1", 0)
    fd = counter(caller)
    control(caller, epoll, ADD, fd, POLLIN | EPOLLET)
    news = False
    for step in steps:
        if step == "put":
            put(caller, fd)
            news = True
        elif step == "take":
            caller("read", fd, SCRATCH, 8)
        elif step == "modify":
            control(caller, epoll, MODIFY, fd, POLLIN | EPOLLET)
            news = True
        else:
            ready = bool(caller.task.files.get(fd).poll(caller.task) & POLLIN)
            assert events(caller, epoll) == ({0: POLLIN} if news and ready else {})
            news = False


def test_oneshot_is_silent_until_modified() -> None:
    caller = Caller()
    epoll, fd = caller("epoll_create1", 0), counter(caller, 1)
    control(caller, epoll, ADD, fd, POLLIN | EPOLLONESHOT)
    assert events(caller, epoll) == {0: POLLIN}
    put(caller, fd)
    assert events(caller, epoll) == {}
    control(caller, epoll, MODIFY, fd, POLLIN | EPOLLONESHOT, 7)
    assert events(caller, epoll) == {7: POLLIN}


def test_sets_in_sets_never_go_in_circles_or_too_deep() -> None:
    caller = Caller()
    chain = [caller("epoll_create1", 0)]
    for _ in range(8):
        outer = caller("epoll_create1", 0)
        if control(caller, outer, ADD, chain[-1], POLLIN) == -ELOOP:
            break
        chain.append(outer)
    assert 5 <= len(chain) <= 7
    assert control(caller, chain[0], ADD, chain[-1], POLLIN) == -ELOOP
    assert control(caller, chain[0], ADD, chain[0], POLLIN) == -EINVAL
    fd = counter(caller)
    control(caller, chain[0], ADD, fd, POLLIN)
    assert events(caller, chain[-1]) == {}
    put(caller, fd)
    assert events(caller, chain[-1]) == {0: POLLIN}
    # Also from below: what would make it too deep is refused at any place.
    deep = caller("epoll_create1", 0)
    assert control(caller, deep, ADD, chain[-1], POLLIN) == -ELOOP


def test_what_cannot_be_watched() -> None:
    caller = Caller()
    epoll = caller("epoll_create1", 0)
    assert control(caller, epoll, ADD, caller.open(b"/file", os.O_CREAT | os.O_RDWR), POLLIN) == -EPERM
    assert control(caller, epoll, ADD, 77, POLLIN) == -EBADF
    assert caller("epoll_wait", epoll, SCRATCH, 0, 0) == -EINVAL
    assert caller("read", counter(caller), SCRATCH, 8) == -EAGAIN


def test_a_closed_set_leaves_nothing_behind() -> None:
    caller = Caller()
    fds = [counter(caller) for _ in range(3)]
    epoll = caller("epoll_create1", 0)
    for fd in fds:
        control(caller, epoll, ADD, fd, POLLIN)
    assert caller.kernel.subsystems["epoll.watches"] == 3
    caller("close", epoll)
    assert caller.kernel.subsystems["epoll.watches"] == 0
    assert all(len(caller.task.files.get(fd).queue) == 0 for fd in fds)
