"""Who has a template's memory open: ``<run>/templates/<key>/<sandbox>`` holds a keeper's pid and its descriptor.

A module of its own, because whoever cleans up after a keeper that died has no use for the rest of templates.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write(run: Path, key: str, sandbox: str, fd: int) -> Path:
    """Note that this process has a template's memory open.

    Arguments:
        run: the configured directory.
        key: the template's.
        sandbox: the id of the sandbox that is made from it.
        fd: the descriptor.

    Returns:
        the note.

    Raises:
        OSError: it cannot be written.
    """
    path = run / "templates" / key / sandbox
    while True:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            path.write_text(f"{os.getpid()} {fd}")
        except FileNotFoundError:  # the last of the others has just gone, and the directory with it
            continue
        return path


def of(run: Path, key: str) -> Iterator[tuple[Path, str]]:
    """The notes on a template, and under which name in ``/proc`` each says that its memory is; a note that says
    nothing is removed."""
    try:
        names = os.listdir(run / "templates" / key)
    except FileNotFoundError:
        return
    for name in names:
        path = run / "templates" / key / name
        try:
            pid, fd = path.read_text().split()
            yield path, f"/proc/{int(pid)}/fd/{int(fd)}"
        except (OSError, ValueError):
            drop(path)


def drop(note: Path) -> None:
    """Remove a note, and the directories when it was the last one there."""
    with contextlib.suppress(OSError):
        note.unlink()
        note.parent.rmdir()
        note.parent.parent.rmdir()


def forget(run: Path, sandbox: str) -> None:
    """Remove the note of a sandbox whose keeper has died.

    Arguments:
        run: the configured directory.
    """
    for path in run.glob(f"templates/*/{sandbox}"):
        drop(path)
