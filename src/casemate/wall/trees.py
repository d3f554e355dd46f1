"""The trees of several containers below the two directories that a sandbox's file servers show to its guest.

::

    share/ID       a container's root filesystem, with the mounts in it
    volumes/ID     its bind mounts, a directory or file for each

Containers come and go while the file servers run. A file server has a mount namespace of its own, made when it starts
as a slave of the keeper's; so both directories are mounts with *shared* propagation (``mount_namespaces(7)``, "Shared
subtrees"), and what is mounted in them later appears there too. They are small tmpfs in the keeper's mount namespace:
the directories of the host below them stay empty, and nothing is left when the keeper ends, whatever ends it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from casemate.errors import HostError, UsageError
from casemate.host import mounts
from casemate.wall.share import SHARE, VOLUMES

PLACES = (SHARE, VOLUMES)
_MADE_IN = ".{}"
"""Where in the run directory the directories of a place are made: the place itself is shown to the guest, and so is
read-only, lest the guest fill it, or put something of its own where a container is to be."""
_SIZE = 64 << 10
_INODES = 1024
"""For directories alone: each container has one in each."""
_STACKED = 64
"""Most mounts upon each other that are taken off one place."""


def make(run_path: Path) -> None:
    """Make both directories, in this process's mount namespace.

    Raises:
        HostError: a mount is refused.
    """
    for name in PLACES:
        place, behind = run_path / name, writable(run_path, name)
        for directory in (place, behind):
            directory.mkdir(parents=True, exist_ok=True)
        mounts.tmpfs(behind, size=_SIZE, inodes=_INODES)
        mounts.bind(behind, place, read_only=True, recursive=False)
        mounts.make_shared(place)


def writable(run_path: Path, name: str) -> Path:
    """Where the directories of a place, ``share`` or ``volumes``, are made."""
    return run_path / _MADE_IN.format(name)


def attach(run_path: Path, id: str, root_fd: int, volumes_fd: int | None) -> None:
    """Put the trees of a container in their places.

    Arguments:
        id: the container's name in the guest.
        root_fd, volumes_fd: detached mounts (``open_tree(2)`` with OPEN_TREE_CLONE); closed, whatever happens.

    Raises:
        UsageError: the name is no file name, or has trees. HostError: a mount is refused. Nothing is attached then.
    """
    try:
        _check(id)
        if any((run_path / name / id).exists() for name in PLACES):
            raise UsageError(f"the container {id} has its files in the sandbox already")
        _attach(root_fd, run_path, SHARE, id)
        if volumes_fd is not None:
            _attach(volumes_fd, run_path, VOLUMES, id)
    except (OSError, HostError) as error:
        detach(run_path, id)
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else error.message
        raise HostError(f"the files of container {id} cannot be shown to the sandbox: {reason}") from None
    finally:
        for fd in (root_fd, volumes_fd):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)


def _attach(tree: int, run_path: Path, name: str, id: str) -> None:
    (writable(run_path, name) / id).mkdir()
    mounts.attach(tree, run_path / name / id)


def detach(run_path: Path, id: str) -> None:
    """Take a container's trees away, also from a file server that still has files of them open; nothing when there
    are none.

    Raises:
        UsageError: the name is no file name. HostError: the kernel refuses.
    """
    _check(id)
    for name in PLACES:
        place = run_path / name / id
        for _ in range(_STACKED):
            if not mounts.umount(place):
                break
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(writable(run_path, name) / id)


def remove(run_path: Path) -> None:
    """Take down everything, in this process's mount namespace; nothing when it is gone."""
    for place in (place for name in PLACES for place in (run_path / name, writable(run_path, name))):
        with contextlib.suppress(HostError, OSError):
            for _ in range(_STACKED):
                if not mounts.umount(place):
                    break
        with contextlib.suppress(OSError):
            os.rmdir(place)


def _check(id: str) -> None:
    if not id or id in (".", "..") or "/" in id or "\0" in id or len(os.fsencode(id)) > 255:
        raise UsageError(f"{id[:80]!r} is no name for a container")
