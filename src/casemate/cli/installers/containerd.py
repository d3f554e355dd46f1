"""containerd: a runtime of its CRI plugin in config.toml.

The block is appended to the file, between two marks. A file of its own under ``imports`` would lose settings:
containerd 1.x replaces a plugin's whole table by that of the imported file. For the same reason, where an imported
file has that table, the block has to go into the imported file. And where a file names no runtime, containerd has one
by default, runc, but only then: so the block names that one as well.
"""

from __future__ import annotations

import copy
import glob
import os
import tomllib
from pathlib import Path
from typing import Any

from casemate.errors import ConfigError

FILE = Path("/etc/containerd/config.toml")
PROGRAMS = ("casemate-runtime", "containerd-shim-casemate-v2")
NEXT = (
    "sudo systemctl restart containerd    (containers go on running)",
    "sudo ctr run --rm --runtime io.containerd.casemate.v2 docker.io/library/busybox:latest try uname -r",
    "in Kubernetes: a RuntimeClass with the handler casemate",
)
NEXT_UNDONE = ("sudo systemctl restart containerd    (containers go on running)",)
RUNTIME_TYPE = "io.containerd.casemate.v2"
DEFAULT_TYPE = "io.containerd.runc.v2"
"""Of the runtime "runc", which containerd has where a file names none."""
TABLES = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
"""The CRI plugin's name by the version of the file."""
MAX_FILES = 256
BEGIN = "# Begin of what 'casemate install containerd' wrote; 'casemate install containerd --undo' removes it.\n"
END = "# End of what 'casemate install containerd' wrote.\n"


def edit(text: str | None, path: Path, programs: dict[str, Path]) -> str:
    """The file with our runtime in it.

    Raises:
        ConfigError: it is damaged, of an unknown version, or has another runtime of our name.
    """
    if text is None or not text.strip():
        return "version = 2\n" + _block(2, "", first=True)
    value = _read(text, path)
    version = _version(value, path)
    found = _runtimes(value, version).get("casemate")
    if found is not None:
        kind = found.get("runtime_type") if isinstance(found, dict) else None
        if kind == RUNTIME_TYPE:
            return text
        raise ConfigError(f"{path} has a runtime casemate of the type {str(kind)[:80]!r}", "remove it first")
    first = not _runtimes(value, version)
    made = text + _block(version, text, first=first)
    expected = copy.deepcopy(value)
    node: Any = expected
    for key in _keys(version):
        node = node.setdefault(key, {}) if isinstance(node, dict) else {}
    node["casemate"] = {"runtime_type": RUNTIME_TYPE}
    if first:
        node["runc"] = {"runtime_type": DEFAULT_TYPE}
    try:
        sound = tomllib.loads(made) == expected
    except tomllib.TOMLDecodeError:
        sound = False
    if not sound:
        raise ConfigError(f"{path} has a form that casemate cannot add to", f"add [{_table(version)}] by hand")
    return made


def erase(text: str, path: Path) -> str:
    """The file without what we wrote.

    Raises:
        ConfigError: it is damaged, or containers would have no runtime afterwards.
    """
    value = _read(text, path)
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0:
        return text
    if end < begin or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise ConfigError(f"{path} is damaged: casemate's marks do not match", "remove the runtime casemate by hand")
    version = _version(value, path)
    if _at(value, _keys(version)[:-1]).get("default_runtime_name") == "casemate":
        raise ConfigError(f"{path} names casemate as its default_runtime_name", "choose another default first")
    before = text[:begin].removesuffix("\n") if text[:begin].endswith("\n\n") else text[:begin]
    left = before + text[end + len(END) :]
    for name, runtime in _runtimes(_read(left, path), version).items():
        if name in ("runc", "casemate") and not (isinstance(runtime, dict) and runtime.get("runtime_type")):
            raise ConfigError(f"{path} has more about the runtime {name} than casemate wrote", "take it out by hand")
    return left


def place(path: Path) -> Path:
    """The file whose table of the CRI plugin counts: the last imported one that has it, or ``path`` itself.

    Raises:
        ConfigError: a file is damaged.
    """
    from casemate.cli.installers import changes

    chosen, todo = path, [path]
    seen: set[str] = set()
    while todo and len(seen) < MAX_FILES:
        current = todo.pop(0)
        if os.path.realpath(current) in seen:
            continue
        seen.add(os.path.realpath(current))
        value = _read(changes.read(current) or "", current)
        plugins = value.get("plugins")
        if isinstance(plugins, dict) and not {*TABLES.values()}.isdisjoint(plugins):
            chosen = current
        imports = value.get("imports", [])
        for pattern in imports if isinstance(imports, list) else []:
            if isinstance(pattern, str):
                todo += [Path(name) for name in sorted(glob.glob(os.path.join(current.parent, pattern)))]
    return chosen


def _read(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {str(error)[:200]}", "mend it first") from None


def _version(value: dict[str, Any], path: Path) -> int:
    """The version of a file. An imported one may leave it out; then its tables tell, and those of version 1 do last."""
    plugins = value.get("plugins")
    named = [version for version, table in TABLES.items() if isinstance(plugins, dict) and table in plugins]
    version = value.get("version", max(named, default=1))
    if type(version) is not int or version not in TABLES:
        raise ConfigError(f"{path} is of version {str(version)[:20]}", "casemate knows versions 1 to 3")
    return version


def _keys(version: int) -> list[str]:
    return ["plugins", TABLES[version], "containerd", "runtimes"]


def _table(version: int, name: str = "casemate") -> str:
    return ".".join([*(f'"{key}"' if "." in key else key for key in _keys(version)), name])


def _at(value: Any, keys: list[str]) -> dict[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _runtimes(value: dict[str, Any], version: int) -> dict[str, Any]:
    return _at(value, _keys(version))


def _block(version: int, before: str, *, first: bool) -> str:
    """What is appended; an empty line parts it from what comes before.

    Arguments:
        first: there are no runtimes yet.
    """
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    default = f'[{_table(version, "runc")}]\n  runtime_type = "{DEFAULT_TYPE}"\n' if first else ""
    return f'{gap}{BEGIN}{default}[{_table(version)}]\n  runtime_type = "{RUNTIME_TYPE}"\n{END}'
