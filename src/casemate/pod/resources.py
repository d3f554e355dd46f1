"""A container's resources, from an engine's specification to what the guest's kernel divides.

Memory, processors, processes, and input and output of disks go along; the agent bounds them by what the guest has. Swap
is left to the host's control group, for the guest has none.
"""

from __future__ import annotations

import re
from typing import Any

from casemate.errors import BadBundle, Unsupported

CPU_PERIOD_US = 100_000
BLOCK_IO = ("weight", "weightDevice", *(
    f"throttle{way}{what}Device" for way in ("Read", "Write") for what in ("Bps", "IOPS")
))  # fmt: skip
UNIFIED = re.compile(r"cpu\.(weight|weight\.nice|max|max\.burst|idle)|memory\.(low|min|high|oom\.group)")
"""Files of control groups that a specification may set in the guest; the others are the agent's or of no use there."""


def translate(given: dict[str, Any], warnings: list[str], *, creating: bool) -> dict[str, Any]:
    """The guest's ``linux.resources``, without the devices.

    Arguments:
        given: of the specification or an update, judged.
        warnings: gets a line for what is left out.
        creating: nothing was bounded before, so that "no limit" is nothing to be said.

    Raises:
        Unsupported: it asks for what the guest does not have.
    """
    for limit in given.get("hugepageLimits", ()):
        if limit["limit"]:
            raise Unsupported(f"huge pages ({limit['pageSize']}) cannot be given: the guest has none", "leave them out")
    if given.get("rdma"):
        raise Unsupported("linux.resources.rdma cannot be applied: the guest has no such devices", "leave it out")
    if given.get("network"):
        warnings.append("linux.resources.network is ignored: control groups of version 2 have no network classes")
    made: dict[str, Any] = {}
    memory = _chosen(given.get("memory", {}), ("limit", "reservation"), creating)
    if memory:
        made["memory"] = memory
    if given.get("memory", {}).get("disableOOMKiller"):
        warnings.append("disableOOMKiller is ignored: control groups of version 2 cannot")
    cpu = _chosen(given.get("cpu", {}), ("shares", "quota", "period"), False)
    if given.get("cpu", {}).get("cpus"):
        _count(given["cpu"]["cpus"])
        cpu["cpus"] = "".join(given["cpu"]["cpus"].split())
    if cpu:
        made["cpu"] = cpu
    if given.get("cpu", {}).get("realtimeRuntime"):
        warnings.append("cpu.realtimeRuntime is ignored: control groups of version 2 cannot")
    pids = _chosen(given.get("pids", {}), ("limit",), creating)
    if pids:
        made["pids"] = pids
    block = {key: value for key, value in given.get("blockIO", {}).items() if key in BLOCK_IO and value}
    if block:
        made["blockIO"] = block
    unified = given.get("unified", {})
    if unified:
        kept = {name: value for name, value in unified.items() if UNIFIED.fullmatch(name)}
        if len(kept) < len(unified):
            left_out = ", ".join(sorted(name for name in unified if name not in kept)[:10])
            warnings.append(f"linux.resources.unified: {left_out} are ignored")
        if kept:
            made["unified"] = kept
    return made


def _chosen(values: dict[str, Any], keys: tuple[str, ...], positive: bool) -> dict[str, Any]:
    """Those that are set: zero says nothing, and a negative number only where there was a limit."""
    return {key: values[key] for key in keys if values.get(key, 0) > 0 or (values.get(key, 0) < 0 and not positive)}


def processors(cpu: dict[str, Any]) -> float | None:
    """How many processors ``linux.resources.cpu`` lets a container use; None: as many as there are.

    Raises:
        BadBundle: ``cpus`` is no list of processors.
    """
    quota, period = cpu.get("quota", 0), cpu.get("period") or CPU_PERIOD_US
    share = quota / period if quota > 0 else None
    count = _count(cpu.get("cpus", ""))
    if count is None:
        return share
    return float(count) if share is None else min(share, float(count))


def _count(text: str) -> int | None:
    """How many processors a list such as ``0-2,5`` names; None where it names none.

    Raises:
        BadBundle: it is no such list.
    """
    numbers: set[int] = set()
    for part in filter(None, "".join(text.split()).split(",")):
        first, dash, last = part.partition("-")
        if not first.isdigit() or len(first) > 5 or (dash and (not last.isdigit() or len(last) > 5)):
            raise BadBundle(f"linux.resources.cpu.cpus {text[:80]!r} is not a list of processors")
        numbers.update(range(int(first), int(last or first) + 1))
    return len(numbers) or None
