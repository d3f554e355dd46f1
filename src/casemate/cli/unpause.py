"""``casemate unpause``: let paused containers go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.cli import common

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "CONTAINER..."


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")


def run(config: Config, args: Any) -> int:
    """Resume each container."""
    from casemate.keeper.client import Client

    store = common.containers(config)

    def resume(reference: str) -> None:
        with Client(store.get(reference)) as client:
            client.resume()
        print(reference, flush=True)

    return common.each(args.containers, resume)
