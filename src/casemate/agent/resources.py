"""Bounds on a container (runtime specification, config-linux.md, "Control groups") as the guest can give them.

They are meant for the host, which has more processors, more memory, swap and other disks. What the guest has none of
is left out; the host bounds the machine as a whole. Zero means that nothing is asked for, a negative number that there
is to be no bound, as engines have it.
"""

from __future__ import annotations

import os

from casemate.agent import devices
from casemate.agent.system import bad, get_dict, get_int, get_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LEAST = 1 << 20
"""Bytes: less than that holds no process at all."""
MAX_CPUS = 8192
MAX_RULES = 4096
MAX_THROTTLES = 256
ANY = 1 << 62
PAGES = "/sys/kernel/mm/hugepages"
CPU_LEFT_OUT = ("realtimeRuntime", "realtimePeriod", "mems", "cpus")
THROTTLES = (
    "weightDevice", "throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice",
    "throttleWriteIOPSDevice",
)  # fmt: skip


def bounded(asked: dict[str, Any], memory: int, pids: int) -> dict[str, Any]:
    """What the runtime is told.

    Arguments:
        asked: ``linux.resources``.
        memory: how many bytes there are for a container.
        pids: how many processes and threads there are for a container.

    Returns:
        the bounds, with nothing in them that was not asked for.

    Raises:
        RequestFailed: ``bad-spec``.
    """
    result: dict[str, Any] = {}
    for key, read in (("cpu", _cpu), ("blockIO", _block_io)):
        if asked.get(key) is not None and (found := read(get_dict(asked, key))):
            result[key] = found
    if asked.get("memory") is not None and (found := _memory(get_dict(asked, "memory"), memory)):
        result["memory"] = found
    if asked.get("pids") is not None:
        limit = _number(get_dict(asked, "pids"), "limit")
        if limit:
            result["pids"] = {"limit": min(limit, pids) if limit > 0 else pids}
    if asked.get("devices") is not None:
        result["devices"] = [_rule(rule) for rule in get_list(asked, "devices", MAX_RULES)]
    if asked.get("hugepageLimits") is not None:
        sizes = _page_sizes()
        limits = [limit for limit in get_list(asked, "hugepageLimits", 64) if isinstance(limit, dict)]
        result["hugepageLimits"] = [limit for limit in limits if limit.get("pageSize") in sizes]
    if asked.get("unified") is not None:
        result["unified"] = get_dict(asked, "unified")
    return result


def _number(table: dict[str, Any], key: str) -> int:
    """A number, 0 when it is not there."""
    return 0 if table.get(key) is None else get_int(table, key, -ANY, 1 << 64)


def _memory(asked: dict[str, Any], most: int) -> dict[str, Any]:
    """There is no swap, and cgroup v2 bounds the kernel's memory with the rest."""
    result = {}
    limit, reservation = _number(asked, "limit"), _number(asked, "reservation")
    if limit:
        result["limit"] = most if limit < 0 else max(min(limit, most), LEAST)
    if reservation > 0:
        result["reservation"] = min(reservation, result.get("limit", most))
    return result


def _cpu(asked: dict[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in asked.items() if key not in CPU_LEFT_OUT and value not in (0, None, "")}
    if _number(asked, "quota") < 0:
        del result["quota"]  # a new container has none, and :func:`unbound` takes one away
    cpus = asked.get("cpus")
    if cpus is not None and not isinstance(cpus, str):
        raise bad("cpu.cpus must be a list such as 0-2,7")
    if cpus:
        own = sorted(os.sched_getaffinity(0))
        wanted = _cpus(cpus)
        chosen = [number for number in own if number in wanted]
        if len(chosen) < min(len(wanted), len(own)):
            chosen = own[: len(wanted)]  # as many as were asked for, for it is the number that a program sees
        result["cpus"] = ",".join(str(number) for number in chosen)
    return result


def unbound(asked: dict[str, Any]) -> bool:
    """Whether a bound on the time of processors is to be taken away, which the runtime cannot do."""
    return isinstance(asked.get("cpu"), dict) and _number(asked["cpu"], "quota") < 0


def _cpus(text: str) -> set[int]:
    """The numbers in a list such as ``0-2,7`` (cpuset(7), "List format")."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdigit() and last.isdigit() and first.isascii() and last.isascii() and len(first + last) < 10):
            raise bad(f"{text[:100]!r} is no list of processors such as 0-2,7")
        low, high = int(first), int(last)
        if not low <= high < MAX_CPUS:
            raise bad(f"{text[:100]!r} is no list of processors such as 0-2,7")
        found.update(range(low, high + 1))
    return found


def _block_io(asked: dict[str, Any]) -> dict[str, Any]:
    """What bounds a device of the host bounds the disk that stands for it; the root file system is none."""
    result: dict[str, Any] = {}
    weight = _number(asked, "weight")
    if weight:
        result["weight"] = weight
    for key in THROTTLES:
        entries = []
        for entry in get_list(asked, key, MAX_THROTTLES):
            if not isinstance(entry, dict):
                raise bad(f"blockIO.{key} must be a list of objects")
            found = devices.known_disk(*_numbers(entry))
            if found is not None:
                entries.append({**entry, "major": found[0], "minor": found[1]})
        if entries:
            result[key] = entries
    return result


def _numbers(entry: dict[str, Any]) -> tuple[int, int]:
    return get_int(entry, "major", 0, 1 << 20), get_int(entry, "minor", 0, 1 << 20)


def _rule(rule: object) -> dict[str, Any]:
    """A rule on devices; for a disk that stands for a device of the host, on that disk."""
    if not isinstance(rule, dict):
        raise bad("a rule on devices must be an object")
    if rule.get("type") == "b" and type(rule.get("major")) is int and type(rule.get("minor")) is int:
        found = devices.known_disk(rule["major"], rule["minor"])
        if found is not None:
            return {**rule, "major": found[0], "minor": found[1]}
    return rule


def _page_sizes() -> set[str]:
    """The sizes of huge pages that the guest has, such as ``2MB``."""
    try:
        names = os.listdir(PAGES)
    except FileNotFoundError:
        return set()
    sizes = set()
    for name in names:  # hugepages-2048kB
        digits = name.rpartition("-")[2].removesuffix("kB")
        if digits.isdigit():
            size, unit = int(digits), "KB"
            for bigger in ("MB", "GB"):
                if size >= 1024 and size % 1024 == 0:
                    size, unit = size // 1024, bigger
            sizes.add(f"{size}{unit}")
    return sizes
