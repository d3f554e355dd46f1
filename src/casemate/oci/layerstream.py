"""The bytes of a layer: decompressed, bounded, both digests taken on the way."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from typing import IO, Protocol, cast

from casemate.errors import BadImage
from casemate.oci.limits import DEFAULT, Limits

_READ = 256 << 10
_CHUNK = 1 << 20
_STEP = 8 << 10

MEDIA_TYPES = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "none",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "none",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
}
"""Media types of layers and the compression that each names."""

_MAGIC = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"))


class Readable(Protocol):
    """The part of a binary file that is needed here."""

    def read(self, size: int, /) -> bytes: ...


def sniff(start: bytes) -> str:
    """The compression that data begins with: ``gzip``, ``zstd``, ``bzip2``, ``xz`` or ``none``."""
    for magic, name in _MAGIC:
        if start.startswith(magic):
            return name
    if len(start) >= 4 and 0x50 <= start[0] <= 0x5F and start[1:4] == b"\x2a\x4d\x18":
        return "zstd"  # a skippable frame first, as zstd:chunked and parallel compressors write
    return "none"


class _Counted:
    """A file that hashes and counts what is read from it, and gives its first bytes again."""

    def __init__(self, file: Readable, algorithm: str, limit: int) -> None:
        self._file = file
        self.hash = hashlib.new(algorithm)
        self.count = 0
        self._limit = limit
        self._start = b""

    def peek(self) -> bytes:
        self._start = self.read(_READ)
        return self._start

    def read(self, size: int = -1) -> bytes:
        if self._start:
            data, self._start = self._start[:size], self._start[size:]
            return data
        data = self._file.read(min(size, _READ) if size > 0 else _READ)
        self.hash.update(data)
        self.count += len(data)
        if self.count > self._limit:
            raise BadImage(f"a layer is larger than {self._limit} bytes")
        return data


class LayerStream:
    """A layer's tar stream in pieces, by iteration; :meth:`check` afterwards.

    Arguments:
        file: the compressed layer.
        diff_id: digest of the uncompressed stream, which must hold.
        media_type: what the manifest says; empty when it says nothing. It is checked, and the data's magic decides.
        digest, size: of the compressed layer, where the manifest names them.

    Raises (while iterating):
        BadImage: damaged or unknown compression, or a bound is exceeded.
    """

    def __init__(
        self,
        file: Readable,
        diff_id: str,
        *,
        media_type: str = "",
        digest: str = "",
        size: int = -1,
        limits: Limits = DEFAULT,
    ) -> None:
        self._limits = limits
        self._digest, self._diff_id, self._size = digest, diff_id, size
        limit = limits.blob_bytes if size < 0 else min(size, limits.blob_bytes)
        self._source = _Counted(file, (digest or diff_id).partition(":")[0], limit)
        if media_type and media_type not in MEDIA_TYPES:
            raise BadImage(f"a layer is of unknown media type {media_type[:100]!r}")
        self._told = MEDIA_TYPES.get(media_type, "")
        self._hash = hashlib.new(diff_id.partition(":")[0])
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        kind = sniff(self._source.peek())
        if self._told in ("gzip", "zstd") and kind != self._told:
            what = kind if kind != "none" else "not compressed"
            raise BadImage(f"a layer says that it is {self._told} and is {what}")
        for chunk in decompress(self._source, kind, self._limits):
            self._hash.update(chunk)
            self.count += len(chunk)
            if self.count > self._limits.layer_bytes:
                raise BadImage(f"a layer unpacks to more than {self._limits.layer_bytes} bytes")
            yield chunk
        while self._source.read(_READ):  # whatever a decompressor left counts for the digest
            pass

    def check(self) -> None:
        """Compare size and digests, after everything was read.

        Raises:
            BadImage: one differs.
        """
        if 0 <= self._size != self._source.count:
            raise BadImage(f"a layer has {self._source.count} bytes and should have {self._size}", "pull it again")
        if self._digest:
            got = self._digest.partition(":")[0] + ":" + self._source.hash.hexdigest()
            if got != self._digest:
                raise BadImage(f"a layer's digest is {got} and should be {self._digest}", "pull it again")
        got = self._diff_id.partition(":")[0] + ":" + self._hash.hexdigest()
        if got != self._diff_id:
            raise BadImage(f"an unpacked layer's digest is {got} and should be {self._diff_id}", "pull it again")


def decompress(source: Readable, kind: str, limits: Limits = DEFAULT) -> Iterator[bytes]:
    """Decompress in pieces of at most 1 MiB, so that a bomb is seen before it is held.

    Raises:
        BadImage: the data is damaged, ends too soon or is of a kind that images do not use.
    """
    if kind == "none":
        while chunk := source.read(_READ):
            yield chunk
    elif kind == "gzip":
        yield from _gzip(source)
    elif kind == "zstd":
        yield from _zstd(source, limits)
    else:
        raise BadImage(f"a layer is compressed with {kind}", "only gzip and zstd are known in images")


def _gzip(source: Readable) -> Iterator[bytes]:
    data = memoryview(source.read(_READ))
    while data:  # one member after the other
        inflater = zlib.decompressobj(wbits=31)
        # What follows a member is copied at its end, so that tiny members in large pieces would cost time without end.
        step = _STEP
        while not inflater.eof:
            if not data:
                data = memoryview(source.read(_READ))
            if not data:
                raise BadImage("a gzip stream ends too soon", "pull it again")
            piece = data[:step]
            try:
                chunk = inflater.decompress(piece, _CHUNK)
            except zlib.error as error:
                raise BadImage(f"a gzip stream is damaged ({error})", "pull it again") from None
            data = data[len(piece) - len(inflater.unconsumed_tail) - len(inflater.unused_data) :]
            step = min(2 * step, _READ)
            if chunk:
                yield chunk
        data = data or memoryview(source.read(_READ))


def _zstd(source: Readable, limits: Limits) -> Iterator[bytes]:
    import zstandard  # only where a layer needs it

    file = cast("IO[bytes]", source)  # it needs no more than read
    decompressor = zstandard.ZstdDecompressor(max_window_size=limits.window)
    try:
        with decompressor.stream_reader(file, read_size=_READ, read_across_frames=True, closefd=False) as reader:
            while chunk := reader.read(_CHUNK):
                yield chunk
    except zstandard.ZstdError as error:
        raise BadImage(f"a zstd stream is damaged ({error})", "pull it again") from None
