"""A small synchronous client of the QEMU Machine Protocol over an open socket.

Source: the QMP specification in QEMU's documentation (``docs/interop/qmp-spec``). Each message is a JSON object; QEMU
ends each with a line feed. The VMM is treated as hostile: a message is bounded in size and depth, an answer has to
belong to a request of ours, and whatever breaks the rules ends the connection with a reason, which every later call
reports.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from casemate.errors import HypervisorError

MAX_MESSAGE = 1 << 20
"""Largest message taken, in bytes; the largest real one (a schema) is not among those asked for."""
MAX_TEXT = 300
"""How much of a text of QEMU's goes into an error, in characters."""


class _Pending:
    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.answer: dict[str, Any] | None = None


class QmpClient:
    """One connection. All methods but :meth:`connect` may be called from any thread.

    Arguments:
        fd: a connected stream socket; owned from here on.
        on_event: called with an event's name and data, on the reader thread: it must not block and must not call
            :meth:`execute`.
        on_closed: called once with the reason when the connection ends, on the reader thread.
    """

    def __init__(
        self,
        fd: int,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        on_closed: Callable[[str], None] | None = None,
    ) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._on_event = on_event
        self._on_closed = on_closed
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        self._greeting = _Pending()
        self._reason = ""
        self._thread = threading.Thread(target=self._read, name="casemate-qmp", daemon=True)

    def connect(self, timeout: float) -> str:
        """Wait for the greeting and enter command mode.

        Returns:
            QEMU's version, such as ``7.2.22``.

        Raises:
            HypervisorError: nothing came within ``timeout`` seconds, or the connection ended.
        """
        deadline = time.monotonic() + timeout
        self._thread.start()
        if not self._greeting.done.wait(timeout):
            self.close("QEMU did not greet in time")
        if self._greeting.answer is None:
            raise HypervisorError(f"QEMU's control connection: {self._reason}")
        self.execute("qmp_capabilities", timeout=max(0.1, deadline - time.monotonic()))
        return _version(self._greeting.answer)

    def resume(self) -> None:
        """Go on in command mode with a QEMU that has greeted another client, of whose connection this one took the
        place."""
        self._greeting.done.set()
        self._thread.start()

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float = 10.0, fds: Sequence[int] = ()
    ) -> Any:
        """Run a command.

        Arguments:
            command, arguments: as in QEMU's QMP reference.
            timeout: seconds to wait for the answer.
            fds: descriptors to send along (for ``getfd`` and ``add-fd``: one). They stay open here.

        Returns:
            The command's return value, unchecked.

        Raises:
            HypervisorError: QEMU refused, did not answer in time, or the connection has ended.
        """
        pending = _Pending()
        with self._lock:
            if self._reason:
                raise HypervisorError(f"QEMU's control connection: {self._reason}")
            self._last_id += 1
            number = self._last_id
            self._pending[number] = pending
        try:
            message: dict[str, Any] = {"execute": command, "id": number}
            if arguments:
                message["arguments"] = arguments
            deadline = time.monotonic() + timeout
            self._send(json.dumps(message, separators=(",", ":")).encode() + b"\n", fds, deadline)
            if not pending.done.wait(max(0.0, deadline - time.monotonic())):
                raise HypervisorError(f"QEMU did not answer {command} within {timeout:g} s")
        finally:
            with self._lock:
                self._pending.pop(number, None)
        answer = pending.answer
        if answer is None:
            raise HypervisorError(f"QEMU's control connection: {self._reason}")
        if "error" in answer:
            error = answer["error"]
            text = error.get("desc") if isinstance(error, dict) else None
            raise HypervisorError(f"QEMU refused {command}: {_line(text)}")
        return answer["return"]

    def close(self, reason: str = "closed") -> None:
        """End the connection; calls under way fail with ``reason``. May be called again, and on the reader thread."""
        with self._lock:
            if not self._reason:
                self._reason = reason
        with contextlib.suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is None:
            self._finish()
        elif self._thread is not threading.current_thread():
            self._thread.join()

    def _send(self, data: bytes, fds: Sequence[int], deadline: float) -> None:
        view = memoryview(data)
        with self._send_lock:
            while view:
                try:
                    if fds:
                        sent = socket.send_fds(self._socket, [view], list(fds), socket.MSG_NOSIGNAL)
                        fds = ()
                    else:
                        sent = self._socket.send(view, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    sent = 0
                    left = deadline - time.monotonic()
                    if left <= 0 or not _ready(self._socket, select.POLLOUT, left):
                        # A part may have been sent, so nothing that follows could be understood.
                        self._fail("QEMU takes no commands")
                except OSError as error:
                    self._fail(f"broken: {os.strerror(error.errno or 0)}")
                if self._reason:
                    raise HypervisorError(f"QEMU's control connection: {self._reason}")
                view = view[sent:]

    def _fail(self, reason: str) -> None:
        with self._lock:
            if not self._reason:
                self._reason = reason
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reader, which does the rest

    def _read(self) -> None:
        buffer = bytearray()
        reason = "ended by an error in an event callback"
        try:
            reason = self._read_messages(buffer)
        finally:
            with self._lock:
                self._reason = self._reason or reason
            self._finish()

    def _read_messages(self, buffer: bytearray) -> str:
        while True:
            _ready(self._socket, select.POLLIN, None)
            try:
                chunk = self._socket.recv(65536)
            except BlockingIOError:
                continue
            except OSError as error:
                return f"broken: {os.strerror(error.errno or 0)}"
            if not chunk:
                return "QEMU closed it"
            start = len(buffer)
            buffer += chunk
            while (end := buffer.find(b"\n", start)) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                start = 0
                if len(line) > MAX_MESSAGE:
                    return f"QEMU sent a message of more than {MAX_MESSAGE} bytes"
                if problem := self._take(line):
                    return problem
            if len(buffer) > MAX_MESSAGE:
                return f"QEMU sent a message of more than {MAX_MESSAGE} bytes"

    def _take(self, line: bytes) -> str:
        """Handle one message; returns what is wrong with it, or an empty string."""
        if not line.strip():
            return ""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return "QEMU sent what is not JSON"
        if not isinstance(message, dict):
            return "QEMU sent a message that is not an object"
        if not self._greeting.done.is_set():
            if not isinstance(message.get("QMP"), dict):
                return "QEMU sent no greeting"
            self._greeting.answer = message
            self._greeting.done.set()
            return ""
        if "event" in message:
            name, data = message["event"], message.get("data", {})
            if not isinstance(name, str) or not isinstance(data, dict):
                return "QEMU sent a malformed event"
            if self._on_event is not None:
                self._on_event(name[:MAX_TEXT], data)
            return ""
        if "return" not in message and "error" not in message:
            return "QEMU sent a message of an unknown kind"
        number = message.get("id")
        with self._lock:
            if type(number) is not int or not 1 <= number <= self._last_id:
                return f"QEMU answered what was not asked: {_line(message.get('error', ''))}"
            pending = self._pending.pop(number, None)  # None: it came after the caller had given up
        if pending is not None:
            pending.answer = message
            pending.done.set()
        return ""

    def _finish(self) -> None:
        with self._lock:
            waiting = [*self._pending.values(), self._greeting]
            self._pending.clear()
        for pending in waiting:
            pending.done.set()
        self._socket.close()
        callback, self._on_closed = self._on_closed, None
        if callback is not None:
            callback(self._reason)


def _ready(sock: socket.socket, events: int, timeout: float | None) -> bool:
    poll = select.poll()
    try:
        poll.register(sock, events)
    except ValueError:  # closed meanwhile: the next use of it says so
        return True
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def _version(greeting: dict[str, Any]) -> str:
    parts: Any = greeting["QMP"].get("version")
    parts = parts.get("qemu") if isinstance(parts, dict) else None
    if not isinstance(parts, dict):
        return "unknown"
    return ".".join(_line(parts.get(key))[:6] for key in ("major", "minor", "micro"))


def _line(value: object) -> str:
    """A hostile text as one printable line."""
    text = value if isinstance(value, str) else repr(value)
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_TEXT])
