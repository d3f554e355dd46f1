"""The configuration of an image, read from JSON that whoever made the image wrote: typed, bounded, checked.

Source: OCI image specification 1.1, ``config.md``; Docker's images use the same names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from casemate.errors import BadImage
from casemate.oci.reference import is_digest

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any, NoReturn

MAX_BYTES = 4 << 20
MAX_ITEMS = 4096
MAX_STRING = 128 << 10
MAX_LAYERS = 128

_PORT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?\Z")
_SIGNAL = re.compile(r"(?:SIG)?[A-Z][A-Z0-9]{1,9}(?:[+-][0-9]{1,2})?\Z|[0-9]{1,3}\Z")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says about how to run it. ``env`` are ``NAME=value`` strings in the image's order."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    volumes: tuple[str, ...] = ()
    os: str = "linux"
    architecture: str = ""
    variant: str = ""
    created: str = ""
    author: str = ""
    diff_ids: tuple[str, ...] = ()
    """Digests of the unpacked layers, bottom first."""


def load_json(data: bytes, what: str, *, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Parse an object out of hostile JSON.

    Arguments:
        what: names the document in errors.
        limit: the most bytes it may have.

    Raises:
        BadImage: too large, not UTF-8 JSON, nested too deeply, a key twice, or not an object.
    """
    if len(data) > limit:
        raise BadImage(f"{what} is larger than {limit} bytes")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_no_twins, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadImage(f"{what} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadImage(f"{what} is not a JSON object")
    return value


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")  # two readers could differ on which one counts
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse(data: bytes) -> ImageConfig:
    """Read an image's configuration.

    Raises:
        BadImage: it breaks the schema or a bound; the message names the field.
    """
    top = load_json(data, "the image configuration")
    inner = _get(top, "config", dict, {})
    rootfs = _get(top, "rootfs", dict, None)
    if rootfs is None:
        raise BadImage("the image configuration has no rootfs")
    if rootfs.get("type") != "layers":
        raise BadImage("the image configuration's rootfs is not of type layers")
    diff_ids = _strings(rootfs, "diff_ids")
    if len(diff_ids) > MAX_LAYERS:
        raise BadImage(f"the image has {len(diff_ids)} layers, more than {MAX_LAYERS}")
    for digest in diff_ids:
        if not is_digest(digest):
            raise BadImage(f"the image configuration has a bad diff_id {digest[:80]!r}")
    env = _strings(inner, "Env")
    for item in env:
        if "=" not in item[1:]:
            raise BadImage(f"the image configuration's Env has {item[:80]!r}, which is not NAME=value")
    working_dir = _get(inner, "WorkingDir", str, "")
    if working_dir and not working_dir.startswith("/"):
        working_dir = "/" + working_dir  # as Docker: relative to the root
    stop_signal = _get(inner, "StopSignal", str, "")
    if stop_signal and _SIGNAL.match(stop_signal) is None:
        raise BadImage(f"the image configuration has a bad StopSignal {stop_signal[:80]!r}")
    volumes = _keys(inner, "Volumes")
    for volume in volumes:
        if not volume.startswith("/"):
            raise BadImage(f"the image configuration's volume {volume[:80]!r} is not an absolute path")
    return ImageConfig(
        entrypoint=_command(inner, "Entrypoint"),
        cmd=_command(inner, "Cmd"),
        env=env,
        working_dir=working_dir,
        user=_get(inner, "User", str, ""),
        exposed_ports=tuple(_port(key) for key in _keys(inner, "ExposedPorts")),
        stop_signal=stop_signal,
        labels=_labels(inner),
        volumes=volumes,
        os=_get(top, "os", str, "") or "linux",
        architecture=_get(top, "architecture", str, ""),
        variant=_get(top, "variant", str, ""),
        created=_get(top, "created", str, ""),
        author=_get(top, "author", str, ""),
        diff_ids=diff_ids,
    )


def _get(table: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = table.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise BadImage(f"the image configuration's {key} must be of type {kind.__name__}")
    if isinstance(value, str):
        _check(value, key)
    elif isinstance(value, (list, dict)) and len(value) > MAX_ITEMS:
        raise BadImage(f"the image configuration's {key} has more than {MAX_ITEMS} items")
    return value


def _check(text: Any, key: str) -> str:
    if not isinstance(text, str):
        raise BadImage(f"the image configuration's {key} must hold strings")
    if len(text) > MAX_STRING:
        raise BadImage(f"the image configuration's {key} holds a string longer than {MAX_STRING} characters")
    if "\0" in text:
        raise BadImage(f"the image configuration's {key} holds a null character")
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        raise BadImage(f"the image configuration's {key} holds a string that is not Unicode") from None
    return text


def _strings(table: dict[str, Any], key: str) -> tuple[str, ...]:
    return tuple(_check(item, key) for item in _get(table, key, list, []))


def _command(table: dict[str, Any], key: str) -> tuple[str, ...]:
    if isinstance(table.get(key), str):  # old builders wrote a string; Docker reads it as one word
        return (_check(table[key], key),)
    return _strings(table, key)


def _keys(table: dict[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key)
    if isinstance(value, list):  # seen in images of some builders
        return _strings(table, key)
    return tuple(sorted(_check(item, key) for item in _get(table, key, dict, {})))


def _labels(table: dict[str, Any]) -> Mapping[str, str]:
    labels = _get(table, "Labels", dict, {})
    return MappingProxyType({_check(key, "Labels"): _check(value, "Labels") for key, value in labels.items()})


def _port(text: str) -> str:
    match = _PORT.match(text)
    if match is None or not all(1 <= int(port) <= 65535 for port in match.group(1, 2) if port):
        raise BadImage(f"the image configuration exposes a bad port {text[:80]!r}")
    return text if match.group(3) else f"{text}/tcp"
