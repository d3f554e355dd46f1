"""The keeper's life with a fake sandbox: states, sessions, ends."""

from __future__ import annotations

import os
import select
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import CommandNotFound, HostError, NotRunning, Unsupported, UsageError
from casemate.keeper import client, logs, reap
from casemate.keeper.control import Connection, raise_error
from casemate.keeper.service import Keeper
from casemate.keeper.store import Container, Store
from tests.unit.keeper.helpers import FakeSandbox, make_config, make_spec


class Running:
    """A keeper on a thread, and the connection that started it."""

    def __init__(self, tmp_path: Path, **changes: Any) -> None:
        config = make_config(tmp_path)
        self.container = Store(config).create(make_spec(**changes))
        self.seen = Container(config, self.container.path)
        self.sandboxes: list[FakeSandbox] = []
        self.keeper = Keeper(self.container, self._wall)
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours)
        self.thread = threading.Thread(target=self.keeper.run, args=(Connection(theirs),))
        self.thread.start()

    def _wall(self, container: Container, on_exit: Any, progress: Any) -> FakeSandbox:
        self.sandboxes.append(FakeSandbox(on_exit))
        return self.sandboxes[0]

    @property
    def sandbox(self) -> FakeSandbox:
        return self.sandboxes[0]

    def ask(self, *stdio: tuple[str, int], size: Any = None) -> None:
        request = {"op": "run", "fds": [name for name, _ in stdio], "size": size}
        self.connection.send(request, tuple(fd for _, fd in stdio))

    def run(self, *stdio: tuple[str, int]) -> client.Session:
        self.ask(*stdio)
        answer, _ = self.connection.receive()
        raise_error(answer)
        return client.Session(self.connection, self.seen)

    def join(self) -> None:
        self.thread.join(20)
        assert not self.thread.is_alive()
        if self.container.lock_fd is not None:
            os.close(self.container.lock_fd)
            self.container.lock_fd = None


@pytest.fixture(autouse=True)
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reap, "clean_host", lambda container: None)


def test_output_log_and_status(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    reader, writer = os.pipe()
    session = keeper.run(("stdout", writer))
    os.close(writer)
    assert keeper.seen.stored_state().status == "running"
    assert keeper.seen.stored_state().guest == {"kernel": "6.1.0"}
    keeper.sandbox.end(None, 7, b"hello", b"oops")
    assert session.wait() == 7
    assert os.read(reader, 100) == b"hello"
    assert os.read(reader, 100) == b""
    keeper.join()
    state = keeper.seen.state()
    assert (state.status, state.exit_code, state.pid) == ("exited", 7, None)
    assert {stream: data for _, stream, data in logs.read(keeper.seen)} == {"stdout": b"hello", "stderr": b"oops"}
    assert keeper.sandbox.closed.is_set()


def test_failed_start_is_told_with_its_class(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    keeper.sandbox.start_error = CommandNotFound("no such command: frobnicate")
    with pytest.raises(CommandNotFound, match="frobnicate"):
        keeper.run()
    keeper.join()
    assert keeper.seen.state().exit_code == 127
    assert "frobnicate" in keeper.seen.state().error


def test_failed_boot_with_rm_leaves_nothing(tmp_path: Path) -> None:
    keeper = Running(tmp_path, remove=True)
    keeper.sandbox.boot_error = HostError("no room")
    with pytest.raises(HostError, match="no room"):
        keeper.run()
    keeper.join()
    assert not keeper.container.path.exists()
    assert keeper.sandbox.closed.is_set()


def test_starter_that_goes_away_ends_a_start(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    keeper.sandbox.block_boot = threading.Event()
    keeper.ask()
    assert keeper.sandbox.booting.wait(10)
    keeper.connection.close()
    keeper.join()
    assert "went away" in keeper.seen.state().error


def test_signal_before_it_runs(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    keeper.sandbox.block_boot = threading.Event()
    keeper.ask()
    assert keeper.sandbox.booting.wait(10)
    keeper.connection.send({"op": "signal", "signum": 2})
    answer, _ = keeper.connection.receive()
    assert "interrupted" in answer["error"]["message"]
    keeper.join()
    assert keeper.seen.state().status == "exited"


def test_client_that_goes_away_leaves_the_container(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    reader, writer = os.pipe()
    stdin_reader, stdin_writer = os.pipe()
    session = keeper.run(("stdin", stdin_reader), ("stdout", writer))
    for fd in (writer, stdin_reader):
        os.close(fd)
    session.close()
    assert keeper.sandbox.streams[None][0].eof.wait(10)  # standard input ends with its owner
    assert os.read(reader, 1) == b""  # and the output's descriptor was let go
    assert client.Client(keeper.seen).info()["kernel"] == "6.1.0"
    keeper.sandbox.end(None, 0, b"later")
    keeper.join()
    assert b"".join(data for _, _, data in logs.read(keeper.seen)) == b"later"
    os.close(stdin_writer)


def test_exec_session(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    keeper.run()
    reader, writer = os.pipe()
    requests = client.Client(keeper.seen)
    session = requests.exec({"args": ["id"]}, "nobody", (None, writer, None), tty=True, size=(24, 80))
    os.close(writer)
    assert keeper.sandbox.calls[0] == ("exec", "exec-1", {"args": ["id"], "terminal": True}, "nobody", (24, 80))
    session.resize(50, 100)
    session.signal(10)
    assert session.wait() == 138
    assert ("resize", "exec-1", 50, 100) in keeper.sandbox.calls
    assert os.read(reader, 10) == b""
    keeper.sandbox.end(None, 0)
    keeper.join()
    assert list(logs.read(keeper.seen)) == []


def test_stop_kills_the_deaf(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    keeper.run()
    keeper.sandbox.deaf = True
    assert client.Client(keeper.seen).stop(0.1, 15) == 137
    keeper.join()
    assert [call for call in keeper.sandbox.calls if call[0] == "signal"] == [("signal", None, 15), ("signal", None, 9)]
    assert "whole sandbox was killed" in keeper.seen.state().error


def test_stop_and_wait_agree(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    keeper.run()
    results: list[int] = []
    waiter = threading.Thread(target=lambda: results.append(client.Client(keeper.seen).wait()))
    waiter.start()
    assert client.Client(keeper.seen).stop(5, 15) == 143
    waiter.join(10)
    keeper.join()
    assert results == [143] or results == []  # one that came too late is told so by NotRunning


def test_only_the_sentry_can_be_looked_into(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    keeper.run()
    requests = client.Client(keeper.seen)
    with pytest.raises(Unsupported, match="not behind the sentry"):
        requests.debug("ps", None)
    asked: list[Any] = []
    keeper.sandbox.debug = lambda what, pid: asked.append((what, pid)) or {"rows": [], "cut": False}  # type: ignore[method-assign, func-returns-value]
    requests.pause()
    assert requests.debug("stacks", 7) == {"rows": [], "cut": False}
    assert asked == [("stacks", 7)]
    requests.signal(9)
    keeper.join()


def test_pause_refuses_work_and_kill_ends_it(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    keeper.run()
    requests = client.Client(keeper.seen)
    requests.pause()
    assert keeper.seen.stored_state().status == "paused"
    with pytest.raises(NotRunning, match="unpause"):
        requests.stats()
    with pytest.raises(NotRunning, match="paused"):
        requests.exec({"args": ["id"]}, "", (None, None, None), tty=False, size=None)
    requests.resume()
    assert requests.stats()["memory"] == {"current": 1}
    requests.pause()
    requests.signal(9)
    keeper.join()
    assert keeper.seen.state().exit_code == 137


def test_oom_is_written_down(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    session = keeper.run()
    keeper.sandbox.end(None, 137, oom=True)
    assert session.wait() == 137
    keeper.join()
    assert keeper.seen.state().oom_killed


def test_unknown_request_and_garbage(tmp_path: Path) -> None:
    keeper = Running(tmp_path)
    keeper.run()
    requests = client.Client(keeper.seen)
    with pytest.raises(UsageError, match="no request"):
        requests._request("frobnicate")
    for garbage in (b"\xff\xff\xff\xff", b"\0\0\0\x02[]", b"\0\0\0\x05{", b""):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(keeper.seen.run_path / "control.sock"))
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        assert select.select([sock], [], [], 10)[0]
        sock.close()
    assert requests.info()["kernel"] == "6.1.0"
    keeper.sandbox.end(None, 0)
    keeper.join()


def test_descriptors_are_all_given_back(tmp_path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    keeper = Running(tmp_path)
    session = keeper.run()
    before = count()
    for _ in range(5):
        pipes = [os.pipe() for _ in range(3)]
        stdio = (pipes[0][0], pipes[1][1], pipes[2][1])
        execution = client.Client(keeper.seen).exec({"args": ["id"]}, "", stdio, tty=False, size=None)
        key = f"exec-{len(keeper.sandbox.streams) - 1}"
        keeper.sandbox.end(key, 3)
        assert execution.wait() == 3
        for fd in (fd for pipe in pipes for fd in pipe):
            os.close(fd)
    keeper.sandbox.end(None, 0)
    assert session.wait() == 0
    keeper.join()
    assert count() <= before


def test_who_asks_while_everything_is_given_back_hears_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Running(tmp_path)
    cleaning, go_on = threading.Event(), threading.Event()

    def slow(container: Container) -> None:
        cleaning.set()
        go_on.wait(20)

    monkeypatch.setattr(reap, "clean_host", slow)
    keeper.run()
    keeper.sandbox.end(None, 5)
    assert cleaning.wait(10)
    assert keeper.seen.stored_state().status == "running"
    results: list[int] = []
    waiter = threading.Thread(target=lambda: results.append(client.Client(keeper.seen).wait()))
    waiter.start()
    go_on.set()
    keeper.join()
    waiter.join(20)
    assert results == [5]


def test_who_saw_output_may_go_away_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.keeper import service

    keeper = Running(tmp_path)
    process = vars(service)["Process"]
    reader, writer = os.pipe()

    def late(*arguments: Any) -> Any:
        made = process(*arguments)
        keeper.sandbox.streams[None][1].out.put(b"up\n")
        assert os.read(reader, 3) == b"up\n"
        keeper.connection.close()
        assert gone.wait(20)  # the keeper knows that the client went before it knows of the process
        return made

    gone = threading.Event()
    client_left = keeper.keeper._first_client

    def first_client(connection: Connection) -> None:
        client_left(connection)
        gone.set()

    monkeypatch.setattr(keeper.keeper, "_first_client", first_client)
    monkeypatch.setattr(service, "Process", late)
    keeper.ask(("stdout", writer))
    os.close(writer)
    assert gone.wait(20)
    assert os.read(reader, 1) == b""  # detached
    assert keeper.seen.stored_state().status == "running"
    keeper.sandbox.end(None, 0)
    keeper.join()
    assert keeper.seen.state().exit_code == 0
