"""Protocol Buffers, as far as containerd's services need them: messages described by tables, held in dictionaries.

There is one shim for each pod, so what it weighs is paid for each pod. Measured with Python 3.11 (import time, and
resident memory above a bare interpreter's 8.7 MB): ``google.protobuf`` with its C core 52 ms and 6.6 MB, of which
5.2 MB are the process's own; this module with every table of the shim 1.5 ms and 0.15 MB. A shim's messages are small
and few, so speed is no reason for the other.

Decoding follows the specification (https://protobuf.dev/programming-guides/encoding/): unknown fields are skipped, a
field that comes twice is merged or the last one wins, numbers may be packed or not. What the specification leaves to
the implementation is strict: text must be UTF-8, and the number of values in a message is bounded, because two bytes on
the wire can become two hundred in memory. The tests hold both directions against ``google.protobuf``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STRING, BYTES, BOOL, UINT32, UINT64, INT32, INT64, MESSAGE, MAP = range(1, 10)
"""Kinds of fields. An enumeration is an INT32; a MAP is one from text to text, the only kind that is used."""

MAX_VALUES = 1 << 16
"""Most fields that one message may hold, with the messages in it."""
MAX_DEPTH = 32
"""Most messages (or groups of an unknown field) inside each other."""

_VARINT, _FIXED64, _LENGTH, _GROUP, _END_GROUP, _FIXED32 = range(6)
_DEFAULTS: dict[int, Any] = {
    STRING: "", BYTES: b"", BOOL: False, UINT32: 0, UINT64: 0, INT32: 0, INT64: 0, MESSAGE: None,
}


class WireError(Exception):
    """Bytes that are no message, or a value that does not fit its field."""


class Field:
    """One field of a table.

    Arguments:
        number: its number on the wire, from 1 to 2^29 - 1.
        name: its name, the key in the dictionary.
        kind: one of the kinds above.
        table: of a MESSAGE, what it holds.
        repeated: whether the value is a list.
    """

    __slots__ = ("number", "name", "kind", "table", "repeated")

    def __init__(self, number: int, name: str, kind: int, table: Table | None = None, repeated: bool = False) -> None:
        self.number = number
        self.name = name
        self.kind = kind
        self.table = table
        self.repeated = repeated


class Table:
    """A message: its full name and its fields, the arguments of :class:`Field` each."""

    __slots__ = ("name", "fields", "numbers")

    def __init__(self, name: str, *fields: tuple[Any, ...]) -> None:
        self.name = name
        self.fields = tuple(Field(*field) for field in fields)
        self.numbers = {field.number: field for field in self.fields}


def empty(table: Table) -> dict[str, Any]:
    """A message with every field at its default; a message inside is None, a list or map empty."""
    return {field.name: [] if field.repeated else _DEFAULTS.get(field.kind, {}) for field in table.fields} | {
        field.name: {} for field in table.fields if field.kind == MAP
    }


# --- writing ---


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_RANGES = {
    UINT32: (0, 1 << 32), UINT64: (0, 1 << 64), INT32: (-(1 << 31), 1 << 31), INT64: (-(1 << 63), 1 << 63),
}


def _number(field: Field, value: Any) -> int:
    if field.kind == BOOL:
        return 1 if value else 0
    low, high = _RANGES[field.kind]
    if type(value) is not int or not low <= value < high:
        raise WireError(f"{field.name} cannot be {value!r}")
    return value & 0xFFFF_FFFF_FFFF_FFFF  # a negative number takes ten bytes, whatever its size


def _content(field: Field, value: Any) -> bytes:
    """What a length-delimited field holds."""
    if field.kind == STRING:
        if not isinstance(value, str):
            raise WireError(f"{field.name} must be text, not {type(value).__name__}")
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise WireError(f"{field.name} is not Unicode") from None
    if field.kind == BYTES:
        if not isinstance(value, bytes):
            raise WireError(f"{field.name} must be bytes, not {type(value).__name__}")
        return value
    if field.table is None or not isinstance(value, dict):
        raise WireError(f"{field.name} must be a message, not {type(value).__name__}")
    return encode(field.table, value)


def encode(table: Table, message: dict[str, Any]) -> bytes:
    """A message as bytes. Fields that are missing or have their default are left out, as version 3 wants it.

    Raises:
        WireError: a key that the table does not know, or a value that does not fit.
    """
    out = bytearray()
    known = 0
    for field in table.fields:
        if field.name not in message:
            continue
        known += 1
        value = message[field.name]
        if field.kind == MAP:
            for key, item in value.items():
                pair = encode(_PAIR, {"key": key, "value": item})
                out += _varint(field.number << 3 | _LENGTH) + _varint(len(pair)) + pair
        elif field.repeated and field.kind not in (STRING, BYTES, MESSAGE):
            if value:
                packed = b"".join(_varint(_number(field, item)) for item in value)
                out += _varint(field.number << 3 | _LENGTH) + _varint(len(packed)) + packed
        elif field.kind in (STRING, BYTES, MESSAGE):
            for item in value if field.repeated else () if value is None else (value,):
                content = _content(field, item)
                if content or field.repeated or field.kind == MESSAGE:
                    out += _varint(field.number << 3 | _LENGTH) + _varint(len(content)) + content
        else:
            number = _number(field, value)
            if number:
                out += _varint(field.number << 3 | _VARINT) + _varint(number)
    if known != len(message):
        unknown = sorted(set(message) - {field.name for field in table.fields})
        raise WireError(f"{table.name} has no field {', '.join(unknown)}")
    return bytes(out)


# --- reading ---


class _Reader:
    __slots__ = ("data", "values")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.values = 0

    def varint(self, at: int, end: int) -> tuple[int, int]:
        data = self.data
        result = shift = 0
        while True:
            if at >= end:
                raise WireError("a number is cut off")
            byte = data[at]
            at += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise WireError("a number of more than ten bytes")
        return result & 0xFFFF_FFFF_FFFF_FFFF, at

    def length(self, at: int, end: int) -> tuple[int, int]:
        size, at = self.varint(at, end)
        if size > end - at:
            raise WireError("a field reaches over the end of its message")
        return at, at + size

    def skip(self, number: int, kind: int, at: int, end: int, depth: int) -> int:
        """The offset after an unknown field whose key ends at ``at``."""
        if kind == _VARINT:
            return self.varint(at, end)[1]
        if kind == _LENGTH:
            return self.length(at, end)[1]
        if kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
            if at > end:
                raise WireError("a number is cut off")
            return at
        if kind == _GROUP:
            if depth >= MAX_DEPTH:
                raise WireError(f"more than {MAX_DEPTH} groups inside each other")
            while True:
                inner, inner_kind, at = self.key(at, end)
                if inner_kind == _END_GROUP:
                    if inner != number:
                        raise WireError("a group that another's end ends")
                    return at
                at = self.skip(inner, inner_kind, at, end, depth + 1)
        raise WireError(f"a field of the unknown kind {kind}")

    def key(self, at: int, end: int) -> tuple[int, int, int]:
        key, at = self.varint(at, end)
        number = key >> 3
        if not 0 < number < 1 << 29:
            raise WireError(f"a field with the number {number}")
        self.count()
        return number, key & 7, at

    def count(self) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            raise WireError(f"more than {MAX_VALUES} values")

    def message(self, table: Table, into: dict[str, Any], at: int, end: int, depth: int) -> bool:
        """Whether all of its fields were known."""
        whole = True
        if depth > MAX_DEPTH:
            raise WireError(f"more than {MAX_DEPTH} messages inside each other")
        while at < end:
            number, kind, at = self.key(at, end)
            field = table.numbers.get(number)
            scalar = field is not None and field.kind not in (STRING, BYTES, MESSAGE, MAP)
            if field is None or not (kind == _LENGTH and (not scalar or field.repeated) or kind == _VARINT and scalar):
                at = self.skip(number, kind, at, end, depth)
                whole = False
            elif kind == _VARINT:
                raw, at = self.varint(at, end)
                self.put(field, into, _scalar(field.kind, raw))
            else:
                start, at = self.length(at, end)
                self.delimited(field, into, start, at, depth)
        return whole

    def put(self, field: Field, into: dict[str, Any], value: Any) -> None:
        if field.repeated:
            into[field.name].append(value)
        else:
            into[field.name] = value

    def delimited(self, field: Field, into: dict[str, Any], start: int, end: int, depth: int) -> None:
        if field.kind == STRING:
            self.put(field, into, _text(self.data[start:end]))
        elif field.kind == BYTES:
            self.put(field, into, self.data[start:end])
        elif field.kind == MAP:
            pair = empty(_PAIR)
            if self.message(_PAIR, pair, start, end, depth + 1):  # else it is a stranger's as a whole, as for Google
                into[field.name][pair["key"]] = pair["value"]
        elif field.kind == MESSAGE and field.table is not None:
            value = None if field.repeated else into[field.name]
            if value is None:
                value = empty(field.table)
                self.put(field, into, value)
            self.message(field.table, value, start, end, depth + 1)
        else:  # packed numbers
            at = start
            while at < end:
                raw, at = self.varint(at, end)
                self.count()
                into[field.name].append(_scalar(field.kind, raw))


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise WireError("text that is not UTF-8") from None


def _scalar(kind: int, raw: int) -> Any:
    if kind == BOOL:
        return raw != 0
    if kind == UINT32:
        return raw & 0xFFFF_FFFF
    if kind == INT32:
        raw &= 0xFFFF_FFFF
        return raw - (1 << 32) if raw >> 31 else raw
    if kind == INT64:
        return raw - (1 << 64) if raw >> 63 else raw
    return raw


def decode(table: Table, data: bytes) -> dict[str, Any]:
    """Bytes as a message, with every field of the table in it.

    Raises:
        WireError: they are no such message, or one with more than MAX_VALUES values.
    """
    message = empty(table)
    _Reader(data).message(table, message, 0, len(data), 0)
    return message


_PAIR = Table("Pair", (1, "key", STRING), (2, "value", STRING))
"""What a map is on the wire: a list of these."""
