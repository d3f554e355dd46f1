"""What is on record of an engine's containers and their sandboxes; see :mod:`casemate.pod.store` for where."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from casemate.errors import StateError, UsageError

STATUSES = ("creating", "created", "running", "paused", "stopped")
"""The states of the runtime specification (runtime.md, "State"), and ``paused`` as runc has it."""
PODS = ".pods"
"""Where the sandboxes are, beside the containers."""
LIVE = ("creating", "created", "running", "paused")

MAX_ID = 200
"""Longest id of a container: a name of a directory, also with a prefix."""
_ID = re.compile(r"[A-Za-z0-9_+.-]+\Z", re.ASCII)
_GUEST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z", re.ASCII)

T = TypeVar("T")


def check_id(id: str) -> str:
    """Return ``id`` when it may name a container: what runc allows, and no name that means something to a path.

    Raises:
        UsageError: it may not.
    """
    if _ID.match(id) is None or id in (".", "..", PODS) or len(id) > MAX_ID:
        raise UsageError(f"invalid container id {id[:80]!r}", f"use 1 to {MAX_ID} of [a-zA-Z0-9_+.-]")
    return id


def guest_name(id: str) -> str:
    """What a container is called in its guest and in the paths of its trees: its id where that serves, else a name
    made from it."""
    if _GUEST_NAME.match(id) is not None:
        return id
    import hashlib

    return hashlib.sha256(id.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """One container; ``record.json`` in its directory. Times are seconds since the epoch."""

    id: str
    pod: str
    """The id of its sandbox."""
    bundle: str
    status: str = "creating"
    pid: int = 0
    """Its stand-in, 0 before there is one."""
    pid_start: int = 0
    """When that process began, in clock ticks after the boot (field 22 of ``/proc/PID/stat``): numbers come again."""
    creator: int = 0
    creator_start: int = 0
    """The process that makes the container, of use while the status is ``creating``."""
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""
    annotations: dict[str, str] = field(default_factory=dict)
    oci_version: str = "1.0.2"
    terminal: bool = False
    owner: int = 0
    """User id of whoever made it."""
    rootfs: str = ""
    netns: tuple[int, int] | None = None
    """Device and inode of the network namespace on the host."""
    cgroups: tuple[str, ...] = ()
    """Directories of its control groups on the host, to be removed with it."""
    unit: str = ""
    """The systemd scope that holds them, if systemd made them."""
    execs: dict[str, int] = field(default_factory=dict)
    """Exec id to the stand-in's process id."""

    def to_json(self) -> dict[str, Any]:
        """A plain object for :func:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Record:
        """The record of a ``record.json``; keys that a newer version wrote are left out.

        Raises:
            StateError: it is damaged.
        """
        record = _read(cls, value, "record.json")
        if record.status not in STATUSES:
            raise StateError(f"record.json of a container holds the unknown status {record.status!r}")
        return record


@dataclass(frozen=True, slots=True)
class PodRecord:
    """One sandbox; ``pod.json`` in its directory."""

    id: str
    keeper: int = 0
    keeper_start: int = 0
    created: float = 0.0
    memory_mib: int = 0
    guest: dict[str, Any] = field(default_factory=dict)
    """What the guest said of itself: kernel, memory, boot id, accelerator."""

    def to_json(self) -> dict[str, Any]:
        """A plain object for :func:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PodRecord:
        """The record of a ``pod.json``.

        Raises:
            StateError: it is damaged.
        """
        return _read(cls, value, "pod.json")


_LATEST = 253_402_300_799
"""The end of the year 9999, the last that times are written with."""


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _LATEST


def _table(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(of, value.values()))


_SHAPES: dict[str, Callable[[Any], bool]] = {
    "str": _text,
    "int": _number,
    "bool": lambda value: isinstance(value, bool),
    "float": _time,
    "int | None": lambda value: value is None or _number(value),
    "float | None": lambda value: value is None or _time(value),
    "dict[str, str]": _table(_text),
    "dict[str, int]": _table(_number),
    "dict[str, Any]": _table(lambda value: True),
    "tuple[str, ...]": lambda value: isinstance(value, tuple) and all(map(_text, value)),
    "tuple[int, int] | None": lambda value: (
        value is None or (isinstance(value, tuple) and len(value) == 2 and all(map(_number, value)))
    ),
}
"""Types of the fields of records, as they are written there, and what judges a value."""


def _read(kind: type[T], value: dict[str, Any], name: str) -> T:
    known = {item.name: str(item.type) for item in fields(kind)}  # type: ignore[arg-type]
    pairs = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items() if key in known}
    for key, item in pairs.items():
        if not _SHAPES[known[key]](item):
            raise StateError(f"{name} is damaged ({key} cannot be {str(item)[:40]!r})")
    try:
        return kind(**pairs)
    except TypeError as error:
        raise StateError(f"{name} is damaged ({error})") from None
