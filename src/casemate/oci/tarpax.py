"""The extended records of tar entries: pax headers and maps of sparse files."""

from __future__ import annotations

from collections.abc import Callable

from casemate.errors import BadImage
from casemate.oci.limits import Limits

Records = dict[str, bytes]

XATTR = "SCHILY.xattr."
_TEXTS = ("path", "linkpath", "uname", "gname", "GNU.sparse.name")


def parse(data: bytes, limits: Limits) -> Records:
    """Records of one pax header: ``LENGTH KEY=VALUE\\n`` each, the length that of the whole record in decimal.

    The pairs of a sparse map of version 0.0, which repeats keys, are joined under ``GNU.sparse.map`` as in 0.1.

    Raises:
        BadImage: a record is damaged.
    """
    records: Records = {}
    pairs: list[bytes] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise BadImage("a pax header has a record without a length")
        end = at + int(digits)
        if end > len(data) or end < space + 4 or data[end - 1 : end] != b"\n":
            raise BadImage("a pax header has a record of a wrong length")
        raw_key, equals, value = data[space + 1 : end - 1].partition(b"=")
        try:
            key = raw_key.decode()
        except UnicodeDecodeError:
            raise BadImage("a pax header has a key that is not UTF-8") from None
        if not equals or not key or "\0" in key or (key in _TEXTS and b"\0" in value):
            raise BadImage(f"a pax header has a bad record {key[:80]!r}")
        if key in ("GNU.sparse.offset", "GNU.sparse.numbytes"):
            if (len(pairs) % 2 == 0) != (key == "GNU.sparse.offset") or b"," in value:
                raise BadImage("a pax header has a damaged sparse map")
            pairs.append(value)
            if len(pairs) > 2 * limits.fragments:
                raise BadImage(f"a sparse file has more than {limits.fragments} pieces")
        else:
            records[key] = value
        at = end
    if pairs:
        records["GNU.sparse.map"] = b",".join(pairs)
    return records


def decimal(value: bytes, what: str) -> int:
    """A number that is not negative and fits 63 bits."""
    if not value.isdigit() or len(value) > 19 or int(value) >= 1 << 63:
        raise BadImage(f"a pax header has a bad {what} {value[:40]!r}")
    return int(value)


def numbers(records: Records) -> dict[str, int]:
    """``size``, ``uid`` and ``gid`` as they are, ``mtime`` in nanoseconds. An empty value means the header's counts."""
    result = {}
    for key in ("size", "uid", "gid"):
        if records.get(key):
            result[key] = decimal(records[key], key)
    if records.get("mtime"):
        value = records["mtime"]
        whole, _, part = value.removeprefix(b"-").partition(b".")
        if part and not part.isdigit():
            raise BadImage(f"a pax header has a bad mtime {value[:40]!r}")
        sign = -1 if value.startswith(b"-") else 1
        result["mtime"] = sign * (decimal(whole, "mtime") * 10**9 + int((part[:9] + b"0" * 9)[:9]))
    return result


def xattrs(records: Records, limits: Limits) -> dict[str, bytes]:
    """Extended attributes by name."""
    result = {key[len(XATTR) :]: value for key, value in records.items() if key.startswith(XATTR)}
    if len(result) > limits.xattrs:
        raise BadImage(f"a file has {len(result)} extended attributes, more than {limits.xattrs}")
    for name, value in result.items():
        if not 0 < len(name.encode()) <= 255 or len(value) > limits.xattr_bytes:
            raise BadImage(f"a file has an extended attribute {name[:80]!r} of a bad size")
    return result


def listed_map(records: Records, limits: Limits) -> list[tuple[int, int]]:
    """The map of sparse formats 0.0 and 0.1: ``offset,length,offset,length...``."""
    raw = records.get("GNU.sparse.map", b"")
    values = raw.split(b",") if raw else []
    if len(values) > 2 * limits.fragments or len(values) % 2:
        raise BadImage("a sparse file's map is damaged or too long")
    parsed = [decimal(value, "sparse map") for value in values]
    return list(zip(parsed[::2], parsed[1::2], strict=True))


def read_map(block: Callable[[], bytes], limits: Limits) -> list[tuple[int, int]]:
    """The map of sparse format 1.0: one number a line, the count first, padded to whole blocks.

    Arguments:
        block: gives the next block of the map.
    """
    rest = b""

    def number() -> int:
        nonlocal rest
        while b"\n" not in rest:
            if len(rest) > 32:
                raise BadImage("a sparse file's map is damaged")
            rest += block()
        digits, rest = rest.split(b"\n", 1)
        return decimal(digits, "sparse map")

    count = number()
    if count > limits.fragments:
        raise BadImage(f"a sparse file has {count} pieces, more than {limits.fragments}")
    return [(number(), number()) for _ in range(count)]


def check_fragments(pairs: list[tuple[int, int]], size: int, stored: int) -> list[tuple[int, int]]:
    """Return ``pairs`` when they are in order, apart, within ``size`` and as long as the ``stored`` data.

    Raises:
        BadImage: they are not.
    """
    end = 0
    for offset, length in pairs:
        if offset < end or length < 0 or offset + length > size:
            raise BadImage("a sparse file's map is out of order or out of range")
        end = offset + length
    if sum(length for _, length in pairs) != stored:
        raise BadImage("a sparse file's map does not fit its data")
    return pairs
