"""The options of a runtime, as containerd hands them over, and how they are kept beside the bundle.

``containerd.runc.v1.Options`` is what ``io.containerd.runc.v2`` is given. Every other runtime gets
``runtimeoptions.v1.Options`` from the CRI plugin and from dockerd: the path of a TOML file, or its text; it may hold
the same settings under the names that containerd's own configuration has for them::

    BinaryName = "/usr/local/bin/casemate-runtime"
    SystemdCgroup = true
    Wall = "sentry"

``Wall`` is not among containerd's: it is what ``casemate-runtime --wall`` is told, so that two runtimes of containerd's
configuration can differ in it.
"""

from __future__ import annotations

import json
import os

from casemate.shim import messages, status, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_BINARY = "casemate-runtime"
DEFAULT_ROOT = "/run/containerd/casemate"
"""Where runtimes keep their state, below it one directory for each of containerd's namespaces."""
MAX_CONFIG = 1 << 20
FILE = "options.json"
WALLS = ("", "vm", "sentry")
"""What ``Wall`` may say; empty for what casemate's own configuration says."""

_KEYS = {
    "BinaryName": "binary_name", "Root": "root", "SystemdCgroup": "systemd_cgroup", "NoPivotRoot": "no_pivot_root",
    "NoNewKeyring": "no_new_keyring", "ShimCgroup": "shim_cgroup", "IoUid": "io_uid", "IoGid": "io_gid",
    "CriuPath": "criu_path", "CriuImagePath": "criu_image_path", "CriuWorkPath": "criu_work_path",
    "Wall": "wall",
}


def defaults() -> dict[str, Any]:
    """The options of someone who gives none."""
    return {**wire.empty(messages.RUNC_OPTIONS), "wall": ""}


def read(any_message: dict[str, Any] | None) -> dict[str, Any]:
    """The options in an Any, with all fields of ``containerd.runc.v1.Options`` and ``wall``.

    Raises:
        StatusError: INVALID_ARGUMENT, a type that is not known, or contents that are wrong.
    """
    if any_message is None or not any_message["type_url"]:
        return defaults()
    name = messages.type_name(any_message)
    try:
        if name == messages.RUNC_OPTIONS.name:
            return {**defaults(), **wire.decode(messages.RUNC_OPTIONS, any_message["value"])}
        if name == messages.RUNTIME_OPTIONS.name:
            return _from_toml(wire.decode(messages.RUNTIME_OPTIONS, any_message["value"]))
    except wire.WireError as error:
        raise status.failure(status.INVALID_ARGUMENT, f"runtime options {name}: {error}") from None
    raise status.failure(status.INVALID_ARGUMENT, f"runtime options of the unknown type {name}")


def _from_toml(options: dict[str, Any]) -> dict[str, Any]:
    result = defaults()
    if not options["config_path"] and not options["config_body"]:
        return result
    import tomllib  # only where there is something to read

    try:
        if options["config_body"]:
            text = options["config_body"].decode()
        else:
            with open(options["config_path"], "rb") as file:
                text = file.read(MAX_CONFIG).decode()
        table = tomllib.loads(text)
    except (OSError, ValueError) as error:
        where = options["config_path"] or "runtime options"
        raise status.failure(status.INVALID_ARGUMENT, f"{where}: {error}") from None
    for key, value in table.items():
        field = _KEYS.get(key)
        if field is None:
            raise status.failure(status.INVALID_ARGUMENT, f"runtime options: unknown key {key}")
        if type(value) is not type(result[field]):
            kind = type(result[field]).__name__
            raise status.failure(status.INVALID_ARGUMENT, f"runtime options: {key} must be of type {kind}")
        result[field] = value
    if result["wall"] not in WALLS:
        said = f"runtime options: Wall must be vm or sentry, not {result['wall'][:40]}"
        raise status.failure(status.INVALID_ARGUMENT, said)
    return result


def save(bundle: str, options: dict[str, Any]) -> None:
    """Keep the options for ``delete``, which may have to do without the shim."""
    path = os.path.join(bundle, FILE)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        json.dump(options, file)


def load(bundle: str) -> dict[str, Any]:
    """The options that :func:`save` kept; the defaults where there are none or they are damaged."""
    result = defaults()
    try:
        with open(os.path.join(bundle, FILE), "rb") as file:
            saved = json.loads(file.read(MAX_CONFIG))
    except (OSError, ValueError):
        return result
    if isinstance(saved, dict):
        result.update({key: value for key, value in saved.items() if type(value) is type(result.get(key))})
    return result


def binary(options: dict[str, Any]) -> str:
    """The runtime's program: what the options name, or ``casemate-runtime`` from the PATH or from beside ourselves."""
    import sys

    name = str(options["binary_name"]) or DEFAULT_BINARY
    if os.path.sep in name:
        return name
    beside = [os.path.dirname(os.path.abspath(sys.argv[0])), os.path.dirname(sys.executable)]
    for directory in [*os.get_exec_path(), *beside]:
        path = os.path.join(directory, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return name
