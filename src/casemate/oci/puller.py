"""Pulling: from a source to the store, with the work done once however many ask for it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from casemate.config import Config
from casemate.oci import busybox
from casemate.oci.importer import Progress, take_in
from casemate.oci.limits import Limits
from casemate.oci.manifest import Loaded
from casemate.oci.reference import Source
from casemate.oci.storeindex import STRIPES, Space

if TYPE_CHECKING:
    from casemate.oci.store import ImageStore


def pull(
    space: Space, config: Config, source: Source, limits: Limits, progress: Progress, store: ImageStore
) -> str:
    """See :meth:`casemate.oci.store.ImageStore.pull`; the image's id."""
    store.collect(wait=False)  # what a dead pull left
    stripe = int.from_bytes(hashlib.sha256(str(source).encode()).digest()[:4], "big") % STRIPES
    with _wait(space, f"source-{stripe:02d}", progress):
        try:
            with space.lock("pull", shared=True):
                return _pull(space, config, source, limits, progress)
        except BaseException:
            store.collect(wait=False)
            raise


@contextmanager
def _wait(space: Space, name: str, progress: Progress) -> Iterator[None]:
    with space.try_lock(name) as had:
        if had:
            yield
            return
    progress("waiting for another pull")
    with space.lock(name):
        yield


def _pull(space: Space, config: Config, source: Source, limits: Limits, progress: Progress) -> str:
    begun = time.monotonic()
    if source.transport == "embedded" and source.reference is not None:
        loaded: Loaded = busybox.load(busybox.bundle_programs(config.root))
        return take_in(space, loaded, (source.reference.name,), (), limits, progress)
    raise NotImplementedError(begun)
