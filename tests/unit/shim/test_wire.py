"""The codec, held against ``google.protobuf``: whatever one writes the other reads, and nothing makes it fall over."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.shim import messages, metrics, sandbox_messages, wire
from casemate.shim.wire import BOOL, BYTES, INT32, INT64, MAP, MESSAGE, STRING, UINT32, UINT64, Table, WireError

EVERYTHING = Table(
    "test.Everything",
    (1, "text", STRING), (2, "raw", BYTES), (3, "flag", BOOL), (4, "small", UINT32), (5, "large", UINT64),
    (6, "signed", INT32), (7, "wide", INT64), (8, "inner", MESSAGE, messages.MOUNT), (9, "pairs", MAP),
    (10, "texts", STRING, None, True), (11, "raws", BYTES, None, True), (12, "numbers", UINT64, None, True),
    (13, "flags", BOOL, None, True), (14, "inners", MESSAGE, messages.MOUNT, True),
    (15, "negatives", INT32, None, True), (2047, "far", STRING), (536870911, "farthest", UINT32),
)


def _tables() -> list[Table]:
    found: dict[str, Table] = {EVERYTHING.name: EVERYTHING}
    modules = (messages, metrics, sandbox_messages)
    todo = [one for module in modules for one in vars(module).values() if isinstance(one, Table)]
    while todo:
        table = todo.pop()
        found[table.name] = table
        todo += [field.table for field in table.fields if field.table is not None and field.table.name not in found]
    return list(found.values())


TABLES = _tables()


def _classes() -> dict[str, Any]:
    """Google's classes for our tables."""
    descriptors = importlib.import_module("google.protobuf.descriptor_pb2")
    pools = importlib.import_module("google.protobuf.descriptor_pool")
    factory = importlib.import_module("google.protobuf.message_factory")
    proto = descriptors.FieldDescriptorProto
    kinds = {
        STRING: proto.TYPE_STRING, BYTES: proto.TYPE_BYTES, BOOL: proto.TYPE_BOOL, UINT32: proto.TYPE_UINT32,
        UINT64: proto.TYPE_UINT64, INT32: proto.TYPE_INT32, INT64: proto.TYPE_INT64, MESSAGE: proto.TYPE_MESSAGE,
        MAP: proto.TYPE_MESSAGE,
    }
    pool = pools.DescriptorPool()
    file = descriptors.FileDescriptorProto(name="all.proto", package="all", syntax="proto3")
    flat = {table.name: table.name.replace(".", "_") for table in TABLES}
    for table in TABLES:
        message = file.message_type.add(name=flat[table.name])
        for field in table.fields:
            many = field.repeated or field.kind == MAP
            made = message.field.add(
                name=field.name, number=field.number, type=kinds[field.kind],
                label=proto.LABEL_REPEATED if many else proto.LABEL_OPTIONAL,
            )
            if field.table is not None:
                made.type_name = f".all.{flat[field.table.name]}"
            if field.kind == MAP:
                entry = message.nested_type.add(name=field.name.title() + "Entry")
                entry.options.map_entry = True
                for number, name in ((1, "key"), (2, "value")):
                    entry.field.add(name=name, number=number, type=proto.TYPE_STRING, label=proto.LABEL_OPTIONAL)
                made.type_name = f".all.{flat[table.name]}.{entry.name}"
    pool.Add(file)
    return {name: factory.GetMessageClass(pool.FindMessageTypeByName(f"all.{one}")) for name, one in flat.items()}


CLASSES = _classes()


def _to_google(table: Table, message: dict[str, Any]) -> Any:
    made = CLASSES[table.name]()
    for field in table.fields:
        value = message[field.name]
        if field.kind == MAP:
            getattr(made, field.name).update(value)
        elif field.kind == MESSAGE and field.table is not None:
            if field.repeated:
                getattr(made, field.name).extend([_to_google(field.table, item) for item in value])
            elif value is not None:
                getattr(made, field.name).CopyFrom(_to_google(field.table, value))
        elif field.repeated:
            getattr(made, field.name).extend(value)
        else:
            setattr(made, field.name, value)
    return made


@functools.cache
def _values(table: Table) -> st.SearchStrategy[dict[str, Any]]:
    text = st.text(max_size=20)
    numbers = {
        BOOL: st.booleans(), UINT32: st.integers(0, (1 << 32) - 1), UINT64: st.integers(0, (1 << 64) - 1),
        INT32: st.integers(-(1 << 31), (1 << 31) - 1), INT64: st.integers(-(1 << 63), (1 << 63) - 1),
        STRING: text, BYTES: st.binary(max_size=20),
    }
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in table.fields:
        if field.kind == MAP:
            fields[field.name] = st.dictionaries(text, text, max_size=3)
            continue
        one = numbers[field.kind] if field.table is None else _values(field.table)
        if field.repeated:
            one = st.lists(one, max_size=3)
        elif field.table is not None:
            one = st.none() | one
        fields[field.name] = one
    return st.fixed_dictionaries(fields)


@given(st.data())
def test_google_reads_what_we_write_and_we_read_what_google_writes(data: st.DataObject) -> None:
    table = data.draw(st.sampled_from(TABLES))
    message = data.draw(_values(table))
    ours = wire.encode(table, message)
    theirs = _to_google(table, message)
    assert CLASSES[table.name].FromString(ours) == theirs
    assert wire.decode(table, ours) == message
    assert wire.decode(table, theirs.SerializeToString()) == message


def _agree(data: bytes) -> None:
    """We refuse what Google refuses, and read the rest alike; we may refuse more than it does for its size only."""
    try:
        message = wire.decode(EVERYTHING, data)
    except WireError as error:
        if "more than" in str(error):
            return
        with pytest.raises(Exception, match="(?i)pars|utf|decod"):
            CLASSES[EVERYTHING.name].FromString(data)
        return
    assert _to_google(EVERYTHING, message) == _without_unknown(data)


def test_a_pair_with_more_than_key_and_value_is_no_pair_of_ours() -> None:
    whole = wire.encode(EVERYTHING, {"pairs": {"k": "v"}})
    assert wire.decode(EVERYTHING, whole)["pairs"] == {"k": "v"}
    damaged = whole.replace(b"\x0a\x01k", b"\x4a\x01k")  # the key's number is another one
    assert damaged != whole
    assert wire.decode(EVERYTHING, damaged)["pairs"] == {}
    _agree(damaged)


def _without_unknown(data: bytes) -> Any:
    theirs = CLASSES[EVERYTHING.name].FromString(data)
    theirs.DiscardUnknownFields()
    return theirs


@settings(max_examples=300)
@given(st.binary(max_size=64))
def test_any_bytes_are_read_as_google_reads_them(data: bytes) -> None:
    _agree(data)


@settings(max_examples=300)
@given(_values(EVERYTHING), st.data())
def test_damaged_messages_are_read_as_google_reads_them(message: dict[str, Any], data: st.DataObject) -> None:
    good = bytearray(wire.encode(EVERYTHING, message))
    for _ in range(data.draw(st.integers(1, 3))):
        if good:
            at = data.draw(st.integers(0, len(good) - 1))
            if data.draw(st.booleans()):
                good[at] = data.draw(st.integers(0, 255))
            else:
                del good[at : at + data.draw(st.integers(1, 4))]
    _agree(bytes(good))


def test_bytes_recorded_from_containerd() -> None:
    # What containerd 1.6.20 sent for: ctr tasks kill -s SIGKILL box
    assert wire.decode(messages.KILL_REQUEST, bytes.fromhex("0a03626f781809")) == {
        "id": "box", "exec_id": "", "signal": 9, "all": False,
    }


def test_defaults_are_not_written() -> None:
    assert wire.encode(EVERYTHING, wire.empty(EVERYTHING)) == b""
    assert wire.encode(messages.START_RESPONSE, {"pid": 0}) == b""
    assert wire.encode(messages.RESPONSE, {"status": {}}) == bytes.fromhex("0a00")  # there, and empty


def test_fields_of_a_newer_peer_are_skipped() -> None:
    newer = Table("x", (1, "id", STRING), (9, "n", MAP))
    data = wire.encode(newer, {"id": "box", "n": {"a": "b"}}) + bytes.fromhex("a90601020304050607089d0601020304")
    assert wire.decode(messages.START_REQUEST, data) == {"id": "box", "exec_id": ""}


def test_a_message_that_comes_in_pieces_is_merged() -> None:
    pieces: list[dict[str, Any]] = [{"type": "bind"}, {"options": ["ro"]}, {"options": ["nodev"]}]
    data = b"".join(wire.encode(EVERYTHING, {"inner": piece}) for piece in pieces)
    inner = wire.decode(EVERYTHING, data)["inner"]
    assert (inner["type"], inner["options"]) == ("bind", ["ro", "nodev"])


@pytest.mark.parametrize("data", [
    pytest.param(bytes([0x08]), id="cut"), pytest.param(bytes([0x0A, 5, 1]), id="over the end"),
    pytest.param(bytes([0x00, 0]), id="number 0"), pytest.param(bytes([0x0C]), id="end of a group"),
    pytest.param(bytes([0x0E, 0]), id="kind 6"), pytest.param(b"\x20" + b"\xff" * 10 + b"\1", id="long number"),
    pytest.param(bytes([0x0A, 1, 0xFF]), id="no UTF-8"), pytest.param(bytes([0xA3, 6, 0x0C]), id="open group"),
    pytest.param(bytes([0x9D, 6, 1, 2]), id="cut fixed"),
])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode(EVERYTHING, data)


@pytest.mark.parametrize("data", [
    wire.encode(EVERYTHING, {"numbers": [1] * (wire.MAX_VALUES + 1)}),
    bytes([0x60, 1]) * (wire.MAX_VALUES + 1),
    wire.encode(EVERYTHING, {"texts": [""] * (wire.MAX_VALUES + 1)}),
    bytes([0xA3, 6]) * 200 + bytes([0xA4, 6]) * 200,
], ids=["packed", "unpacked", "texts", "groups"])
def test_many_values_are_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="more than"):
        wire.decode(EVERYTHING, data)


@pytest.mark.parametrize("message", [
    {"small": -1}, {"small": 1 << 32}, {"signed": 1 << 31}, {"wide": "1"}, {"text": b""}, {"raw": ""},
    {"text": "\ud800"}, {"inner": []}, {"unknown": 1}, {"small": True},
])
def test_what_does_not_fit_is_not_written(message: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        wire.encode(EVERYTHING, message)
