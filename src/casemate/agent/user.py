"""Users as the container's own /etc/passwd and /etc/group know them.

Sources: passwd(5), group(5), and the meaning that image configurations give to ``user[:group]`` (OCI image
specification, config.md, "User").
"""

from __future__ import annotations

import os

from casemate.agent.system import open_regular
from casemate.protocol.wire import RequestFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Root = int | Callable[[str], bytes]

MAX_FILE = 1024 * 1024
MAX_GROUPS = 1024
MAX_ID = (1 << 31) - 1


class User:
    """What a process runs as: ``uid``, ``gid``, ``groups`` (additional ones) and the ``home`` directory."""

    __slots__ = ("uid", "gid", "groups", "home")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def resolve(root: Root, wanted: str) -> User:
    """Find a user in a container.

    Arguments:
        root: a descriptor of the container's root directory, or what gives the text of a file in it (empty: none).
        wanted: ``name``, ``uid``, either with ``:group`` or ``:gid``; empty means root.

    Raises:
        RequestFailed: ``bad-user``: there is no such user or group, or a number is out of bounds.
    """
    name, colon, group = wanted.partition(":")
    if colon and not group or ":" in group:
        raise RequestFailed("bad-user", f"the user {wanted[:100]!r} is not of the form user[:group]")
    number = _number(name or "0", "user")
    entry = _entry(root, name, number)
    if entry is None:
        if number is None:
            raise RequestFailed("bad-user", f"the container has no user {name[:100]!r}: give a number or another name")
        entry = ("", number, 0, "/")
    login, uid, gid, home = entry
    groups: list[int] = []
    if group:
        gid = _group(root, group)
    elif login and name:
        groups = sorted({g for _, g, members in _groups(root) if login in members and g != gid})[:MAX_GROUPS]
    return User(uid, gid, groups, home or "/")


def home(root: Root, uid: int) -> str:
    """The home directory of a user by its number; ``/`` where it has none."""
    entry = _entry(root, str(uid), uid)
    return (entry[3] if entry is not None else "") or "/"


def _entry(root: Root, name: str, number: int | None) -> tuple[str, int, int, str] | None:
    """The line of a user, by its name if there is one, else by its number."""
    by_number = None
    for entry in _passwd(root):
        if entry[0] == name:
            return entry
        if by_number is None and entry[1] == number:
            by_number = entry
    return by_number


def _number(word: str, what: str) -> int | None:
    if not (word.isascii() and word.isdigit()):
        return None
    if len(word) > 10 or int(word) > MAX_ID:
        raise RequestFailed("bad-user", f"the {what} number {word[:40]} is above {MAX_ID}")
    return int(word)


def _group(root: Root, wanted: str) -> int:
    number = _number(wanted, "group")
    for name, gid, _ in _groups(root):
        if name == wanted:
            return gid
    if number is None:
        raise RequestFailed("bad-user", f"the container has no group {wanted[:100]!r}: give a number or another name")
    return number


def _passwd(root: Root) -> Iterator[tuple[str, int, int, str]]:
    for fields in _lines(root, "etc/passwd", 7):
        try:
            yield fields[0], _id(fields[2]), _id(fields[3]), fields[5]
        except ValueError:
            continue


def _groups(root: Root) -> Iterator[tuple[str, int, list[str]]]:
    for fields in _lines(root, "etc/group", 4):
        try:
            yield fields[0], _id(fields[2]), fields[3].split(",")
        except ValueError:
            continue


def _id(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 10 and int(word) <= MAX_ID):
        raise ValueError(word)  # int() alone would take "1_0" and digits of other scripts
    return int(word)


def _lines(root: Root, path: str, fields: int) -> Iterator[list[str]]:
    """Lines of a file of the container that have the right number of fields; the file is hostile."""
    data, start = _read(root, path), 0
    while start < len(data):  # one line at a time: all at once would take many times the file's size of memory
        end = data.find(b"\n", start)
        line = data[start : end if end >= 0 else len(data)]
        start += len(line) + 1
        if line.count(b":") >= fields - 1 and not line.startswith(b"#"):
            yield line.decode("utf-8", "replace").split(":")


def _read(root: Root, path: str) -> bytes:
    if not isinstance(root, int):
        return root(path)[:MAX_FILE]
    try:
        fd = open_regular(root, path)
    except OSError:
        return b""
    try:
        parts, size = [], 0
        while size < MAX_FILE and (part := os.read(fd, min(65536, MAX_FILE - size))):
            parts.append(part)
            size += len(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)
