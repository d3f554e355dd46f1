"""Frames, messages and their limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.protocol import wire
from casemate.protocol.wire import ProtocolError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


def test_header_layout() -> None:
    assert wire.header(wire.DATA, 5, 7) == b"\0\0\0\x05\x06\0\0\0\0\0\0\x07"
    assert wire.HEADER_SIZE == 12


@pytest.mark.parametrize(
    ("kind", "length", "channel", "flags", "reserved"),
    [
        (wire.HELLO, 60, 0, 0, 0), (wire.REQUEST, 2, 1, 0, 0), (wire.RESPONSE, wire.MAX_CONTROL, 2**32 - 1, 0, 0),
        (wire.DATA, 1, 1, 0, 0), (wire.DATA, wire.MAX_DATA, 1, 0, 0), (wire.EOF, 0, 1, 0, 0), (wire.CREDIT, 4, 1, 0, 0),
        (wire.CREDIT, 0, 1, wire.STOP, 0), (wire.EVENT, wire.MAX_EVENT, 0, 0, 0),
    ],
)  # fmt: skip
def test_good_headers(kind: int, length: int, channel: int, flags: int, reserved: int) -> None:
    wire.check(kind, length, channel, flags, reserved)


@pytest.mark.parametrize(
    ("kind", "length", "channel", "flags", "reserved"),
    [
        (0, 2, 1, 0, 0), (9, 2, 1, 0, 0), (255, 0, 0, 0, 0),
        (wire.HELLO, wire.MAX_HELLO + 1, 0, 0, 0), (wire.HELLO, 60, 1, 0, 0),
        (wire.REQUEST, wire.MAX_CONTROL + 1, 1, 0, 0), (wire.REQUEST, 2, 0, 0, 0), (wire.REQUEST, 1, 1, 0, 0),
        (wire.DATA, 0, 1, 0, 0), (wire.DATA, wire.MAX_DATA + 1, 1, 0, 0), (wire.DATA, 1, 0, 0, 0),
        (wire.DATA, 1, 1, 1, 0), (wire.DATA, 1, 1, 0, 1), (wire.EOF, 1, 1, 0, 0), (wire.EVENT, 2, 1, 0, 0),
        (wire.EVENT, wire.MAX_EVENT + 1, 0, 0, 0), (wire.CREDIT, 0, 1, 0, 0), (wire.CREDIT, 4, 1, wire.STOP, 0),
        (wire.CREDIT, 3, 1, 0, 0), (wire.CREDIT, 0, 1, 2, 0),
    ],
)  # fmt: skip
def test_bad_headers(kind: int, length: int, channel: int, flags: int, reserved: int) -> None:
    with pytest.raises(ProtocolError):
        wire.check(kind, length, channel, flags, reserved)


@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_messages_come_back(message: dict[str, Any]) -> None:
    packed = wire.pack(wire.REQUEST, message)
    assert wire.unpack(wire.REQUEST, packed) == message
    assert json.loads(packed) == message  # it is JSON to others as well


@given(st.dictionaries(st.text(), JSON, max_size=6), st.sampled_from([None, 2]))
def test_json_of_others_is_understood(message: dict[str, Any], indent: int | None) -> None:
    assert wire.unpack(wire.REQUEST, json.dumps(message, indent=indent, ensure_ascii=False).encode()) == message


@given(st.binary(max_size=200))
def test_random_bytes_are_an_object_or_refused(payload: bytes) -> None:
    try:
        assert isinstance(wire.unpack(wire.EVENT, payload), dict)
    except ProtocolError:
        return


@given(st.text(alphabet='{}[]",:0123456789.eE+-truefalsn \\u', max_size=60))
def test_nearly_json_is_an_object_or_refused(text: str) -> None:
    try:
        ours: Any = wire.unpack(wire.EVENT, text.encode())
    except ProtocolError:
        ours = None
    try:
        theirs = json.loads(text)
    except ValueError:
        theirs = None
    if isinstance(theirs, dict):
        assert ours == theirs or ours is None  # NaN and such are refused
    else:
        assert ours is None


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"1", b"[]", b"null", b'"x"', b"{", b"{}x", b"{} {}", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1,}',
        b"\xff\xfe", b'{"a":"\xff"}',
        b"{'a':1}", b'{"a":' + b"[" * 100_000, b'{"a":' + b"9" * 10_000 + b"}", b'{"a":"\x01"}',
    ],
)  # fmt: skip
def test_refused_payloads(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.unpack(wire.REQUEST, payload)


def test_message_that_does_not_fit() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        wire.pack(wire.EVENT, {"x": "y" * wire.MAX_EVENT})
    for message in ({"x": b"bytes"}, {"x": float("nan")}, {1j: 1}):
        with pytest.raises(ProtocolError, match="cannot be JSON"):
            wire.pack(wire.REQUEST, message)  # type: ignore[arg-type]


def test_hello() -> None:
    wire.check_hello(wire.hello("agent", "1"), "host")
    wire.check_hello(wire.hello("host", "1"), "agent")
    bad: list[dict[str, Any]] = [
        {}, {"protocol": 2, "role": "agent", "version": "1"}, {"protocol": True, "role": "agent", "version": "1"},
        {"protocol": 1, "role": "host", "version": "1"}, {"protocol": 1, "role": "x", "version": "1"},
        {"protocol": 1, "role": "agent"}, {"protocol": 1, "role": "agent", "version": "1" * 65},
        {"protocol": "1", "role": "agent", "version": "1"}, {"protocol": 1, "role": ["agent"], "version": "1"},
    ]  # fmt: skip
    for message in bad:
        with pytest.raises(ProtocolError):
            wire.check_hello(message, "host")
