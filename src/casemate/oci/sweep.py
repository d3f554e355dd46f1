"""Deleting what the image store no longer needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from casemate import ids
from casemate.oci.storeindex import EMPTY, Space
from casemate.oci.trees import remove_tree


def collect(space: Space, in_use: Callable[[str], Sequence[str]] | None, wait: bool) -> int:
    """See :meth:`casemate.oci.store.ImageStore.collect`."""
    with space.try_lock("pull") as alone:
        if not alone:
            return 0
        with space.try_lock("hold", wait=wait) as free:
            freed = _forget(space, in_use) if free else 0
        # The pull lock is still held: nobody else puts anything into tmp, or removes what is there.
        for path in space.tmp.iterdir():
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink()
        return freed


def _forget(space: Space, in_use: Callable[[str], Sequence[str]] | None) -> int:
    """Take what is not needed out of the index, then move its files to tmp."""
    freed = 0
    with space.change() as index:
        for key, image in tuple(index.images.items()):
            if image.removed and not (in_use is not None and in_use(key)):
                del index.images[key]
        wanted = {diff_id for image in index.images.values() for diff_id in image.layers}
        for diff_id, layer in tuple(index.layers.items()):
            if diff_id not in wanted:
                freed += layer.size
                del index.layers[diff_id]
        directories = {layer.directory for layer in index.layers.values()} | {EMPTY}
        keep = {
            "manifests": {space.blob_path("manifests", image.manifest) for image in index.images.values()},
            "configs": {space.blob_path("configs", key) for key in index.images},
        }
    for path in space.layers.iterdir():
        if path.name not in directories:
            os.rename(path, space.tmp / ids.new_id()[:16])
    for kind, paths in keep.items():
        for path in (space.root / kind).iterdir():
            if path not in paths:
                path.unlink()
    return freed
