"""Connections from the host to ports of the guest's own address, such as those that a pod's ports are forwarded to."""

from __future__ import annotations

import errno
import os
from _socket import AF_INET, AF_INET6, SHUT_RD, SHUT_WR, SOCK_CLOEXEC, SOCK_STREAM, socket

from casemate.agent.pumps import Input, Output
from casemate.agent.system import bad, get_int
from casemate.protocol import threads
from casemate.protocol.wire import RequestFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from casemate.agent.process import Streams
    from casemate.protocol.stream import Stream

PATIENCE = 10.0
MAX_CONNECTIONS = 256
PLACES = ((AF_INET, "127.0.0.1"), (AF_INET6, "::1"))

_lock = threads.Lock()
_open = 0


class _Connection:
    """A socket that two pumps share; it ends one way after the other."""

    def __init__(self, sock: socket) -> None:
        self._socket = sock
        self._ways = {SHUT_RD, SHUT_WR}
        self._lock = threads.Lock()

    def over(self, way: int) -> None:
        """No more goes this way."""
        global _open
        with self._lock:
            if way not in self._ways:
                return
            self._ways.remove(way)
            _shut(self._socket, way)
            if not self._ways:
                self._socket.close()
                with _lock:
                    _open -= 1


def _shut(sock: socket, way: int) -> None:
    try:
        sock.shutdown(way)
    except OSError:  # the peer is gone
        return


class _Upward(Output):
    """From the socket to the stream; unlike a process, whoever sends is told when nobody listens."""

    def __init__(self, connection: _Connection, fd: int, stream: Stream) -> None:
        super().__init__(fd, stream, drop=False)
        self._connection = connection

    def _end(self) -> None:
        super()._end()
        self._connection.over(SHUT_RD)


class _Downward(Input):
    """From the stream to the socket."""

    def __init__(self, connection: _Connection, fd: int, stream: Stream) -> None:
        super().__init__(fd, stream)
        self._connection = connection

    def _end(self) -> None:
        super()._end()
        self._connection.over(SHUT_WR)


def connect(params: dict[str, Any], streams: Streams) -> None:
    """Connect to a port of the guest.

    Arguments:
        params: ``port``.
        streams: ``stdin`` leads there, ``stdout`` comes from there; both are taken.

    Raises:
        RequestFailed: ``refused``: nobody listens. ``bad-spec``. ``failed``: too many are open.
    """
    global _open
    port = get_int(params, "port", 1, 65535)
    if "stdin" not in streams.by_name or "stdout" not in streams.by_name:
        raise bad("stdin and stdout must be channel numbers")
    with _lock:
        if _open >= MAX_CONNECTIONS:
            raise RequestFailed("failed", f"the guest has {MAX_CONNECTIONS} connections open, the most there can be")
        _open += 1
    try:
        connection = _Connection(sock := _dial(port))
    except BaseException:
        with _lock:
            _open -= 1
        raise
    fd = sock.fileno()
    up = _Upward(connection, os.dup(fd), streams.by_name.pop("stdout"))
    down = _Downward(connection, os.dup(fd), streams.by_name.pop("stdin"))
    try:
        up.start()
        down.start()
    except BaseException:
        up.discard()
        down.discard()
        raise


def _dial(port: int) -> socket:
    reason: OSError | None = None
    for family, address in PLACES:
        try:
            sock = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)
        except OSError as error:  # there may be no IPv6
            reason = reason or error
            continue
        try:
            sock.settimeout(PATIENCE)
            sock.connect((address, port))
            return sock
        except OSError as error:
            sock.close()
            reason = reason or error
    code = "refused" if reason is not None and reason.errno == errno.ECONNREFUSED else "failed"
    raise RequestFailed(code, f"no connection to port {port} of the guest: {reason.strerror if reason else 'none'}")
