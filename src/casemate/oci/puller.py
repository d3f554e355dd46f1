"""Pulling: from a source to the store, with the work done once however many ask for it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from casemate import ids
from casemate.config import Config
from casemate.errors import BadImage, HostError
from casemate.oci import busybox, files, layout, registry
from casemate.oci.importer import Progress, take_in
from casemate.oci.layers import explain
from casemate.oci.layerstream import Readable
from casemate.oci.limits import Limits
from casemate.oci.manifest import LayerSource, Loaded
from casemate.oci.reference import Reference, Source, shorten
from casemate.oci.storeindex import STRIPES, Space
from casemate.oci.trees import remove_tree

if TYPE_CHECKING:
    from casemate.oci.store import ImageStore


def pull(space: Space, config: Config, source: Source, limits: Limits, progress: Progress, store: ImageStore) -> str:
    """See :meth:`casemate.oci.store.ImageStore.pull`; the image's id."""
    store.collect(wait=False)  # what a dead pull left
    stripe = int.from_bytes(hashlib.sha256(str(source).encode()).digest()[:4], "big") % STRIPES
    with _wait(space, f"source-{stripe:02d}", progress):
        try:
            with space.lock("pull", shared=True):
                return _pull(space, config, source, limits, progress)
        except BaseException:
            with suppress(HostError):  # what went wrong first is what matters
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
    reference = source.reference
    if reference is None:
        path = Path(source.path)
        with files.opened(source.transport, path, space.tmp, limits) as found:
            loaded = layout.load(source.transport, found, source.path, source.selector, limits)
            identity = take_in(space, loaded, loaded.names, (), limits, progress)
        what = ", ".join(shorten(name) for name in loaded.names)
    elif source.transport == "embedded":
        loaded = busybox.load(busybox.bundle_programs(config.root))
        identity = take_in(space, loaded, (reference.name,), (), limits, progress)
        what = reference.display
    else:
        identity = _from_registry(space, reference, limits, progress)
        what = reference.display
    progress(f"{what}: {identity.partition(':')[2][:12]} in {time.monotonic() - begun:.1f} s")
    return identity


def _from_registry(space: Space, reference: Reference, limits: Limits, progress: Progress) -> str:
    work = space.tmp / ids.new_id()[:16]
    try:
        work.mkdir(mode=0o700)
        remote = registry.look(reference, work)
        index = space.load()
        layers = {key: layer for key, layer in index.layers.items() if space.usable(layer)}
        record = index.images.get(remote.config.digest)
        if record is not None and all(diff_id in layers for diff_id in record.layers):
            # The same configuration means the same layers: nothing to fetch but perhaps a name to give.
            config = space.blob_path("configs", remote.config.digest).read_bytes()
            nothing = tuple(LayerSource(_absent) for _ in record.layers)
            loaded = Loaded(remote.manifest, config, nothing)
            progress(f"{reference.display}: is up to date")
        else:
            sizes = {digest: size for layer in layers.values() for digest, size in layer.blobs.items()}
            loaded = registry.download(remote, work, sizes.get, limits, progress)
        return take_in(space, loaded, (reference.name,), remote.digests, limits, progress)
    except OSError as error:
        raise explain(error, work) from error
    finally:
        remove_tree(work)


def _absent() -> AbstractContextManager[Readable]:
    raise BadImage("a layer went away while it was used", "pull the image again")
