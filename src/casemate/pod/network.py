"""A sandbox's network: every interface that an engine has put into the namespace, mirrored into the guest.

At the start the interfaces are there already; a watch in the namespace then follows what the engine changes while the
sandbox runs (``docker network connect``): interfaces come and go, addresses and routes change.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence

from casemate.errors import CasemateError, NetworkError
from casemate.host import mirror
from casemate.host.mirror import Found
from casemate.host.watch import Watch
from casemate.sandbox import Interface, Nic, PodSandbox


def log_line(text: str) -> None:
    """Write a line to the keeper's log."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class PodNetwork:
    """The interfaces of one sandbox.

    :meth:`nics` comes first, then the sandbox boots with them, then :meth:`follow`. :meth:`close` may come at any time,
    from any thread, and more than once.

    Arguments:
        sandbox: gets what changes after the start.
        netns_fd: descriptor of the engine's network namespace; copied, and not closed.
        log: takes a line about what could not be done and does not end the sandbox.
    """

    def __init__(self, sandbox: PodSandbox, netns_fd: int, log: Callable[[str], None] = log_line) -> None:
        self._sandbox, self._log = sandbox, log
        self._netns = os.dup(netns_fd)
        self._closing = threading.Lock()  # guards the next two, and is never held for long
        self._watch: Watch | None = None
        self._closed = False
        self._lock = threading.Lock()  # guards the rest; held while the guest is told something
        self._have: dict[int, Interface] = {}
        self._taps: dict[int, int] = {}
        self._seen: list[Found] = []
        self._failed: set[int] = set()
        self._stale = False  # whether the guest may lack what it was last to be told
        self._ports: str | None = None

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """What the guest has."""
        with self._lock:
            return tuple(self._have.values())

    def nics(self) -> list[Nic]:
        """Mirror what is there: the interfaces for :meth:`casemate.sandbox.PodSandbox.boot`, which owns their taps.

        Raises:
            NetworkError: one of them cannot be mirrored; nothing is left then.
        """
        with self._lock:
            if self._closed:
                raise NetworkError("the sandbox's network was closed while it was made")
            self._ports = mirror.prepare(self._netns)
            self._seen = mirror.discover(self._netns)
            nics: list[Nic] = []
            try:
                for found in self._seen:
                    if found.up:
                        tap, self._taps[found.index] = mirror.mirror(self._netns, found.index)
                        nics.append(Nic(found.interface, tap))
                        self._have[found.index] = found.interface
            except BaseException:
                for nic in nics:
                    os.close(nic.tap_fd)
                self._restore()
                raise
            return nics

    def follow(self) -> None:
        """Carry over what changes from now on, and what has changed since :meth:`nics`.

        Raises:
            NetworkError: the kernel does not tell of changes.
        """
        with self._closing:
            if self._closed or self._watch is not None:
                return
            self._watch = Watch(self._netns, self._changed, lambda error: self._log(f"network: {error}"))
            self._watch.start(self._seen)

    def catch_up(self, seconds: float) -> None:
        """Have the guest know all that is there by now, so that what starts next finds it. Some engines (``ctr run
        --cni``) give a container its network between making and starting it.

        Arguments:
            seconds: how long that may take; it goes on afterwards, and nobody waits for it.
        """
        with self._closing:
            watch = self._watch
        if watch is not None and not watch.caught_up(seconds):
            self._log(f"network: the guest does not have all of it after {seconds:g} s")

    def close(self) -> None:
        """Stop following, and give the interfaces back to their namespace, which may outlive the sandbox."""
        with self._closing:
            self._closed = True
            watch = self._watch
        if watch is not None:
            watch.close()
        with self._lock:
            if self._netns >= 0:
                self._restore()
                os.close(self._netns)
                self._netns = -1

    def _restore(self) -> None:
        for index in list(self._taps):
            self._release(index)
        self._have.clear()
        if self._ports is not None:
            with contextlib.suppress(CasemateError):
                mirror.undo(self._netns, self._ports)
            self._ports = None

    def _release(self, index: int) -> None:
        try:
            mirror.restore(self._netns, index, self._taps.pop(index))
        except CasemateError as error:
            self._log(f"network: {error}")

    def _changed(self, now: Sequence[Found]) -> None:
        """Bring the guest up to date. What fails is logged and the rest goes on: a sandbox that runs is not ended for
        an interface that it lacks."""
        with self._lock:
            if self._closed:
                return
            present = {found.index: found for found in now}
            self._failed &= present.keys()
            gone = [
                index
                for index, had in self._have.items()
                if index not in present or present[index].interface.mac != had.mac
            ]
            for index in gone:
                self._unplug(index)
            if gone:
                self._failed.clear()  # there may be a slot for it now
            for found in now:
                if found.up and found.index not in self._have and found.index not in self._failed:
                    self._plug(found)
            for index in self._have:
                if self._have[index] != present[index].interface:
                    self._have[index] = present[index].interface
                    self._stale = True
            if self._stale and self._have:
                try:
                    self._sandbox.configure(list(self._have.values()))
                    self._stale = False
                except CasemateError as error:
                    self._log(f"network: the guest's interfaces are not up to date: {error}")

    def _plug(self, found: Found) -> None:
        name = found.interface.name
        try:
            tap, self._taps[found.index] = mirror.mirror(self._netns, found.index)
        except CasemateError as error:
            self._failed.add(found.index)
            self._log(f"network: {name} stays outside: {error}")
            return
        try:
            self._sandbox.plug(Nic(found.interface, tap))
        except CasemateError as error:
            self._failed.add(found.index)
            self._release(found.index)
            self._log(f"network: {name} stays outside: {error}")
            return
        self._have[found.index] = found.interface
        self._stale = True

    def _unplug(self, index: int) -> None:
        interface = self._have.pop(index)
        try:
            self._sandbox.unplug(interface.mac)
        except CasemateError as error:
            self._log(f"network: {interface.name} cannot be taken away: {error}")
        self._release(index)
