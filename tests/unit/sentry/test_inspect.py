"""What is told of processes, with a kernel that runs none."""

from __future__ import annotations

import json
import os
import socket
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.protocol.wire import MAX_CONTROL, RequestFailed
from casemate.sentry import inspect
from casemate.sentry.errno import SysError
from casemate.sentry.net.address import pack
from casemate.sentry.opened import address_words, several, shown_flags
from casemate.sentry.syscalls import table
from casemate.sentry.syscalls.numbers import NUMBERS
from casemate.sentry.vfs.file import File
from casemate.sentry.wait import Block, WaitQueue
from casemate.sentry.waits import waits_for

table.load()


class Named(File):
    """An open file of which only the name is known."""

    def __init__(self, name: bytes) -> None:
        super().__init__(os.O_RDWR)
        self.shown = name

    def describe(self) -> bytes:
        return self.shown


class Files:
    """A table of descriptors."""

    def __init__(self, **files: File) -> None:
        self.by_number = {int(name[2:]): file for name, file in files.items()}

    def peek(self, fd: int) -> File | None:
        return self.by_number.get(fd & 0xFFFFFFFF)

    def items(self) -> list[tuple[int, File]]:
        return sorted(self.by_number.items())


class Words:
    """Memory of which every word has the value 7, but for those that are not there."""

    def u32(self, address: int) -> int:
        if address == 0:
            raise SysError(14)
        return 7


def waiting(call: str, *args: int, block: Block | None = None, **more: Any) -> Any:
    """A task that stands in a call."""
    group = SimpleNamespace(children={}, process_group=SimpleNamespace(pgid=40))
    task = SimpleNamespace(
        number=NUMBERS[call], args=args, block=block or Block(WaitQueue()), blocked={}, files=Files(), mem=Words(),
        group=group,
    )  # fmt: skip
    task.__dict__.update(more)
    return task


def test_the_file_that_the_call_began_with_is_named() -> None:
    files = Files(fd3=Named(b"now"))
    assert waits_for(waiting("read", 3, 0, 1, files=files)) == "fd 3 (now)"
    assert waits_for(waiting("read", 3, 0, 1, files=files, blocked={"file": (3, Named(b"then"))})) == "fd 3 (then)"


def test_files_are_found_by_their_queues() -> None:
    files = Files(**{f"fd{number}": Named(b"f%d" % number) for number in range(20)})
    of = files.by_number
    one = Block(of[5].queue)
    assert waits_for(waiting("poll", 1, 1, 0, files=files, block=one)) == "fd 5 (f5)"
    many = Block(*[of[number].queue for number in range(1, 13)])
    told = waits_for(waiting("poll", 1, 12, 0, files=files, block=many))
    assert told.startswith("fd 1 (f1), fd 2 (f2), ")
    assert told.endswith("fd 8 (f8) and 4 more")
    assert waits_for(waiting("poll", 1, 1, 0, files=files)) == "1 event that no open file stands for"
    assert waits_for(waiting("poll", 1, 0, 0, block=Block(deadline=5))) == "the time"


@pytest.mark.parametrize(
    ("call", "args", "said"),
    [
        ("wait4", (12, 0, 0, 0), "process 12 to change state"),
        ("wait4", (0xFFFF_FFFF, 0, 0, 0), "any child to change state: 5, 9"),
        ("wait4", (0, 0, 0, 0), "a child of process group 40"),
        ("wait4", (0xFFFF_FFF0, 0, 0, 0), "a child of process group 16"),
        ("waitid", (1, 12, 0, 4, 0), "process 12 to change state"),
        ("waitid", (0, 0, 0, 4, 0), "any child to change state: 5, 9"),
        ("nanosleep", (1, 1), "the time"),
        ("pause", (), "a signal"),
        ("msgrcv", (3, 0, 0, 0, 0), "a message in queue 3"),
        ("vfork", (), "its child to call execve or to end"),
    ],
)
def test_calls_without_a_file(call: str, args: tuple[int, ...], said: str) -> None:
    task = waiting(call, *args)
    task.group.children = {9: None, 5: None}
    assert waits_for(task) == said


def test_words_of_memory_are_told_with_their_value() -> None:
    word = SimpleNamespace(address=0x1000, pi=False)
    lock = SimpleNamespace(address=0x2000, pi=True)
    gone = SimpleNamespace(address=0, pi=False)
    assert waits_for(waiting("futex", 0x1000, 0, blocked={"futex": [word]})) == "the word at 0x1000, which is 7"
    assert waits_for(waiting("futex", 0x2000, 6, blocked={"futex": [lock]})).endswith("0x2000, which thread 7 has")
    assert "no open file" in waits_for(waiting("futex", 0, 0, blocked={"futex": [gone]}))


def test_who_does_not_wait_waits_for_nothing() -> None:
    task = waiting("read", 0, 0, 0)
    task.block = None
    assert waits_for(task) == ""


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(0, 3000))
def test_answers_are_bounded_and_say_so(sizes: list[int], budget: int) -> None:
    rows = [{"text": "x" * size} for size in sizes]
    made: list[int] = []

    def make() -> Any:
        for row in rows:
            made.append(1)
            yield row

    answer = inspect.bounded(make(), budget)
    kept = answer["rows"]
    assert kept == rows[: len(kept)]
    assert sum(len(json.dumps(row)) + 2 for row in kept) <= budget
    assert answer["cut"] == (len(kept) < len(rows))
    assert len(made) <= len(kept) + 1


def test_an_answer_fits_into_a_frame() -> None:
    assert inspect.BUDGET * 3 // 2 < MAX_CONTROL


def test_who_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {
        pid: SimpleNamespace(pid=pid, container=container, tasks=dict.fromkeys(threads))
        for pid, container, threads in ((9, "a", (9, 10)), (1, "a", (1,)), (4, "b", (4,)))
    }
    kernel: Any = SimpleNamespace(groups=groups)
    monkeypatch.setitem(inspect.QUESTIONS, "ps", lambda group: iter([{"pid": group.pid}]))

    def asked(pid: int | None, container: str | None) -> list[int]:
        return [row["pid"] for row in inspect.collect(kernel, "ps", pid, container)["rows"]]

    assert asked(None, None) == [1, 4, 9]
    assert asked(None, "a") == [1, 9]
    assert asked(10, "a") == [9]
    for pid, container in ((4, "a"), (5, None)):
        with pytest.raises(RequestFailed) as failed:
            asked(pid, container)
        assert failed.value.code == "no-such-process"
    with pytest.raises(RequestFailed) as failed:
        inspect.collect(kernel, "heap", None, None)
    assert failed.value.code == "bad-spec"


def test_signals_have_their_names() -> None:
    assert inspect.signals(1 << 0 | 1 << 14) == ["SIGHUP", "SIGTERM"]
    assert inspect.signals(1 << 31 | 1 << 33 | 1 << 34) == ["signal 32", "SIGRTMIN", "SIGRTMIN+1"]
    assert inspect.signals(0) == []


def test_texts_are_cut_and_take_any_bytes() -> None:
    assert inspect.text(b"a\xff") == "a\\xff"
    assert inspect.text("x" * 20, 10) == "xxxxxxx..."
    assert inspect.text(b"\xff" * 10_000, 100) == inspect.text(b"\xff" * 10_000)[:97] + "..."


def test_addresses_of_sockets() -> None:
    assert address_words(pack(socket.AF_INET, bytes((127, 0, 0, 1)), 80)) == "127.0.0.1:80"
    assert address_words(pack(socket.AF_INET6, bytes(15) + b"\1", 80)) == "[::1]:80"
    assert address_words(struct.pack("<H", socket.AF_UNIX) + b"/run/x\0") == "/run/x"
    assert address_words(struct.pack("<H", socket.AF_UNIX) + b"\0name") == "@name"
    assert address_words(b"") == address_words(None) == address_words(b"\2\0") == address_words(b"\2\0ab") == ""


def test_flags_and_lists() -> None:
    assert shown_flags(os.O_RDWR | os.O_APPEND | os.O_CLOEXEC) == ["O_APPEND", "O_CLOEXEC"]
    assert several(["a", "b"], 2) == "a, b"
    assert several(["a"], 4) == "a and 3 more"
