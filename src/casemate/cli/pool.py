"""``casemate pool``: keep sandboxes ready, and what there is of them."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

from casemate.errors import UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[--size NUMBER] | --status [--json]"
LARGEST = 1024


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.value("--size", metavar="NUMBER", default="", help="how many; pool_size of the configuration otherwise")
    parser.flag("--status", help="show what there is and what was done")
    parser.flag("--json", help="with --status: as JSON")


def run(config: Config, args: Any) -> int:
    """Keep sandboxes ready until a signal comes, or do what an option says instead."""
    if args.size and args.status:
        raise UsageError("--size and --status exclude each other", "see: casemate pool --help")
    if args.json and not args.status:
        raise UsageError("--json needs --status", "see: casemate pool --help")
    if args.status:
        from casemate.pool import client

        found = client.status(config)
        print(json.dumps(found, indent=4) if args.json else "\n".join(lines(found)))
        return 0
    size = _size(args.size) if args.size else config.pool_size
    from casemate.pool import birth
    from casemate.pool.daemon import Pool

    birth.make_room(config)
    return Pool(config, size, _say).run()


def lines(found: dict[str, Any]) -> list[str]:
    """A status for people."""
    members = found["members"]
    ready = sum(1 for one in members if one["state"] == "ready")
    text = [
        f"ready        {ready} of {found['size']}",
        f"starting     {len(members) - ready}",
        f"handed out   {found['handed_out']}",
        f"refused      {found['refused']} (none was ready, or none fits)",
        f"made         {found['made']}, the last in {found['last_seconds'] or 0:.1f} s",
        f"replaced     {found['replaced']} (the guest or QEMU was renewed)",
        f"released     {found['released']} (the host was short of memory)",
        f"failures     {found['failures']}" + (f", the last: {found['last_error']}" if found["last_error"] else ""),
    ]
    if found["waits_for"]:
        text.append(f"waits for    {found['waits_for']}")
    return text


def _size(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= LARGEST:
        raise UsageError(f"{text!r} is no size of a pool", f"give a number from 1 to {LARGEST}")
    return int(text)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # who read our messages may have gone; the work goes on
        print(f"casemate pool: {text}", file=sys.stderr, flush=True)
