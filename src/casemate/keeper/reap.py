"""End a keeper from outside, and clean up after one that died."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.errors import HostError, NoSuchContainer, StateError

if TYPE_CHECKING:
    from casemate.keeper.store import Container

KILL_SECONDS = 10.0
DIED_STATUS = 255
"""Exit code of a container whose keeper died: nobody knows how the process ended."""


def keeper_pidfd(container: Container) -> int | None:
    """A pidfd of the keeper of a container, or None when it has none.

    The pid in the state may have been given to another process since; the keeper is told by its command line, which
    names the container's directory.
    """
    try:
        pid = container.stored_state().pid
    except (NoSuchContainer, StateError):
        return None
    if pid is None:
        return None
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = file.read(65536).split(b"\0")
    except OSError:
        arguments = []
    if os.fsencode(container.path) not in arguments:
        os.close(descriptor)
        return None
    return descriptor


def end_keeper(container: Container) -> None:
    """Kill the keeper of a container and wait for its end.

    Raises:
        HostError: it did not end within ten seconds.
    """
    descriptor = keeper_pidfd(container)
    if descriptor is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(KILL_SECONDS * 1000):
            raise HostError(f"the keeper of container {container.name} does not end", "is it in state D in 'ps'?")
    finally:
        os.close(descriptor)


def reap(container: Container) -> None:
    """Clean up after a keeper that died, and say so in the state. Only for who holds the container's lock.

    What the keeper held by descriptors or in namespaces of its own (mounts, the network namespace with its
    interfaces, the VMM and the file server, which are killed with their parent) went with it.
    """
    try:
        state = container.stored_state()
        spec = container.spec
    except (NoSuchContainer, StateError):
        clean_host(container)
        return
    clean_host(container)
    if spec.remove:
        container.delete_files()
        return
    if state.status != "exited":
        started = state.started is not None
        container.write_state(
            replace(
                state,
                status="exited",
                pid=None,
                exit_code=DIED_STATUS,
                error=state.error or f"the keeper died {'while' if started else 'before'} the container ran",
                finished=time.time(),
            )
        )


def clean_host(container: Container) -> None:
    """Remove all that a sandbox has on the host outside its container's directory; nothing there is no error."""
    from casemate.host import cgroups, network, uids
    from casemate.vm import share

    group = cgroups.find(container.id)
    _leave(group.procs_files())
    with contextlib.suppress(OSError, HostError):
        group.kill()
    with contextlib.suppress(OSError, HostError):
        group.remove()
    network.teardown(container.id, container.config)
    uids.release(container.id, container.config)
    share.remove(container.run_path)
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(container.run_path):
            with contextlib.suppress(OSError):
                os.unlink(entry.path)
        with contextlib.suppress(OSError):
            os.rmdir(container.run_path)


def _leave(procs: tuple[Path, ...]) -> None:
    """Move this process to the hierarchy's root if it is in the sandbox's group: a keeper that cleans up after itself
    would be killed with the rest."""
    for path in procs:
        with contextlib.suppress(OSError):
            if str(os.getpid()) in path.read_text().split():
                (path.parent.parent.parent / "cgroup.procs").write_text(str(os.getpid()))
