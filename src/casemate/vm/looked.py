"""What a guest would look up in a container's root filesystem before it can make the container: its users, its command.

In an emulated guest each name that is looked up is a request to the file server and takes half a millisecond; here,
where the same tree is mounted, all of them take one. The guest is told texts and a name. The texts, which are the
image's, are not understood here but there; where nothing is told the guest looks for itself, and what is to be said of
a command that cannot be executed is its affair, too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from casemate.agent import command
from casemate.agent.system import open_regular
from casemate.protocol.wire import RequestFailed

MAX_TEXT = 16 << 10
"""Bytes of a file that the guest is told; a longer one it reads."""
FILES = {"passwd": "etc/passwd", "group": "etc/group"}


def look(root: Path, oci: dict[str, Any]) -> dict[str, str]:
    """What the guest is told.

    Arguments:
        root: the container's root filesystem, as its guest sees it.
        oci: the container's specification.

    Returns:
        ``passwd`` and ``group``: the text of these files, empty where there are none; ``place``: where the command is
        that is to be looked for. What it has to find out itself is left out.
    """
    try:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        found: dict[str, str] = {}
        texts = {name: _text(fd, path) for name, path in FILES.items()}
        if (passwd := texts["passwd"]) is not None and (group := texts["group"]) is not None:
            found.update(passwd=passwd, group=group)
        if (place := _place(fd, oci)) is not None:
            found["place"] = place
        return found
    finally:
        os.close(fd)


def _text(root: int, path: str) -> str | None:
    try:
        fd = open_regular(root, path)
    except FileNotFoundError:
        return ""
    except OSError:
        return None
    try:
        data = os.pread(fd, MAX_TEXT + 1, 0)
        return data.decode() if len(data) <= MAX_TEXT and b"\0" not in data else None
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def _place(root: int, oci: dict[str, Any]) -> str | None:
    process = oci["process"]
    words, mounts = process["args"], oci.get("mounts", ())
    path = next((entry[5:] for entry in reversed(process.get("env", ())) if entry.startswith("PATH=")), "")
    if not words or "/" in words[0]:
        return None
    try:
        place = command.check(root, words[0], path, process.get("cwd", "/"), [mount["destination"] for mount in mounts])
    except RequestFailed:
        return None
    return place if place is not None and place.startswith("/") else None
