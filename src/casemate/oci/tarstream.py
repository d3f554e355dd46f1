"""Reading tar from a stream that cannot be trusted: pax, ustar, GNU and V7, with every size bounded before it is read.

The standard library's reader holds a whole extended header in memory, whatever its size, and guesses where an archive
is damaged; this one refuses. Where formats leave a choice it reads as Go's ``archive/tar`` does, because that is what
the tools that make and check images use: two readers that differ on one archive are how things get smuggled.

Sources: POSIX.1-2017 ``pax`` (ustar and pax interchange formats), GNU tar manual (Tar Internals: basic format, sparse
formats), ``tar(5)``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from casemate.errors import BadImage
from casemate.oci import tarpax
from casemate.oci.limits import DEFAULT, Limits

BLOCK = 512
_ZERO = bytes(BLOCK)

REGULAR, HARDLINK, SYMLINK, CHARACTER, BLOCKDEV, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_KNOWN = frozenset((REGULAR, HARDLINK, SYMLINK, CHARACTER, BLOCKDEV, DIRECTORY, FIFO))
_MAX_SIZE = (1 << 63) - 1
_MAX_ID = (1 << 32) - 2  # (uid_t) -1 means "leave as it is" to chown(2)


class Feed:
    """Exact reads out of an iterator of byte strings, each at most a few MiB."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """Exactly ``size`` bytes, or fewer at the end of the stream. Only for small sizes: they are held in memory."""
        end = self._at + size
        if end <= len(self._chunk):
            data = self._chunk[self._at : end]
            self._at = end
            return data
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[bytes]:
        """``size`` bytes in pieces, or fewer at the end of the stream."""
        while size > 0:
            if self._at == len(self._chunk):
                chunk = next(self._chunks, None)
                if chunk is None:
                    return
                self._chunk, self._at = chunk, 0
                continue
            piece = self._chunk[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def skip(self, size: int) -> bool:
        """Pass over ``size`` bytes; whether there were as many."""
        for piece in self.pieces(size):
            size -= len(piece)
        return size == 0

    def drain(self) -> None:
        """Read to the end of the stream."""
        self._at = len(self._chunk)
        for _ in self._chunks:
            pass
        self._chunk, self._at = b"", 0


@dataclass(slots=True)
class Entry:
    """One member. ``kind`` is one of the constants above; ``size`` counts the bytes of the file, holes included."""

    name: bytes
    kind: bytes
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    link: bytes = b""
    device: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    fragments: list[tuple[int, int]] | None = None
    """Of a sparse file: where its data belongs, as (offset, length)."""
    stored: int = 0
    """Bytes of data in the archive."""


def octal(raw: bytes, what: str) -> int:
    """A number field: octal digits, or GNU's base 256 when the top bit is set.

    Raises:
        BadImage: neither.
    """
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        if raw[0] & 0x40:
            value -= 1 << (8 * len(raw) - 1)
        return value
    digits = raw.strip(b" \0")
    if not digits:
        return 0
    digits = digits.split(b"\0", 1)[0].rstrip(b" ")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise BadImage(f"a tar header has a bad {what} field {raw!r}")
    return int(digits, 8)


def _text(raw: bytes) -> bytes:
    return raw.split(b"\0", 1)[0]


class TarReader:
    """Iterate over :class:`Entry`; read a regular file's data with :meth:`data` before asking for the next.

    Raises (from every method):
        BadImage: the archive is damaged or exceeds a bound.
    """

    def __init__(self, feed: Feed, limits: Limits = DEFAULT) -> None:
        self._feed = feed
        self._limits = limits
        self._left = 0  # bytes of the current entry not read yet, padding excluded
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry

    def data(self) -> Iterator[bytes]:
        """The current entry's stored bytes, in pieces."""
        size, self._left = self._left, 0
        for piece in self._feed.pieces(size):
            size -= len(piece)
            yield piece
        if size:
            raise BadImage("a tar archive ends within a file")

    def _skip(self) -> None:
        size, self._left, self._padding = self._left + self._padding, 0, 0
        if size and not self._feed.skip(size):
            raise BadImage("a tar archive ends within a file")

    def _exact(self, size: int) -> bytes:
        data = self._feed.take(size)
        if len(data) != size:
            raise BadImage("a tar archive ends too soon")
        return data

    def _block(self) -> bytes | None:
        """The next header, or None where the archive ends."""
        block = self._feed.take(BLOCK)
        if not block:
            return None
        if len(block) != BLOCK:
            raise BadImage("a tar archive ends within a header")
        if block != _ZERO:
            return block
        second = self._feed.take(BLOCK)
        if second and second != _ZERO:
            raise BadImage("a tar archive has data after a block of zeros")
        return None

    def _extended(self, size: int) -> bytes:
        if not 0 <= size <= self._limits.header:
            raise BadImage(f"an extended tar header has {size} bytes, more than {self._limits.header}")
        data = self._exact(size)
        self._exact(-size % BLOCK)
        return data

    def _next(self) -> Entry | None:
        self._skip()
        records: tarpax.Records = {}
        long_name = long_link = None
        fetched = 0
        while (block := self._block()) is not None:
            _checksum(block)
            kind = block[156:157]
            if kind in (b"x", b"g", b"L", b"K"):
                size = octal(block[124:136], "size")
                fetched += max(size, BLOCK)
                if fetched > 4 * self._limits.header:
                    raise BadImage("a tar entry has too many extended headers")
                data = self._extended(size)
                if kind == b"x":
                    records = tarpax.parse(data, self._limits)
                elif kind == b"L":
                    long_name = _text(data)
                elif kind == b"K":
                    long_link = _text(data)
                continue  # a global header describes the archive, no file (as Docker: read and passed over)
            return self._entry(block, kind, records, long_name, long_link)
        if records or long_name is not None or long_link is not None:
            raise BadImage("a tar archive ends after an extended header")
        return None

    def _entry(
        self, block: bytes, kind: bytes, records: tarpax.Records, long_name: bytes | None, long_link: bytes | None
    ) -> Entry:
        name, link = _text(block[0:100]), _text(block[157:257])
        posix = block[257:263] == b"ustar\0"
        if posix:
            star = block[508:512] == b"tar\0"
            prefix = _text(block[345:476] if star else block[345:500])
            if prefix:
                name = prefix + b"/" + name
        name = long_name if long_name is not None else name
        link = long_link if long_link is not None else link
        numbers = tarpax.numbers(records)
        size = numbers.get("size", -1)
        if size < 0:
            size = octal(block[124:136], "size")
        name = records.get("path") or name
        if kind in (b"\0", b"7"):
            # V7 knows no type for directories; '7' is a regular file that wants to be contiguous.
            kind = DIRECTORY if kind == b"\0" and name.endswith(b"/") else REGULAR
        elif kind == b"S":
            kind = REGULAR
        elif kind not in _KNOWN:
            raise BadImage(f"a tar entry {name[:80]!r} is of unknown type {kind!r}")
        entry = Entry(
            name=name,
            kind=kind,
            mode=octal(block[100:108], "mode") & 0o7777,
            uid=numbers.get("uid", -1),
            gid=numbers.get("gid", -1),
            link=records.get("linkpath") or link,
            mtime_ns=numbers["mtime"] if "mtime" in numbers else octal(block[136:148], "mtime") * 10**9,
            xattrs=tarpax.xattrs(records, self._limits),
        )
        entry.uid = octal(block[108:116], "uid") if entry.uid < 0 else entry.uid
        entry.gid = octal(block[116:124], "gid") if entry.gid < 0 else entry.gid
        if kind in (CHARACTER, BLOCKDEV):
            entry.device = _device(block)
        if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID and 0 <= size <= _MAX_SIZE):
            raise BadImage(f"a tar entry {name[:80]!r} has a size or owner out of range")
        if kind == REGULAR:
            entry.size = entry.stored = self._left = size
            self._padding = -size % BLOCK
            if block[156:157] == b"S":
                self._old_sparse(entry, block)
            elif any(key.startswith("GNU.sparse.") for key in records):
                self._pax_sparse(entry, records)
        return entry

    def _old_sparse(self, entry: Entry, block: bytes) -> None:
        """GNU's first sparse format: four pieces in the header, 21 in each block that follows it."""
        raw = [block[386 + 24 * i : 410 + 24 * i] for i in range(4)]
        more, entry.size = block[482], octal(block[483:495], "real size")
        while more:
            extra = self._exact(BLOCK)
            raw += [extra[24 * i : 24 * i + 24] for i in range(21)]
            more = extra[504]
            if len(raw) > self._limits.fragments:
                raise BadImage(f"a sparse file has more than {self._limits.fragments} pieces")
        pairs = [(octal(item[:12], "offset"), octal(item[12:], "length")) for item in raw if item.strip(b"\0")]
        entry.fragments = tarpax.check_fragments(pairs, entry.size, entry.stored)

    def _pax_sparse(self, entry: Entry, records: tarpax.Records) -> None:
        version = (records.get("GNU.sparse.major", b""), records.get("GNU.sparse.minor", b""))
        entry.name = records.get("GNU.sparse.name") or entry.name
        real = records.get("GNU.sparse.realsize") or records.get("GNU.sparse.size")
        if real is None:
            raise BadImage(f"a sparse file {entry.name[:80]!r} has no real size")
        entry.size = tarpax.decimal(real, "real size")
        if version == (b"1", b"0"):
            pairs = tarpax.read_map(self._map_block, self._limits)
            entry.stored = self._left
        elif version in ((b"", b""), (b"0", b"0"), (b"0", b"1")):
            pairs = tarpax.listed_map(records, self._limits)
        else:
            raise BadImage(f"a sparse file {entry.name[:80]!r} is of unknown version {version!r}")
        entry.fragments = tarpax.check_fragments(pairs, entry.size, entry.stored)

    def _map_block(self) -> bytes:
        """The next block of a file whose sparse map stands before its data."""
        if self._left < BLOCK:
            raise BadImage("a sparse file's map is damaged")
        self._left -= BLOCK
        return self._exact(BLOCK)


def _checksum(block: bytes) -> None:
    wanted = octal(block[148:156], "checksum")
    got = sum(block) - sum(block[148:156]) + 8 * 32
    if got != wanted and got - 256 * sum(byte > 127 for byte in block) != wanted:  # some old tars summed signed bytes
        raise BadImage("a tar header has a wrong checksum")


def _device(block: bytes) -> int:
    major, minor = octal(block[329:337], "major"), octal(block[337:345], "minor")
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise BadImage(f"a tar entry has device numbers {major}:{minor}, which Linux does not know")
    return os.makedev(major, minor)
