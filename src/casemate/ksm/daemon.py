"""The throttler: waits for starts and for the time, and sets the pace that is due.

It is one thread around poll(2). Whatever ends it, the settings it found are put back: by itself where it is asked to
end or something fails, by its guard where it is killed.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from casemate.config import Config
from casemate.errors import HostError
from casemate.host.service import ready, signals
from casemate.ksm import policy, settings
from casemate.ksm.guard import Guard
from casemate.ksm.kept import Home

"""Those that ask for an end; any other that ends a process is the guard's business."""


class Throttler:
    """The daemon.

    Arguments:
        config: the configuration in force.
        mode: one of :data:`casemate.config.KSM`.
        say: told what a log should have, one line each.
        home: its files.
    """

    def __init__(self, config: Config, mode: str, say: Callable[[str], None], home: Home) -> None:
        self._config = config
        self._mode = mode
        self._say = say
        self._home = home
        self._policy = policy.Policy(policy.paces(config))
        self._found: settings.Settings | None = None
        self._state = ""

    def run(self) -> int:
        """Work until a signal asks for the end; nothing of it stays.

        Returns:
            0.

        Raises:
            HostError: the kernel does not merge pages, the settings cannot be changed, or another throttler runs.
        """
        home = self._home
        settings.require(home.kernel)
        if self._mode != "initial":
            settings.require_writable(home.kernel)
        home.make()
        with _held(home.lock), _held(home.turn) as turn:
            home.clear()
            if home.restore() is not None:
                self._say("an earlier throttler was killed: the settings that it had found are in force again")
            settings.read(home.kernel)  # what could not be put back is left alone
            guard: Guard | None = None
            with signals() as wake, _receiver(home) as receiver:
                try:
                    guard = Guard(home, turn, self._say)
                    self._begin()
                    ready()
                    while not self._wait(wake, receiver, guard):
                        if _ended(guard):
                            guard.end()
                            guard = Guard(home, turn, self._say)
                finally:
                    try:
                        home.restore()
                    finally:
                        home.clear()
                        if guard is not None:
                            guard.end()
        self._say("ended; the settings are those that were found")
        return 0

    def _begin(self) -> None:
        if self._mode == "auto":
            # Sandboxes may run already, whose memory nobody has looked through.
            self._policy.kick(time.monotonic())
            self._follow(True)
        elif self._mode == "off":
            found = settings.read(self._home.kernel)
            self._home.keep(found)
            if found.run == settings.RUNNING:
                settings.write(settings.Settings(settings.STOPPED, found.pages_to_scan, found.sleep_millisecs,
                                                 found.advisor_mode), self._home.kernel)  # fmt: skip
            self._tell("off", None)
        else:
            self._tell("initial", None)

    def _wait(self, wake: socket.socket, receiver: socket.socket, guard: Guard) -> bool:
        """Wait for whatever comes next, and do what is due then; whether that was a signal to end."""
        change = self._policy.at(time.monotonic())[1] if self._mode == "auto" else None
        # Rounded up: one who wakes too early would only wait again.
        patience = None if change is None else max(0, math.ceil((change - time.monotonic()) * 1000))
        poll = select.poll()
        for source in (wake, receiver, guard):
            poll.register(source, select.POLLIN)
        events = {descriptor for descriptor, _ in poll.poll(patience)}
        if wake.fileno() in events:
            return True
        started = receiver.fileno() in events and _drain(receiver)
        if self._mode == "auto":
            now = time.monotonic()
            if started:
                self._policy.kick(now)
            self._follow(started)
        return False

    def _follow(self, started: bool) -> None:
        """Put into force what is due now.

        Arguments:
            started: whether a sandbox has started: there are more pages than before.
        """
        pace, until = self._policy.at(time.monotonic())
        name = policy.RESTORED if pace is None else pace.name
        if name == self._state and not started:
            return
        if pace is None:
            self._home.restore()
            self._found = None
            self._tell(name, until)
            return
        if self._found is None:
            # Anew each time: where somebody has changed settings meanwhile, those are what to go back to.
            self._found = settings.read(self._home.kernel)
            self._home.keep(self._found)
        pages = pace.pages(settings.anonymous_pages())
        advisor = settings.NO_ADVISOR if self._found.advisor_mode else ""
        settings.write(settings.Settings(settings.RUNNING, pages, pace.pause, advisor), self._home.kernel)
        self._tell(name, until, f": {pages} pages every {pace.pause} ms")

    def _tell(self, state: str, until: float | None, more: str = "") -> None:
        value: dict[str, Any] = {"pid": os.getpid(), "mode": self._mode, "state": state, "until": until}
        self._home.tell(value)
        if state != self._state:
            self._say(f"{state}{more}")
        self._state = state


def _drain(receiver: socket.socket) -> bool:
    """Take all that has come, whatever it says; whether anything had."""
    some = False
    with contextlib.suppress(BlockingIOError):
        while True:
            receiver.recv(1)
            some = True
    return some


def _ended(guard: Guard) -> bool:
    return bool(select.select([guard], [], [], 0)[0])


@contextlib.contextmanager
def _held(take: Callable[[], int]) -> Iterator[int]:
    descriptor = take()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _receiver(home: Home) -> Iterator[socket.socket]:
    """The socket that starts are told to; nobody but its owner can send to it.

    Raises:
        HostError: it cannot be made.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setblocking(False)
        before = os.umask(0o177)  # it must not be there with other permissions for a moment
        try:
            receiver.bind(str(home.socket))
        except OSError as error:
            raise HostError(f"{home.socket} cannot be made: {error.strerror}") from None
        finally:
            os.umask(before)
        yield receiver
