"""What the host's control groups tell of a container: for a runtime whose containers are the host's processes.

Sources: the kernel's Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst; ``cgroups(7)``.
"""

from __future__ import annotations

import os

from casemate.host.mounts import unescape
from casemate.shim import metrics, status
from casemate.shim.messages import any_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_V1_NAMES = {"pgpgin": "pg_pg_in", "pgpgout": "pg_pg_out", "pgfault": "pg_fault", "pgmajfault": "pg_maj_fault"}


def trees() -> list[tuple[str, list[str]]]:
    """Where control groups are mounted, and for which controllers; version 2's is ``unified``.

    As :func:`casemate.host.cgroups.hierarchies`, whose classes the shim can do without.
    """
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            front, _, back = line.partition(b" - ")
            kind, _, rest = back.decode(errors="replace").partition(" ")
            if kind in ("cgroup", "cgroup2"):
                controllers = ["unified"] if kind == "cgroup2" else rest.split()[-1].split(",")
                found.append((unescape(front.split(b" ")[4]), controllers))
    return found


def find(pid: int) -> dict[str, str]:
    """Directories of a process's groups by controller; version 2's is ``unified``. Empty when it is gone."""
    found: dict[str, str] = {}
    places = {}
    for line in _read(f"/proc/{pid}", "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            places[controller or "unified"] = path
    for mount, controllers_there in trees():
        for name in controllers_there:
            if name in places:
                found.setdefault(name, mount + places[name])
    return found


def _read(directory: str | None, name: str) -> str:
    if directory is None:
        return ""
    try:
        with open(os.path.join(directory, name)) as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def _number(text: str) -> int:
    text = text.strip()
    return metrics.UNLIMITED if text == "max" else int(text) if text.isdecimal() else 0


def _keyed(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def killed_for_memory(groups: dict[str, str]) -> bool:
    """Whether the kernel has ended a process of the container because there was no memory."""
    if "memory" in groups:
        return _keyed(_read(groups["memory"], "memory.oom_control")).get("oom_kill", 0) > 0
    return _keyed(_read(groups.get("unified"), "memory.events")).get("oom_kill", 0) > 0


def stats(groups: dict[str, str]) -> dict[str, Any]:
    """An Any with what a container uses.

    Raises:
        StatusError: NOT_FOUND, it has no control group.
    """
    if not any(os.path.isdir(directory) for directory in groups.values()):
        raise status.failure(status.NOT_FOUND, "cgroup does not exist")
    if "memory" in groups or "cpuacct" in groups or "pids" in groups:
        return any_of(metrics.METRICS_V1, _version1(groups))
    return any_of(metrics.METRICS_V2, _version2(groups["unified"]))


def _version1(groups: dict[str, str]) -> dict[str, Any]:
    memory, cpu, account = groups.get("memory"), groups.get("cpu"), groups.get("cpuacct")
    raw = _keyed(_read(memory, "memory.stat"))
    known = {field.name for field in metrics.METRICS_V1.numbers[4].table.fields}  # type: ignore[union-attr]
    told: dict[str, Any] = {}
    for key, value in raw.items():
        plain = key.removeprefix("total_")
        name = ("total_" if key != plain else "") + _V1_NAMES.get(plain, plain)
        name = {"hierarchical_memsw_limit": "hierarchical_swap_limit"}.get(name, name)
        if name in known:
            told[name] = value
    for name, prefix in (("usage", "memory."), ("swap", "memory.memsw."), ("kernel", "memory.kmem."),
                         ("kernel_tcp", "memory.kmem.tcp.")):
        if _read(memory, prefix + "usage_in_bytes"):
            told[name] = {
                "usage": _number(_read(memory, prefix + "usage_in_bytes")),
                "max": _number(_read(memory, prefix + "max_usage_in_bytes")),
                "limit": _number(_read(memory, prefix + "limit_in_bytes")),
                "failcnt": _number(_read(memory, prefix + "failcnt")),
            }
    ticks, throttling = _keyed(_read(account, "cpuacct.stat")), _keyed(_read(cpu, "cpu.stat"))
    limit = _number(_read(groups.get("pids"), "pids.max"))
    oom = _keyed(_read(memory, "memory.oom_control"))
    return {
        "pids": {
            "current": _number(_read(groups.get("pids"), "pids.current")),
            "limit": 0 if limit == metrics.UNLIMITED else limit,
        },
        "cpu": {
            "usage": {
                "total": _number(_read(account, "cpuacct.usage")),
                "kernel": ticks.get("system", 0) * _TICK_NS, "user": ticks.get("user", 0) * _TICK_NS,
                "per_cpu": [int(word) for word in _read(account, "cpuacct.usage_percpu").split() if word.isdecimal()],
            },
            "throttling": {
                "periods": throttling.get("nr_periods", 0), "throttled_periods": throttling.get("nr_throttled", 0),
                "throttled_time": throttling.get("throttled_time", 0),
            },
        },
        "memory": told,
        "blkio": {
            name: _blkio(_read(groups.get("blkio"), f"blkio.{file}"))
            for name, file in (("io_service_bytes_recursive", "throttle.io_service_bytes_recursive"),
                               ("io_serviced_recursive", "throttle.io_serviced_recursive"))
        },
        "memory_oom_control": {key: oom.get(key, 0) for key in ("oom_kill_disable", "under_oom", "oom_kill")},
    }


def _blkio(text: str) -> list[dict[str, Any]]:
    entries = []
    for line in text.splitlines()[:4096]:
        words = line.split()
        if len(words) == 3 and ":" in words[0] and words[2].isdecimal():
            major, _, minor = words[0].partition(":")
            if major.isdecimal() and minor.isdecimal():
                entries.append({"op": words[1], "major": int(major), "minor": int(minor), "value": int(words[2])})
    return entries


def _version2(directory: str) -> dict[str, Any]:
    cpu, memory = _keyed(_read(directory, "cpu.stat")), _keyed(_read(directory, "memory.stat"))
    events = _keyed(_read(directory, "memory.events"))
    usage = []
    for line in _read(directory, "io.stat").splitlines()[:4096]:
        device, _, rest = line.partition(" ")
        major, _, minor = device.partition(":")
        if major.isdecimal() and minor.isdecimal():
            pairs = dict(word.split("=", 1) for word in rest.split() if "=" in word)
            counts = {key: _number(pairs.get(key, "")) for key in metrics.IO_KEYS_V2}
            usage.append({"major": int(major), "minor": int(minor), **counts})
    return {
        "pids": {
            "current": _number(_read(directory, "pids.current")), "limit": _number(_read(directory, "pids.max")),
        },
        "cpu": {key: cpu.get(key, 0) for key in metrics.CPU_KEYS_V2},
        "memory": {
            **{key: memory.get(key, 0) for key in metrics.MEMORY_KEYS_V2},
            "usage": _number(_read(directory, "memory.current")),
            "usage_limit": _number(_read(directory, "memory.max")),
            "swap_usage": _number(_read(directory, "memory.swap.current")),
            "swap_limit": _number(_read(directory, "memory.swap.max")),
        },
        "io": {"usage": usage},
        "memory_events": {key: events.get(key, 0) for key in metrics.EVENT_KEYS_V2},
    }
