"""The table of system calls: what serves each, and how completely."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from enum import Enum

from casemate import bundle
from casemate.sentry.syscalls.numbers import NAMES, NUMBERS

Handler = Callable[..., int]


class Support(Enum):
    """How much of a call is there."""

    FULL = "full"
    PARTIAL = "partial"
    """Programs that ask for the rest get an error they know; the note says what is missing."""
    NONE = "none"
    """Only an error, chosen so that programs fall back to something else."""


class Entry:
    """One system call. (No dataclass, as that takes a millisecond to make.)"""

    __slots__ = ("arguments", "handler", "name", "note", "number", "support")

    def __init__(
        self, number: int, name: str, handler: Handler, arguments: int, support: Support, note: str = ""
    ) -> None:
        self.number = number
        self.name = name
        self.handler = handler
        self.arguments = arguments
        self.support = support
        self.note = note


TABLE: dict[int, Entry] = {}


def syscall(name: str, support: Support = Support.FULL, note: str = "") -> Callable[[Handler], Handler]:
    """Register a handler.

    The handler takes the task and as many arguments as it names, each the register as an unsigned 64-bit integer
    (:mod:`casemate.sentry.abi` reads C's types from it). It returns the result, or raises
    :class:`casemate.sentry.errno.SysError` or :class:`casemate.sentry.wait.Block`.

    Arguments:
        name: the kernel's name of the call.
        support, note: how complete it is; what is missing, where it is not full.
    """
    if support is not Support.FULL and not note:
        raise ValueError(f"{name}: say what is missing")

    def register(handler: Handler) -> Handler:
        number = NUMBERS[name]
        if number in TABLE:
            raise ValueError(f"{name} is served twice")
        TABLE[number] = Entry(number, name, handler, handler.__code__.co_argcount - 1, support, note)
        return handler

    return register


def load() -> dict[int, Entry]:
    """Import every family, and give the whole table."""
    for name in bundle.below("casemate.sentry.syscalls"):
        importlib.import_module(name)
    return TABLE


def begin() -> dict[int, Entry]:
    """The table, in which entries may be missing that :func:`late` gives: of families that nobody has asked for."""
    found = bundle.use()
    return load() if found is None or found.stale or not found.calls else TABLE


def late(number: int) -> Entry | None:
    """Import the family that serves a call. Gives the call's entry, or None: nobody serves it."""
    found = bundle.use()
    if found is not None and (name := found.calls.get(number)) is not None:
        importlib.import_module(name)
    return TABLE.get(number)


def name_of(number: int) -> str:
    """The call's name; its number where the kernel has none of that number."""
    return NAMES.get(number, f"syscall_{number}")
