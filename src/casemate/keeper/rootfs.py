"""Work inside a container's root filesystem from the host, whether the container runs or not."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from casemate.errors import CasemateError, ContainerError
from casemate.host import mounts, namespaces, syscalls
from casemate.keeper.client import Client
from casemate.keeper.reap import keeper_pidfd

if TYPE_CHECKING:
    from casemate.keeper.store import Container


LOCK_SECONDS = 30.0
"""How long to wait for another process that works in the same stopped container."""


def run_in(container: Container, function: Callable[[], int]) -> int:
    """Run ``function`` in a child that has the container's root filesystem, volumes included, as its root directory.

    The child has a mount namespace of its own, so that nothing it does shows elsewhere; being confined to the root
    filesystem, it cannot be led out of it by the container's links. Whatever it needs must be imported before.

    Arguments:
        container: running or not.
        function: its result is the child's exit status, 0 to 254.

    Returns:
        That status; 255 when ``function`` failed, with the reason on standard error.

    Raises:
        ContainerError: the root filesystem could not be entered.
    """
    keeper = keeper_pidfd(container)
    if keeper is None:
        # Held meanwhile: the same layers mounted twice at once would be undefined.
        with container.try_lock(LOCK_SECONDS) as locked:
            if not locked:
                raise ContainerError(f"container {container.name} is in use by another process", "try again")
            return _run_in(container, None, function)
    return _run_in(container, keeper, function)


def _run_in(container: Container, keeper: int | None, function: Callable[[], int]) -> int:
    running = keeper is not None
    reader, writer = os.pipe2(os.O_CLOEXEC)
    spec = container.spec
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            os.close(reader)
            try:
                _enter(container, keeper)
            except Exception as error:  # whatever it is, the parent has to hear it
                os.write(writer, f"{error}".encode()[:4000])
                os._exit(255)
            os.close(writer)
            status = function()
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(2, f"casemate: {error}\n".encode())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(status)
    os.close(writer)
    if keeper is not None:
        os.close(keeper)
    with open(reader, "rb") as pipe:
        problem = pipe.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    if running:
        with contextlib.suppress(CasemateError):  # it ended meanwhile, or is paused and looks again soon by itself
            Client(container).refresh()
    if problem:
        raise ContainerError(f"cannot enter the root filesystem of container {spec.name}: {problem}")
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 255


def _enter(container: Container, keeper: int | None) -> None:
    from casemate.wall.share import mount_root, root_path, volumes

    if keeper is not None:
        # The keeper's overlay: mounting the same layers twice at once would be undefined. setns(2) takes a pidfd.
        syscalls.setns(keeper, syscalls.CLONE_NEWNS)
        root = root_path(container)
        namespaces.unshare_mounts()
    else:
        namespaces.unshare_mounts()
        root = container.path / "root"
        root.mkdir(exist_ok=True)
        mount_root(container, root)
    for volume in volumes(container.spec.oci):
        target = mounts.mount_point(root, volume.destination, directory=volume.source.is_dir())
        mounts.bind(volume.source, target, read_only=volume.read_only)
        os.close(target)
    os.chroot(root)
    os.chdir("/")
    # The interpreter's own directories are the container's now: what was not imported before must not come from there.
    sys.path.clear()
    sys.path_importer_cache.clear()
