"""The frames of the agent link: their layout, their limits, their errors. ``docs/protocol.md`` is the specification.

Nothing here does input or output. The peer is taken to be hostile: every size is bounded before memory is spent on it,
and whatever is not exactly right raises :class:`ProtocolError`.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROTOCOL = 1
"""The version of the protocol; both sides must name the same one in HELLO."""
SAME_PROFILE = "as prepared"
"""In the place of a profile of system calls: that of the specification that the guest was prepared with."""

HEADER = struct.Struct(">IBBHI")
"""length of the payload, type, flags, reserved (0), channel."""
HEADER_SIZE = HEADER.size

HELLO, REQUEST, RESPONSE, ERROR, EVENT, DATA, EOF, CREDIT = range(1, 9)
NAMES = ("?", "HELLO", "REQUEST", "RESPONSE", "ERROR", "EVENT", "DATA", "EOF", "CREDIT")

STOP = 1
"""Flag of a CREDIT frame without payload: the receiver of the stream reads no more of it."""

MAX_DATA = 64 * 1024
"""Largest payload of DATA, in bytes."""
MAX_CONTROL = 1024 * 1024
"""Largest payload of REQUEST, RESPONSE and ERROR, in bytes."""
MAX_EVENT = 64 * 1024
"""Largest payload of EVENT, in bytes."""
MAX_HELLO = 4096
"""Largest payload of HELLO, in bytes."""
MAX_CHANNELS = 1024
"""Most streams open at once, and most requests that wait for an answer, each way."""
WINDOW = 256 * 1024
"""How many bytes of a stream may be on their way or unread, each direction."""
CREDIT_SIZE = struct.Struct(">I")

_SMALLEST = (0, 2, 2, 2, 2, 2, 1, 0, 0)
_LARGEST = (0, MAX_HELLO, MAX_CONTROL, MAX_CONTROL, MAX_CONTROL, MAX_EVENT, MAX_DATA, 0, 4)


class LinkError(Exception):
    """The root of what goes wrong between host and agent."""


class ProtocolError(LinkError):
    """The peer sent what the protocol does not allow. The link is closed."""


class LinkClosed(LinkError):
    """The link has ended; the message says why."""


class LinkTimeout(LinkError):
    """The peer did not answer in time."""


class StreamClosed(LinkError):
    """Nothing can be sent on the stream any more: it or the link was closed, or the receiver stopped reading."""


class RequestFailed(LinkError):
    """The peer refused a request.

    Arguments:
        code: a short word that programs may compare, such as ``not-found``.
        message: one line for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def header(kind: int, length: int, channel: int, flags: int = 0) -> bytes:
    """The 12 bytes before a payload of ``length`` bytes."""
    return HEADER.pack(length, kind, flags, 0, channel)


def check(kind: int, length: int, channel: int, flags: int, reserved: int) -> None:
    """Judge a header before its payload is read.

    Raises:
        ProtocolError: unknown type, size out of bounds, a channel where none belongs or none where one does, bits
            that must be zero.
    """
    if not HELLO <= kind <= CREDIT:
        raise ProtocolError(f"frame of unknown type {kind}")
    if not _SMALLEST[kind] <= length <= _LARGEST[kind]:
        raise ProtocolError(f"{NAMES[kind]} frame of {length} bytes")
    if reserved:
        raise ProtocolError(f"{NAMES[kind]} frame with reserved bits {reserved:#x}")
    if (channel == 0) != (kind in (HELLO, EVENT)):
        raise ProtocolError(f"{NAMES[kind]} frame on channel {channel}")
    if kind == CREDIT:
        if (flags, length) not in ((0, CREDIT_SIZE.size), (STOP, 0)):
            raise ProtocolError(f"CREDIT frame of {length} bytes with flags {flags:#x}")
    elif flags:
        raise ProtocolError(f"{NAMES[kind]} frame with flags {flags:#x}")


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


# The json package costs nine milliseconds of imports (re, enum), and under an emulated processor ten times that before
# the guest's first word. Its C halves alone do all that is needed; where an interpreter lacks them, json serves.
class _Context:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_constant)
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner looks for the attribute and clears it


def _unknown(value: object) -> object:
    raise TypeError(f"{type(value).__name__} cannot be JSON")


try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    _scan = make_scanner(_Context)  # type: ignore[arg-type]
    _encode = make_encoder(None, _unknown, encode_basestring_ascii, None, ":", ",", False, False, False)
    if "".join(_encode({"a": [1, None]}, 0)) != '{"a":[1,null]}':  # pragma: no cover - a later Python may differ
        raise ImportError("the encoder is not as it was")

    def _dumps(value: object) -> str:
        return "".join(_encode(value, 0))

    def _loads(text: str) -> object:
        text = text.strip(" \t\r\n")
        try:
            value, end = _scan(text, 0)
        except StopIteration as stop:
            raise ValueError(f"no value at character {stop.value}") from None
        if end != len(text):
            raise ValueError(f"more after the value at character {end}")
        return value
except (ImportError, TypeError):  # pragma: no cover - another implementation of Python
    import json

    def _dumps(value: object) -> str:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    def _loads(text: str) -> object:
        return json.loads(text, parse_constant=_constant)


def pack(kind: int, message: dict[str, Any]) -> bytes:
    """A message as the payload of a control frame.

    Raises:
        ProtocolError: it cannot be JSON or is larger than the frame type allows.
    """
    try:
        payload = _dumps(message).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"{NAMES[kind]} that cannot be JSON: {error}") from None
    if len(payload) > _LARGEST[kind]:
        raise ProtocolError(f"{NAMES[kind]} of {len(payload)} bytes, at most {_LARGEST[kind]} are allowed")
    return payload


def unpack(kind: int, payload: bytes) -> dict[str, Any]:
    """The message in the payload of a control frame.

    Raises:
        ProtocolError: it is not a JSON object in UTF-8.
    """
    try:
        value = _loads(payload.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ProtocolError(f"{NAMES[kind]} that is not JSON: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"{NAMES[kind]} that is not a JSON object")
    return value


def text(message: dict[str, Any], key: str, limit: int) -> str:
    """A string of a message.

    Raises:
        ProtocolError: it is missing, not a string, or longer than ``limit`` characters.
    """
    value = message.get(key)
    if not isinstance(value, str):
        raise ProtocolError(f"a message without a string {key!r}")
    if len(value) > limit:
        raise ProtocolError(f"a message whose {key!r} has {len(value)} characters, at most {limit} are allowed")
    return value


def mapping(message: dict[str, Any], key: str) -> dict[str, Any]:
    """An object inside a message.

    Raises:
        ProtocolError: it is missing or not an object.
    """
    value = message.get(key)
    if not isinstance(value, dict):
        raise ProtocolError(f"a message without an object {key!r}")
    return value


def hello(role: str, version: str) -> dict[str, Any]:
    """What a side says first; an agent also that it can put in what its guest was prepared with."""
    said = {"protocol": PROTOCOL, "role": role, "version": version}
    return {**said, "prepared": True} if role == "agent" else said


def check_hello(message: dict[str, Any], role: str) -> None:
    """Judge the peer's HELLO.

    Arguments:
        message: what it said.
        role: our own role; the peer's must be the other one.

    Raises:
        ProtocolError: another protocol version, the same role, or not a HELLO at all.
    """
    if type(message.get("protocol")) is not int or message["protocol"] != PROTOCOL:
        spoken = repr(message.get("protocol"))[:20]
        raise ProtocolError(
            f"the peer speaks protocol {spoken}, this side speaks {PROTOCOL}: rebuild the guest with this casemate"
        )
    peer = text(message, "role", 32)
    text(message, "version", 64)
    if peer not in ("host", "agent") or peer == role:
        raise ProtocolError(f"the peer says that it is {peer!r}, and so is not the {_other(role)}")


def _other(role: str) -> str:
    return "agent" if role == "host" else "host"
