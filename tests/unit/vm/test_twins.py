"""Asking for a copy of a machine, and who has one."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casemate import __version__
from casemate.config import TEMPLATE_MIB, Config
from casemate.errors import HostError
from casemate.keeper.control import Connection
from casemate.vm import twins
from casemate.vm.hypervisor import base, twin

KIND = twins.Kind("ab" * 32, 1024, 1)
NUMBERS = {"qmp": 5, "console": 6, "port": 7, "window": 8, "messages": 1}
GOOD: dict[str, Any] = {"hello": {"version": "1"}, "facts": {}, "numbers": NUMBERS, "channels": 12}
SRC = Path(twins.__file__).parents[2]

pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    library = tmp_path / "library"
    library.write_bytes(b"")
    monkeypatch.setattr(twin, "LIBRARY", library)
    monkeypatch.setattr(twin, "machine", lambda: "x86_64")
    (tmp_path / "run").mkdir()
    return replace(Config(), root=tmp_path / "root", run=tmp_path / "run")


# ---- which one


def test_only_emulated_machines_are_copied(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    tcg = base.Accelerator.TCG
    assert twins.possible(config, tcg)
    assert not twins.possible(config, base.Accelerator.KVM)
    assert not twins.possible(replace(config, twins="off"), tcg)
    assert not twins.possible(replace(config, template="off"), tcg)
    with monkeypatch.context() as another:
        another.setattr(twin, "machine", lambda: "aarch64")
        assert not twins.possible(config, tcg)
    monkeypatch.setattr(twin, "LIBRARY", Path("/nonexistent"))
    assert not twins.possible(config, tcg)


@pytest.mark.parametrize(
    ("configured", "asked", "has"),
    [
        (1024, 1024, 1024),
        (1024, 4000, 1024),  # memory can be added to a copy, and not be taken away
        (1024, 1023, TEMPLATE_MIB),
        (TEMPLATE_MIB, 4000, TEMPLATE_MIB),
        (64, 128, TEMPLATE_MIB),
    ],
)
def test_the_kind_has_no_more_memory_than_is_asked_for(config: Config, configured: int, asked: int, has: int) -> None:
    found = twins.kind(replace(config, memory=configured), KIND.key, asked, 1)
    assert found == replace(KIND, memory_mib=has)


def test_places_differ_with_everything(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (KIND, replace(KIND, key="cd" * 32), replace(KIND, memory_mib=128), replace(KIND, vcpus=2))
    found = {twins.place(config, kind) for kind in kinds}
    twin.LIBRARY.write_bytes(b"another one")
    found.add(twins.place(config, KIND))
    monkeypatch.setattr(twins, "__version__", "another")
    found.add(twins.place(config, KIND))
    assert len(found) == 6
    assert all(len(os.fsencode(path)) < 100 for path in found if len(os.fsencode(tmp_path)) < 60)


# ---- asking


def serve(config: Config, body: Callable[[socket.socket], None]) -> tuple[threading.Thread, socket.socket]:
    """Answer one who asks."""
    where = twins.place(config, KIND)
    where.parent.mkdir(exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    at = os.open(where.parent, os.O_PATH)
    listener.bind(f"/proc/self/fd/{at}/{where.name}")  # a temporary directory's path may be too long for a socket's
    os.close(at)
    listener.listen()

    def run() -> None:
        sock, _ = listener.accept()
        with sock:
            body(sock)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, listener


@pytest.fixture
def short(config: Config) -> Iterator[Config]:
    """A run directory whose path is short."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="cmt-", dir="/var/tmp") as path:
        yield replace(config, run=Path(path))


def ask(config: Config, body: Callable[[socket.socket], None]) -> twins.Taken | None:
    thread, listener = serve(config, body)
    try:
        return twins.take(config, KIND)
    finally:
        thread.join()
        listener.close()


def test_one_is_taken(short: Config) -> None:
    asked: list[object] = []

    def answer(sock: socket.socket) -> None:
        connection = Connection(sock)
        asked.append(connection.receive())
        life, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pidfd = os.pidfd_open(os.getpid())
        with life, theirs, open("/dev/zero") as window:
            connection.send(GOOD, (life.fileno(), pidfd, window.fileno()))
        os.close(pidfd)

    taken = ask(short, answer)
    assert asked == [({"version": __version__, "key": KIND.key, "memory": 1024}, [])]
    assert taken is not None
    assert (taken.hello, taken.channels, taken.memory_mib) == ({"version": "1"}, 12, 1024)
    assert taken.numbers == twin.Numbers(5, 6, 7, 8, 1)
    assert os.readlink(f"/proc/self/fd/{taken.window}") == "/dev/zero"
    taken.close()
    taken.close()  # again does nothing


def test_one_that_a_machine_has_is_the_machines(short: Config) -> None:
    ours, theirs = socket.socketpair()
    window, pidfd = os.dup(theirs.fileno()), os.pidfd_open(os.getpid())
    taken = twins.Taken(twin.Unborn(ours, pidfd), window, {}, {}, twin.Numbers(**NUMBERS), 0, 1024)
    taken.given = True
    taken.close()
    assert os.fstat(window) and ours.fileno() >= 0
    taken.given = False
    taken.close()
    theirs.close()


@pytest.mark.parametrize(
    ("change", "fds"),
    [
        ({}, 0),
        ({}, 2),
        ({}, 4),
        ({"hello": None}, 3),
        ({"hello": []}, 3),
        ({"facts": []}, 3),
        ({"channels": -1}, 3),
        ({"channels": 1 << 20}, 3),
        ({"channels": True}, 3),
        ({"channels": "1"}, 3),
        ({"numbers": None}, 3),
        ({"numbers": {}}, 3),
        ({"numbers": {**NUMBERS, "more": 1}}, 3),
        ({"numbers": {**NUMBERS, "qmp": "5"}}, 3),
        ({"numbers": {**NUMBERS, "qmp": -1}}, 3),
        ({}, -3),
    ],
)
def test_what_is_not_understood_is_none_and_closed(short: Config, change: dict[str, Any], fds: int) -> None:
    """Three descriptors of files: the first is no socket."""

    def answer(sock: socket.socket) -> None:
        connection = Connection(sock)
        connection.receive()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, open("/dev/null") as null:
            first = null.fileno() if fds < 0 else ours.fileno()
            connection.send({**GOOD, **change}, (first, *[null.fileno()] * 3)[: abs(fds)])

    assert ask(short, answer) is None


@pytest.mark.parametrize("text", [b"", b"\0", b"\0\0\0\x05{}", b"\xff\xff\xff\xff", b"\0\0\0\x02[]", b"\0\0\0\x02xx"])
def test_a_cut_answer_is_none_and_closed(short: Config, text: bytes) -> None:
    def answer(sock: socket.socket) -> None:
        Connection(sock).receive()
        if text:
            with open("/dev/null") as null:
                socket.send_fds(sock, [text], [null.fileno()] * 3)

    assert ask(short, answer) is None


def test_who_does_not_answer_is_not_waited_for(short: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "SECONDS", 0.05)
    assert ask(short, lambda sock: Connection(sock).receive() and None) is None
    assert twins.take(short, replace(KIND, vcpus=2)) is None, "nobody is there"


# ---- who has one


def test_one_has_it(config: Config) -> None:
    descriptor = twins.hold(config, KIND)
    assert descriptor is not None
    assert twins.hold(config, KIND) is None
    other = twins.hold(config, replace(KIND, vcpus=2))
    assert other is not None
    lock = Path(f"{twins.place(config, KIND)}.lock")
    found = twins.holders(config)
    assert {holder.kind.vcpus for holder in found} == {1, 2}
    assert twins.Holder(os.getpid(), KIND, False, lock) in found
    os.close(other)
    assert twins.holders(config) == [twins.Holder(os.getpid(), KIND, False, lock)]
    os.close(descriptor)
    assert twins.holders(config) == []


def test_it_is_ready_when_it_listens(short: Config) -> None:
    descriptor = twins.hold(short, KIND)
    assert descriptor is not None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(twins.place(short, KIND)))
        assert [holder.ready for holder in twins.holders(short)] == [True]
    os.close(descriptor)
    assert twins.holders(short) == [], "what one has left who was killed is nobody's"
    again = twins.hold(short, KIND)
    assert again is not None
    assert [holder.ready for holder in twins.holders(short)] == [False], "nor is it the next one's"
    os.close(again)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"{}", b'{"pid": "x"}', b'{"pid": 1, "key": 2, "more": 3}', b"\xff"]
)
def test_a_note_that_makes_no_sense_is_of_nobody(config: Config, text: bytes) -> None:
    lock = Path(f"{twins.place(config, KIND)}.lock")
    lock.parent.mkdir()
    lock.write_bytes(text)
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert twins.holders(config) == []
        assert twins.hold(config, KIND) is None
        twins.end(config)


HOLD = """\
import signal, sys, time
from pathlib import Path
from casemate.config import Config
from casemate.vm import twins
from casemate.vm.hypervisor import twin
from dataclasses import replace
twin.LIBRARY = Path(sys.argv[1])
config = replace(Config(), run=Path(sys.argv[2]))
if sys.argv[4:]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = twins.hold(config, twins.Kind(sys.argv[3], 1024, 1))
print(held, flush=True)
signal.pause()
time.sleep(1000)
"""


def holding(config: Config, key: str, *more: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", HOLD, str(twin.LIBRARY), str(config.run), key, *more]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(SRC)})
    assert child.stdout is not None
    assert child.stdout.readline().strip().isdigit()
    return child


def test_the_end_is_waited_for(config: Config) -> None:
    with holding(config, "a" * 64) as first, holding(config, "b" * 64) as second:
        assert len(twins.holders(config)) == 2
        twins.end(config, "a" * 64)
        assert first.wait(0.5) == -15
        assert second.poll() is None
        twins.end(config)
        assert second.wait(0.5) == -15
        twins.end(config)


def test_one_that_does_not_end_is_told(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "END_SECONDS", 0.05)
    with holding(config, "a" * 64, "deaf") as child:
        with pytest.raises(HostError, match=f"the original {child.pid} does not end") as caught:
            twins.end(config)
        assert caught.value.hint == f"kill -9 {child.pid}"
        child.kill()


def test_nobody_is_ended_who_only_has_the_number(config: Config) -> None:
    """What was noted by somebody who has ended since: the number may be anybody's."""
    with subprocess.Popen(["sleep", "1000"]) as child:
        lock = Path(f"{twins.place(config, KIND)}.lock")
        lock.parent.mkdir()
        lock.write_text(f'{{"pid": {child.pid}, "key": "{KIND.key}", "memory_mib": 1024, "vcpus": 1}}')
        twins.end(config)
        descriptor = os.pidfd_open(child.pid)
        assert not select.select([descriptor], [], [], 0.1)[0]
        os.close(descriptor)
        child.kill()


# ---- what could not be made


def test_what_has_failed_is_told_for_a_while(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []

    class Child:
        pid = os.getpid()
        returncode = None

        def __init__(self, words: list[str], **rest: object) -> None:
            begun.append(words)

    monkeypatch.setattr(subprocess, "Popen", Child)
    monkeypatch.setattr("casemate.host.cgroups.hierarchies", lambda **rest: [])
    where = twins.place(config, KIND)
    where.parent.mkdir()
    assert twins.failures(config) == []
    twins.note(where, "no memory")
    assert twins.failures(config) == ["no memory"]
    twins.begin(config, KIND)
    assert begun == []
    os.utime(f"{where}.failed", (time.time() - twins.RETRY_SECONDS - 1,) * 2)
    assert twins.failures(config) == []
    twins.begin(config, KIND)
    assert begun == [[sys.executable, "-P", "-m", "casemate.twins", KIND.key, "1024", "1"]]
    twins.note(where, "again")
    twins.forget(where)
    twins.forget(where)
    assert twins.failures(config) == []
    held = twins.hold(config, KIND)
    assert held is not None
    twins.begin(config, KIND)
    assert len(begun) == 1, "somebody makes it"
    os.close(held)
    others = [twins.hold(config, replace(KIND, vcpus=2 + number)) for number in range(twins.MOST)]
    twins.begin(config, KIND)
    assert len(begun) == 1, "there are enough"
    for lock in others:
        assert lock is not None
        os.close(lock)
    twins.begin(config, KIND)
    assert len(begun) == 2
