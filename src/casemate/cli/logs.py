"""``casemate logs``: show what a container wrote."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from casemate.cli import common, output, values

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[OPTIONS] CONTAINER"


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("-f", "--follow", help="go on until the container ends")
    parser.value("-n", "--tail", metavar="LINES", default="all", help="begin with the last LINES lines")
    parser.value("--since", metavar="TIME", help="leave out what is older: 10m, or 2026-01-31T12:00:00Z")
    parser.flag("-t", "--timestamps", help="put the time before each line")
    parser.add_argument("container", metavar="CONTAINER")


def run(config: Config, args: Any) -> int:
    """Write standard output to ours and standard error to ours, byte by byte as they came."""
    from casemate.keeper import logs

    tail = None if args.tail == "all" else values.count(args.tail, "--tail", -1, 10**12)
    since = values.since(args.since, time.time()) if args.since is not None else None
    container = common.containers(config).get(args.container)
    streams = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    fresh = dict.fromkeys(streams, True)
    # A negative count means all, as with Docker.
    for when, name, data in logs.read(
        container, follow=args.follow, since=since, tail=None if tail is not None and tail < 0 else tail
    ):
        out = streams[name]
        out.write(stamped(data, when, fresh[name]) if args.timestamps else data)
        fresh[name] = data.endswith(b"\n")
        out.flush()
    return 0


def stamped(data: bytes, when: float, fresh: bool) -> bytes:
    """``data`` with the time before each line that begins in it.

    Arguments:
        fresh: whether ``data`` begins a line.
    """
    prefix = output.timestamp(when).encode() + b" "
    lines = data.splitlines(keepends=True) if b"\r" not in data else _lines(data)
    return b"".join(prefix + line if index or fresh else line for index, line in enumerate(lines))


def _lines(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])
