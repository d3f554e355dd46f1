"""Pipes against a model: a queue of bytes with Linux's rules of when a write fits."""

from __future__ import annotations

import os
import struct
from errno import EAGAIN, EBUSY, EPERM

from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.ipc.pipe import PIPE_BUF, PipeFile
from casemate.sentry.vfs.file import POLLERR, POLLHUP, POLLIN, POLLOUT
from casemate.sentry.wait import Block
from tests.unit.sentry.vfs.calls import SCRATCH, Caller, Waits

EDGES = [1, PIPE_BUF - 1, PIPE_BUF, PIPE_BUF + 1, 65536, 70000]
SIZES = st.one_of(st.integers(0, 3 * PIPE_BUF), st.sampled_from(EDGES))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), SIZES),
        st.tuples(st.just("read"), SIZES),
        st.tuples(st.just("resize"), st.sampled_from([1, 5000, 8192, 16384, 65536])),
    ),
    max_size=40,
)


def pair(caller: Caller, flags: int = os.O_NONBLOCK) -> tuple[int, int]:
    assert caller("pipe2", SCRATCH, flags) == 0
    reader, writer = struct.unpack("<ii", caller.memory.read(SCRATCH, 8))
    return reader, writer


def text(start: int, size: int) -> bytes:
    """Bytes of which no two pieces are alike by accident."""
    return b"".join(n.to_bytes(4, "little") for n in range(start // 4, (start + size) // 4 + 2))[start % 4 :][:size]


@given(STEPS)
def test_bytes_come_as_they_went(steps: list[tuple[str, int]]) -> None:
    caller = Caller()
    reader, writer = pair(caller)
    queue = b""
    capacity = 65536
    written = 0
    for what, size in steps:
        if what == "write":
            data = text(written, size)
            room = capacity - len(queue)
            if size <= room:
                fits = size
            elif size > PIPE_BUF and room >= PIPE_BUF:
                fits = room
            else:
                fits = -EAGAIN
            assert caller.write(writer, data) == fits
            if fits > 0:
                queue += data[:fits]
                written += fits
        elif what == "read":
            if queue:
                assert caller.read(reader, size) == queue[:size]
                queue = queue[size:]
            elif size:
                assert caller("read", reader, SCRATCH, size) == -EAGAIN
        else:
            wanted = PIPE_BUF
            while wanted < size:
                wanted *= 2
            pipe = caller.task.files.get(writer).pipe
            if wanted < len(queue):
                assert caller("fcntl", writer, 1031, size) == -EBUSY
            else:
                assert caller("fcntl", writer, 1031, size) == wanted == pipe.capacity
                capacity = wanted
        ends = caller.task.files.get(reader), caller.task.files.get(writer)
        assert bool(ends[0].poll(caller.task) & POLLIN) == bool(queue)
        assert bool(ends[1].poll(caller.task) & POLLOUT) == (capacity - len(queue) >= PIPE_BUF)
    rest = b""
    while len(rest) < len(queue):
        rest += caller.read(reader)
    assert rest == queue


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=9000), st.integers(1, 9000)), max_size=30))
def test_packets_stay_apart(steps: list[bytes | int]) -> None:
    caller = Caller()
    reader, writer = pair(caller, os.O_NONBLOCK | os.O_DIRECT)
    packets: list[bytes] = []
    for step in steps:
        if isinstance(step, bytes):
            pieces = [step[at : at + PIPE_BUF] for at in range(0, len(step), PIPE_BUF)]
            fit = pieces[: 16 - len(packets)]
            expected = sum(map(len, fit)) or -EAGAIN
            assert caller.write(writer, step) == expected
            packets += fit
        elif packets:
            assert caller.read(reader, step) == packets.pop(0)[:step]
    for packet in packets:
        assert caller.read(reader) == packet


def test_a_large_write_waits_for_the_reader_and_goes_on() -> None:
    caller = Caller()
    reader, writer = pair(caller, 0)
    data = text(0, 200_000)
    caller.memory.write(SCRATCH + 300_000, data)
    arguments = ("write", writer, SCRATCH + 300_000, len(data))
    got = b""
    for _ in range(20):
        try:
            assert caller.raw(*arguments) == len(data)
            break
        except Waits as waits:
            # What a signal would have it return.
            assert isinstance(waits.__cause__, Block)
            assert waits.__cause__.partial == len(got) + 65536
            got += _take(caller, reader)
    else:
        raise AssertionError("it never ended")
    assert got + _take(caller, reader) == data


def _take(caller: Caller, fd: int) -> bytes:
    """Read all that is there, without ending the call that waits."""
    file = caller.task.files.get(fd)
    assert isinstance(file, PipeFile)
    return file.read(caller.task, 1 << 20)


def test_ends_tell_of_the_other() -> None:
    caller = Caller()
    reader, writer = pair(caller)
    ends = [caller.task.files.get(fd) for fd in (reader, writer)]
    assert ends[0].poll(caller.task) == 0
    caller("close", writer)
    assert ends[0].poll(caller.task) == POLLHUP
    assert caller.read(reader) == b""
    reader, writer = pair(caller)
    end = caller.task.files.get(writer)
    caller("close", reader)
    assert end.poll(caller.task) & (POLLOUT | POLLERR) == POLLOUT | POLLERR


def test_only_the_strong_have_large_pipes() -> None:
    strong, weak = Caller(), Caller(uid=1000)
    assert strong("fcntl", pair(strong)[1], 1031, (1 << 20) + 1) == 1 << 21
    assert weak("fcntl", pair(weak)[1], 1031, (1 << 20) + 1) == -EPERM
    assert weak("fcntl", pair(weak)[1], 1031, 1 << 20) == 1 << 20


class Waiting:
    """Who waits for a queue."""

    def __init__(self) -> None:
        self.woken = 0

    def wake(self, mask: int) -> None:
        self.woken += 1


def test_readers_are_woken_by_writes_and_writers_by_room() -> None:
    caller = Caller()
    reader, writer = pair(caller)
    ends = [caller.task.files.get(fd) for fd in (reader, writer)]
    reads, writes = Waiting(), Waiting()
    ends[0].queue.add(reads)
    ends[1].queue.add(writes)
    caller.write(writer, bytes(65536))
    assert (reads.woken, writes.woken) == (1, 0)
    caller.read(reader, PIPE_BUF - 1)
    assert writes.woken == 0
    caller.read(reader, 1)
    assert writes.woken == 1
    caller("close", writer)
    assert reads.woken == 2
