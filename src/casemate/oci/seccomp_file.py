"""Seccomp profiles that people bring: checked, and reduced to the form of the OCI runtime specification.

Two forms are read: ``linux.seccomp`` itself (config-linux.md, "Seccomp"), and the superset that Docker and Podman
read, which has ``archMap`` and rules with ``includes`` and ``excludes``. Conditions are decided here, for the guest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from casemate.errors import UsageError
from casemate.oci import seccomp

ACTIONS = frozenset(
    f"SCMP_ACT_{name}" for name in ("KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "TRACE", "ALLOW", "LOG")
)
OPERATORS = frozenset(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
MOST_RULES = 4096
MOST_NAMES = 4096
SIZE_LIMIT = 4 << 20
"""How large a file may be, in bytes."""


def read(path: str, capabilities: Collection[str], machine: str) -> dict[str, Any]:
    """The profile in a file.

    Raises:
        UsageError: the file cannot be read, is no JSON or has another shape.
    """
    import json

    try:
        with open(path, "rb") as file:
            raw = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"cannot read the seccomp profile {path}: {error.strerror}") from None
    if len(raw) > SIZE_LIMIT:
        raise _bad(f"{path} is larger than {SIZE_LIMIT >> 20} MiB")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _bad(f"{path}: {error}") from None
    return reduce(document, capabilities, machine)


def reduce(
    document: Any, capabilities: Collection[str], machine: str = "x86_64", kernel: tuple[int, int] = (6, 1)
) -> dict[str, Any]:
    """A parsed profile in the OCI form.

    Arguments:
        document: parsed JSON.
        capabilities, machine, kernel: what the conditions of rules are compared with.

    Raises:
        UsageError: the document has another shape.
    """
    if not isinstance(document, dict):
        raise _bad("the document must be an object")
    if not _among(document.get("defaultAction"), ACTIONS):
        raise _bad("defaultAction is missing or unknown")
    result: dict[str, Any] = {"defaultAction": document["defaultAction"]}
    if document.get("defaultErrnoRet") is not None:
        result["defaultErrnoRet"] = _number(document["defaultErrnoRet"], "defaultErrnoRet", 0xFFFF)
    if document.get("flags"):
        result["flags"] = _strings(document["flags"], "flags")
    result["architectures"] = _architectures(document, machine)
    rules = document.get("syscalls") or []
    if not isinstance(rules, list) or len(rules) > MOST_RULES:
        raise _bad(f"syscalls must be a list of at most {MOST_RULES} rules")
    result["syscalls"] = [_reduced(item) for item in rules if _applies(item, capabilities, machine, kernel)]
    return result


def _bad(what: str) -> UsageError:
    return UsageError(f"bad seccomp profile: {what}", "give the JSON of linux.seccomp, or a profile for Docker")


def _among(value: Any, known: Collection[str]) -> bool:
    return isinstance(value, str) and value in known


def _number(value: Any, where: str, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise _bad(f"{where} must be a number from 0 to {most}")
    return value


def _strings(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or len(value) > MOST_NAMES or not all(isinstance(item, str) for item in value):
        raise _bad(f"{where} must be a list of strings")
    return list(value)


def _architectures(document: dict[str, Any], machine: str) -> list[str]:
    table = document.get("archMap")
    if table is None:
        return _strings(document.get("architectures") or [], "architectures")
    if not isinstance(table, list):
        raise _bad("archMap must be a list")
    native = seccomp.ARCHITECTURES.get(machine, ("",))[0]
    for entry in table:
        if isinstance(entry, dict) and entry.get("architecture") == native:
            return [native, *_strings(entry.get("subArchitectures") or [], "subArchitectures")]
    return [native] if native else []


def _applies(item: Any, capabilities: Collection[str], machine: str, kernel: tuple[int, int]) -> bool:
    if not isinstance(item, dict):
        raise _bad("a rule must be an object")
    if not _among(item.get("action"), ACTIONS):
        raise _bad(f"action {item.get('action')!r} is unknown")
    machines = {machine, {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)}
    includes, excludes = item.get("includes") or {}, item.get("excludes") or {}
    if not isinstance(includes, dict) or not isinstance(excludes, dict):
        raise _bad("includes and excludes must be objects")
    if includes.get("arches") and machines.isdisjoint(_strings(includes["arches"], "arches")):
        return False
    if not all(name in capabilities for name in _strings(includes.get("caps") or [], "caps")):
        return False
    if includes.get("minKernel") and kernel < _version(includes["minKernel"]):
        return False
    if not machines.isdisjoint(_strings(excludes.get("arches") or [], "arches")):
        return False
    if any(name in capabilities for name in _strings(excludes.get("caps") or [], "caps")):
        return False
    return not (excludes.get("minKernel") and kernel >= _version(excludes["minKernel"]))


def _version(text: Any) -> tuple[int, int]:
    parts = text.split(".") if isinstance(text, str) else []
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts[:2]):
        raise _bad(f"minKernel {text!r} is not a version")
    return int(parts[0]), int(parts[1])


def _reduced(item: dict[str, Any]) -> dict[str, Any]:
    names = _strings(item.get("names") or ([item["name"]] if "name" in item else []), "names")
    if not names:
        raise _bad("a rule names no system call")
    number = None if item.get("errnoRet") is None else _number(item["errnoRet"], "errnoRet", 0xFFFF)
    raw = item.get("args") or []
    if not isinstance(raw, list) or len(raw) > 6:
        raise _bad("args must be a list of at most 6 conditions")
    return seccomp.rule(names, item["action"], number, list(_conditions(raw)))


def _conditions(raw: list[Any]) -> Iterator[dict[str, Any]]:
    for item in raw:
        if not isinstance(item, dict) or not _among(item.get("op"), OPERATORS):
            raise _bad("a condition needs an index, a value and an operator that is known")
        made = seccomp.condition(
            _number(item.get("index"), "index", 5), _number(item.get("value"), "value", (1 << 64) - 1), item["op"]
        )
        if item.get("valueTwo") is not None:
            made["valueTwo"] = _number(item["valueTwo"], "valueTwo", (1 << 64) - 1)
        elif item["op"] == "SCMP_CMP_MASKED_EQ":
            made["valueTwo"] = 0
        yield made
