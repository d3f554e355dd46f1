"""Containers that are virtual machines: what their keeper can be asked at once, without starting a program for it.

Every command line of ``casemate-runtime`` is an interpreter that has to start; a keeper answers at its socket in a
millisecond. So signals, pausing, figures and the list of processes go straight there, and kills for want of memory come
from there. Whatever a keeper does not answer, the command line is asked, which knows what to do when one is gone.

The messages are those of :mod:`casemate.keeper.control`, the requests those of :mod:`casemate.pod.service`. Neither is
imported: they would weigh as much as the rest of the shim.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct

from casemate.shim import metrics, status
from casemate.shim.loop import READ, Future, Loop
from casemate.shim.messages import any_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from casemate.shim.children import Children
    from casemate.shim.loop import Steps

MAX_MESSAGE = 4 << 20
MAX_RECORD = 8 << 20
SECONDS = 30.0
"""How long a keeper may take to answer."""
CONNECT_SECONDS = 1.0
SHORT_ID = 12
_LENGTH = struct.Struct(">I")


class KeeperGone(Exception):
    """There is no keeper, or it went away before it answered."""


class KeeperRefused(Exception):
    """A keeper answered with an error; the message is its own."""


class _Wire:
    """A connection to a keeper on the loop: JSON objects, each after its length."""

    def __init__(
        self, loop: Loop, path: str, on_message: Callable[[dict[str, Any]], None], on_end: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._on_message = on_message
        self._on_end = on_end
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(CONNECT_SECONDS)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise KeeperGone(error.strerror) from None
        loop.watch(self._socket.fileno(), READ, self._ready)

    def send(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        try:
            self._socket.sendall(_LENGTH.pack(len(body)) + body)
        except OSError as error:
            self.close()
            raise KeeperGone(error.strerror) from None
        self._socket.setblocking(False)

    def _ready(self, _: int) -> None:
        try:
            part = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        self._buffer += part
        while len(self._buffer) >= _LENGTH.size and self._socket.fileno() >= 0:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_MESSAGE:
                part = b""
                break
            if len(self._buffer) < _LENGTH.size + length:
                break
            body = bytes(self._buffer[_LENGTH.size : _LENGTH.size + length])
            del self._buffer[: _LENGTH.size + length]
            try:
                message = json.loads(body)
            except ValueError:
                message = None
            if not isinstance(message, dict):
                part = b""
                break
            self._on_message(message)
        if not part:
            self.close()
            self._on_end()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()


class Keeper:
    """The keeper of a pod.

    Arguments:
        loop: the shim's.
        path: its control socket.
    """

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self.path = path
        self._events: _Wire | None = None

    def ask(self, op: str, **arguments: Any) -> Steps[dict[str, Any]]:
        """Ask something.

        Raises:
            KeeperGone: there is nobody to answer, or no answer within SECONDS.
            KeeperRefused: it cannot be done.
        """
        answer = Future()
        wire = _Wire(self._loop, self.path, answer.set, lambda: answer.fail(KeeperGone("the sandbox has ended")))
        try:
            wire.send({"op": op, **arguments, "fds": []})
            try:
                message: dict[str, Any] = yield self._loop.bounded(answer, SECONDS)
            except TimeoutError:
                raise KeeperGone("the sandbox does not answer") from None
        finally:
            wire.close()
        error = message.get("error")
        if isinstance(error, dict):
            raise KeeperRefused(str(error.get("message")))
        return message

    def follow(self, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Be told of what happens, until the keeper ends. A keeper that is gone tells nothing."""
        with contextlib.suppress(KeeperGone):
            self._events = _Wire(self._loop, self.path, on_event, lambda: None)
            self._events.send({"op": "events"})

    def close(self) -> None:
        """Hear no more."""
        if self._events is not None:
            self._events.close()
            self._events = None


def run_directory(children: Children) -> Steps[str]:
    """Where keepers have their sockets: ``run`` of casemate's configuration.

    The configuration's reader would make the shim heavier by a quarter. It is asked in a process of its own, and where
    there is no file to read, not at all.
    """
    directory = os.environ.get("CASEMATE_RUN")
    first = os.environ.get("CASEMATE_CONFIG") or "/etc/casemate/config.toml"
    if directory or not (os.path.exists(first) or os.path.isdir(os.path.join(os.path.dirname(first), "config.d"))):
        return directory or "/run/casemate"
    return os.fsdecode((yield from children.compute(_configured)))


def _configured() -> bytes:
    from casemate.config import load

    return os.fsencode(load().run)


def record(root: str, container_id: str) -> dict[str, Any]:
    """What is on record of a container below a runtime's root; empty where the runtime is another one."""
    try:
        with open(os.path.join(root, container_id, "record.json"), "rb") as file:
            value = json.loads(file.read(MAX_RECORD))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def control_socket(run: str, pod: str) -> str:
    """The control socket of a pod's keeper."""
    return os.path.join(run, pod[:SHORT_ID], "control.sock")


# --- figures ---


def _count(value: Any) -> int:
    """A number of the guest's, which may say anything."""
    return value if type(value) is int and 0 <= value <= metrics.UNLIMITED else 0


def _limit(value: Any) -> int:
    return metrics.UNLIMITED if value is None else _count(value)


def _section(found: dict[str, Any], name: str) -> dict[str, Any]:
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def usage(found: dict[str, Any], *, version2: bool) -> dict[str, Any]:
    """What a guest counts of a container, as the message that engines on this host expect.

    Arguments:
        found: of ``container.stats``, see docs/protocol.md.
        version2: whether the host's control groups are version 2 alone. The guest's always are.
    """
    memory, cpu, pids = (_section(found, name) for name in ("memory", "cpu", "pids"))
    listed = found.get("io")
    devices = [one for one in listed[:1024] if isinstance(one, dict)] if isinstance(listed, list) else []
    told = _version2(memory, cpu, pids, devices) if version2 else _version1(memory, cpu, pids, devices)
    return any_of(metrics.METRICS_V2 if version2 else metrics.METRICS_V1, told)


def _version2(
    memory: dict[str, Any], cpu: dict[str, Any], pids: dict[str, Any], devices: list[dict[str, Any]]
) -> dict[str, Any]:
    stat = _section(memory, "stat")
    times = {f"{key}_usec": f"{key}_us" for key in ("usage", "user", "system", "throttled")}
    return {
        "pids": {"current": _count(pids.get("current")), "limit": _limit(pids.get("max"))},
        "cpu": {key: _count(cpu.get(times.get(key, key))) for key in metrics.CPU_KEYS_V2},
        "memory": {
            **{key: _count(stat.get(key)) for key in metrics.MEMORY_KEYS_V2},
            "usage": _count(memory.get("current")), "usage_limit": _limit(memory.get("max")),
        },
        "io": {
            "usage": [
                {key: _count(one.get(key)) for key in ("major", "minor", *metrics.IO_KEYS_V2)} for one in devices
            ]
        },
        "memory_events": {"oom_kill": _count(memory.get("oom_kills"))},
    }


def _version1(
    memory: dict[str, Any], cpu: dict[str, Any], pids: dict[str, Any], devices: list[dict[str, Any]]
) -> dict[str, Any]:
    stat = _section(memory, "stat")
    names = {
        "cache": "file", "rss": "anon", "mapped_file": "file_mapped", "dirty": "file_dirty",
        "writeback": "file_writeback", "pg_fault": "pgfault", "pg_maj_fault": "pgmajfault",
        **{key: key for key in ("inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable")},
    }
    amounts = {name: _count(stat.get(key)) for name, key in names.items()}
    limit = _limit(memory.get("max"))
    oom_kills = _count(memory.get("oom_kills"))
    entries: dict[str, list[dict[str, Any]]] = {"io_service_bytes_recursive": [], "io_serviced_recursive": []}
    for one in devices:
        for name, keys in (("io_service_bytes_recursive", ("rbytes", "wbytes")),
                           ("io_serviced_recursive", ("rios", "wios"))):
            for op, key in zip(("Read", "Write"), keys, strict=True):
                place = {"major": _count(one.get("major")), "minor": _count(one.get("minor"))}
                entries[name].append({"op": op, "value": _count(one.get(key)), **place})
    nanoseconds = {key: min(_count(cpu.get(f"{key}_us")) * 1000, metrics.UNLIMITED) for key in
                   ("usage", "system", "user", "throttled")}
    return {
        "pids": {
            "current": _count(pids.get("current")), "limit": 0 if pids.get("max") is None else _count(pids.get("max")),
        },
        "cpu": {
            "usage": {"total": nanoseconds["usage"], "kernel": nanoseconds["system"], "user": nanoseconds["user"]},
            "throttling": {
                "periods": _count(cpu.get("nr_periods")), "throttled_periods": _count(cpu.get("nr_throttled")),
                "throttled_time": nanoseconds["throttled"],
            },
        },
        "memory": {
            **amounts, **{f"total_{name}": amount for name, amount in amounts.items()},
            "hierarchical_memory_limit": limit,
            "usage": {
                "usage": _count(memory.get("current")), "max": _count(memory.get("peak")), "limit": limit,
                "failcnt": oom_kills,
            },
        },
        "blkio": entries,
        "memory_oom_control": {"oom_kill": oom_kills},
    }


def stats(keeper: Keeper, container_id: str) -> Steps[dict[str, Any]]:
    """What a container uses, as an Any.

    Raises:
        StatusError: NOT_FOUND, it does not run.
    """
    try:
        found = yield from keeper.ask("stats", id=container_id)
    except (KeeperGone, KeeperRefused) as error:
        raise status.failure(status.NOT_FOUND, str(error)) from None
    return usage(found, version2=os.path.exists("/sys/fs/cgroup/cgroup.controllers"))

