"""The keeper when things go wrong around it: races, wedged guests, stuck readers, a host that gives nothing back."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import HostError, NotRunning
from casemate.keeper import client, reap
from casemate.keeper.control import Connection
from casemate.sandbox import ProcessStreams
from tests.unit.keeper.helpers import FakeSandbox
from tests.unit.keeper.test_service import Running


@pytest.fixture(autouse=True)
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reap, "clean_host", lambda container: None)


@pytest.mark.parametrize("remove", [False, True])
def test_status_is_kept_when_the_host_is_not_cleaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remove: bool
) -> None:
    """The status is told, and the container stays on record: its id is what leads to the leftovers."""

    def refuse(container: object) -> None:
        raise HostError("the packet filter refused", "see dmesg")

    monkeypatch.setattr(reap, "clean_host", refuse)
    keeper = Running(tmp_path, remove=remove)
    session = keeper.run()
    keeper.sandbox.end(None, 7)
    assert session.wait() == 7
    keeper.join()
    state = keeper.seen.stored_state()
    assert (state.status, state.exit_code) == ("exited", 7)
    assert "packet filter" in state.error and "casemate rm" in state.error


def test_stop_of_a_guest_that_does_not_answer(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    keeper.run()
    answer = threading.Event()

    def signal(exec_id: str | None, signum: int) -> None:
        answer.wait(30)

    keeper.sandbox.signal = signal  # type: ignore[method-assign]
    begun = time.monotonic()
    assert client.Client(keeper.seen).stop(0.1, 15) == 137
    assert time.monotonic() - begun < 10
    answer.set()
    keeper.join()


def test_stop_beside_a_reader_that_does_not_read(tmp_path: Path) -> None:
    """The container has ended, and its output waits for somebody who does not take it: stop does not wait for him."""
    keeper = Running(tmp_path)
    reader, writer = os.pipe()
    keeper.run(("stdout", writer))
    os.close(writer)
    result: list[int] = []
    keeper.sandbox.streams[None][1].out.put(bytes(1 << 20))
    stopper = threading.Thread(target=lambda: result.append(client.Client(keeper.seen).stop(0.2, 15)), daemon=True)
    stopper.start()
    stopper.join(20)
    assert result == [143]
    keeper.join()
    os.close(reader)


def test_exit_is_never_told_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exec that ends at once: were "exited" to come first, it would be taken for the answer to the request."""
    keeper = Running(tmp_path)
    keeper.run()
    told = threading.Event()
    send = Connection.send

    def slow(self: Connection, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        if "started" in message:
            told.wait(1)
        send(self, message, fds)
        if "exited" in message:
            told.set()

    monkeypatch.setattr(Connection, "send", slow)
    begin = FakeSandbox._begin

    def brief(self: FakeSandbox, key: str | None, stdin: bool) -> ProcessStreams:
        streams = begin(self, key, stdin)
        self.end(key, 5)
        return streams

    monkeypatch.setattr(FakeSandbox, "_begin", brief)
    result: list[int] = []

    def run() -> None:
        session = client.Client(keeper.seen).exec({"args": ["id"]}, "", (None, None, None), tty=False, size=None)
        result.append(session.wait())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert result == [5]
    keeper.sandbox.end(None, 0)
    keeper.join()


def test_everybody_who_waits_is_answered_before_the_keeper_ends(tmp_path: Path) -> None:
    """Its process ends with run(): whoever has no answer by then gets none."""
    keeper = Running(tmp_path)
    keeper.run()
    waiting = threading.Barrier(9)
    wait = keeper.keeper._op_wait

    def slow(request: dict[str, Any]) -> dict[str, Any]:
        waiting.wait(10)
        result = wait(request)
        time.sleep(0.05)  # a busy host gives this thread its turn late
        return result

    keeper.keeper._op_wait = slow  # type: ignore[method-assign]
    sent = []
    send = Connection.send

    def note(self: Connection, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        send(self, message, fds)
        if "oom" in message:
            sent.append(keeper.thread.is_alive())

    Connection.send = note  # type: ignore[method-assign]
    try:
        for _ in range(8):
            threading.Thread(target=client.Client(keeper.seen).wait, daemon=True).start()
        waiting.wait(10)
        keeper.sandbox.end(None, 0)
        keeper.join()
    finally:
        Connection.send = send  # type: ignore[method-assign]
    assert sent == [True] * 8


def test_a_want_of_descriptors_does_not_end_the_door(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    keeper.run()
    ours, theirs = socket.socketpair()
    troubles: list[Any] = [OSError(errno.EMFILE, "many"), OSError(errno.ECONNABORTED, "gone"), (theirs, "")]

    class Listener:
        def __init__(self) -> None:
            self.open = True

        def accept(self) -> Any:
            if not troubles:
                self.open = False
                raise OSError(errno.EBADF, "closed")
            it = troubles.pop(0)
            if isinstance(it, OSError):
                raise it
            return it

        def fileno(self) -> int:
            return 9 if self.open else -1

    keeper.keeper._accept(Listener())  # type: ignore[arg-type]
    connection = Connection(ours)
    connection.send({"op": "info"})
    assert connection.receive()[0]["kernel"] == "6.1.0"
    connection.close()
    keeper.sandbox.end(None, 0)
    keeper.join()


def test_the_last_word_stays_the_last(tmp_path: Path) -> None:
    """A pause that loses the race against the container's end."""
    keeper = Running(tmp_path)
    keeper.run()
    paused, ended = threading.Event(), threading.Event()

    def pause() -> None:
        paused.set()
        ended.wait(10)

    keeper.sandbox.pause = pause  # type: ignore[method-assign]
    requests = client.Client(keeper.seen)
    thread = threading.Thread(target=requests.pause, daemon=True)
    thread.start()
    assert paused.wait(10)
    keeper.sandbox.end(None, 3)
    assert keeper.keeper._gone.wait(10)
    ended.set()
    thread.join(10)
    keeper.join()
    assert (keeper.seen.stored_state().status, keeper.keeper.state.status) == ("exited", "exited")


def test_stopped_before_it_ran_has_the_status_of_that(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    keeper.sandbox.block_boot = threading.Event()
    keeper.ask()
    assert keeper.sandbox.booting.wait(10)
    assert client.Client(keeper.seen).stop(1, 15) == 143
    keeper.join()
    assert keeper.seen.stored_state().exit_code == 143


def test_a_disk_without_room_refuses_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its pid on record, nobody could end the keeper."""
    from casemate.keeper.store import Container

    def full(self: Container, state: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Container, "write_state", full)
    keeper = Running(tmp_path)
    with pytest.raises(HostError, match="free some space") as caught:
        keeper.run()
    assert "cannot write" in caught.value.message
    keeper.join()
    assert not keeper.sandbox.booting.is_set()


def test_the_pid_is_on_record_before_anything_is_asked(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    deadline = time.monotonic() + 10
    while keeper.seen.stored_state().pid is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert keeper.seen.stored_state().pid == os.getpid()
    keeper.connection.close()
    keeper.join()


def test_a_request_to_the_dead(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    session = keeper.run()
    keeper.sandbox.end(None, 0)
    assert session.wait() == 0
    keeper.join()
    with pytest.raises(NotRunning):
        client.Client(keeper.seen)._request("info")


def test_an_error_of_the_system_says_what_to_do(tmp_path: Path) -> None:
    keeper = Running(tmp_path)

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/run/somewhere")

    keeper.sandbox.boot = full  # type: ignore[method-assign]
    with pytest.raises(HostError, match="/run/somewhere: No space left on device: free some space"):
        keeper.run()
    keeper.join()
    assert keeper.seen.stored_state().exit_code == 125
