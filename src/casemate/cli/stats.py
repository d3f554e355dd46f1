"""``casemate stats``: what containers use, as their guests and the host see it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from casemate.cli import common, output
from casemate.errors import CasemateError, NotRunning

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config
    from casemate.keeper.store import Container

USAGE = "[OPTIONS] [CONTAINER...]"
INTERVAL = 1.0
"""Seconds between two looks: what processor time is measured over."""
HEAD = ("CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "HOST MEM", "NET I/O", "PIDS")
KEYS = ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "HostMem", "NetIO", "PIDs")


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("--no-stream", help="look once and leave")
    parser.value("--format", metavar="FORMAT", default="table", help="table (default), json, or such as {{.MemUsage}}")
    parser.add_argument("containers", metavar="CONTAINER", nargs="*")


def run(config: Config, args: Any) -> int:
    """Print one row for each container that runs, again and again unless told otherwise."""
    store = common.containers(config)
    live = not args.no_stream and output.is_terminal(sys.stdout) and args.format == "table"
    before: dict[str, tuple[float, int]] = {}
    # A container that was named and does not run is an error; without names, those that run are what there is.
    named = [store.get(reference) for reference in args.containers]
    for container in named:
        if container.state().status not in ("running", "paused"):
            raise NotRunning(f"container {container.name} is not running")
    _collect(named or store.list(), before)
    while True:
        _rest(INTERVAL)
        rows = _collect(named or store.list(), before)
        text = _format(args.format, rows)
        if live:
            sys.stdout.write("\x1b[H\x1b[2J" + text + "\n")
            sys.stdout.flush()
        elif text:
            print(text, flush=True)
        if named and not rows:
            return 1
        if args.no_stream:
            return 0


def _rest(seconds: float) -> None:
    """The pause between two measurements; it measures time itself, and stands for no event."""
    time.sleep(seconds)


def _format(form: str, rows: list[dict[str, str]]) -> str:
    if form == "table":
        return output.table(HEAD, [[row[key] for key in KEYS] for row in rows])
    if form == "json":
        import json

        return "\n".join(json.dumps(row) for row in rows)
    from casemate.cli.template import render

    return "\n".join(render(form, row) for row in rows)


def _collect(containers: list[Container], before: dict[str, tuple[float, int]]) -> list[dict[str, str]]:
    from casemate.keeper.client import Client

    rows = []
    for container in containers:
        try:
            if container.state().status not in ("running", "paused"):
                continue
            with Client(container) as client:
                figures = client.stats()
        except NotRunning:
            continue  # it ended between the two calls
        except CasemateError as error:
            output.error(error, f"container {container.name}")
            continue
        now = time.monotonic()
        rows.append(row(container.id, container.name, figures, now, before))
    return rows


def row(
    identifier: str, name: str, figures: dict[str, Any], now: float, before: dict[str, tuple[float, int]]
) -> dict[str, str]:
    """The row of one container.

    Arguments:
        figures: what the keeper tells; the guest's part of it is not to be trusted, so nothing is taken for granted.
        now: monotonic seconds.
        before: the last time and processor time of each container; changed here.
    """
    memory, limit = _number(figures, "memory", "current"), _number(figures, "limit")
    limit = limit or _number(figures, "guest", "mem_total")
    usage = _number(figures, "cpu", "usage_us")
    then, used = before.get(identifier, (now, usage))
    before[identifier] = (now, usage)
    share = (usage - used) / ((now - then) * 1e6) * 100 if now > then else 0.0
    received = sent = 0
    interfaces = figures.get("net")
    for interface in interfaces if isinstance(interfaces, list) else []:
        if isinstance(interface, dict) and interface.get("name") != "lo":
            received += _number(interface, "rx_bytes")
            sent += _number(interface, "tx_bytes")
    from casemate.ids import short

    return {
        "ID": short(identifier),
        "Name": name,
        "CPUPerc": f"{max(share, 0.0):.2f}%",
        "MemUsage": f"{output.size(memory)} / {output.size(limit)}",
        "MemPerc": f"{memory / limit * 100 if limit else 0:.2f}%",
        "HostMem": output.size(_number(figures, "host", "memory")),
        "NetIO": f"{output.size(received)} / {output.size(sent)}",
        "PIDs": str(_number(figures, "pids", "current")),
    }


def _number(figures: dict[str, Any], *path: str) -> int:
    value: Any = figures
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 1 << 63 else 0
