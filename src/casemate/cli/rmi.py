"""``casemate rmi``: remove images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.cli import common
from casemate.errors import ImageNotFound

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[OPTIONS] IMAGE..."


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("-f", "--force", help="even if a container that has ended uses it; one that is not there is no error")
    parser.add_argument("images", metavar="IMAGE", nargs="+")


def run(config: Config, args: Any) -> int:
    """Remove each image, or the name of it that was given when it has others."""
    images = common.images(config)

    def remove(reference: str) -> None:
        try:
            removed = images.remove(reference, force=args.force)
        except ImageNotFound:
            if not args.force:
                raise
            return
        for name in removed.untagged:
            print(f"Untagged: {name}", flush=True)
        for identifier in removed.deleted:
            print(f"Deleted: {identifier}", flush=True)
        for identifier in removed.kept:
            print(f"Kept until the containers that use it are removed: {identifier}", flush=True)

    return common.each(args.images, remove)
