"""Podman: a drop-in file of containers.conf(5), which is ours as a whole."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

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
    if text is not None and text.strip() and not text.startswith(_HEAD):
        _refuse(text, path)
    return f"{_HEAD}[engine.runtimes]\ncasemate = [{json.dumps(str(programs['casemate-runtime']))}]\n"


def erase(text: str, path: Path) -> str | None:
    """Nothing, if the file is ours and has nothing else in it.

    Raises:
        ConfigError: somebody has put more into it, or wrote it.
    """
    if not text.startswith(_HEAD):
        return text
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is damaged: {error}", "remove it by hand") from None
    ours = value.get("engine", {}).get("runtimes", {}).get("casemate")
    if value != {"engine": {"runtimes": {"casemate": ours}}}:
        raise ConfigError(f"{path} holds more than casemate wrote", "take [engine.runtimes] casemate out by hand")
    return None


def _refuse(text: str, path: Path) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is damaged: {error}", "mend or remove it first") from None
    raise ConfigError(f"{path} was not written by casemate", "name another file with --file")
