"""A container's devices, from the host's numbers to what its guest has.

The guest is another machine: a character device is the same one there only if its number is one of the few that every
kernel gives to the same device, and a block device only if it is handed in as a disk. Disks keep the host's numbers
here; the agent finds them by their serial number (:func:`serial`) and puts in the guest's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from casemate.errors import Unsupported

CHARACTER = frozenset(
    {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 200), (10, 229)}
)
"""null, zero, full, random, urandom, tty, console, ptmx, net/tun, fuse (admin-guide/devices.txt of Linux)."""
TERMINALS = range(136, 144)
"""Majors of pseudo terminals."""
MAX_DISKS = 16

DENY_ALL: dict[str, Any] = {"allow": False, "access": "rwm"}


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """A block device of the host that the guest gets as a disk.

    ``path`` is where the container has it; on the host it is known by ``major`` and ``minor``.
    """

    path: str
    major: int
    minor: int
    read_only: bool


def serial(major: int, minor: int) -> str:
    """The serial number by which the agent finds a disk; at most 20 characters, as virtio-blk has it."""
    return f"cm-{major}-{minor}"


def translate(
    linux: dict[str, Any], warnings: list[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], tuple[DiskPlan, ...]]:
    """The guest's ``linux.devices`` and ``linux.resources.devices``, and the disks for it.

    A container that may use every device ("privileged") names all devices of the host. It gets those that the guest
    has; the others, disks among them, are left out. Any other container that names one that cannot be had is refused.

    Arguments:
        linux: of the specification, judged.
        warnings: gets a line for what is left out.

    Raises:
        Unsupported: a device cannot be had.
    """
    given = (linux.get("resources") or {}).get("devices") or []
    privileged = _all_allowed(given)
    kept: list[dict[str, Any]] = []
    left_out: list[str] = []
    disks: dict[tuple[int, int], DiskPlan] = {}
    for device in linux.get("devices", ()):
        kind, path = device["type"], device["path"]
        number = (device.get("major", 0), device.get("minor", 0))
        if kind == "p" or (kind in ("c", "u") and number in CHARACTER):
            kept.append(_device(device))
        elif privileged:
            left_out.append(path)
        elif kind == "b":
            disks.setdefault(number, DiskPlan(path, *number, read_only=not _may_write(given, *number)))
            kept.append(_device(device))
        else:
            raise Unsupported(
                f"the device {path[:200]} (character device {number[0]}:{number[1]}) cannot be given to the container",
                "it belongs to the host's kernel and the container has one of its own, which has null, zero, full, "
                "random, urandom, tty, net/tun and fuse",
            )
    if len(disks) > MAX_DISKS:
        raise Unsupported(f"{len(disks)} block devices are too many", f"the limit is {MAX_DISKS}")
    if left_out:
        few = ", ".join(left_out[:3]) + (" and others" if len(left_out) > 3 else "")
        warnings.append(f"{len(left_out)} devices of the host are left out, which the container's kernel lacks: {few}")
    return kept, _rules(given, set(disks), warnings), tuple(disks.values())


def _device(device: dict[str, Any]) -> dict[str, Any]:
    known = ("type", "path", "major", "minor", "fileMode", "uid", "gid")
    return {key: device[key] for key in known if key in device}


def _number(rule: dict[str, Any], key: str) -> int | None:
    value = rule.get(key)
    return None if value is None or value < 0 else int(value)


def _kind(rule: dict[str, Any]) -> str:
    kind = rule.get("type") or "a"
    return "c" if kind == "u" else str(kind)


def _everything(rule: dict[str, Any]) -> bool:
    return _kind(rule) == "a" and _number(rule, "major") is None and _number(rule, "minor") is None


def _all_allowed(rules: list[dict[str, Any]]) -> bool:
    """Whether the rules in their order end up with everything allowed."""
    allowed = False
    for rule in rules:
        if _everything(rule) and "w" in (rule.get("access") or "rwm"):
            allowed = rule["allow"]
    return allowed


def _may_write(rules: list[dict[str, Any]], major: int, minor: int) -> bool:
    """Whether the rules let the container write a block device; the last rule that fits counts."""
    writable = not rules
    for rule in rules:
        if _kind(rule) not in ("a", "b") or "w" not in (rule.get("access") or "rwm"):
            continue
        if _number(rule, "major") in (None, major) and _number(rule, "minor") in (None, minor):
            writable = rule["allow"]
    return writable


def _rules(
    given: list[dict[str, Any]], disks: set[tuple[int, int]], warnings: list[str]
) -> list[dict[str, Any]]:
    """Rules in the guest: what allows a number that means something else there, or nothing, is left out."""
    rules: list[dict[str, Any]] = [] if given and _everything(given[0]) else [dict(DENY_ALL)]
    dropped = 0
    for rule in given:
        kind, major, minor = _kind(rule), _number(rule, "major"), _number(rule, "minor")
        if rule["allow"] and not _meaningful(kind, major, minor, disks):
            dropped += 1
            continue
        made: dict[str, Any] = {"allow": rule["allow"], "access": rule.get("access") or "rwm"}
        if kind != "a":
            made["type"] = kind
        if major is not None:
            made["major"] = major
        if minor is not None:
            made["minor"] = minor
        rules.append(made)
    if dropped:
        warnings.append(f"{dropped} device rules are left out: they are for devices of the host")
    return rules


def _meaningful(kind: str, major: int | None, minor: int | None, disks: set[tuple[int, int]]) -> bool:
    if major is None:
        return minor is None
    if kind == "b":
        return minor is not None and (major, minor) in disks
    if kind == "c":
        return major in TERMINALS or (major in (1, 5) and minor is None) or (major, minor) in CHARACTER
    return False
