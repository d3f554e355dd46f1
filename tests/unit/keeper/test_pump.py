"""Sinks and pumps: nobody gets stuck, nothing is lost."""

from __future__ import annotations

import os
import select
import socket
import threading
from pathlib import Path

import pytest

from casemate.keeper.pump import Cancel, Sink, copy_in, copy_out
from tests.unit.keeper.helpers import FakeStream


def read_all(fd: int) -> bytes:
    parts = []
    while data := os.read(fd, 1 << 16):
        parts.append(data)
    return b"".join(parts)


def test_sink_leaves_the_owners_flags_alone() -> None:
    reader, writer = os.pipe()
    sink = Sink(os.dup(writer))
    assert os.get_blocking(writer)
    data = os.urandom(1 << 20)
    result: list[bytes] = []
    thread = threading.Thread(target=lambda: result.append(read_all(reader)))
    thread.start()
    assert sink.write(data)
    sink.close()
    os.close(writer)
    thread.join(10)
    assert result == [data]


def test_close_frees_a_write_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    sink = Sink(writer)
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(sink.write(bytes(1 << 20))))
    thread.start()
    sink.close()
    thread.join(10)
    assert result == [False]
    os.close(reader)


def test_sink_tells_that_the_reader_is_gone() -> None:
    reader, writer = os.pipe()
    sink = Sink(writer)
    os.close(reader)
    assert not sink.write(b"x")
    assert not sink.write(b"x")
    sink.close()


def test_socket_and_file(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    sink = Sink(theirs.detach())
    data = os.urandom(1 << 20)
    result: list[bytes] = []
    thread = threading.Thread(target=lambda: result.append(read_all(ours.fileno())))
    thread.start()
    assert sink.write(data)
    sink.close()
    thread.join(10)
    assert result == [data]
    path = tmp_path / "out"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"head ")
    sink = Sink(os.dup(fd))
    assert sink.write(b"tail")
    sink.close()
    os.close(fd)
    assert path.read_bytes() == b"head tail"


def test_copy_in_to_the_end_and_when_cancelled() -> None:
    for cancelled in (False, True):
        reader, writer = os.pipe()
        stream, cancel = FakeStream(), Cancel()
        thread = threading.Thread(target=copy_in, args=(reader, stream, cancel))
        thread.start()
        os.write(writer, b"hello")
        if cancelled:
            cancel.set()
        else:
            os.close(writer)
        assert stream.eof.wait(10)
        thread.join(10)
        assert stream.sent in ((b"", b"hello") if cancelled else (b"hello",))
        cancel.close()


def test_copy_in_stops_when_the_process_takes_no_more() -> None:
    reader, writer = os.pipe()
    stream = FakeStream()
    stream.close()
    os.write(writer, b"hello")
    copy_in(reader, stream, Cancel())  # returns, and has closed its descriptor
    try:
        os.write(writer, b"more")
    except BrokenPipeError:
        return
    raise AssertionError("the reading end is still open")


def test_copy_out() -> None:
    stream = FakeStream()
    got: list[bytes] = []
    for data in (b"a", b"b", b""):
        stream.out.put(data)
    copy_out(stream, got.append)
    assert got == [b"a", b"b"]


def test_copy_in_does_not_get_stuck_where_somebody_else_reads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input that is there when poll(2) looks may be gone when it is read: another program has the same pipe."""
    reader, writer = os.pipe()
    stream, cancel = FakeStream(), Cancel()
    real = select.poll

    class Poll:
        """Once tells of input that is not there."""

        def __init__(self) -> None:
            self.poller, self.lies = real(), 1

        def register(self, fd: int, events: int) -> None:
            self.poller.register(fd, events)
            self.first = getattr(self, "first", fd)

        def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
            if self.lies:
                self.lies = 0
                return [(self.first, select.POLLIN)]
            return self.poller.poll(timeout)

    monkeypatch.setattr(select, "poll", Poll)
    thread = threading.Thread(target=copy_in, args=(reader, stream, cancel), daemon=True)
    thread.start()
    cancel.set()
    thread.join(10)
    assert not thread.is_alive()
    assert stream.eof.is_set()
    os.close(writer)


def test_copy_in_from_a_named_pipe_whose_writer_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    writer = os.open(path, os.O_WRONLY)
    os.write(writer, b"hello")
    os.close(writer)
    stream = FakeStream()
    thread = threading.Thread(target=copy_in, args=(reader, stream, Cancel()), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert stream.sent == b"hello"


def test_copy_in_leaves_the_owners_flags_alone() -> None:
    reader, writer = os.pipe()
    stream, cancel = FakeStream(), Cancel()
    thread = threading.Thread(target=copy_in, args=(os.dup(reader), stream, cancel), daemon=True)
    thread.start()
    os.write(writer, b"x")
    os.close(writer)
    thread.join(10)
    assert stream.sent == b"x"
    assert os.get_blocking(reader)
    os.close(reader)
