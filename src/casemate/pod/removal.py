"""Removing a container, whatever has become of it: with its keeper's help, or without."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from casemate.errors import CasemateError, HostError, NoSuchContainer, NotRunning, StateError, StillRunning
from casemate.host import processes
from casemate.pod import reap
from casemate.pod.model import LIVE, Record

if TYPE_CHECKING:
    from casemate.pod.store import Pod, PodStore

REMOVE_SECONDS = 60.0
"""How long a removal waits for a keeper that gives everything back."""
FORCE_SECONDS = 25.0
"""How long a forced one waits, before it ends the keeper."""


def remove(store: PodStore, id: str, *, force: bool) -> bool:
    """See :meth:`casemate.pod.store.PodStore.remove`."""
    try:
        record = store.get(id)
    except NoSuchContainer:
        if force:
            store.sweep()
            return False
        raise
    except StateError:
        if not force:
            raise
        record = _damaged(store, id)
    if record.status in LIVE and not force:
        if record.status != "created":
            raise StillRunning(f"cannot delete container {id} that is not stopped: {record.status}", "kill it first")
        force = True  # nothing of it has run, and nothing will
    pod = store.pod(record.pod)
    if record.status == "creating":
        _end_maker(record, pod)
    began = time.monotonic()
    patience = 0.0
    while True:
        with pod.free(patience) as free:
            if free:
                removed = _finish(store, record, pod)
                break
        if time.monotonic() > began + REMOVE_SECONDS:
            raise HostError(f"the keeper of container {id} does not let it go", "see its keeper.log")
        if force and time.monotonic() > began + FORCE_SECONDS:
            reap.end_keeper(pod)
        elif _ask(store, pod, id, force):
            removed = _finish(store, record, None)
            break
        patience = 1.0
    store.sweep()  # whoever was cut short may not have come back
    return removed


def _ask(store: PodStore, pod: Pod, id: str, force: bool) -> bool:
    """Have the keeper end and forget a container; whether it has done so and lives on for others."""
    from casemate.pod.client import PodClient

    try:
        return PodClient(store, pod.id).delete(id, force=force, timeout=FORCE_SECONDS)
    except (NotRunning, TimeoutError):
        return False  # it ends just now, or hangs
    except StillRunning:
        raise
    except CasemateError:
        if force:
            return False
        raise


def _end_maker(record: Record, pod: Pod) -> None:
    """Kill the process that is still making a container, unless that is the keeper, which can be asked."""
    if record.creator == os.getpid():
        return
    try:
        if pod.record().keeper == record.creator:
            return
    except (NoSuchContainer, StateError):
        pass
    processes.kill(record.creator, record.creator_start)


def _damaged(store: PodStore, id: str) -> Record:
    """What stands for the record of a container that cannot be read: every keeper is asked whether it is one of its."""
    from casemate.pod.client import PodClient

    found = ""
    for pod in store.pods():
        with contextlib.suppress(CasemateError):
            if pod.alive() and id in PodClient(store, pod.id).info(timeout=FORCE_SECONDS)["containers"]:
                found = pod.id
    return Record(id=id, pod=found, bundle="", status="stopped")


def _finish(store: PodStore, record: Record, pod: Pod | None) -> bool:
    """Remove what is left of a container, and the sandbox with its last one; False when another one has.

    Arguments:
        pod: the sandbox when it has no keeper any more, its lock held.
    """
    try:
        record = store.stored(record.id)  # its control group may have been written down since
    except NoSuchContainer:
        return False
    except StateError:
        pass
    if pod is not None:
        reap.reap(store, pod.id)
    reap.clean_container(store, record)
    removed = store.delete_files(record.id)
    if pod is not None and not store.members(pod.id):
        pod.delete_files()
    return removed
