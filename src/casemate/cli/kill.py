"""``casemate kill``: send a signal to containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.cli import common, values

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[OPTIONS] CONTAINER..."


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.value("-s", "--signal", metavar="SIGNAL", default="KILL", help="what to send (KILL)")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")


def run(config: Config, args: Any) -> int:
    """Send the signal to each container."""
    from casemate.keeper.client import Client

    signum = values.signal(args.signal)
    store = common.containers(config)

    def kill(reference: str) -> None:
        with Client(store.get(reference)) as client:
            client.signal(signum)
        print(reference, flush=True)

    return common.each(args.containers, kill)
