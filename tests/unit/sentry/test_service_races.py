"""Requests that come while a container ends or is being made, with a kernel that runs none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from casemate.protocol.wire import RequestFailed
from casemate.sentry.container import Container
from casemate.sentry.service import GuestProcess, Held, Service
from tests.unit.sentry.spaces import namespaces


class Kernel:
    """Knows no process; notes who is frozen."""

    def __init__(self) -> None:
        self.groups: dict[int, Any] = {}
        self.subsystems: dict[str, Any] = {}
        self.frozen = {"c"}
        self.ns = namespaces(self)

        self.forgotten: list[str] = []
        self.running = True

    def freeze(self, container: str, frozen: bool) -> None:
        (self.frozen.add if frozen else self.frozen.discard)(container)

    def forget(self, container: str) -> None:
        self.forgotten.append(container)


class File:
    """Counts."""

    closed = 0

    def decref(self) -> None:
        self.closed += 1


class Mailbox:
    """Does at once what it is asked, but first lets others come before."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.before = before

    def call(self, function: Callable[[], Any]) -> Any:
        before, self.before = self.before, lambda: None
        before()
        return function()

    def post(self, function: Callable[[], None]) -> None:
        function()


def fail(*_: Any) -> None:
    raise ValueError("a defect")


def test_nothing_begins_in_a_container_that_ends() -> None:
    kernel: Any = Kernel()
    container = Container(kernel, "c", lambda path, read_only: pytest.fail("no tree is asked for"))
    container.root = SimpleNamespace()  # type: ignore[assignment]
    container.end()
    file: Any = File()
    with pytest.raises(RequestFailed) as refused:
        container.process({"args": ["true"]}, "", [file], None, None, False)
    assert refused.value.code == "no-such-container"
    assert file.closed == 1
    assert not kernel.frozen, "the next container of that name would stand still"


@pytest.mark.parametrize("broken", ["", "forget", "remove"])
def test_deleted_while_it_cannot_be_made(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever deletes it is not kept waiting for the end of what never began, whatever goes wrong in clearing up."""
    kernel: Any = Kernel()
    if broken:
        monkeypatch.setattr(Container if broken == "remove" else Kernel, broken, fail)
    deleted = threading.Event()

    def delete() -> None:
        service.request("container.delete", {"id": "c"})
        deleted.set()

    def started() -> None:
        thread = threading.Thread(target=delete, daemon=True)
        thread.start()
        thread.join(0.2)
        assert not deleted.is_set()

    mailbox: Any = Mailbox(started)
    gofer: Any = None
    service = Service(kernel, gofer, mailbox)
    service.link = SimpleNamespace()  # type: ignore[assignment]
    with pytest.raises(RequestFailed):
        service.request("container.create", {"id": "c", "spec": {"process": {}}})
    assert deleted.wait(20)
    assert kernel.forgotten == ([] if broken == "forget" else ["c"])


@pytest.mark.parametrize("broken", ["end", "remove"])
def test_an_end_is_told_whatever_goes_wrong_in_clearing_up(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Container, broken, fail)
    kernel: Any = Kernel()
    mailbox: Any = Mailbox()
    gofer: Any = None
    told: list[tuple[str, Any]] = []
    service = Service(kernel, gofer, mailbox)
    service.link = SimpleNamespace(notify=lambda *what: told.append(what))  # type: ignore[assignment]
    held = Held(Container(kernel, "c", lambda path, read_only: pytest.fail("no tree is asked for")))
    process = GuestProcess(None, lambda process, end: service._init_ended(held, process, end), mailbox)
    process.announced.set()
    process.ended(7 << 8)
    assert process.done.wait(20)
    assert held.ended.is_set()
    assert [(method, params["status"]) for method, params in told] == [("process.exited", 7)]
    assert kernel.forgotten == ["c"]
    assert kernel.running == (broken != "end"), "what cannot be ended must not run on"
