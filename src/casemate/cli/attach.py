"""A person's terminal and signals while a process in a container has them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

    from casemate.keeper.client import Session, Stdio

FORWARDED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
)  # fmt: skip
"""What reaches the process instead of us. Not SIGTSTP: that stops the command line, as the person wants."""
FATAL = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command; ``signum`` tells which."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


def _never() -> bool:
    return False


@contextlib.contextmanager
def interruptible(running: Callable[[], bool] = _never) -> Iterator[list[int]]:
    """Within it, signals that would end us raise :class:`Interrupted`, so that what was begun is undone.

    Arguments:
        running: whether the process that is being started runs by now, although we have not heard of it yet. It may
            have told the person already, who means *it* then: such a signal is kept, and only a second one interrupts.

    Yields:
        The signals that were kept, for :func:`wait`.
    """
    kept: list[int] = []

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if kept or not running():
            raise Interrupted(signum)
        kept.append(signum)

    before = {number: signal.getsignal(number) for number in FATAL}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup(1) means it
                signal.signal(number, interrupt)
        yield kept
    finally:
        _restore(before)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Put off the signals that would end us until after it; for what takes no time and must not be done by halves."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FATAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # what came meanwhile is handled before this returns


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        # None: the handler was not made by Python and cannot be put back.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def stdio(interactive: bool) -> Stdio:
    """Our standard descriptors for a process; its input is empty unless ``interactive``.

    One that is closed here is none there.
    """
    return (0 if interactive and _is_open(0) else None, 1 if _is_open(1) else None, 2 if _is_open(2) else None)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def terminal_size() -> tuple[int, int] | None:
    """Rows and columns of whichever standard descriptor is a terminal."""
    for descriptor in (1, 0, 2):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(descriptor)
            if size.lines and size.columns:
                return size.lines, size.columns
    return None


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Pass every byte of a terminal on as it is (termios(3), cfmakeraw), and put it back whatever happens."""
    import termios
    import tty

    try:
        before = termios.tcgetattr(descriptor)
    except termios.error:
        yield
        return
    try:
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal may have gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def wait(session: Session, *, tty: bool, interactive: bool, kept: Sequence[int] = ()) -> int:
    """Serve a session until its process ends.

    Arguments:
        session: just started.
        tty: the process has a terminal; ours is made raw when ``interactive``, and its size is passed on.
        interactive: the process reads our standard input.
        kept: signals that came before, from :func:`interruptible`.

    Returns:
        The process's exit status.
    """
    import select

    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    numbers = [*FORWARDED, signal.SIGWINCH] if tty else list(FORWARDED)
    before = {number: signal.getsignal(number) for number in numbers}
    # The wake-up descriptor gets each signal's number; the handler itself has nothing to do.
    old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, lambda signum, frame: None)
        with raw(0) if tty and interactive else contextlib.nullcontext():
            for signum in kept:
                session.signal(signum)
            if tty:
                _resize(session)  # it may have changed while the machine booted
            poll = select.poll()
            poll.register(reader, select.POLLIN)
            poll.register(session.fileno(), select.POLLIN)
            while True:
                ready = {descriptor for descriptor, _ in poll.poll()}
                if reader in ready:
                    for signum in os.read(reader, 4096):
                        if signum == signal.SIGWINCH:
                            _resize(session)
                        elif signum in FORWARDED:
                            session.signal(signum)
                if session.fileno() in ready:
                    return session.wait()
    finally:
        signal.set_wakeup_fd(old_wakeup)
        _restore(before)
        os.close(reader)
        os.close(writer)


def _resize(session: Session) -> None:
    size = terminal_size()
    if size is not None:
        session.resize(*size)
