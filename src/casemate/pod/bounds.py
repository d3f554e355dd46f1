"""OCI bounds in the words of the host's control groups, version 1 and 2.

Sources: runtime-spec config-linux.md, "Control groups"; the kernel's Documentation/admin-guide/cgroup-v1/ and
cgroup-v2.rst. The conversions between the versions' units are those that all runtimes use, so that what an engine reads
back is what it expects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from casemate.errors import UsageError

MAX_DEVICES = 256


@dataclass(frozen=True, slots=True)
class Write:
    """Texts to write to one file, each by a call of its own. ``optional``: a host may be without the file."""

    controller: str
    name: str
    texts: tuple[str, ...]
    optional: bool = False


def writes(
    resources: dict[str, Any], available: set[str], new: set[str], overhead: int, tasks: int | None
) -> Iterator[Write]:
    """What to write for the bounds of ``resources``, in order.

    Arguments:
        available: the controllers that there are.
        new: those of them that are version 2.
        overhead: bytes to add to each bound of memory.
        tasks: processes and threads that there may be at most; None leaves it.

    Raises:
        UsageError: a value is of the wrong type.
    """
    memory, cpu = section(resources, "memory"), section(resources, "cpu")
    io = section(resources, "blockIO")
    if "memory" in available:
        yield from (_memory_new if "memory" in new else _memory_old)(memory, overhead)
    if "cpu" in available:
        yield from (_cpu_new if "cpu" in new else _cpu_old)(cpu)
    if "cpuset" in available:
        for key in ("cpus", "mems"):
            if cpu.get(key):
                yield Write("cpuset", f"cpuset.{key}", (str(cpu[key]),))
    if "io" in available:
        yield from _io_new(io)
    elif "blkio" in available:
        yield from _io_old(io)
    if tasks is not None and "pids" in available:
        yield Write("pids", "pids.max", (str(tasks),))


def section(resources: dict[str, Any], key: str) -> dict[str, Any]:
    """A part of ``linux.resources``, empty where there is none. Raises UsageError: it is no object."""
    value = resources.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"linux.resources.{key} must be an object")
    return value


def number(section: dict[str, Any], key: str) -> int | None:
    """An integer of a section of ``linux.resources``; None when it is not there.

    Raises:
        UsageError: it is none, or too large for the kernel.
    """
    value = section.get(key)
    if value is None:
        return None
    if type(value) is not int or not -1 <= value < 1 << 63:
        raise UsageError(f"{key} in linux.resources must be a whole number, not {str(value)[:40]!r}")
    return value


def _memory_old(memory: dict[str, Any], overhead: int) -> Iterator[Write]:
    limit, swap, low = number(memory, "limit"), number(memory, "swap"), number(memory, "reservation")
    if limit:
        yield Write("memory", "memory.limit_in_bytes", (_bytes(limit, overhead),))
    if swap:
        yield Write("memory", "memory.memsw.limit_in_bytes", (_bytes(swap, overhead),), optional=True)
    if low:
        yield Write("memory", "memory.soft_limit_in_bytes", (_bytes(low, overhead),), optional=True)
    swappiness = number(memory, "swappiness")
    if swappiness is not None and 0 <= swappiness <= 100:
        yield Write("memory", "memory.swappiness", (str(swappiness),), optional=True)


def _memory_new(memory: dict[str, Any], overhead: int) -> Iterator[Write]:
    limit, swap, low = number(memory, "limit"), number(memory, "swap"), number(memory, "reservation")
    if limit:
        yield Write("memory", "memory.max", (_bytes(limit, overhead, "max"),))
    if swap:  # OCI says memory and swap together, version 2 counts swap alone
        alone = "max" if swap < 0 else str(max(0, swap - max(limit or 0, 0)))
        if swap < 0 or limit:
            yield Write("memory", "memory.swap.max", (alone,), optional=True)
    if low:
        yield Write("memory", "memory.low", (_bytes(low, overhead, "max"),))


def _bytes(value: int, overhead: int, unlimited: str = "-1") -> str:
    return unlimited if value < 0 else str(min(value + overhead, (1 << 63) - 4096))


def _cpu_old(cpu: dict[str, Any]) -> Iterator[Write]:
    if shares := number(cpu, "shares"):
        yield Write("cpu", "cpu.shares", (str(shares),))
    # A smaller period first could make the old quota too large for the group above, a larger one the new quota too
    # small for the kernel; resetting the quota between is right in every order.
    period, quota = number(cpu, "period"), number(cpu, "quota")
    if period:
        if quota:
            yield Write("cpu", "cpu.cfs_quota_us", ("-1",))
        yield Write("cpu", "cpu.cfs_period_us", (str(period),))
    if quota:
        yield Write("cpu", "cpu.cfs_quota_us", (str(quota),))
    if (burst := number(cpu, "burst")) is not None:
        yield Write("cpu", "cpu.cfs_burst_us", (str(burst),), optional=True)


def _cpu_new(cpu: dict[str, Any]) -> Iterator[Write]:
    if shares := number(cpu, "shares"):
        yield Write("cpu", "cpu.weight", (str(weight(shares)),))
    period, quota = number(cpu, "period"), number(cpu, "quota")
    if quota or period:
        amount = str(quota) if quota and quota > 0 else "max"
        yield Write("cpu", "cpu.max", (f"{amount} {period or 100_000}",))
    if (burst := number(cpu, "burst")) is not None:
        yield Write("cpu", "cpu.max.burst", (str(burst),), optional=True)


def weight(shares: int) -> int:
    """``cpu.weight`` (1 to 10,000) of ``cpu.shares`` (2 to 262,144)."""
    return 1 + (min(max(shares, 2), 262_144) - 2) * 9999 // 262_142


_THROTTLES = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
)


def _devices(io: dict[str, Any], key: str, value: str) -> list[tuple[str, int]]:
    entries = io.get(key)
    if entries is None:
        return []
    if not isinstance(entries, list) or len(entries) > MAX_DEVICES:
        raise UsageError(f"{key} in linux.resources must be a list of at most {MAX_DEVICES} entries")
    found = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise UsageError(f"{key} in linux.resources must hold objects")
        major, minor, amount = (number(entry, name) for name in ("major", "minor", value))
        if major is not None and minor is not None and amount is not None:
            found.append((f"{major}:{minor}", amount))
    return found


def _io_old(io: dict[str, Any]) -> Iterator[Write]:
    if amount := number(io, "weight"):
        # One of the two is there, by the scheduler that the kernel has; or neither, which is no reason not to run.
        yield Write("blkio", "blkio.weight", (str(amount),), optional=True)
        yield Write("blkio", "blkio.bfq.weight", (str(amount),), optional=True)
    for device, amount in _devices(io, "weightDevice", "weight"):
        yield Write("blkio", "blkio.weight_device", (f"{device} {amount}",), optional=True)
        yield Write("blkio", "blkio.bfq.weight_device", (f"{device} {amount}",), optional=True)
    for key, name, _ in _THROTTLES:
        texts = tuple(f"{device} {rate}" for device, rate in _devices(io, key, "rate"))
        if texts:
            yield Write("blkio", name, texts)


def _io_new(io: dict[str, Any]) -> Iterator[Write]:
    if amount := number(io, "weight"):
        bfq = min(max(amount, 1), 1000)
        yield Write("io", "io.bfq.weight", (str(bfq),), optional=True)
        yield Write("io", "io.weight", (str(1 + (min(max(amount, 10), 1000) - 10) * 9999 // 990),), optional=True)
    for device, amount in _devices(io, "weightDevice", "weight"):
        yield Write("io", "io.bfq.weight", (f"{device} {amount}",), optional=True)
    for key, _, word in _THROTTLES:
        texts = tuple(f"{device} {word}={rate or 'max'}" for device, rate in _devices(io, key, "rate"))
        if texts:
            yield Write("io", "io.max", texts)
