"""Bounds on what an image may ask of the host. Whoever makes images does not choose these; the caller does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound, with its default. Sizes are in bytes."""

    entries: int = 1_000_000
    """Files, directories, links and whiteouts in one layer, directories made for them included."""
    layer_bytes: int = 64 << 30
    """One layer unpacked: the tar stream, and what its files claim to be large (a sparse file counts in full)."""
    image_bytes: int = 128 << 30
    """All new layers of one image together."""
    free_bytes: int = 256 << 20
    """What must stay free on the disk."""
    path: int = 4096
    """One name in a layer, or one link's target."""
    depth: int = 256
    """Components of one name."""
    names: int = 256 << 20
    """All names in one layer together."""
    header: int = 1 << 20
    """One extended header (pax or GNU long name)."""
    xattrs: int = 64
    """Extended attributes of one file."""
    xattr_bytes: int = 64 << 10
    """One extended attribute's value; Linux itself takes no more."""
    fragments: int = 65_536
    """Pieces of one sparse file."""
    window: int = 128 << 20
    """The memory that a zstd frame may make the decompressor take."""
    blob_bytes: int = 64 << 30
    """One compressed layer or one archive."""


DEFAULT = Limits()
