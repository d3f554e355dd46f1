"""Requests to a machine's agent, each with a deadline, and the processes that they made.

A process is known by a key: its container's id and its exec id (None for the container's first process). What the agent
says is not to be trusted: an end that no process here can have is passed over, numbers are brought into their bounds,
and texts become one printable line.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from casemate import __version__
from casemate.errors import (
    AgentError,
    CasemateError,
    CommandNotExecutable,
    CommandNotFound,
    HypervisorError,
    NameInUse,
    NotRunning,
    UsageError,
)
from casemate.protocol.link import Link
from casemate.protocol.stream import Stream
from casemate.protocol.wire import LinkClosed, LinkError, LinkTimeout, RequestFailed, check_hello
from casemate.sandbox import ProcessExit, ProcessStreams

Key = tuple[str, str | None]

ERRORS: Mapping[str, type[CasemateError]] = {
    "not-found": CommandNotFound,
    "not-executable": CommandNotExecutable,
    "bad-user": UsageError,
    "bad-spec": UsageError,
    "no-such-container": NotRunning,
}
"""The classes of the agent's refusals (``docs/protocol.md``); any other one is an :class:`AgentError`."""


class _Entry:
    """A process; ``end`` is set when it has ended before the answer that it was started."""

    __slots__ = ("starting", "end")

    def __init__(self) -> None:
        self.starting = True
        self.end: ProcessExit | None = None


class Calls:
    """The agent of one machine. Methods may be called from any thread.

    Arguments:
        timeout: seconds that a request may take where nothing else is said.
        on_exit: called once for every process that was started: its container, its exec id, and how it ended.
        on_oom: called when something in a container was killed for want of memory.
        why: the best reason known for what the link says of its end.
        errors: classes of the agent's refusals.
        hint: what to do when the guest is silent.
    """

    def __init__(
        self,
        timeout: float,
        on_exit: Callable[[str, str | None, ProcessExit], None],
        on_oom: Callable[[str], None],
        why: Callable[[str], str],
        errors: Mapping[str, type[CasemateError]] = ERRORS,
        hint: str = "",
    ) -> None:
        self.timeout = timeout
        """May be changed."""
        self._on_exit = on_exit
        self._on_oom = on_oom
        self._why = why
        self._errors = errors
        self._hint = hint
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._link: Link | None = None
        self._channel = 0
        self._processes: dict[Key, _Entry] = {}
        self._telling = 0
        self.synced = False
        """Whether the guest has written back all that its last container wrote, as it says."""

    def connect(self, fd: int, timeout: float, on_closed: Callable[[str], None]) -> dict[str, Any]:
        """Greet the agent.

        Arguments:
            fd: the connection; owned from here on.
            timeout: seconds.
            on_closed: called once, after all events, with the reason why the link ended.

        Returns:
            the agent's HELLO.

        Raises:
            LinkError: there is no agent, or none of ours.
        """
        self._link = Link(fd, fd, role="host", version=__version__, on_event=self._event, on_closed=on_closed)
        return self._link.start(timeout)

    @property
    def channels(self) -> int:
        """How many streams there have been."""
        return self._channel

    def resume(self, fd: int, hello: dict[str, Any], on_closed: Callable[[str], None], channels: int = 0) -> None:
        """Go on with an agent that was greeted before its machine was saved; it counts its requests from there.

        Arguments:
            fd, on_closed: as for :meth:`connect`.
            hello: what the agent said then.
            channels: how many streams it has had.

        Raises:
            LinkError: it is not an agent of ours; ``on_closed`` is not called then.
        """
        try:
            check_hello(hello, "host")
        except LinkError:
            os.close(fd)
            raise
        self._link = Link(fd, fd, role="host", version=__version__, on_event=self._event, on_closed=on_closed)
        self._channel = channels
        self._link.resume(hello)

    @property
    def connected(self) -> bool:
        """Whether there is somebody to talk to."""
        return self._link is not None and not self._link.closed

    def close(self, reason: str) -> None:
        """End the link, if there is one: requests under way fail."""
        if self._link is not None:
            self._link.close(reason)

    # ---- requests

    def call(self, method: str, params: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """One request to the agent, its failures as errors of ours.

        Raises:
            CasemateError: it was refused (of the class that the code has), or was not answered in time.
            NotRunning: the machine has ended. HypervisorError: it has not been booted.
        """
        link = self._known()
        try:
            return link.call(method, params, timeout or self.timeout)
        except RequestFailed as error:
            raise self._errors.get(error.code, AgentError)(line(error.message, 1000)) from None
        except LinkTimeout as error:
            raise Silent(f"the guest does not answer ({error})", self._hint) from None
        except LinkClosed as error:
            raise NotRunning(f"the sandbox has ended: {self._why(str(error))}") from None
        except LinkError as error:
            raise AgentError(f"the agent broke the protocol: {error}") from None

    def begin(
        self, key: Key, method: str, request: dict[str, Any], *, terminal: bool, stdin: bool,
        size: tuple[int, int] | None, kept: Sequence[str] = (), told: dict[str, Any] | None = None,
    ) -> ProcessStreams:
        """A request that starts a process.

        Arguments:
            key: the process's; no other that lives may have it.
            method, request: what is asked for; the streams' numbers and ``size`` are added.
            terminal, stdin, size: whether it has a terminal, an open standard input, and rows and columns.
            kept: what its further descriptors are, from 3 on: ``in``, ``out``, ``both`` or ``null``.
            told: gets the answer.

        Raises:
            CasemateError: as for :meth:`call`. NameInUse: there is such a process.
        """
        wanted = [*(["stdin"] if stdin else []), "stdout", *([] if terminal else ["stderr"])]
        ways = [{"in": kind in ("in", "both"), "out": kind in ("out", "both")} for kind in kept]
        wanted += [f"{place}.{way}" for place, one in enumerate(ways) for way, there in one.items() if there]
        entry = _Entry()
        with self._lock:
            if key in self._processes:
                raise NameInUse(f"the sandbox has a process {key[1] or key[0]} already")
            self._processes[key] = entry
        try:
            request = {"stdin": None, "stderr": None, **request, "size": list(size) if size and terminal else None}
            if ways:
                request["kept"] = [dict.fromkeys(one) for one in ways]
            streams = self.open(method, request, wanted, told)
        except BaseException:
            with self._lock:
                self._processes.pop(key, None)
                self._changed.notify_all()
            raise
        with self._lock:
            entry.starting = False
            end = entry.end
            if end is not None:
                self._take(key)
        if end is not None:
            self._tell(key, end)
        further = tuple((streams.get(f"{place}.in"), streams.get(f"{place}.out")) for place in range(len(ways)))
        return ProcessStreams(streams.get("stdin"), streams.get("stdout"), streams.get("stderr"), further)

    def open(
        self, method: str, request: dict[str, Any], names: Sequence[str], told: dict[str, Any] | None = None
    ) -> dict[str, Stream]:
        """A request that comes with streams, whose numbers are added to it by their names; ``0.in`` is what ``in`` is
        of the first of ``kept``.

        Raises:
            CasemateError: as for :meth:`call`; no stream is left then.
        """
        link = self._known()
        streams: dict[str, Stream] = {}
        try:
            for name in names:
                with self._lock:
                    self._channel += 1
                    channel = self._channel
                streams[name] = link.stream(channel)
                place, dot, way = name.partition(".")
                if dot:
                    request["kept"][int(place)][way] = channel
                else:
                    request[name] = channel
            answer = self.call(method, request)
            if told is not None:
                told.update(answer)
        except Silent:
            # What a guest does not read cannot be told that it is over, and nobody is to wait for that.
            threading.Thread(target=_close, args=(streams,), name="streams", daemon=True).start()
            raise
        except BaseException as error:
            _close(streams)
            if isinstance(error, LinkClosed):
                raise NotRunning(f"the sandbox has ended: {self._why(str(error))}") from None
            if isinstance(error, LinkError):
                raise AgentError(f"the guest has too much to do: {error}") from None
            raise
        return streams

    def _known(self) -> Link:
        if self._link is None:
            raise HypervisorError("the sandbox has not been booted")
        return self._link

    # ---- ends

    def _event(self, name: str, params: dict[str, Any]) -> None:
        """What the agent tells by itself."""
        identifier, exec_id = params.get("id"), params.get("exec_id")
        if not isinstance(identifier, str):
            return
        if name == "container.oom":
            self._on_oom(identifier)
        if name == "process.exited" and params.get("synced") is True:
            self.synced = True
        if name == "process.exited" and (exec_id is None or isinstance(exec_id, str)):
            status, number = params.get("status"), params.get("signal")
            if type(number) is int and 0 < number < 128:
                status = 128 + number
            else:
                number = None
                if type(status) is not int or not 0 <= status <= 255:
                    status = 255
            self.ended((identifier, exec_id), ProcessExit(status, oom=params.get("oom") is True, signal=number))

    def ended(self, key: Key, end: ProcessExit) -> None:
        """A process has ended; only its first end counts."""
        with self._lock:
            entry = self._processes.get(key)
            if entry is None:
                return
            if entry.starting:
                entry.end = entry.end or end
                return
            self._take(key)
        self._tell(key, end)

    def _take(self, key: Key) -> None:
        """The process is none any more; the lock is held."""
        del self._processes[key]
        self._telling += 1

    def _tell(self, key: Key, end: ProcessExit) -> None:
        try:
            self._on_exit(key[0], key[1], end)
        finally:
            with self._lock:
                self._telling -= 1
                self._changed.notify_all()

    def end_all(self, end: ProcessExit, timeout: float) -> None:
        """End whatever still runs; a container's own end comes after those of its other processes.

        Arguments:
            timeout: seconds to wait until every end has been told.
        """
        with self._lock:
            left = list(self._processes)
        for key in sorted(left, key=lambda item: item[1] is None):
            self.ended(key, end)
        with self._lock:
            self._changed.wait_for(lambda: not self._processes and not self._telling, timeout)

    def forget(self, identifier: str, end: ProcessExit, timeout: float) -> None:
        """A container is gone: wait for the ends of its processes, and end those here that the guest keeps silent of.

        Arguments:
            timeout: seconds to wait.
        """
        with self._lock:
            known = {key: entry for key, entry in self._processes.items() if key[0] == identifier}
            self._changed.wait_for(
                lambda: not any(self._processes.get(key) is entry for key, entry in known.items()), timeout
            )
            left = [key for key, entry in known.items() if self._processes.get(key) is entry]
        for key in sorted(left, key=lambda item: item[1] is None):
            self.ended(key, end)


class Silent(AgentError):
    """The guest did not answer in time."""


def _close(streams: dict[str, Stream]) -> None:
    for stream in streams.values():
        stream.close()


def line(text: str, limit: int) -> str:
    """A guest's text as at most ``limit`` printable characters of one line."""
    return "".join(character if character.isprintable() else " " for character in text[:limit])
