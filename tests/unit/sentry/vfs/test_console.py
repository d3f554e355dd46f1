"""Consoles: a terminal coupled to descriptors of the host."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from casemate.sentry.vfs.console import Console
from casemate.sentry.vfs.devpts import DevPts, open_pair
from casemate.sentry.vfs.proc.machine import cpu_list, cpu_mask


class FakePlatform:
    """Notes who watches what."""

    def __init__(self) -> None:
        self.watched: dict[int, int] = {}
        self.watchers: dict[int, Any] = {}

    def watch(self, fd: int, mask: int, watcher: Any) -> None:
        self.watched[fd] = mask
        self.watchers[fd] = watcher


class Door:
    """Told of the end."""

    def __init__(self) -> None:
        self.ended = 0

    def console_ended(self, console: Console) -> None:
        self.ended += 1


@pytest.fixture
def kernel() -> Any:
    clock = SimpleNamespace(realtime=time.time_ns, monotonic=time.monotonic_ns)
    made = SimpleNamespace(platform=FakePlatform(), subsystems={}, clock=clock, mounts=None)
    DevPts(77, made)  # type: ignore[arg-type]
    return made


TASK: Any = SimpleNamespace(
    group=SimpleNamespace(process_group=SimpleNamespace(session=None)), blocked={}, timed_out=False
)


def test_keys_go_in_and_text_comes_out(kernel: Any) -> None:
    source, typed = os.pipe()
    shown, sink = os.pipe()
    terminal, slave = open_pair(kernel)
    console = Console(kernel, source, sink, terminal)
    os.write(typed, b"hello\n")
    console.wake(0)
    assert slave.read(TASK, 100) == b"hello\n"
    assert os.read(shown, 100) == b"hello\r\n"
    slave.write(TASK, b"answer\n")
    assert os.read(shown, 100) == b"answer\r\n"
    os.close(typed)
    console.wake(0)  # the end of a pipe is not the end of the terminal
    slave.write(TASK, b"more")
    assert os.read(shown, 100) == b"more"
    door = Door()
    slave.release()
    console.end(door)
    assert door.ended == 1
    assert terminal.hung_up
    assert kernel.subsystems["devpts"].nodes == {}
    assert os.read(shown, 100) == b""
    os.close(shown)


def test_the_end_waits_for_output_to_go_out(kernel: Any) -> None:
    shown, sink = os.pipe()
    os.set_blocking(shown, False)
    terminal, slave = open_pair(kernel)
    console = Console(kernel, -1, sink, terminal)
    total = 0
    while done := terminal.send(b"x" * 4096):  # until the pipe is full, and then the terminal
        total += done
    door = Door()
    console.end(door)
    assert door.ended == 0
    got = 0
    while not door.ended:
        got += len(os.read(shown, 65536))
        console.wake(0)
    while part := os.read(shown, 65536):
        got += len(part)
    assert got == total
    slave.release()
    os.close(shown)


def test_output_that_nobody_takes_is_dropped(kernel: Any) -> None:
    shown, sink = os.pipe()
    os.close(shown)
    terminal, slave = open_pair(kernel)
    console = Console(kernel, -1, sink, terminal)
    for _ in range(100):
        assert slave.write(TASK, b"x" * 4096) == 4096
    assert not terminal.output
    console.flush()
    assert console.closed
    slave.release()


def test_keys_wait_while_nobody_reads_them(kernel: Any) -> None:
    source, typed = os.pipe()
    os.set_blocking(typed, False)
    shown, sink = os.pipe()
    terminal, slave = open_pair(kernel)
    raw = terminal.settings.copy()
    raw.lflag = 0
    terminal.configure(raw)
    console = Console(kernel, source, sink, terminal)
    for _ in range(40):
        try:
            os.write(typed, b"k" * 4096)
        except BlockingIOError:
            break
        console.wake(0)
    assert terminal.room() == 0
    taken = 0
    while data := slave.read(TASK, 8192) if terminal.raw else b"":
        taken += len(data)
    assert taken > 65536
    console.flush()
    slave.release()
    os.close(typed)
    os.close(shown)


def test_a_new_size_is_the_terminals(kernel: Any) -> None:
    shown, sink = os.pipe()
    terminal, slave = open_pair(kernel)
    console = Console(kernel, -1, sink, terminal)
    console.resize(25, 80)
    assert terminal.window == bytes((25, 0, 80, 0, 0, 0, 0, 0))
    console.flush()
    slave.release()
    os.close(shown)


@pytest.mark.parametrize(
    ("numbers", "text", "mask"),
    [((0,), "0", "1"), ((0, 1, 2, 5, 7, 8), "0-2,5,7-8", "1a7"), ((33,), "33", "2,00000000")],
)
def test_lists_of_processors(numbers: tuple[int, ...], text: str, mask: str) -> None:
    assert cpu_list(numbers) == text
    assert cpu_mask(numbers) == mask
