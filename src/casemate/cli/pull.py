"""``casemate pull``: fetch images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.cli import common, output

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[OPTIONS] SOURCE..."


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("-q", "--quiet", help="ids alone, and no progress")
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="+",
        help="NAME[:TAG|@DIGEST], docker://NAME, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, dir:DIR",
    )  # fmt: skip


def run(config: Config, args: Any) -> int:
    """Fetch each image and print its id."""
    images = common.images(config)

    def pull(source: str) -> None:
        if args.quiet:
            image = images.pull(source, lambda text: None)
        else:
            with output.Steps() as steps:
                image = images.pull(source, steps)
        print(image.id, flush=True)

    return common.each(args.sources, pull)
