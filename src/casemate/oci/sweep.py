"""Deleting what the image store no longer needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from casemate import ids
from casemate.oci.storeindex import EMPTY, Space
from casemate.oci.trees import remove_tree


def collect(space: Space, in_use: Callable[[str], Sequence[str]] | None, wait: bool, drop: Sequence[str] = ()) -> int:
    """See :meth:`casemate.oci.store.ImageStore.collect`.

    Arguments:
        drop: images that may go when nobody can say what is in use.
    """
    with space.try_lock("pull") as alone:
        if not alone:
            return 0
        # With the pull lock held, nobody else puts anything into tmp, or removes what is there. First this: it makes
        # room for writing the index, should the disk be full.
        _empty(space.tmp)
        with space.try_lock("hold", wait=wait) as free:
            freed = _forget(space, in_use, drop) if free else 0
        _empty(space.tmp)
        return freed


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink()


def _forget(space: Space, in_use: Callable[[str], Sequence[str]] | None, drop: Sequence[str]) -> int:
    """Take what is not needed out of the index, then move its files to tmp."""
    freed = 0
    with space.change() as index:
        for key, image in tuple(index.images.items()):
            if image.removed and (key in drop if in_use is None else not in_use(key)):
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
