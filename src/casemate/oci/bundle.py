"""OCI bundles: reading ``config.json`` and judging it before anything is done with it.

A bundle is untrusted. Its size, depth and counts are bounded before memory is spent on them, every field that is used
later has its type checked (:mod:`casemate.oci.schema`), and what is wrong is told in one line that names the place.
Sources: OCI runtime specification 1.0.2, bundle.md and config.md; where that leaves something open, runc's behaviour.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

from casemate.errors import BadBundle
from casemate.oci import schema

__all__ = ["BadBundle", "check", "check_process", "check_resources", "load", "parse", "read_json"]

CONFIG = "config.json"
MAX_BYTES = 16 << 20
"""The largest config.json."""
MAX_DEPTH = 32
"""How deep objects and lists may lie in each other; the specification needs eight."""
MAX_NODES = 250_000
"""How many values there may be."""
MAX_ENVIRONMENT = 512 << 10
"""Characters of all arguments and variables together: with the rest they have to fit into one message to the guest."""

_VERSION = re.compile(r"1\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


def load(bundle: Path | str) -> dict[str, Any]:
    """Read and judge the specification of a bundle.

    Arguments:
        bundle: its directory.

    Returns:
        the specification. Nulls are left out as if the keys were not there; ``root.path`` and the sources of bind
        mounts are absolute; ``linux`` is there. Keys that the specification does not know are kept.

    Raises:
        BadBundle: there is no such bundle, or it breaks the specification or a bound.
    """
    try:
        real = os.path.realpath(bundle, strict=True)
    except OSError as error:
        raise BadBundle(f"the bundle {bundle} cannot be used: {error.strerror}") from None
    except ValueError:
        raise BadBundle("the bundle's path holds a zero byte") from None
    path = os.path.join(real, CONFIG)
    try:
        data = _read(path)
    except FileNotFoundError:
        raise BadBundle(f"JSON specification file {CONFIG} not found in {real}") from None
    except OSError as error:
        raise BadBundle(f"{path} cannot be read: {error.strerror}") from None
    spec: dict[str, Any] = _parsed(data, CONFIG)
    check(spec)
    _absolute(spec, real)
    _check_root(spec["root"]["path"])
    return spec


def check(spec: Any) -> None:
    """Judge a parsed specification, without looking at any file.

    Raises:
        BadBundle: it breaks the specification or a bound.
    """
    _walk(spec, CONFIG)
    _judge(schema.SPEC, spec, CONFIG)
    version = spec["ociVersion"]
    if _VERSION.fullmatch(version) is None:
        raise BadBundle(f"{CONFIG}: ociVersion {version!r} is not supported", "casemate takes versions 1.x.y")
    _check_size(spec["process"], f"{CONFIG}: process")
    linux = spec["linux"]
    kinds = {entry["type"] for entry in linux.get("namespaces", ())}
    if "user" not in kinds and (linux.get("uidMappings") or linux.get("gidMappings")):
        raise BadBundle(f"{CONFIG}: there are user namespace mappings and no user namespace")
    for key in ("uidMappings", "gidMappings"):
        for mapping in linux.get(key, ()):
            if max(mapping["containerID"], mapping["hostID"]) + mapping["size"] >= 1 << 32 or not mapping["size"]:
                raise BadBundle(f"{CONFIG}: linux.{key} has a range that is empty or ends beyond the last id")
    for mount in spec.get("mounts", ()):
        if is_bind(mount) and not mount.get("source"):
            raise BadBundle(f"{CONFIG}: the bind mount on {mount['destination'][:200]} has no source")


def check_process(process: Any) -> dict[str, Any]:
    """Judge a process object, such as ``exec --process`` brings.

    Returns:
        the same object.

    Raises:
        BadBundle: it breaks the specification or a bound.
    """
    _walk(process, "process")
    _judge(schema.PROCESS, process, "process")
    _check_size(process, "process")
    return dict(process)


def check_resources(resources: Any) -> dict[str, Any]:
    """Judge a resources object, such as ``update --resources`` brings.

    Returns:
        the same object.

    Raises:
        BadBundle: it breaks the specification or a bound.
    """
    _walk(resources, "resources")
    _judge(schema.RESOURCES, resources, "resources")
    return dict(resources)


def is_bind(mount: dict[str, Any]) -> bool:
    """Whether a mount is a bind mount: its options count, whatever its type says, as with runc."""
    options = mount.get("options", ())
    return mount.get("type") == "bind" or "bind" in options or "rbind" in options


def read_json(path: str, what: str) -> dict[str, Any]:
    """Read an object from a file and judge its size and depth, but not its shape.

    Arguments:
        path: the file, which has to be an ordinary one.
        what: what it is, for the error.

    Raises:
        BadBundle: it cannot be read, is too large or is no object.
    """
    try:
        data = _read(path)
    except OSError as error:
        raise BadBundle(f"{what} {path} cannot be read: {error.strerror}") from None
    return parse(data, what)


def parse(data: bytes, what: str) -> dict[str, Any]:
    """An object of JSON text, within bounds, without nulls in objects.

    Arguments:
        data: the text.
        what: what it is, for the error.

    Raises:
        BadBundle: it is too large, too deep, or no object in JSON.
    """
    value = _parsed(data, what)
    _walk(value, what)
    return dict(value)


def _parsed(data: bytes, what: str) -> Any:
    if len(data) > MAX_BYTES:
        raise BadBundle(f"{what} is larger than {MAX_BYTES >> 20} MiB")
    try:
        return json.loads(data, parse_constant=_constant)
    except RecursionError:
        raise BadBundle(f"{what}: objects and lists lie more than {MAX_DEPTH} deep in each other") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError among them
        raise BadBundle(f"{what} is not JSON: {str(error)[:200]}") from None


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _read(path: str) -> bytes:
    """A file's content, or its first bytes if there are too many. A pipe in its place must not make us wait."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "it is not an ordinary file", path)
        return file.read(MAX_BYTES + 1)


def _walk(value: Any, what: str) -> None:
    """Bound depth and number of values, refuse strings that no system call takes, and drop nulls."""
    if not isinstance(value, dict):
        raise BadBundle(f"{what} is not an object")
    nodes = 0
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                for key in [key for key, entry in node.items() if entry is None]:
                    del node[key]
                for key in node:
                    _check_text(key, what)
                children: Any = node.values()
            else:
                children = node
            nodes += len(children)
            if nodes > MAX_NODES:
                raise BadBundle(f"{what} holds more than {MAX_NODES} values")
            for child in children:
                if isinstance(child, str):
                    _check_text(child, what)
                elif isinstance(child, (dict, list)):
                    deeper.append(child)
        if not deeper:
            return
        level = deeper
    raise BadBundle(f"{what}: objects and lists lie more than {MAX_DEPTH} deep in each other")


def _check_text(text: str, what: str) -> None:
    if "\0" in text:
        raise BadBundle(f"{what}: a string holds a zero byte: {text[:40]!r}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadBundle(f"{what}: a string holds half a character: {text[:40]!r}") from None


def _judge(shape: schema.Shape, value: Any, what: str) -> None:
    try:
        shape(value, "")
    except schema.Wrong as wrong:
        raise BadBundle(f"{what}: {wrong}") from None


def _check_size(process: dict[str, Any], what: str) -> None:
    size = sum(map(len, process["args"])) + sum(map(len, process.get("env", ())))
    if size > MAX_ENVIRONMENT:
        raise BadBundle(f"{what}: arguments and environment have {size} characters, at most {MAX_ENVIRONMENT} fit")


def _absolute(spec: dict[str, Any], bundle: str) -> None:
    """Paths that may be relative to the bundle, without it (config.md, "Root" and "Mounts")."""
    spec["root"]["path"] = os.path.normpath(os.path.join(bundle, spec["root"]["path"]))
    for mount in spec.get("mounts", ()):
        if is_bind(mount):
            mount["source"] = os.path.join(bundle, mount["source"])


def _check_root(path: str) -> None:
    """The root filesystem must be there under its own name: a link could be turned elsewhere later, and runc takes
    none either."""
    try:
        real = os.path.realpath(path, strict=True)
    except OSError as error:
        raise BadBundle(f"the root filesystem {path} cannot be used: {error.strerror}") from None
    if real != path.replace("//", "/", 1):
        raise BadBundle(f"the root filesystem {path} is a symbolic link or lies behind one", f"name {real} itself")
    if real == "/":
        raise BadBundle("the root filesystem of a container cannot be the host's root directory")
    if not os.path.isdir(real):
        raise BadBundle(f"the root filesystem {path} is not a directory")
