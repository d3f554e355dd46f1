"""``casemate stop``: ask containers to end, and end them after a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.cli import common, output, values
from casemate.errors import NotRunning

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[OPTIONS] CONTAINER..."


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.value("-t", "--time", "--timeout", dest="time", metavar="SECONDS", help="how long to wait before SIGKILL")
    parser.value("-s", "--signal", metavar="SIGNAL", help="what to send; the container's stop signal otherwise")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")


def run(config: Config, args: Any) -> int:
    """Stop each container; one that has ended already is fine."""
    from casemate.keeper.client import Client

    timeout = values.seconds(args.time, "-t") if args.time is not None else float(config.stop_timeout)
    signum = values.signal(args.signal) if args.signal else 0
    store = common.containers(config)

    def stop(reference: str) -> None:
        container = store.get(reference)
        if container.state().status != "exited":
            try:
                with Client(container) as client, output.progress(f"stopping {container.name}"):
                    client.stop(timeout, signum or container.spec.stop_signal)
            except NotRunning:
                if container.state().status != "exited":
                    raise
        print(reference, flush=True)

    return common.each(args.containers, stop)
