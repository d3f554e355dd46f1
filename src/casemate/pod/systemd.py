"""Scopes of systemd for containers, by ``busctl``: for hosts whose engine lets systemd keep the control groups.

Sources: org.freedesktop.systemd1(5), systemd.resource-control(5), systemd.slice(5).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from casemate.errors import HostError, UsageError
from casemate.host import commands
from casemate.pod.bounds import number, weight

# What follows the dashes is no option: a bundle chooses the name of a unit, and busctl reads options everywhere.
_BUSCTL = (
    "busctl", "--", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
)  # fmt: skip
SCOPE_SECONDS = 30.0
UNLIMITED = str((1 << 64) - 1)

Property = tuple[str, str, str]
"""Name, D-Bus signature (one basic type) and value."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A scope: its name, the slice that holds it, and where its group is below each hierarchy's mount."""

    name: str
    slice: str
    path: str

    @classmethod
    def parse(cls, text: str | None, id: str) -> Unit:
        """The unit of a ``linux.cgroupsPath`` in the form ``slice:prefix:name``.

        Raises:
            UsageError: it has another form.
        """
        parts = (text or f":casemate:{id}").split(":")
        if len(parts) != 3 or not parts[2]:
            raise UsageError(f"linux.cgroupsPath {text!r} is none for systemd", "it has the form slice:prefix:name")
        where, prefix, name = parts
        where = where or "system.slice"
        unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
        for word in (where, unit):
            if "/" in word or len(word) > 255 or not word.isprintable() or " " in word or word.startswith("."):
                raise UsageError(f"{word[:80]!r} in linux.cgroupsPath is no name of a systemd unit")
        return cls(unit, where, f"{slice_path(where)}/{unit}")


def slice_path(name: str) -> str:
    """The group of a slice: ``a-b.slice`` is ``/a.slice/a-b.slice``, ``-.slice`` is the root.

    Raises:
        UsageError: it is no name of a slice.
    """
    stem, dot, _ = name.rpartition(".slice")
    if not dot or not name.endswith(".slice"):
        raise UsageError(f"{name!r} in linux.cgroupsPath is no slice of systemd", "its name ends with .slice")
    if stem == "-":
        return ""
    words = stem.split("-")
    if not all(words):
        raise UsageError(f"{name!r} in linux.cgroupsPath is no slice of systemd")
    return "".join(f"/{'-'.join(words[: count + 1])}.slice" for count in range(len(words)))


def properties(resources: dict[str, Any], overhead: int, tasks: int | None) -> list[Property]:
    """Bounds as systemd knows them: it would set its own again when it reloads.

    Arguments: as for :func:`casemate.pod.bounds.writes`.
    """
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    found: list[Property] = []
    if limit := number(memory, "limit"):
        found.append(("MemoryMax", "t", UNLIMITED if limit < 0 else str(limit + overhead)))
    if shares := number(cpu, "shares"):
        found.append(("CPUShares", "t", str(shares)) if _old() else ("CPUWeight", "t", str(weight(shares))))
    if quota := number(cpu, "quota"):
        period = number(cpu, "period") or 100_000
        # Rounded up to what systemd can say: percents of a processor.
        value = UNLIMITED if quota < 0 else str(-(-quota * 1_000_000 // period // 10_000) * 10_000)
        found.append(("CPUQuotaPerSecUSec", "t", value))
    if tasks is not None:
        found.append(("TasksMax", "t", str(tasks)))
    return found


def _old() -> bool:
    """Whether the processor controller is one of version 1."""
    from casemate.host.cgroups import hierarchies

    return any("cpu" in tree.controllers and not tree.unified for tree in hierarchies())


def start(unit: Unit, id: str, pid: int, bounds: Sequence[Property]) -> None:
    """Have systemd make the scope ``unit`` with process ``pid`` in it, and wait until it has.

    Raises:
        HostError: systemd is not there, refuses, or takes too long.
    """
    if pid <= 0:
        raise HostError("systemd makes no scope without a process")
    wanted: list[tuple[str, ...]] = [
        ("Description", "s", f"casemate container {id}"),
        ("Slice", "s", unit.slice),
        ("PIDs", "au", "1", str(pid)),
        ("Delegate", "b", "true"),
        ("DefaultDependencies", "b", "false"),
        *(("CPUAccounting", "b", "true"), ("MemoryAccounting", "b", "true"), ("TasksAccounting", "b", "true")),
        *bounds,
    ]
    words = [word for one in wanted for word in one]
    _call("StartTransientUnit", "ssa(sv)a(sa(sv))", unit.name, "fail", str(len(wanted)), *words, "0")
    # The job goes on by itself, and systemd tells of its end only those who have subscribed to its signals, which
    # busctl cannot do. That the process has moved is what counts.
    deadline = time.monotonic() + SCOPE_SECONDS
    while not _is_in(pid, unit.name):
        if time.monotonic() > deadline:
            stop(unit.name)
            raise HostError(f"systemd did not start {unit.name} in {SCOPE_SECONDS:g} s", "see 'systemctl list-jobs'")
        time.sleep(0.002)
    # It does one thing at a time: when it answers this, it has moved the process in every hierarchy.
    _call("GetUnit", "s", unit.name)


def _is_in(pid: int, unit: str) -> bool:
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            return any(line.rstrip("\n").endswith(f"/{unit}") for line in file)
    except OSError:
        raise HostError(f"process {pid} ended before systemd had it in {unit}") from None


def set_properties(unit: str, bounds: Sequence[Property]) -> None:
    """Change bounds of a unit until its end.

    Raises:
        HostError: systemd refuses.
    """
    if bounds:
        words = [word for one in bounds for word in one]
        _call("SetUnitProperties", "sba(sv)", unit, "true", str(len(bounds)), *words)


def stop(unit: str) -> None:
    """Have systemd forget a scope; one that it does not know is no error."""
    for method, *arguments in (("StopUnit", "ss", unit, "replace"), ("ResetFailedUnit", "s", unit)):
        commands.run([*_BUSCTL, method, *arguments], package="systemd")


def _call(method: str, *arguments: str) -> None:
    result = commands.run([*_BUSCTL, method, *arguments], package="systemd")
    if result.status != 0:
        raise HostError(f"systemd refused {method}: {result.reason}", "is systemd running here?")
