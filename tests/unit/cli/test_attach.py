"""The person's terminal and signals while a process has them."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import termios
import threading
from collections.abc import Iterator

import pytest

from casemate.cli import attach
from tests.unit.cli.fakes import FakeSession


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """A terminal in the place of standard input; gives its two ends."""
    ours, theirs = pty.openpty()
    saved = os.dup(0)
    os.dup2(theirs, 0)
    # The test's own output is no terminal's, so that the size comes from standard input.
    yield ours, theirs
    os.dup2(saved, 0)
    for descriptor in (saved, ours, theirs):
        os.close(descriptor)


def settings(descriptor: int) -> list[object]:
    return termios.tcgetattr(descriptor)


def test_the_status_comes_back_and_handlers_are_restored() -> None:
    before = {number: signal.getsignal(number) for number in attach.FORWARDED}
    assert attach.wait(FakeSession(7), tty=False, interactive=False) == 7  # type: ignore[arg-type]
    assert {number: signal.getsignal(number) for number in attach.FORWARDED} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_signals_are_forwarded(number: signal.Signals) -> None:
    class Session(FakeSession):
        def signal(self, signum: int) -> None:
            super().signal(signum)
            self.end(128 + signum)

    session = Session(None)
    # The signal has to find the handlers in place: it is sent once the session is looked at for the first time.
    original = session.fileno
    sent = threading.Event()

    def fileno() -> int:
        if not sent.is_set():
            sent.set()
            os.kill(os.getpid(), number)
        return original()

    session.fileno = fileno  # type: ignore[method-assign]
    assert attach.wait(session, tty=False, interactive=False) == 128 + number  # type: ignore[arg-type]
    assert session.signals == [number]


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with attach.interruptible():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        session = FakeSession(0)
        os.kill(os.getpid(), signal.SIGHUP)
        attach.wait(session, tty=False, interactive=False)  # type: ignore[arg-type]
        assert session.signals == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_fatal_signal_interrupts_what_was_begun() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(attach.Interrupted) as caught, attach.interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_for_what_runs_already_is_kept_for_it_and_a_second_one_interrupts() -> None:
    with attach.interruptible(lambda: True) as kept:
        os.kill(os.getpid(), signal.SIGTERM)
        assert kept == [signal.SIGTERM]
        with pytest.raises(attach.Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
    session = FakeSession(0)
    assert attach.wait(session, tty=False, interactive=False, kept=kept) == 0  # type: ignore[arg-type]
    assert session.signals == [signal.SIGTERM]


def test_the_terminal_is_raw_meanwhile_and_put_back(terminal: tuple[int, int]) -> None:
    before = settings(0)

    class Session(FakeSession):
        def wait(self) -> int:
            during = settings(0)
            assert during != before
            assert not int(during[3]) & (termios.ICANON | termios.ECHO | termios.ISIG)  # type: ignore[call-overload]
            return 0

    assert attach.wait(Session(0), tty=True, interactive=True) == 0  # type: ignore[arg-type]
    assert settings(0) == before


def test_the_terminal_is_put_back_when_the_session_breaks(terminal: tuple[int, int]) -> None:
    before = settings(0)

    class Session(FakeSession):
        def wait(self) -> int:
            raise RuntimeError("the keeper died")

    with pytest.raises(RuntimeError):
        attach.wait(Session(0), tty=True, interactive=True)  # type: ignore[arg-type]
    assert settings(0) == before


def test_the_terminal_stays_as_it_is_without_input(terminal: tuple[int, int]) -> None:
    before = settings(0)

    class Session(FakeSession):
        def wait(self) -> int:
            assert settings(0) == before
            return 0

    attach.wait(Session(0), tty=True, interactive=False)  # type: ignore[arg-type]


def test_a_new_size_is_passed_on(terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(rows: int, columns: int) -> None:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    resize(24, 80)
    monkeypatch.setattr(attach, "terminal_size", lambda: tuple(reversed(os.get_terminal_size(0))))

    class Session(FakeSession):
        def resize(self, rows: int, columns: int) -> None:
            super().resize(rows, columns)
            if len(self.sizes) == 1:
                resize(50, 132)
                os.kill(os.getpid(), signal.SIGWINCH)
            else:
                self.end(0)

    session = Session(None)
    assert attach.wait(session, tty=True, interactive=True) == 0  # type: ignore[arg-type]
    assert session.sizes == [(24, 80), (50, 132)]


def test_closed_descriptors_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "_is_open", lambda descriptor: descriptor == 2)
    assert attach.stdio(True) == (None, None, 2)
    monkeypatch.undo()
    assert attach.stdio(False)[0] is None
