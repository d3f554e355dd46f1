"""Podman: a drop-in file of containers.conf(5), which is ours as a whole."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from casemate.errors import ConfigError

FILE = Path("/etc/containers/containers.conf.d/50-casemate.conf")
PROGRAMS = ("casemate-runtime",)
NEXT = ("podman --runtime casemate run --rm busybox uname -r",)
NEXT_UNDONE = ()
_HEAD = "# Written by 'casemate install podman'; 'casemate install podman --undo' removes it.\n"


def edit(text: str | None, path: Path, programs: dict[str, Path]) -> str:
    """The file's content.

    Raises:
        ConfigError: there is a file that somebody else wrote.
    """
    wanted = [str(programs["casemate-runtime"])]
    if text is not None and text.strip():
        if not text.startswith(_HEAD):
            _refuse(text, path)
        ours, more = _ours(text, path, "mend it by hand")
        if more and ours == wanted:
            return text
        if more:
            raise ConfigError(f"{path} holds more than casemate wrote", f"set [engine.runtimes] casemate to {wanted}")
    return f"{_HEAD}[engine.runtimes]\ncasemate = [{json.dumps(wanted[0])}]\n"


def erase(text: str, path: Path) -> str | None:
    """Nothing, if the file is ours and has nothing else in it.

    Raises:
        ConfigError: somebody has put more into it, or wrote it.
    """
    if not text.startswith(_HEAD):
        return text
    if _ours(text, path, "remove it by hand")[1]:
        raise ConfigError(f"{path} holds more than casemate wrote", "take [engine.runtimes] casemate out by hand")
    return None


def _ours(text: str, path: Path, hint: str) -> tuple[Any, bool]:
    """What the file has for our runtime, and whether there is more in it. Raises ConfigError: it is damaged."""
    try:
        value = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {str(error)[:200]}", hint) from None
    found: Any = value
    for key in ("engine", "runtimes", "casemate"):
        found = found.get(key) if isinstance(found, dict) else None
    return found, value != {"engine": {"runtimes": {"casemate": found}}}


def _refuse(text: str, path: Path) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is damaged: {error}", "mend or remove it first") from None
    raise ConfigError(f"{path} was not written by casemate", "name another file with --file")
