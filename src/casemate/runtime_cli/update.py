"""``update``: change the bounds of a running container."""

from __future__ import annotations

import sys
from typing import Any

from casemate.errors import NotRunning, Unsupported, UsageError
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import NUMBER, TEXT, Option, Options

USAGE = "[options] <container-id>"
OPTIONS = (
    Option("resources, r", TEXT, "path to the file with the resources to update, or '-' for standard input"),
    Option("blkio-weight", NUMBER, "per cgroup weight, range is from 10 to 1000"),
    Option("cpu-period", TEXT, "CPU CFS period to be used for hardcapping (in usecs)"),
    Option("cpu-quota", TEXT, "CPU CFS hardcap limit (in usecs)"),
    Option("cpu-share", TEXT, "CPU shares (relative weight vs. other containers)"),
    Option("cpu-rt-period", TEXT, "not supported"),
    Option("cpu-rt-runtime", TEXT, "not supported"),
    Option("cpuset-cpus", TEXT, "CPU(s) to use"),
    Option("cpuset-mems", TEXT, "Memory node(s) to use"),
    Option("kernel-memory", TEXT, "accepted and of no effect, as with runc"),
    Option("kernel-memory-tcp", TEXT, "accepted and of no effect, as with runc"),
    Option("memory", TEXT, "Memory limit (in bytes)"),
    Option("memory-reservation", TEXT, "Memory reservation or soft_limit (in bytes)"),
    Option("memory-swap", TEXT, "Total memory usage (memory + swap); set '-1' to enable unlimited swap"),
    Option("pids-limit", NUMBER, "Maximum number of pids allowed in the container"),
    Option("l3-cache-schema", TEXT, "not supported"),
    Option("mem-bw-schema", TEXT, "not supported"),
)
ARGUMENTS = (1, 1)
MAX_INPUT = 1 << 20
UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Change them."""
    from casemate.oci import bundle
    from casemate.pod.client import PodClient

    record = context.store.get(arguments[0])
    if record.status not in ("created", "running", "paused"):
        raise NotRunning("container not running")
    if options["resources"] == "-":
        resources = bundle.parse(sys.stdin.buffer.read(MAX_INPUT + 1), "resources")
    elif options["resources"]:
        resources = bundle.read_json(options["resources"], "resources")
    else:
        resources = _from_options(options)
    PodClient(context.store, record.pod).update(record.id, bundle.check_resources(resources))
    return 0


def _from_options(options: Options) -> dict[str, Any]:
    for name in ("cpu-rt-period", "cpu-rt-runtime", "l3-cache-schema", "mem-bw-schema"):
        if options[name]:
            raise Unsupported(f"--{name} cannot be applied: the container's kernel has no such thing", "leave it out")
    cpu = {
        key: _number(option, options[option])
        for option, key in (("cpu-period", "period"), ("cpu-quota", "quota"), ("cpu-share", "shares"))
        if options[option]
    }
    cpu |= {key: options[f"cpuset-{key}"] for key in ("cpus", "mems") if options[f"cpuset-{key}"]}
    memory = {
        key: _bytes(option, options[option])
        for option, key in (("memory", "limit"), ("memory-reservation", "reservation"), ("memory-swap", "swap"))
        if options[option]
    }
    resources: dict[str, Any] = {"cpu": cpu, "memory": memory}
    if options["pids-limit"]:
        resources["pids"] = {"limit": options["pids-limit"]}
    if options["blkio-weight"]:
        resources["blockIO"] = {"weight": options["blkio-weight"]}
    return {key: value for key, value in resources.items() if value}


def _number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"invalid value for {option}: {text}") from None


def _bytes(option: str, text: str) -> int:
    """A size as Go's units.RAMInBytes reads it: ``512m``, ``1.5GiB``, ``-1``."""
    if text == "-1":
        return -1
    number = text.rstrip("bBiIkKmMgGtTpP ")
    unit = text[len(number) :].strip().lower().removesuffix("b").removesuffix("i")
    try:
        if unit not in UNITS or float(number) < 0:
            raise ValueError
        return int(float(number) * UNITS[unit])
    except (ValueError, OverflowError):
        raise UsageError(f"invalid value for {option}: {text}") from None
