"""``casemate rm``: remove containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.cli import common
from casemate.errors import NoSuchContainer, UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[OPTIONS] CONTAINER..."


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("-f", "--force", help="end those that run; one that is not there is no error")
    parser.flag("-v", "--volumes", help="taken for Docker's sake: anonymous volumes are part of the container here")
    parser.flag("-a", "--all", help="every container that has ended; with -f, every one")
    parser.add_argument("containers", metavar="CONTAINER", nargs="*")


def run(config: Config, args: Any) -> int:
    """Remove each container."""
    store = common.containers(config)
    references = list(args.containers)
    if args.all:
        references += [each.id for each in store.list() if args.force or each.state().status == "exited"]
    elif not references:
        raise UsageError("no container named", "see: casemate rm --help")

    def remove(reference: str) -> None:
        try:
            store.get(reference).remove(force=args.force)
        except NoSuchContainer:
            if not args.force:
                raise
            return
        print(reference, flush=True)

    return common.each(references, remove)
