"""End a sandbox's keeper from outside, and clean up after one that died."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.errors import CasemateError, HostError, NoSuchContainer, StateError
from casemate.host import processes
from casemate.pod.model import LIVE, Record

if TYPE_CHECKING:
    from casemate.pod.store import Pod, PodStore

DIED_STATUS = 137
"""Exit code of a container whose keeper died: it was killed, whoever did it."""


def keeper_pidfd(pod: Pod) -> int | None:
    """A pidfd of a sandbox's keeper, or None when it has none.

    A keeper is told by its command line, which names the sandbox's directory. Where its number could not be written
    down or read, all processes are looked at.
    """
    pids: Iterable[int] = ()
    with contextlib.suppress(NoSuchContainer, StateError, OSError):
        pids = (pod.record().keeper,)
    for candidates in (pids, map(int, filter(str.isdigit, os.listdir("/proc")))):
        for pid in candidates:
            if pid > 0 and _is_keeper(pid, pod.path):
                with contextlib.suppress(OSError):
                    descriptor = os.pidfd_open(pid)
                    if _is_keeper(pid, pod.path):  # still: the descriptor is of no process that came after it
                        return descriptor
                    os.close(descriptor)
    return None


def _is_keeper(pid: int, path: Path) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(65536).split(b"\0")
    except OSError:
        return False
    return words[1:5] == [b"-P", b"-m", b"casemate.pod", os.fsencode(path)]


def end_keeper(pod: Pod) -> None:
    """Kill the keeper of a sandbox and wait for its end; nothing when there is none.

    Raises:
        HostError: it did not end within ten seconds.
    """
    descriptor = keeper_pidfd(pod)
    if descriptor is None:
        return
    try:
        processes.end(descriptor, f"the keeper of sandbox {pod.id[:12]}")
    finally:
        os.close(descriptor)


def reap(store: PodStore, pod_id: str) -> None:
    """Clean up after a keeper that died, and say so in the records of its containers. Only for who holds its lock.

    What the keeper held by descriptors or in namespaces of its own (mounts, taps, the VMM and the file servers, which
    are killed with their parent) went with it.
    """
    for record in store.members(pod_id):
        mark(store, record.id)
    with contextlib.suppress(CasemateError, OSError):
        clean_pod(store.pod(pod_id))


def mark(store: PodStore, id: str, reason: str = "") -> Record | None:
    """Give back what a container has whose keeper or maker died, and put it on record as stopped.

    Nothing for one that is stopped already, or that somebody is just making.

    Arguments:
        reason: why it has ended, when it was not the keeper's death.

    Returns:
        the true record, which is told even where it cannot be written; None where there was nothing to do.
    """
    try:
        record = store.stored(id)
    except (NoSuchContainer, StateError):
        return None
    if record.status not in LIVE:
        return None
    if record.status == "creating" and processes.alive(record.creator, record.creator_start):
        return None
    when = "before" if record.started is None else "while"
    error = record.error or reason or f"the keeper died {when} the container ran"
    problem = attempt([lambda: clean_container(store, record)])
    if problem:
        error += f"; something is left on the host ({problem})"
    record = replace(
        record,
        status="stopped",
        exit_code=DIED_STATUS,
        error=error,
        finished=time.time(),
        execs={},
        cgroups=record.cgroups if problem else (),
        unit=record.unit if problem else "",
    )
    with contextlib.suppress(OSError):  # a full disk: whoever looks next finds it out anew
        store.write(record)
    return record


def clean_container(store: PodStore, record: Record) -> None:
    """End a container's stand-ins and remove its control group; nothing there is no error.

    Raises:
        HostError: something would not go; everything else has gone nevertheless.
    """
    from casemate.pod import cgroup

    group = cgroup.restore(record.cgroups, record.unit)

    def sweep() -> None:
        with contextlib.suppress(CasemateError, OSError):
            linux = store.spec(record.id).get("linux") or {}
            cgroup.sweep(linux.get("cgroupsPath"), record.id)

    problem = attempt(
        [lambda: processes.kill(record.pid, record.pid_start), group.kill, group.remove, sweep],
    )
    if problem:
        raise HostError(problem)


def clean_pod(pod: Pod) -> None:
    """Remove what a sandbox has on the host outside its directory, when its keeper and machine have ended.

    Raises:
        HostError: something would not go; everything else has gone nevertheless.
    """
    from casemate import ids
    from casemate.host import uids
    from casemate.vm import notes

    if not ids.is_id(pod.id):
        return
    notes.forget(pod.config.run, pod.id)
    problem = attempt([lambda: uids.release(pod.id, pod.config), lambda: _clear_run_path(pod.run_path)])
    if problem:
        raise HostError(problem)


def _clear_run_path(path: Path) -> None:
    """Remove a sandbox's run directory. What is in its trees was mounted in the keeper's own mount namespace, and is
    empty to everybody else: rmdir(2) takes it, and a walk never touches what a volume holds."""
    for tree in ("share", "volumes"):
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(path / tree):
                _drop(path / tree / name)
            _drop(path / tree)
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(path):
            _drop(path / name)
        os.rmdir(path)


def _drop(path: Path) -> None:
    with contextlib.suppress(OSError):
        try:
            os.rmdir(path)
        except NotADirectoryError:
            os.unlink(path)


def attempt(steps: Iterable[Callable[[], object]]) -> str:
    """Do every step; what went wrong, or an empty string."""
    problems = []
    for step in steps:
        try:
            step()
        except (CasemateError, OSError) as error:
            problems.append(str(error))
    return "; ".join(problems)
