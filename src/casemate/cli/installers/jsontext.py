"""Changing one entry of a JSON file as text, so that everything else stays as its owner wrote it."""

from __future__ import annotations

import json
from typing import Any

from casemate.errors import ConfigError

_BLANK = " \t\r\n"
_decoder = json.JSONDecoder()


def read(text: str, what: str) -> dict[str, Any]:
    """The object in a text.

    Arguments:
        what: the file, for the error.

    Raises:
        ConfigError: it is not JSON, no object, or names one key twice (of which only one would count).
    """
    try:
        value = json.loads(text, object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is damaged: {str(error)[:200]}", "mend it first") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{what} is damaged: it does not hold an object", "mend it first")
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return value


class _Member:
    def __init__(self, key: str, start: int, value: int, end: int) -> None:
        self.key = key
        self.start = start
        self.value = value
        self.end = end


def _skip(text: str, at: int) -> int:
    while text[at] in _BLANK:
        at += 1
    return at


def _members(text: str, start: int) -> tuple[list[_Member], int]:
    """The members of the object that begins at ``start`` of sound JSON, and where its brace closes."""
    found: list[_Member] = []
    at = _skip(text, start + 1)
    while text[at] != "}":
        key, after = _decoder.raw_decode(text, at)
        value = _skip(text, _skip(text, after) + 1)
        _, end = _decoder.raw_decode(text, value)
        found.append(_Member(key, at, value, end))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found, at


def _unit(text: str) -> str:
    """What the file indents by; empty where it is one line."""
    start = _skip(text, 0)
    members, end = _members(text, start)
    blank = text[start + 1 : members[0].start if members else end]
    if not members and "\n" not in blank:
        return "    "
    return blank.rpartition("\n")[2] if "\n" in blank else ""


def put(text: str, table: str, key: str, value: dict[str, Any]) -> str:
    """``text`` with ``value`` under ``key`` of the object ``table``, which is made where it is missing.

    Arguments:
        text: sound JSON (:func:`read`), an object.
    """
    unit = _unit(text)
    top = _skip(text, 0)
    members, _ = _members(text, top)
    for member in members:
        if member.key != table:
            continue
        inner, _ = _members(text, member.value)
        for entry in inner:
            if entry.key == key:
                return text[: entry.value] + _render(value, unit, 2) + text[entry.end :]
        return _append(text, member.value, key, value, unit, 1)
    return _append(text, top, table, {key: value}, unit, 0)


def take(text: str, table: str, key: str) -> str:
    """``text`` without ``key`` of the object ``table``, and without the table when nothing is left in it."""
    top = _skip(text, 0)
    for member in _members(text, top)[0]:
        if member.key == table:
            inner, _ = _members(text, member.value)
            if [entry.key for entry in inner] == [key]:
                return _remove(text, top, table)
            return _remove(text, member.value, key)
    return text


def _render(value: Any, unit: str, depth: int) -> str:
    if not unit:
        return json.dumps(value)
    return json.dumps(value, indent=unit).replace("\n", "\n" + unit * depth)


def _append(text: str, start: int, key: str, value: Any, unit: str, depth: int) -> str:
    members, end = _members(text, start)
    made = f"{json.dumps(key)}: {_render(value, unit, depth + 1)}"
    if not members:
        inside = f"\n{unit * (depth + 1)}{made}\n{unit * depth}" if unit else made
        return text[: start + 1] + inside + text[end:]
    last = members[-1]
    blank = text[start + 1 : members[0].start]
    separator = blank if "\n" in blank else f"\n{unit * (depth + 1)}" if unit and len(members) > 1 else " "
    return text[: last.end] + "," + separator + made + text[last.end :]


def _remove(text: str, start: int, key: str) -> str:
    members, end = _members(text, start)
    for number, member in enumerate(members):
        if member.key == key:
            if len(members) == 1:
                return text[: start + 1] + text[end:]
            if number:
                return text[: members[number - 1].end] + text[member.end :]
            return text[: member.start] + text[members[1].start :]
    return text
