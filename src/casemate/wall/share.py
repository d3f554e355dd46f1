"""The directories that a sandbox's file servers show to its guest: its root filesystem, and its volumes.

::

    share/rootfs   the container's root: image layers below, its writable layer above
    volumes/N      the N-th volume, a directory or a file

There are two, because the guest may keep what it knows of the first and must ask about the second every time. They are
put together in the keeper's own mount namespace and end with it. The directories themselves are empty to everybody
else, which is why they are removed with rmdir(2) and never by walking: a walk by a process that sees the mounts would
delete what the volumes hold.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate.errors import HostError, UsageError
from casemate.host import mounts

if TYPE_CHECKING:
    from casemate.keeper.store import Container

ROOT_NAME = "rootfs"
SHARE = "share"
VOLUMES = "volumes"
GUEST_PATH = "/run/casemate"
"""Where the agent mounts the two in the guest, under the same names."""
MAX_VOLUMES = 256


@dataclass(frozen=True, slots=True)
class Volume:
    """A bind mount of a container.

    ``index`` counts in the order of the specification's mounts; ``source`` is a host path.
    """

    index: int
    source: Path
    destination: str
    read_only: bool


def volumes(oci: dict[str, Any]) -> list[Volume]:
    """The bind mounts of an OCI specification.

    Raises:
        UsageError: there are more than 256.
    """
    found: list[Volume] = []
    for mount in oci.get("mounts", ()):
        if mount.get("type") == "bind":
            options = mount.get("options", ())
            found.append(Volume(len(found), Path(mount["source"]), mount["destination"], "ro" in options))
    if len(found) > MAX_VOLUMES:
        raise UsageError(f"{len(found)} volumes are too many", f"the limit is {MAX_VOLUMES}")
    return found


def mount_root(container: Container, target: Path) -> None:
    """Mount a container's root filesystem on ``target``, in this process's mount namespace."""
    lower = [Path(layer) for layer in container.spec.layers]
    mounts.overlay(lower, container.path / "upper", container.path / "work", target)


def build(container: Container) -> None:
    """Put a container's trees together in its run directory, in this process's mount namespace.

    Raises:
        HostError: a mount was refused.
        UsageError: a volume's source does not exist.
    """
    root = root_path(container)
    root.mkdir(parents=True, exist_ok=True)
    wanted = [(volume, container.run_path / VOLUMES / str(volume.index)) for volume in volumes(container.spec.oci)]
    for volume, target in wanted:
        target.parent.mkdir(exist_ok=True)
        if not volume.source.exists():
            raise UsageError(f"the volume source {volume.source} does not exist", "make it first")
        if volume.source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.touch()
    # The file servers show these themselves too, and a guest must not fill what is the host's: /run.
    for top in {root.parent, *(target.parent for _, target in wanted)}:
        mounts.bind(top, top, read_only=True, recursive=False)
    mount_root(container, root)
    for volume, target in wanted:
        mounts.bind(volume.source, target, read_only=volume.read_only)


def place(container: Container, volumes_fds: Sequence[int], writable: Callable[[Path, str], Path]) -> None:
    """Put a container's trees into directories that a file server shows already (:mod:`casemate.wall.trees`).

    Arguments:
        volumes_fds: a detached tree for each volume (``open_tree(2)`` with OPEN_TREE_CLONE), by whoever knows what the
            sources are; closed, whatever happens.
        writable: where in the run directory the directories of a place are made.

    Raises:
        HostError: a mount was refused. UsageError: there are not as many trees as volumes.
    """
    left = list(volumes_fds)
    try:
        wanted = volumes(container.spec.oci)
        if len(left) != len(wanted):
            raise UsageError(f"{len(left)} trees came for {len(wanted)} volumes")
        (writable(container.run_path, SHARE) / ROOT_NAME).mkdir()
        mount_root(container, root_path(container))
        for volume in wanted:
            name = str(volume.index)
            tree = left.pop(0)
            try:
                if stat.S_ISDIR(os.fstat(tree).st_mode):
                    (writable(container.run_path, VOLUMES) / name).mkdir()
                else:
                    (writable(container.run_path, VOLUMES) / name).touch()
                mounts.attach(tree, container.run_path / VOLUMES / name, read_only=volume.read_only)
            finally:
                os.close(tree)
    finally:
        for fd in left:
            os.close(fd)


def root_path(container: Container) -> Path:
    """Where the root filesystem of a running container is, in its keeper's mount namespace."""
    return container.run_path / SHARE / ROOT_NAME


def unmount(run_path: Path) -> None:
    """Take down the trees in this process's mount namespace; what is still in use goes when its user does."""
    for path in mounts.mounts_below(run_path):
        with contextlib.suppress(OSError, HostError):
            mounts.umount(path)


def remove(run_path: Path) -> None:
    """Remove the empty directories of trees whose mounts are gone."""
    names: Sequence[str] = ()
    with contextlib.suppress(OSError):
        names = os.listdir(run_path / VOLUMES)
    volumes = [run_path / VOLUMES / name for name in names]
    behind = [run_path / f".{name}" for name in (SHARE, VOLUMES)]  # of casemate.wall.trees
    for path in (*volumes, run_path / VOLUMES, run_path / SHARE / ROOT_NAME, run_path / SHARE, *behind):
        with contextlib.suppress(OSError):
            try:
                os.rmdir(path)
            except NotADirectoryError:
                os.unlink(path)


def guest_spec(container: Container) -> dict[str, Any]:
    """The container's OCI specification in the guest's paths."""
    oci = container.spec.oci
    places = iter(volumes(oci))
    result = {**oci, "root": {**oci.get("root", {}), "path": f"{GUEST_PATH}/{SHARE}/{ROOT_NAME}"}}
    result["mounts"] = [dict(mount) for mount in oci.get("mounts", ())]
    for mount in result["mounts"]:
        if mount.get("type") == "bind":
            mount["source"] = f"{GUEST_PATH}/{VOLUMES}/{next(places).index}"
    return result
