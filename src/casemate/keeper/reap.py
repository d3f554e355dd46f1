"""End a keeper from outside, and clean up after one that died."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.errors import CasemateError, HostError, NoSuchContainer, StateError

if TYPE_CHECKING:
    from casemate.keeper.model import ContainerState
    from casemate.keeper.store import Container

KILL_SECONDS = 10.0
DIED_STATUS = 255
"""Exit code of a container whose keeper died: nobody knows how the process ended."""


def keeper_pidfd(container: Container) -> int | None:
    """A pidfd of the keeper of a container, or None when it has none.

    The pid in the state may have been given to another process since; a keeper is told by its command line, which
    names the container's directory. Where no pid could be written down or read, all processes are looked at.
    """
    pids: Iterable[int]
    try:
        state = container.stored_state()
        if state.status == "exited":
            return None
        pids = (state.pid,) if state.pid is not None else _all_pids()
    except NoSuchContainer:
        return None
    except StateError:
        pids = _all_pids()
    for pid in pids:
        if _is_keeper(pid, container.path):
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(pid)
                if _is_keeper(pid, container.path):  # still: the descriptor is of no process that came after it
                    return descriptor
                os.close(descriptor)
    return None


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _is_keeper(pid: int, path: Path) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(65536).split(b"\0")
        if words[1:4] != [b"-m", b"casemate.keeper", os.fsencode(path)]:
            return False
        # Anybody can call a program so; what we ask a keeper's namespaces for must not be another user's choice.
        with open(f"/proc/{pid}/status", "rb") as file:
            users = next(line.split()[1:] for line in file if line.startswith(b"Uid:"))
    except (OSError, StopIteration):
        return False
    return {int(user) for user in users} == {os.getuid()}


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


def reap(container: Container) -> ContainerState:
    """Clean up after a keeper that died, and say so in the state. Only for who holds the container's lock.

    What the keeper held by descriptors or in namespaces of its own (mounts, the network namespace with its
    interfaces, the VMM and the file servers, which are killed with their parent) went with it.

    Returns:
        The true state, which is told even where it cannot be written.

    Raises:
        NoSuchContainer: it was to be removed at its end, and now is.
        StateError: ``state.json`` is damaged.
    """
    state = container.stored_state()
    if state.status == "exited":
        return state
    error = state.error or f"the keeper died {'while' if state.started is not None else 'before'} the container ran"
    try:
        clean_host(container)
        if _removes_itself(container):
            container.delete_files()
            raise NoSuchContainer(f"container {container.id[:12]} died, and was to be removed then")
    except HostError as problem:
        error += f"; {leftovers(str(problem))}"
    state = replace(
        state, status="exited", pid=None, exit_code=DIED_STATUS, error=error, finished=time.time()
    )  # fmt: skip
    with contextlib.suppress(OSError):  # a full disk: whoever looks next finds it out anew
        container.write_state(state)
    return state


def _removes_itself(container: Container) -> bool:
    try:
        return container.spec.remove
    except (NoSuchContainer, StateError):
        return False


def leftovers(problem: str) -> str:
    """What to say of a container whose sandbox could not be given back whole."""
    return f"something is left on the host ({problem}); 'casemate rm' tries again"


def clean_host(container: Container) -> None:
    """Remove all that a sandbox has on the host outside its container's directory; nothing there is no error.

    Raises:
        HostError: something would not go; everything else has gone nevertheless.
    """
    from casemate.host import cgroups, network, uids
    from casemate.vm import notes
    from casemate.wall import share

    identifier, config, run_path = container.id, container.config, container.run_path
    problems: list[str] = []

    def attempt(step: Callable[[], None]) -> bool:
        try:
            step()
        except (CasemateError, OSError) as error:
            problems.append(str(error))
            return False
        return True

    group = cgroups.find(identifier)
    leave(group.procs_files())
    if attempt(group.kill):
        attempt(group.remove)
        attempt(lambda: uids.release(identifier, config))  # nobody runs as this user any more
    attempt(lambda: network.teardown(identifier, config))
    share.remove(run_path)
    notes.forget(config.run, identifier)
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(run_path):
            with contextlib.suppress(OSError):
                os.unlink(entry.path)
        attempt(lambda: os.rmdir(run_path))
    if problems:
        raise HostError("; ".join(problems))


def leave(procs: tuple[Path, ...]) -> None:
    """Move this process to the hierarchy's root if it is in the sandbox's group: a keeper that cleans up after itself
    would be killed with the rest."""
    pid = str(os.getpid())
    for path in procs:
        with contextlib.suppress(OSError):
            if pid not in path.read_text().split():
                continue
            parent = path.parent.parent
            try:
                (parent.parent / "cgroup.procs").write_text(pid)
            except OSError:
                # Version 2 lets none but the host's true root hold processes beside groups. A container has another.
                (parent / "ending").mkdir(exist_ok=True)
                (parent / "ending" / "cgroup.procs").write_text(pid)
