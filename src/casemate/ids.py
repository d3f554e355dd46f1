"""Identifiers and names of containers."""

from __future__ import annotations

import os
import re

from casemate.errors import UsageError

ID_LENGTH = 64
SHORT_LENGTH = 12

_ID = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z")


def new_id() -> str:
    """A fresh random identifier: 64 lower-case hexadecimal digits."""
    return os.urandom(ID_LENGTH // 2).hex()


def short(identifier: str) -> str:
    """The first twelve digits, for people."""
    return identifier[:SHORT_LENGTH]


def is_id(text: str) -> bool:
    """Whether ``text`` is a whole identifier."""
    return _ID.match(text) is not None


def check_name(name: str) -> str:
    """Return ``name`` when it may name a container.

    Raises:
        UsageError: it is empty, too long, holds other characters than ``[a-zA-Z0-9_.-]``, does not start with a
            letter or digit, or could be taken for a whole identifier.
    """
    if _NAME.match(name) is None:
        raise UsageError(f"bad container name {name!r}", "use 1 to 128 of [a-zA-Z0-9_.-], a letter or digit first")
    if is_id(name):
        raise UsageError(f"bad container name {name!r}", "a name must not look like a container id")
    return name
