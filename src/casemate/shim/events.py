"""Publishing: what happens to containers is told to containerd, in order, and again after a restart of containerd.

containerd listens for ``containerd.services.events.ttrpc.v1.Events/Forward`` at the address in TTRPC_ADDRESS. One event
is sent at a time, and the next when it is acknowledged: containerd handles requests side by side, so two under way
could change places. While containerd is away the events wait here, a bounded number of them; its clients ask for the
state of things when they come back, so a lost event costs them nothing but the message.
"""

from __future__ import annotations

import time
from collections import deque

from casemate.shim import messages, status, wire
from casemate.shim.children import Children
from casemate.shim.loop import Future, Loop
from casemate.shim.ttrpc import Client, FramingError, TooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from casemate.shim.loop import Steps

SERVICE = "containerd.services.events.ttrpc.v1.Events"
MAX_WAITING = 2048
"""Most events that wait; the oldest give way."""
SECONDS = 5.0
"""How long containerd may take to acknowledge one."""
FIRST_DELAY, LONGEST_DELAY = 0.1, 2.0
"""Seconds between attempts to reach a containerd that is away."""


class Publisher:
    """Sends events.

    Arguments:
        loop, children: the shim's.
        namespace: containerd's.
        address: of containerd's ttrpc socket, a path or ``unix://`` and a path; empty where there is none.
        binary: a program that publishes one event, ``containerd`` itself: used where there is no such socket.
        grpc_address: what that program is told to connect to.
    """

    def __init__(
        self, loop: Loop, children: Children, namespace: str, address: str, *, binary: str = "", grpc_address: str = ""
    ) -> None:
        self._loop = loop
        self._children = children
        self._namespace = namespace
        self._path = address.removeprefix("unix://")
        self._binary = binary
        self._grpc_address = grpc_address
        self._waiting: deque[tuple[str, bytes]] = deque()
        """Topics and envelopes."""
        self._client: Client | None = None
        self._working = False
        self._dropped = 0
        self.idle = Future()
        """Done when nothing waits; a new one is made with the next event."""
        self.idle.set()

    def publish(self, table: wire.Table, event: dict[str, Any]) -> None:
        """Send an event, soon.

        Arguments:
            table: one of those that have a topic.
            event: the message.
        """
        topic = messages.TOPICS[table.name]
        envelope = {
            "timestamp": messages.timestamp(time.time_ns()), "namespace": self._namespace, "topic": topic,
            "event": messages.any_of(table, event),
        }
        self._waiting.append((topic, wire.encode(messages.ENVELOPE, envelope)))
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        if not self._working:
            self._working = True
            self.idle = Future()
            self._loop.spawn(self._work())

    def waiting(self) -> int:
        """How many events have not been acknowledged."""
        return len(self._waiting)

    def _work(self) -> Steps[None]:
        delay = FIRST_DELAY
        while self._waiting:
            item = self._waiting[0]
            try:
                yield from self._send(*item)
            except (status.StatusError, TooLarge) as error:  # it was read and refused, as it would be again
                self._loop.complain(f"event {item[0]} was refused: {error}")
            except (OSError, FramingError, TimeoutError) as error:
                self._disconnect()
                if delay == FIRST_DELAY:
                    self._loop.complain(f"event {item[0]} waits: {error}")
                yield self._loop.pause(delay)
                delay = min(LONGEST_DELAY, delay * 2)
                continue
            delay = FIRST_DELAY
            if self._waiting and self._waiting[0] is item:  # it may have given way meanwhile
                self._waiting.popleft()
        if self._dropped:
            self._loop.complain(f"{self._dropped} events were dropped while containerd was away")
            self._dropped = 0
        self._working = False
        self.idle.set()

    def _send(self, topic: str, envelope: bytes) -> Steps[None]:
        if not self._path:
            if self._binary:
                yield from self._run_binary(topic, envelope)
            return
        if self._client is None or self._client.closed:
            self._client = Client(self._loop, self._path)
        request = {"envelope": wire.decode(messages.ENVELOPE, envelope)}
        yield self._client.call(SERVICE, "Forward", messages.FORWARD_REQUEST, request, messages.EMPTY, SECONDS)

    def _run_binary(self, topic: str, envelope: bytes) -> Steps[None]:
        import os
        import signal

        from casemate.shim.runtime import memory_file

        event = wire.decode(messages.ENVELOPE, envelope)["event"]
        data = memory_file(wire.encode(messages.ANY, event))
        command = [
            self._binary, "--address", self._grpc_address, "publish", "--topic", topic, "--namespace", self._namespace,
        ]
        try:
            pid = self._children.spawn(command, stdin=data)
        finally:
            os.close(data)
        ended = self._children.wait(pid)
        try:
            code = yield self._loop.bounded(ended, SECONDS)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            yield ended
            raise
        if code != 0:
            raise FramingError(f"{self._binary} publish ended with {code}")

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def close(self) -> None:
        """Send no more."""
        self._waiting.clear()
        self._disconnect()
