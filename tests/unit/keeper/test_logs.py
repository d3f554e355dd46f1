"""The log: whole records, bounds, tail, follow."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.keeper import logs
from casemate.keeper.model import ContainerState
from casemate.keeper.store import Container, Store
from tests.unit.keeper.helpers import make_config, make_spec


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Store(make_config(tmp_path)).create(make_spec())


def lines(container: Container, tail: int | None = None) -> bytes:
    return b"".join(data for _, _, data in logs.read(container, tail=tail))


def test_eight_bits_and_streams(container: Container) -> None:
    writer = logs.LogWriter(container.path / "log", 1 << 20)
    everything = bytes(range(256))
    writer.record("stdout", everything)
    writer.record("stderr", b"oops\n")
    assert [(stream, data) for _, stream, data in logs.read(container)] == [
        ("stdout", everything),
        ("stderr", b"oops\n"),
    ]


def test_bounded_and_the_newest_is_kept(container: Container) -> None:
    writer = logs.LogWriter(container.path / "log", 20_000)
    for number in range(5_000):
        writer.record("stdout", b"%06d\n" % number)
    size = sum((container.path / name).stat().st_size for name in ("log", "log.1"))
    assert 10_000 <= size <= 20_100
    kept = lines(container).split()
    assert kept[-1] == b"004999"
    assert [int(word) for word in kept] == list(range(5_000 - len(kept), 5_000))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.binary(min_size=1, max_size=12).map(lambda data: data.replace(b"x", b"\n")), max_size=12),
    st.integers(0, 9),
)
def test_tail_is_what_tail_says(pieces: list[bytes], count: int) -> None:
    records = [(0.0, "stdout", piece) for piece in pieces]
    whole = b"".join(pieces)
    expected = b"".join(whole.splitlines(keepends=True)[-count:]) if b"\r" not in whole and count else b""
    if any(byte in whole for byte in b"\r\v\f\x1c\x1d\x1e\x85"):
        return  # bytes.splitlines splits at more than line feeds
    assert b"".join(data for _, _, data in logs._last_lines(iter(records), count)) == expected


def test_half_a_record_is_left_alone(container: Container) -> None:
    writer = logs.LogWriter(container.path / "log", 1 << 20)
    writer.record("stdout", b"whole\n")
    with open(container.path / "log", "ab") as file:
        file.write(logs.RECORD.pack(1.0, 1, 100) + b"half")
    assert lines(container) == b"whole\n"


def test_follow_until_the_end(container: Container) -> None:
    writer = logs.LogWriter(container.path / "log", 1 << 20)
    writer.record("stdout", b"first\n")
    seen: list[bytes] = []
    arrived = threading.Event()

    def follow() -> None:
        for _, _, data in logs.read(container, follow=True):
            seen.append(data)
            arrived.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert arrived.wait(10)
    arrived.clear()
    writer.record("stderr", b"second\n")
    assert arrived.wait(10)
    container.write_state(ContainerState(status="exited", exit_code=0, finished=time.time()))
    thread.join(10)
    assert not thread.is_alive()
    assert seen == [b"first\n", b"second\n"]


def test_full_disk_loses_output_and_nothing_else(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = logs.LogWriter(container.path / "log", 1 << 20)
    writer.record("stdout", b"before\n")

    def full(fd: int, parts: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    writer.record("stdout", b"lost\n")
    monkeypatch.undo()
    writer.record("stdout", b"after\n")
    assert lines(container) == b"before\nafter\n"


def test_since(container: Container) -> None:
    writer = logs.LogWriter(container.path / "log", 1 << 20)
    writer.record("stdout", b"old\n")
    assert list(logs.read(container, since=time.time() + 60)) == []
    assert len(list(logs.read(container, since=time.time() - 60))) == 1
