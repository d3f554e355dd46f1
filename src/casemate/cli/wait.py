"""``casemate wait``: wait for containers to end, and print their exit statuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.cli import common
from casemate.errors import NotRunning

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "CONTAINER..."


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")


def run(config: Config, args: Any) -> int:
    """Print the exit status of each container, in the order asked, once it has ended."""
    from casemate.keeper.client import Client

    store = common.containers(config)

    def wait(reference: str) -> None:
        container = store.get(reference)
        state = container.state()
        if state.status != "exited":
            try:
                with Client(container) as client:
                    print(client.wait(), flush=True)
                return
            except NotRunning:
                # It ended between the two looks; what it left on disk tells the rest.
                state = container.state()
                if state.status != "exited":
                    raise
        print(state.exit_code if state.exit_code is not None else 255, flush=True)

    return common.each(args.containers, wait)
