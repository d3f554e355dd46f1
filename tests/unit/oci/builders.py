"""Layers and images made by hand, honest and hostile."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from casemate.oci.manifest import LayerSource, Loaded, digest_of, host_architecture

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
TAR = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A tar member; ``fields`` are attributes of :class:`tarfile.TarInfo`."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data), 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def directory(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.DIRTYPE, **fields)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.LNKTYPE, linkname=target)


def tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def config(*layers: bytes, **changes: Any) -> dict[str, Any]:
    """An image configuration for uncompressed layers; ``changes`` go into its inner ``config``."""
    inner: dict[str, Any] = {"Cmd": ["/bin/true"], "Env": ["PATH=/bin"], **changes}
    return {
        "architecture": host_architecture(),
        "os": "linux",
        "created": "2020-01-02T03:04:05Z",
        "config": inner,
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
    }


def loaded(*layers: bytes, **changes: Any) -> Loaded:
    """An image in memory, its layers uncompressed."""
    raw = json.dumps(config(*layers, **changes)).encode()
    sources = tuple(LayerSource(lambda data=data: io.BytesIO(data)) for data in layers)  # type: ignore[misc]
    return Loaded(b'{"schemaVersion":2}', raw, sources)


class Layout:
    """An OCI image layout that is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.manifests: list[dict[str, Any]] = []

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(data)
        self.blob_path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def blob_path(self, digest: str) -> Path:
        return self.path / "blobs" / digest.replace(":", "/")

    def manifest(
        self,
        *layers: bytes,
        image: dict[str, Any] | None = None,
        media_type: str = GZIP,
        **changes: Any,
    ) -> dict[str, Any]:
        """Write an image; its manifest's descriptor."""
        raw = json.dumps(image or config(*layers, **changes)).encode()
        value = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(raw, CONFIG),
            "layers": [self.blob(compress(layer, media_type), media_type) for layer in layers],
        }
        return self.blob(json.dumps(value).encode(), MANIFEST)

    def add(self, descriptor: dict[str, Any], ref: str = "", **fields: Any) -> None:
        """Put a manifest into the index, under a name, and write the index."""
        notes = {"annotations": {"org.opencontainers.image.ref.name": ref}} if ref else {}
        self.manifests.append({**descriptor, **notes, **fields})
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.manifests}))


def compress(data: bytes, media_type: str) -> bytes:
    if media_type.endswith("gzip"):
        return gzip.compress(data, 1, mtime=0)
    if media_type.endswith("zstd"):
        import zstandard

        return zstandard.ZstdCompressor(level=1).compress(data)
    return data


def snapshot(path: Path) -> dict[str, tuple[Any, ...]]:
    """All that can be seen of a tree from outside, inode and times included."""
    seen: dict[str, tuple[Any, ...]] = {}
    for top, directories, files in os.walk(path):
        for name in [".", *directories, *files]:
            full = os.path.join(top, name)
            status = os.lstat(full)
            content: Any = None
            if os.path.islink(full):
                content = os.readlink(full)
            elif os.path.isfile(full):
                content = Path(full).read_bytes()
            seen[os.path.relpath(full, path)] = (
                status.st_ino,
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_nlink,
                status.st_mtime_ns,
                status.st_ctime_ns,
                content,
                tuple(os.listxattr(full, follow_symlinks=False)),
            )
    return seen
