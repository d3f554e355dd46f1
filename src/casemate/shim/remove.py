"""``delete``: what containerd runs when a shim has died or cannot be reached: remove what is left of a container."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time

from casemate.shim import messages, options, rootfs, ttrpc, wire
from casemate.shim.children import Children
from casemate.shim.loop import Loop
from casemate.shim.runtime import Runtime, RuntimeFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RUNTIME_SECONDS = 60.0
KILLED = 128 + 9


def remove(flags: dict[str, Any]) -> bytes:
    """The ``delete`` action.

    Arguments:
        flags: of the command line; the bundle is the one named, or the directory beside the current one with the
            container's id.

    Returns:
        a ``DeleteResponse`` for the standard output.
    """
    container_id = flags["id"]
    if not container_id or "/" in container_id:
        raise ValueError(f"container id {container_id!r}")
    beside = os.path.join(os.path.dirname(os.getcwd()), container_id)
    bundle = flags["bundle"] if flags["bundle"] and os.path.isdir(flags["bundle"]) else beside
    _delete(container_id, bundle, flags)
    try:
        rootfs.unmount_all(os.path.join(bundle, "rootfs"))
    except OSError as error:
        _warn(f"failed to cleanup rootfs mount: {error.strerror}")
    _remove_socket(bundle)
    response = {
        "pid": _pid(bundle), "exit_status": KILLED, "exited_at": messages.timestamp(time.time_ns()),
    }
    return wire.encode(messages.DELETE_RESPONSE, response)


def _delete(container_id: str, bundle: str, flags: dict[str, Any]) -> None:
    """Have the runtime remove the container, if it still knows it.

    containerd calls us after every shim's end, also when all was well; then there is no state, and no need to start a
    runtime. Runtimes keep a container's state in a directory of its name below their root.
    """
    loop = Loop(_warn)
    try:
        children = Children(loop)
        runtime = Runtime(loop, children, options.load(bundle), flags["namespace"], bundle, debug=flags["debug"])
        known = os.path.lexists(os.path.join(runtime.root, container_id))
        if os.path.isdir(runtime.root) and not known and not _cut_short(runtime.root):
            return
        delete = runtime.run(["delete", "--force", container_id], seconds=RUNTIME_SECONDS)
        try:
            loop.run_until(loop.start(delete))
        except RuntimeFailed as error:
            if "does not exist" not in error.said:
                _warn(f"failed to remove the container: {error.said}")
    finally:
        loop.close()


def _cut_short(root: str) -> bool:
    """Whether our runtime was killed in the middle of something in its root, before there was a container on record
    or after; its next ``delete`` takes away what is left of that.

    Such things have a name with a dot, and a sandbox that nobody locks is nobody's (:mod:`casemate.pod.store`).
    """
    pods = os.path.join(root, ".pods")
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(pods):
            if name.startswith("."):
                return True
            with contextlib.suppress(OSError), open(os.path.join(pods, name, "lock")) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
    return False


def _warn(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _pid(bundle: str) -> int:
    with contextlib.suppress(OSError, ValueError), open(os.path.join(bundle, "init.pid"), "rb") as file:
        return max(0, int(file.read(32))) & 0xFFFF_FFFF
    return 0


def _remove_socket(bundle: str) -> None:
    """The socket of a shim that listens no more."""
    with contextlib.suppress(OSError):
        with open(os.path.join(bundle, "address")) as file:
            path = file.read(4096).strip().removeprefix("unix://")
        if os.path.isabs(path) and not ttrpc.answers(path):
            os.unlink(path)
