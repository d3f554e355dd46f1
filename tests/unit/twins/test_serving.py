"""Handing out copies: each to one who asks for what there is, and to nobody else."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from casemate import __version__
from casemate.config import Config
from casemate.errors import HypervisorError
from casemate.keeper.control import Connection, ControlClosed
from casemate.twins import __main__ as serving
from casemate.twins.original import Stock
from casemate.vm import twins
from casemate.vm.hypervisor import twin
from casemate.vm.template import store

KIND = twins.Kind("ab" * 32, 1024, 1)
PATIENCE = 30


@dataclass
class Copies:
    """In the place of an original."""

    hello: dict[str, Any] = field(default_factory=lambda: {"version": "1"})
    facts: dict[str, Any] = field(default_factory=dict)
    channels: int = 3
    made: list[socket.socket] = field(default_factory=list)
    fails: bool = False

    def copy(self) -> tuple[twin.Unborn, int]:
        if self.fails:
            raise HypervisorError("QEMU cannot be copied")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.settimeout(PATIENCE)
        self.made.append(theirs)
        return twin.Unborn(ours, os.pidfd_open(os.getpid())), os.memfd_create(f"window-{len(self.made)}")

    def numbers(self) -> twin.Numbers:
        return twin.Numbers(5, 6, 7, 8)


@dataclass
class Served:
    config: Config
    copies: Copies
    wake: socket.socket
    thread: threading.Thread
    trouble: list[BaseException]

    def end(self) -> None:
        self.wake.send(b"\x0f")
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A thread that has copies; nothing may be left open."""
    before = len(os.listdir("/proc/self/fd"))
    library = tmp_path / "library"
    library.write_bytes(b"")
    monkeypatch.setattr(twin, "LIBRARY", library)
    with tempfile.TemporaryDirectory(prefix="cmt-", dir="/var/tmp") as run:
        config = replace(Config(), root=tmp_path, run=Path(run), twins_idle=1000)
        template = store.home(config.root) / KIND.key / store.MANIFEST
        template.parent.mkdir(parents=True)
        template.write_text("{}")
        where = twins.place(config, KIND)
        where.parent.mkdir()
        ours, theirs = socket.socketpair()
        copies = Copies()
        trouble: list[BaseException] = []

        def run_it() -> None:
            try:
                serving._serve(config, KIND, where, cast("Stock", copies), theirs)
            except HypervisorError as error:
                trouble.append(error)

        thread = threading.Thread(target=run_it)
        made = Served(config, copies, ours, thread, trouble)
        try:
            yield made
        finally:
            if thread.is_alive():
                made.end()
            for sock in (ours, theirs, *copies.made):
                sock.close()
    assert len(os.listdir("/proc/self/fd")) == before


def begin(served: Served) -> None:
    served.thread.start()
    where = twins.place(served.config, KIND)
    for _ in range(PATIENCE * 100):
        with socket.socket(socket.AF_UNIX) as sock:
            if sock.connect_ex(str(where)) == 0:
                return
        threading.Event().wait(0.01)  # a socket that comes to be has no event
    raise AssertionError("nobody listens")


def taken(served: Served) -> twins.Taken:
    found = twins.take(served.config, KIND)
    assert found is not None
    return found


def test_each_gets_one_of_his_own(served: Served) -> None:
    begin(served)
    first, second = taken(served), taken(served)
    names = {os.readlink(f"/proc/self/fd/{one.window}") for one in (first, second)}
    assert len(names) == 2
    assert (first.hello, first.channels, first.numbers) == ({"version": "1"}, 3, twin.Numbers(5, 6, 7, 8))
    ends = []
    for one in (first, second):
        one.unborn.life.sendall(b"mine")
        # The one that asked has its line alone: nobody else's end of it is open.
        one.close()
    for end in served.copies.made:
        with_it = end.recv(16) if not served_waits(served, end) else b""
        ends.append(with_it)
    assert ends.count(b"mine") == 2


def served_waits(served: Served, end: socket.socket) -> bool:
    """Whether a copy is still the server's."""
    end.setblocking(False)
    try:
        end.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        end.settimeout(PATIENCE)
    return False


@pytest.mark.parametrize("change", [{"version": "0"}, {"key": "x"}, {"memory": 1}, {"memory": 1024.5}, {"more": 1}])
def test_who_asks_for_something_else_gets_nothing(served: Served, change: dict[str, object]) -> None:
    begin(served)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(twins.place(served.config, KIND)))
        connection = Connection(sock)
        right = {"version": __version__, "key": KIND.key, "memory": KIND.memory_mib}
        connection.send({**right, **change})
        with pytest.raises(ControlClosed):
            connection.receive()
    taken(served).close()


def test_who_says_nothing_holds_nobody_up_for_long(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PEER_SECONDS", 0.05)
    begin(served)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(twins.place(served.config, KIND)))
        taken(served).close()


def test_descriptors_that_come_with_a_request_are_closed(served: Served) -> None:
    begin(served)
    with socket.socket(socket.AF_UNIX) as sock, open("/dev/null") as null:
        sock.settimeout(PATIENCE)
        sock.connect(str(twins.place(served.config, KIND)))
        Connection(sock).send({}, (null.fileno(),) * 8)
        assert sock.recv(1) == b""


def test_one_that_has_died_is_not_handed_out(served: Served) -> None:
    begin(served)
    waits = next(end for end in reversed(served.copies.made) if served_waits(served, end))
    waits.close()  # it has ended
    found = taken(served)
    assert found.unborn.alive()
    found.close()


def test_an_end_is_heard(served: Served) -> None:
    begin(served)
    served.wake.send(bytes([signal.SIGTERM]))
    served.thread.join(PATIENCE)
    assert not served.thread.is_alive()
    assert twins.take(served.config, KIND) is None
    for end in served.copies.made:
        assert end.recv(1) == b"", "nobody has it any more"


@pytest.mark.parametrize("why", ["idle", "template"])
def test_it_ends_when_it_is_of_no_use(served: Served, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LOOK_SECONDS", 0.01)
    if why == "idle":
        object.__setattr__(served.config, "twins_idle", 0)
        served.thread.start()
    else:
        begin(served)
        (store.home(served.config.root) / KIND.key / store.MANIFEST).unlink()
    served.thread.join(PATIENCE)
    assert not served.thread.is_alive() and not served.trouble


def test_when_no_more_can_be_had_it_ends(served: Served) -> None:
    """The original is of no use then; the last one was handed out."""
    begin(served)
    taken(served).close()
    while len(served.copies.made) < 3:  # who looked whether somebody listens may have had one, too
        threading.Event().wait(0.01)
    served.copies.fails = True
    taken(served).close()
    served.thread.join(PATIENCE)
    assert not served.thread.is_alive()
    assert [str(error) for error in served.trouble] == ["QEMU cannot be copied"]
