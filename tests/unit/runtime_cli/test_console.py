"""Terminals: raw on the host, their masters handed over on a socket."""

from __future__ import annotations

import array
import os
import socket
import threading
from pathlib import Path

import pytest

from casemate.errors import UsageError
from casemate.runtime_cli import console


def _read(descriptor: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += os.read(descriptor, count - len(data))
    return data


def test_bytes_pass_unchanged_both_ways() -> None:
    made = console.Console((24, 80))
    try:
        everything = bytes(range(256))
        os.write(made.master, everything)
        assert _read(made.slave, 256) == everything
        os.write(made.slave, everything)
        assert _read(made.master, 256) == everything
        assert console.size_of(made.slave) == (24, 80)
    finally:
        made.close()


def test_the_master_goes_to_the_socket_with_the_terminals_name(tmp_path: Path) -> None:
    path = str(tmp_path / "console.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        made = console.Console(None)
        made.send(path)  # before anybody accepts, as an engine may do that later
        peer, _ = listener.accept()
        with peer:
            name, ancillary, _, _ = peer.recvmsg(4096, socket.CMSG_SPACE(4))
    (master,) = array.array("i", ancillary[0][2])
    try:
        assert name.decode() == made.name
        os.write(master, b"hello")
        assert os.read(made.slave, 5) == b"hello"
    finally:
        os.close(master)
        made.close()


def test_a_path_longer_than_a_sockets_address_serves(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    got = threading.Event()
    here = os.open(deep, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/s")
        listener.listen()

        def accept() -> None:
            with listener.accept()[0] as peer:
                peer.recv(4096)
                got.set()

        thread = threading.Thread(target=accept)
        thread.start()
        made = console.Console(None)
        made.send(str(deep / "s"))
        made.close()
        thread.join()
    os.close(here)
    assert got.is_set()


def test_a_socket_that_nobody_listens_on_is_an_error(tmp_path: Path) -> None:
    made = console.Console(None)
    with pytest.raises(UsageError, match="no such file or directory"):
        made.send(str(tmp_path / "none"))
    made.close()


def test_a_listener_that_takes_nobody_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SEND_SECONDS", 0.2)
    path = str(tmp_path / "console.sock")
    made = console.Console(None)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        with pytest.raises(UsageError, match="resource temporarily unavailable"):
            made.send(path)
    made.close()


@pytest.mark.parametrize(
    ("terminal", "sock", "detach", "complaint"),
    [
        (True, "", True, "cannot allocate tty if runc will detach without setting console socket"),
        (False, "/s", True, "cannot use console socket if runc will not detach or allocate tty"),
        (True, "/s", False, "cannot use console socket if runc will not detach or allocate tty"),
        (True, "/s", True, None),
        (True, "", False, None),
        (False, "", True, None),
        (False, "", False, None),
    ],
)
def test_runcs_rules_for_terminals(terminal: bool, sock: str, detach: bool, complaint: str | None) -> None:
    if complaint is None:
        console.check(terminal=terminal, console_socket=sock, detach=detach)
        return
    with pytest.raises(UsageError) as caught:
        console.check(terminal=terminal, console_socket=sock, detach=detach)
    assert str(caught.value) == complaint


@pytest.mark.parametrize(
    ("process", "size"),
    [
        ({}, None),
        ({"consoleSize": {"height": 0, "width": 80}}, None),
        ({"consoleSize": {"height": 10, "width": 20}}, (10, 20)),
        ({"consoleSize": {"height": 1 << 40, "width": 20}}, (65535, 20)),
    ],
)
def test_the_size_that_a_process_asks_for(process: dict[str, object], size: tuple[int, int] | None) -> None:
    assert console.asked_size(process) == size
