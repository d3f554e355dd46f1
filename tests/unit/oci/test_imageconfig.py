"""Configurations of images: what is read, and that hostile ones are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import BadImage
from casemate.oci.imageconfig import MAX_BYTES, parse

DIGEST = "sha256:" + "0" * 64
ROOTFS: dict[str, Any] = {"type": "layers", "diff_ids": [DIGEST]}


def read(inner: dict[str, Any] | None = None, **top: Any) -> Any:
    return parse(json.dumps({"rootfs": ROOTFS, "config": inner or {}, **top}).encode())


def test_every_field_is_read() -> None:
    config = read(
        {
            "Entrypoint": ["/e"],
            "Cmd": ["a", "b"],
            "Env": ["A=1", "B="],
            "WorkingDir": "work",
            "User": "u:g",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "90": {}},
            "StopSignal": "SIGQUIT",
            "Labels": {"k": "v"},
            "Volumes": {"/data": {}},
        },
        os="linux",
        architecture="arm64",
        created="2020-01-01T00:00:00Z",
        author="me",
        variant="v8",
    )
    assert (config.entrypoint, config.cmd, config.env) == (("/e",), ("a", "b"), ("A=1", "B="))
    assert (config.working_dir, config.user, config.stop_signal) == ("/work", "u:g", "SIGQUIT")
    assert config.exposed_ports == ("53/udp", "80/tcp", "90/tcp")
    assert (dict(config.labels), config.volumes, config.diff_ids) == ({"k": "v"}, ("/data",), (DIGEST,))
    assert (config.os, config.architecture, config.variant, config.author) == ("linux", "arm64", "v8", "me")


def test_nulls_and_absent_fields_are_empty() -> None:
    config = read({"Entrypoint": None, "Cmd": None, "Env": None, "Labels": None, "Volumes": None})
    assert (config.entrypoint, config.cmd, config.env, dict(config.labels), config.os) == ((), (), (), {}, "linux")


@pytest.mark.parametrize(
    ("inner", "word"),
    [
        ({"Cmd": [1]}, "Cmd"),
        ({"Cmd": {}}, "Cmd"),
        ({"Env": ["A"]}, "Env"),
        ({"Env": ["=1"]}, "Env"),
        ({"Cmd": ["a\0b"]}, "null"),
        ({"User": 1}, "User"),
        ({"WorkingDir": ["/"]}, "WorkingDir"),
        ({"ExposedPorts": {"0/tcp": {}}}, "port"),
        ({"ExposedPorts": {"70000": {}}}, "port"),
        ({"ExposedPorts": {"1/icmp": {}}}, "port"),
        ({"StopSignal": "rm -rf"}, "StopSignal"),
        ({"Volumes": {"data": {}}}, "volume"),
        ({"Labels": {"a": 1}}, "Labels"),
        ({"Cmd": ["\ud800"]}, "Unicode"),
        ({"Env": ["A=1"] * 5000}, "Env"),
        ({"User": "x" * 200_000}, "User"),
    ],
)
def test_a_bad_field_is_named(inner: dict[str, Any], word: str) -> None:
    with pytest.raises(BadImage, match=word):
        read(inner)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b"[" * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' + b"1" * 10_000 + b"}",
        b" " * (MAX_BYTES + 1),
        b'{"config":{}}',
        b'{"rootfs":{"type":"x","diff_ids":[]}}',
        b'{"rootfs":{"type":"layers","diff_ids":["sha256:0"]}}',
        json.dumps({"rootfs": {"type": "layers", "diff_ids": [DIGEST] * 129}}).encode(),
        json.dumps({"rootfs": {"type": "layers", "diff_ids": ["../../x"]}}).encode(),
    ],
)
def test_a_bad_document_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        parse(data)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_keys = st.sampled_from(
    [
        "config",
        "rootfs",
        "Cmd",
        "Env",
        "Labels",
        "Volumes",
        "ExposedPorts",
        "type",
        "diff_ids",
        "os",
        "User",
        "StopSignal",
    ]
)


@settings(max_examples=300)
@given(st.dictionaries(_keys, _json | st.dictionaries(_keys, _json, max_size=6), max_size=8))
def test_any_json_gives_a_configuration_or_bad_image(value: dict[str, Any]) -> None:
    value.setdefault("rootfs", ROOTFS)
    try:
        config = parse(json.dumps(value).encode())
    except BadImage as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(item, str) for item in config.cmd + config.env + config.volumes)
