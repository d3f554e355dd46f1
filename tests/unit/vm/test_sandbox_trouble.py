"""The vm wall's sandbox under a guest that lies and in races between its beginning and its end."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import AgentError, HypervisorError
from casemate.protocol import wire
from casemate.protocol.wire import RequestFailed
from casemate.vm import boots, files, machine
from casemate.wall import share
from tests.unit.vm.test_sandbox import NoFiles, Scene
from tests.unit.vm.test_sandbox import server as server  # a fixture

WAIT = 20


@pytest.fixture
def scene(tmp_path: Path, server: NoFiles) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.sandbox.close()


def test_what_came_after_a_close_is_given_back_by_the_next(
    scene: Scene, server: NoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody stops the container while its file server is being started; the one who boots closes once more."""
    building, closed = threading.Event(), threading.Event()
    order: list[str] = []

    def build(container: object) -> None:
        building.set()
        assert closed.wait(WAIT)
        order.append("mount")

    monkeypatch.setattr(share, "build", build)
    monkeypatch.setattr(share, "unmount", lambda path: order.append("unmount"))
    problems: list[BaseException] = []

    def boot() -> None:
        try:
            scene.sandbox.boot()
        except HypervisorError as error:
            problems.append(error)
            scene.sandbox.close()

    thread = threading.Thread(target=boot, daemon=True)
    thread.start()
    assert building.wait(WAIT)
    scene.sandbox.close()
    closed.set()
    thread.join(WAIT)
    assert len(problems) == 1
    assert scene.hypervisor.machines == []
    assert order[-1] == "unmount"
    assert server._ended.is_set()


def test_closing_does_not_wait_for_ever_for_a_file_server(
    scene: Scene, server: NoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs in a dead network file system does not even die of SIGKILL."""
    monkeypatch.setattr(machine, "END_SECONDS", 0.1)
    killed = threading.Event()
    monkeypatch.setattr(server, "kill", killed.set)
    monkeypatch.setattr(server, "wait", lambda timeout=None: threading.Event().wait(timeout) or None)
    monkeypatch.setattr(server, "close", lambda: threading.Event().wait())
    scene.sandbox.boot()
    thread = threading.Thread(target=scene.sandbox.close, daemon=True)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert killed.is_set()


def test_only_what_a_guest_may_say_of_itself_is_kept(scene: Scene) -> None:
    """All of it goes into the state on disk, again and again."""
    deep: Any = []
    for _ in range(300):
        deep = [deep]

    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method != "container.run" or params.get("info") is not True:
            return {}
        return {"pid": 2, "guest": {
            "kernel": "6.1.0\x1b[2J" + "x" * 10_000, "uptime_ms": 5, "mem_total": "lots", "boot_id": None,
            "accelerator": "kvm", "bundle": "mine", "processes": {"keeper": 1}, "address": "8.8.8.8",
            "deep": deep, "zeros": [0] * 100_000, "python": "3.11.2", "agent_version": True,
        }}  # fmt: skip

    scene.guest.answer = answer
    scene.sandbox.boot()
    scene.sandbox.start(False, None)
    info = scene.sandbox.info()
    assert info["accelerator"] == "tcg" and info["bundle"] == "d" * 64
    assert info["address"] is None and info["processes"]["keeper"] == os.getpid()
    assert info["uptime_ms"] == 5 and info["python"] == "3.11.2"
    assert "mem_total" not in info and "agent_version" not in info
    assert "\x1b" not in info["kernel"]
    assert len(json.dumps(info)) < 2000


def test_a_refusal_is_one_line(scene: Scene) -> None:
    def refuse(method: str, params: dict[str, Any]) -> dict[str, Any]:
        raise RequestFailed("odd", "one\n\x1b[2Jtwo" + "x" * 3000)

    scene.guest.answer = refuse
    scene.sandbox.boot()
    with pytest.raises(AgentError) as caught:
        scene.sandbox.stats()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) <= 1000


def test_a_hello_of_another_protocol_is_told_printably() -> None:
    with pytest.raises(wire.ProtocolError) as caught:
        wire.check_hello({"protocol": "\x1b[2J", "role": "agent", "version": "1"}, "host")
    assert str(caught.value).isprintable()


def test_messages_of_a_file_server_are_bounded_and_told(scene: Scene, server: NoFiles, monkeypatch: Any) -> None:
    """A guest that sends nonsense to its file server makes it complain, as often as the guest likes."""
    written = threading.Event()

    def start(config: Any, tree: Any, keep: Any, run_path: Any, messages: int, procs: Any) -> Any:
        messages = os.dup(messages)

        def complain() -> None:
            line = b"fuse: nonsense\n" * 4096
            for _ in range(40):
                os.write(messages, line)
            os.write(messages, b"cannot go on\n")
            os.close(messages)
            written.set()

        threading.Thread(target=complain, daemon=True).start()
        return server, os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(files, "start", start)
    scene.sandbox.boot()
    scene.sandbox.start(False, None)
    assert written.wait(WAIT)
    server.die()
    _, end = scene.ends.get(timeout=WAIT)
    assert "file server died" in end.error and "cannot go on" in end.error
    sizes = [path.stat().st_size for path in scene.container.path.glob(f"{files.TAG}.log*")]
    assert 0 < sum(sizes) < 1 << 21


def test_a_turn_that_comes_too_late_goes_to_the_next(tmp_path: Path) -> None:
    from casemate.config import Config
    from casemate.errors import HostError

    config = Config(root=tmp_path, run=tmp_path, parallel_boots=1)
    first = boots.take(config, "0" * 64, lambda: None, threading.Event())
    gone = threading.Event()
    with pytest.raises(HostError):
        boots.take(config, "1" * 64, gone.set, gone)
    first.end()
    got: list[boots.Turn] = []
    thread = threading.Thread(
        target=lambda: got.append(boots.take(config, "2" * 64, lambda: None, threading.Event())), daemon=True
    )
    thread.start()
    thread.join(WAIT)
    assert len(got) == 1
    got[0].end()
