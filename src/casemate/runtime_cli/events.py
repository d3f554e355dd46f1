"""``events``: what a container uses, once or again and again, and when it was short of memory."""

from __future__ import annotations

import json
import re
import sys
import threading
from typing import Any

from casemate.errors import CasemateError, ContainerError, NoSuchContainer, UsageError
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import BOOL, TEXT, Option, Options

USAGE = "[options] <container-id>"
OPTIONS = (
    Option("interval", TEXT, "set the stats collection interval", "5s"),
    Option("stats", BOOL, "display the container's stats then exit"),
)
ARGUMENTS = (1, 1)
LIVE = ("created", "running", "paused")
NO_LIMIT = (1 << 64) - 1
"""As the library behind runc says it for control groups of version 2, which is what a guest has. No count is more."""
MAX_ENTRIES = 1024
"""Devices, interfaces and figures of memory that are told of one guest."""
MAX_NAME = 64
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Print events, one JSON object a line, until the container ends."""
    from casemate.pod.client import PodClient

    record = context.store.get(arguments[0])
    interval = duration(options["interval"])
    if interval <= 0:
        raise UsageError("duration interval must be greater than 0")
    if record.status not in LIVE:
        raise ContainerError(f"container with id {record.id} is not running")
    client = PodClient(context.store, record.pod)
    if options["stats"]:
        _print("stats", record.id, statistics(client.stats(record.id)))
        return 0
    return _follow(context, client, record.id, interval)


def _follow(context: Context, client: Any, id: str, interval: float) -> int:
    ended = threading.Event()
    lock = threading.Lock()

    def sample() -> None:
        while not ended.wait(interval):
            try:
                found = statistics(client.stats(id))
            except CasemateError:
                continue  # it ends just now, or is short of something for the moment
            with lock:
                _print("stats", id, found)

    threading.Thread(target=sample, daemon=True).start()
    for event in client.events():
        if event["event"] == "ready" and _is_over(context, id):
            break  # before anybody would have told us
        if event.get("id") != id:
            continue
        if event["event"] == "oom":
            with lock:
                _print("oom", id, None)
        elif event["event"] == "exit" and event.get("exec") is None:
            break
    ended.set()
    return 0


def _is_over(context: Context, id: str) -> bool:
    try:
        return context.store.get(id).status not in LIVE
    except NoSuchContainer:
        return True


def _print(kind: str, id: str, data: dict[str, Any] | None) -> None:
    event: dict[str, Any] = {"type": kind, "id": id}
    if data is not None:
        event["data"] = data
    sys.stdout.write(json.dumps(event, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def duration(text: str) -> float:
    """Seconds of a time as Go writes it: ``5s``, ``1m30s``, ``250ms``.

    Raises:
        UsageError: it is none.
    """
    parts = _DURATION.findall(text)
    if text == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise UsageError(f'invalid value "{text}" for flag -interval: parse error')
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def statistics(found: dict[str, Any]) -> dict[str, Any]:
    """What the guest counts, in the shape of runc's ``types.Stats``. A guest may send anything: what is no count
    says nothing."""
    memory, cpu, pids = (_section(found, name) for name in ("memory", "cpu", "pids"))
    figures = list(_section(memory, "stat").items())[:MAX_ENTRIES]
    raw = {key: _count(value) for key, value in figures if len(key) <= MAX_NAME}
    usage = {"limit": _limit(memory.get("max")), "failcnt": _count(memory.get("oom_kills"))}
    usage |= _some({"usage": _count(memory.get("current")), "max": _count(memory.get("peak"))})
    none = {"limit": 0, "failcnt": 0}
    return {
        "cpu": {
            "usage": {
                **_some({"total": _nanoseconds(cpu.get("usage_us"))}),
                "kernel": _nanoseconds(cpu.get("system_us")),
                "user": _nanoseconds(cpu.get("user_us")),
            },
            "throttling": _some(
                {
                    "periods": _count(cpu.get("nr_periods")),
                    "throttledPeriods": _count(cpu.get("nr_throttled")),
                    "throttledTime": _nanoseconds(cpu.get("throttled_us")),
                }
            ),
        },
        "cpuset": {
            "cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0, "memory_spread_page": 0,
            "memory_spread_slab": 0, "memory_pressure": 0, "sched_load_balance": 0, "sched_relax_domain_level": 0,
        },
        "memory": {
            **_some({"cache": raw.get("file")}), "usage": usage, "swap": none, "kernel": none, "kernelTCP": none,
            "raw": raw,
        },
        "pids": _some({"current": _count(pids.get("current")), "limit": _count(pids.get("max"))}),
        "blkio": _block_io(_objects(found, "io")),
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": [_interface(one) for one in _objects(found, "net")] or None,
    }  # fmt: skip


def _section(found: dict[str, Any], name: str) -> dict[str, Any]:
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def _objects(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = found.get(name)
    return [one for one in value[:MAX_ENTRIES] if isinstance(one, dict)] if isinstance(value, list) else []


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= NO_LIMIT else 0


def _limit(value: Any) -> int:
    return NO_LIMIT if value is None else _count(value)


def _nanoseconds(microseconds: Any) -> int:
    return min(_count(microseconds) * 1000, NO_LIMIT)


def _some(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is zero or unknown, as Go's omitempty leaves it out."""
    return {key: value for key, value in values.items() if value}


def _block_io(devices: list[dict[str, Any]]) -> dict[str, Any]:
    sizes: list[dict[str, Any]] = []
    counts: list[dict[str, Any]] = []
    for device in devices:
        for entries, kinds in ((sizes, ("rbytes", "wbytes")), (counts, ("rios", "wios"))):
            for op, key in zip(("Read", "Write"), kinds, strict=True):
                entry = {"major": device.get("major"), "minor": device.get("minor"), "value": device.get(key)}
                entry = {name: _count(value) for name, value in entry.items()}
                entries.append(_some(entry) | {"op": op})
    return _some({"ioServiceBytesRecursive": sizes, "ioServicedRecursive": counts})


def _interface(one: dict[str, Any]) -> dict[str, Any]:
    """Of a network interface of the guest's."""
    names = {"rx_bytes": "RxBytes", "rx_packets": "RxPackets", "rx_errors": "RxErrors", "rx_dropped": "RxDropped"}
    names |= {key.replace("rx", "tx"): name.replace("Rx", "Tx") for key, name in names.items()}
    name = one.get("name")
    return {
        "Name": name[:MAX_NAME] if isinstance(name, str) else "",
        **{name: _count(one.get(key)) for key, name in names.items()},
    }
