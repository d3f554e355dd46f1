"""``casemate ps``: list containers."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from casemate import ids
from casemate.cli import common, output
from casemate.errors import NoSuchContainer, StateError, UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config
    from casemate.keeper.store import Container, ContainerSpec, ContainerState

USAGE = "[OPTIONS]"
STATUSES = ("creating", "running", "paused", "exited")
WIDTH = 30
"""How much of a command is shown."""
HEAD = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES")


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("-a", "--all", help="those that have ended too")
    parser.flag("-q", "--quiet", help="ids alone")
    parser.flag("--no-trunc", help="cut nothing off")
    parser.values("-f", "--filter", metavar="KEY=VALUE", help="by name, id, label, status, ancestor or exited")
    parser.value("--format", metavar="FORMAT", default="table", help="table (default), json, or such as {{.Names}}")


def run(config: Config, args: Any) -> int:
    """Print the containers, newest first."""
    wanted = filters(args.filter)
    by_status = any(value.startswith("status=") or value.startswith("exited=") for value in args.filter)
    now = time.time()
    rows = []
    for container in reversed(common.containers(config).list()):
        try:
            spec, state = container.spec, container.state()
        except NoSuchContainer:
            continue  # removed since it was listed
        except StateError as error:
            output.error(error, f"container {ids.short(container.id)}")
            continue
        if not (args.all or by_status or state.status != "exited"):
            continue
        if all(test(spec, state) for test in wanted):
            rows.append(_row(container, spec, state, now, args.no_trunc))
    if args.quiet:
        text = "\n".join(row["ID"] for row in rows)
    elif args.format == "json":
        import json

        text = "\n".join(json.dumps(row) for row in rows)
    elif args.format == "table":
        keys = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")
        text = output.table(HEAD, [[row[key] for key in keys] for row in rows])
    else:
        from casemate.cli.template import render

        text = "\n".join(output.printable(render(args.format, row)) for row in rows)
    if text:
        print(text)
    return 0


def _row(
    container: Container, spec: ContainerSpec, state: ContainerState, now: float, whole: bool
) -> dict[str, str]:
    command = shlex.join(spec.command)
    if not whole and len(command) > WIDTH:
        command = command[: WIDTH - 1] + "…"
    return {
        "ID": container.id if whole else ids.short(container.id),
        "Image": spec.image,
        "Command": command,
        "CreatedAt": output.timestamp(spec.created),
        "RunningFor": f"{output.ago(now - spec.created)} ago",
        "State": state.status,
        "Status": common.state_words(state, now),
        "Ports": ", ".join(map(str, state.ports)) if state.status != "exited" else "",
        "Names": spec.name,
        "Labels": ",".join(f"{name}={value}" for name, value in sorted(spec.labels.items())),
        "Networks": spec.network,
    }


def filters(values: list[str]) -> list[Callable[[ContainerSpec, ContainerState], bool]]:
    """Tests for ``KEY=VALUE`` words: those of one key are alternatives (labels are not), keys have to hold together.

    Raises:
        UsageError: a key or value is unknown.
    """
    groups: dict[str, list[str]] = {}
    for value in values:
        key, equals, content = value.partition("=")
        if not equals or key not in ("name", "id", "label", "status", "ancestor", "exited"):
            raise UsageError(f"bad filter {value!r}", "use name=, id=, label=, status=, ancestor= or exited=")
        if key == "status" and content not in STATUSES:
            raise UsageError(f"unknown status {content!r}", f"one of {', '.join(STATUSES)}")
        if key == "exited" and not content.isdecimal():
            raise UsageError(f"bad filter {value!r}", "such as exited=137")
        groups.setdefault(key, []).append(content)
    return [_test(key, contents) for key, contents in groups.items()]


def _test(key: str, contents: list[str]) -> Callable[[ContainerSpec, ContainerState], bool]:
    def test(spec: ContainerSpec, state: ContainerState) -> bool:
        if key == "label":
            return all(_labelled(spec.labels, content) for content in contents)
        if key == "name":
            return any(content in spec.name for content in contents)
        if key == "id":
            return any(spec.id.startswith(content) for content in contents)
        if key == "ancestor":
            return any(content in (spec.image, spec.image_id) for content in contents)
        if key == "exited":
            return state.status == "exited" and any(state.exit_code == int(content) for content in contents)
        return state.status in contents

    return test


def _labelled(labels: dict[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)
