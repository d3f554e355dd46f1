"""The keeper's socket: who connects, what was asked, who is still owed an answer, and who wants to hear of events."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from casemate.errors import HostError, UsageError
from casemate.keeper.control import Connection, ControlClosed, error_message
from casemate.pod.container import close_all

MAX_CLIENTS = 512
MAX_EVENTS = 4096
"""Events that may wait for a subscriber; one that is further behind is cut off."""
LINGER_SECONDS = 5.0
"""How long answers may still be on their way at the keeper's end."""

Handler = Callable[[str, dict[str, Any], dict[str, int]], "dict[str, Any] | None"]


class Given:
    """The descriptors of a request by name; what nobody takes is closed at the end.

    Raises:
        HostError: fewer came than were named.
    """

    def __init__(self, request: dict[str, Any], fds: list[int]) -> None:
        names = request.get("fds")
        names = [str(name) for name in names] if isinstance(names, list) else []
        self._fds = dict(zip(names, fds, strict=False))
        for extra in fds[len(self._fds) :]:
            os.close(extra)
        if len(self._fds) != len(names):
            close_all(self._fds)
            raise HostError("descriptors of a request got lost", "raise the limit of open files")

    def __enter__(self) -> dict[str, int]:
        return self._fds

    def __exit__(self, *_: object) -> None:
        close_all(self._fds)


class Feed:
    """Tells subscribers what happens. None of them can hold up anybody else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = False
        self._queues: list[queue.Queue[dict[str, Any] | None]] = []

    def tell(self, event: dict[str, Any]) -> None:
        """Tell all of them."""
        with self._lock:
            for events in list(self._queues):
                try:
                    events.put_nowait(event)
                except queue.Full:
                    self._queues.remove(events)
                    with contextlib.suppress(queue.Empty, queue.Full):  # it must not wait for more
                        events.get_nowait()
                        events.put_nowait(None)

    def serve(self, connection: Connection) -> None:
        """Tell one of them from now on, until either side ends.

        Raises:
            ControlClosed: it has.
        """
        events: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_EVENTS)
        with self._lock:
            if self._over:
                return
            self._queues.append(events)

        def watch() -> None:
            with contextlib.suppress(ControlClosed, ValueError):
                connection.receive()
            with contextlib.suppress(queue.Full):
                events.put_nowait(None)

        threading.Thread(target=watch, name="subscriber", daemon=True).start()
        try:
            connection.send({"event": "ready"})
            while (event := events.get()) is not None:
                connection.send(event)
        finally:
            with self._lock:
                if events in self._queues:
                    self._queues.remove(events)

    def close(self) -> None:
        """That was all."""
        with self._lock:
            self._over = True
            left, self._queues = self._queues, []
        for events in left:
            with contextlib.suppress(queue.Full):
                events.put_nowait(None)


class Server:
    """Takes requests on a socket, each on a connection and a thread of its own.

    Arguments:
        handle: called with a request's name, the request and its descriptors; what it returns is the answer, and so is
            what it raises.
        unheard: called with the name and request when the answer could not be given to anybody.
        feed: for who asks for events.
    """

    def __init__(self, handle: Handler, unheard: Callable[[str, dict[str, Any]], None], feed: Feed) -> None:
        self._handle, self._unheard, self._feed = handle, unheard, feed
        self._answered = threading.Condition()
        self._clients = 0
        self._owed = 0
        self._closed = threading.Event()
        self._listener: socket.socket | None = None

    def listen(self, path: Path) -> None:
        """Begin to.

        Raises:
            OSError: the socket cannot be made.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.bind(str(path))
        self._listener.listen(128)
        threading.Thread(target=self._accept, args=(self._listener,), name="accept", daemon=True).start()

    def close(self) -> None:
        """Take no more requests; those that were taken go on."""
        self._closed.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
            self._listener.close()

    def linger(self) -> None:
        """Wait until everybody is answered: the other threads end with the process."""
        with self._answered:
            self._answered.wait_for(lambda: not self._owed, LINGER_SECONDS)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                if listener.fileno() < 0 or self._closed.is_set():
                    return
                self._closed.wait(0.1)  # out of descriptors or memory for the moment: there is no event for that
                continue
            with self._answered:
                self._clients += 1
                crowded = self._clients > MAX_CLIENTS
            try:
                if crowded:
                    raise RuntimeError("too many clients")
                threading.Thread(target=self._client, args=(Connection(sock),), name="client", daemon=True).start()
            except RuntimeError:  # or there can be no more threads
                sock.close()
                with self._answered:
                    self._clients -= 1

    def _client(self, connection: Connection) -> None:
        owed = 0
        try:
            request, fds = connection.receive()
            op = str(request.get("op"))
            with Given(request, fds) as given:
                if op == "events":
                    self._feed.serve(connection)
                    return
                with self._answered:
                    self._owed += 1
                    owed = 1
                answer = self._handle(op, request, given) or {}
                try:
                    connection.send(answer)
                except ControlClosed:
                    self._unheard(op, request)
        except ControlClosed:
            pass
        except Exception as error:  # the client has to hear of it, whatever it is
            if isinstance(error, KeyError | TypeError | ValueError):
                error = UsageError(f"the keeper cannot read a request ({type(error).__name__}: {error})")
            with contextlib.suppress(ControlClosed):
                connection.send(error_message(error))
        finally:
            connection.close()
            with self._answered:
                self._clients -= 1
                self._owed -= owed
                self._answered.notify_all()
