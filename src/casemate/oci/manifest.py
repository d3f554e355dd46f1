"""An image ready to be imported, whatever it was read from, and the manifests that lead to it.

Sources: OCI image specification 1.1 ``manifest.md``, ``image-index.md``, ``descriptor.md``; Docker image manifest
version 2, schema 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from casemate.config import machine
from casemate.errors import BadImage
from casemate.oci.imageconfig import MAX_LAYERS, load_json
from casemate.oci.layerstream import MEDIA_TYPES, Readable
from casemate.oci.reference import is_digest

MAX_MANIFEST = 4 << 20
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
CONFIG_TYPES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to a blob: what it is, its digest and size in bytes."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class LayerSource:
    """A layer to unpack. ``digest``, ``size`` (-1) and ``media_type`` may be unknown, as in a Docker archive."""

    open: Callable[[], AbstractContextManager[Readable]]
    media_type: str = ""
    digest: str = ""
    size: int = -1


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that has been read as far as its layers, all digests so far checked."""

    manifest: bytes
    config: bytes
    layers: tuple[LayerSource, ...]
    names: tuple[str, ...] = ()
    """Normalised names that it brings along."""

    @property
    def id(self) -> str:
        """The image's identity: the digest of its configuration."""
        return digest_of(self.config)


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of ``data``, such as ``sha256:`` and 64 digits."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def check_digest(data: bytes, digest: str, what: str) -> bytes:
    """Return ``data`` when it has that digest.

    Raises:
        BadImage: it has another.
    """
    got = digest_of(data, digest.partition(":")[0])
    if got != digest:
        raise BadImage(f"the digest of {what} is {got} and should be {digest}", "fetch it again")
    return data


def host_architecture() -> str:
    """The host's architecture in the words of images, such as ``amd64``."""
    return _ARCHITECTURES.get(machine(), machine())


def descriptor(value: object, what: str) -> Descriptor:
    """Read a descriptor.

    Raises:
        BadImage: it is none.
    """
    if not isinstance(value, dict):
        raise BadImage(f"{what} has no descriptor")
    media_type, digest, size = value.get("mediaType", ""), value.get("digest"), value.get("size")
    if not isinstance(media_type, str) or len(media_type) > 255:
        raise BadImage(f"{what} has a bad media type")
    if not is_digest(digest):
        raise BadImage(f"{what} has a bad digest {str(digest)[:80]!r}")
    if type(size) is not int or not 0 <= size < 1 << 63:
        raise BadImage(f"{what} has a bad size {str(size)[:40]!r}")
    return Descriptor(media_type, str(digest), size)


def read_manifest(data: bytes) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    """The descriptors of an image's configuration and layers.

    Raises:
        BadImage: it is no image manifest, of an unknown type, or has too many layers.
    """
    value = load_json(data, "the manifest", limit=MAX_MANIFEST)
    if value.get("schemaVersion") != 2:
        raise BadImage("the manifest is not of schema version 2", "push the image again with a tool of this decade")
    media_type = value.get("mediaType", "")
    if media_type and media_type not in MANIFEST_TYPES:
        raise BadImage(f"the manifest is of unknown media type {str(media_type)[:100]!r}")
    if "manifests" in value:
        raise BadImage("a manifest is at once an index")  # two readers could take it for either
    config = descriptor(value.get("config"), "the manifest's configuration")
    if config.media_type and config.media_type not in CONFIG_TYPES:
        raise BadImage(f"this is no container image but an artifact of type {config.media_type[:100]!r}")
    raw = value.get("layers")
    if not isinstance(raw, list) or len(raw) > MAX_LAYERS:
        raise BadImage(f"the manifest has no list of layers, or more than {MAX_LAYERS}")
    layers = tuple(descriptor(item, "a layer of the manifest") for item in raw)
    for layer in layers:
        if layer.media_type not in MEDIA_TYPES:
            hint = "encrypted layers cannot be used" if "encrypted" in layer.media_type else ""
            raise BadImage(f"a layer is of unknown media type {layer.media_type[:100]!r}", hint)
    return config, layers


def is_index(value: dict[str, Any]) -> bool:
    """Whether a parsed document is an index of manifests."""
    return value.get("mediaType") in INDEX_TYPES or ("manifests" in value and "config" not in value)


def choose(value: dict[str, Any], what: str) -> Descriptor:
    """The manifest for this host out of a parsed index.

    An entry without a platform is taken when no entry names one (an index that only points at one image).

    Raises:
        BadImage: the index is malformed or has no image for this host.
    """
    raw = value.get("manifests")
    if not isinstance(raw, list) or len(raw) > 1024:
        raise BadImage(f"{what} has no list of manifests, or too many")
    wanted, seen, plain = host_architecture(), [], []
    for item in raw:
        found = descriptor(item, f"a manifest of {what}")
        if found.media_type and found.media_type not in MANIFEST_TYPES + INDEX_TYPES:
            continue
        platform = item.get("platform")
        if platform is None:
            plain.append(found)
            continue
        if not isinstance(platform, dict):
            raise BadImage(f"{what} has a bad platform")
        architecture = str(platform.get("architecture", ""))[:40]
        if platform.get("os") == "linux" and architecture == wanted:
            return found
        if architecture not in ("", "unknown"):
            seen.append(f"{str(platform.get('os'))[:40]}/{architecture}")
    if len(plain) == 1 and not seen:
        return plain[0]
    have = ", ".join(sorted(set(seen))[:12]) or "none"
    raise BadImage(f"{what} has no image for linux/{wanted}", f"it has: {have}")
