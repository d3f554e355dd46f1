"""The directories of members: ``<root>/pool/<id>``, which become ``containers/<id>`` when they are handed out.

A member has its directory locked from before its first step to its end, as a keeper has its container's. So a
directory whose lock is free is that of a member that died, and whoever finds it cleans up: what a member holds on the
host has its id for a name, like a container's.

``<root>/pool/.lock`` is held while a directory is made, and by who looks for those that died.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from casemate import ids
from casemate.config import Config
from casemate.errors import CasemateError, HostError
from casemate.keeper import locks


def home(config: Config) -> Path:
    """Where the members' directories are."""
    return config.root / "pool"


def make(config: Config, identifier: str) -> tuple[Path, int]:
    """Make a member's directory.

    Returns:
        it, and the descriptor that holds its lock.

    Raises:
        HostError: the disk is full or cannot be written.
    """
    path = home(config) / identifier
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _making(config):
            path.mkdir(mode=0o700)
            try:
                lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(lock, fcntl.LOCK_EX)
                for name in ("upper", "work"):
                    (path / name).mkdir(mode=0o755)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
    except OSError as error:
        raise HostError(f"cannot write to {path.parent}: {error.strerror}", "free some space") from None
    return path, lock


def remove(path: Path) -> None:
    """Remove a member's directory; nothing when it is none any more. Only for who holds its lock."""
    shutil.rmtree(path, ignore_errors=True)


def sweep(config: Config) -> list[str]:
    """Clean up after members that died.

    Returns:
        what could not be given back, a line each.
    """
    problems: list[str] = []
    try:
        names = [name for name in os.listdir(home(config)) if ids.is_id(name)]
    except FileNotFoundError:
        return problems
    if not names:
        return problems
    from casemate.keeper.reap import clean_host
    from casemate.keeper.store import Container

    for name in names:
        path = home(config) / name
        try:
            with _making(config), locks.hold(path / "lock") as locked:
                # A living member's directory may get its container's name at any moment, and its lock with it.
                if not locked and ((path / "lock").exists() or not path.is_dir()):
                    continue
                try:
                    clean_host(Container(config, path))
                except CasemateError as error:
                    problems.append(f"{name[:12]}: {error.message}")
                else:
                    remove(path)
        except OSError as error:  # no descriptors, no space: the next time, then
            problems.append(f"{name[:12]}: {error.strerror}")
    return problems


@contextlib.contextmanager
def _making(config: Config) -> Iterator[None]:
    descriptor = os.open(home(config) / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
