"""Taking an image into the store: layers unpacked once each, then the image, then its names."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from casemate import ids
from casemate.errors import BadImage, HostError
from casemate.oci import imageconfig, layers
from casemate.oci.imageconfig import ImageConfig
from casemate.oci.layerstream import LayerStream
from casemate.oci.limits import Limits
from casemate.oci.manifest import LayerSource, Loaded, digest_of, host_architecture
from casemate.oci.storeindex import STRIPES, ImageRecord, LayerRecord, Space, boot_id
from casemate.oci.trees import remove_tree

Progress = Callable[[str], None]


def human(size: float) -> str:
    """A size for people, such as ``83.1 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def take_in(
    space: Space,
    loaded: Loaded,
    names: tuple[str, ...],
    digests: tuple[str, ...],
    limits: Limits,
    progress: Progress,
) -> str:
    """Import an image and give it ``names``. The caller holds the ``pull`` lock, shared.

    Returns:
        The image's id.

    Raises:
        BadImage: it breaks the specification, a digest or a bound.
        HostError: no space, no privileges.
    """
    config = imageconfig.parse(loaded.config)
    _check(config, loaded)
    budget = limits.image_bytes
    count = len(loaded.layers)
    for number, (diff_id, layer) in enumerate(zip(config.diff_ids, loaded.layers, strict=True), 1):
        new = replace(limits, layer_bytes=min(limits.layer_bytes, budget))
        budget -= _ensure(space, diff_id, layer, new, f"layer {number}/{count} {_short(diff_id)}", progress)
    manifest = digest_of(loaded.manifest)
    _write(space.blob_path("manifests", manifest), loaded.manifest)
    _write(space.blob_path("configs", loaded.id), loaded.config)
    before = space.load()
    if loaded.id not in before.images or any(before.layers[diff_id].boot for diff_id in config.diff_ids):
        _sync(space.root)
    with space.change() as index:
        record = index.images.get(loaded.id)
        known = set(record.digests) if record else set()
        index.images[loaded.id] = ImageRecord(
            manifest,
            list(config.diff_ids),
            int(time.time()),
            sorted(known | set(digests))[:256],
        )
        for diff_id in config.diff_ids:
            index.layers[diff_id].boot = ""
        for name in names:
            index.names[name] = loaded.id
    return loaded.id


def _check(config: ImageConfig, loaded: Loaded) -> None:
    if config.os != "linux":
        raise BadImage(f"the image is for {config.os[:40]}, not linux", "choose another image")
    if config.architecture not in ("", host_architecture()):
        raise BadImage(
            f"the image is for {config.architecture[:40]}, this host is {host_architecture()}",
            f"choose an image for linux/{host_architecture()}",
        )
    if len(config.diff_ids) != len(loaded.layers):
        raise BadImage(
            f"the manifest names {len(loaded.layers)} layers and the image configuration {len(config.diff_ids)}"
        )


def _ensure(
    space: Space,
    diff_id: str,
    layer: LayerSource,
    limits: Limits,
    label: str,
    progress: Progress,
) -> int:
    """See to it that a layer is unpacked; how many bytes that took, 0 when it was there."""
    with space.lock(f"layer-{int(diff_id.partition(':')[2][:8], 16) % STRIPES:02d}"):
        known = space.load().layers.get(diff_id)
        if space.usable(known):
            return 0
        begun = time.monotonic()
        work = space.tmp / ids.new_id()[:16]
        try:
            work.mkdir(mode=0o755)
            with layer.open() as file:
                stream = LayerStream(
                    file,
                    diff_id,
                    media_type=layer.media_type,
                    digest=layer.digest,
                    size=layer.size,
                    limits=limits,
                )
                done = layers.unpack(stream, work, limits)
            with space.change() as index:
                record = LayerRecord(
                    _free_name(space, diff_id),
                    done.size,
                    done.entries,
                    done.opaque,
                    {layer.digest: layer.size} if layer.digest else {},
                    boot_id(),
                )
                os.rename(work, space.layers / record.directory)
                index.layers[diff_id] = record
        except OSError as error:
            raise layers.explain(error, work) from error
        finally:
            remove_tree(work)
        took = time.monotonic() - begun
        progress(f"{label}: unpacked {human(done.size)}, {done.entries} entries, in {took:.1f} s")
        return stream.count


def _free_name(space: Space, diff_id: str) -> str:
    """A directory name for a layer: short, so that 128 of them fit the options of one overlay mount.

    Twelve digits are not enough to tell layers apart when someone tries to make two alike; the index does that.
    """
    short = _short(diff_id)
    name, number = short, 1
    while os.path.lexists(space.layers / name):
        name, number = f"{short}.{number}", number + 1
    return name


def _short(digest: str) -> str:
    return ids.short(digest.partition(":")[2])


def _write(path: Path, data: bytes) -> None:
    """Write a file that is named by its content's digest."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        temporary.write_bytes(data)
        os.rename(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HostError(f"cannot write {path} ({error.strerror})", "free some space") from None


def _sync(directory: Path) -> None:
    """Bring the store's file system to disk, so that what the index names is whole after a power failure."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(fd) != 0:
            error = os.strerror(ctypes.get_errno())
            raise HostError(f"cannot write the image to disk ({error})", "see to the disk below " + str(directory))
    finally:
        os.close(fd)
