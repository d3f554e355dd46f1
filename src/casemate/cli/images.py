"""``casemate images``: list images."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from casemate import ids
from casemate.cli import common, output

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config
    from casemate.oci.store import Image

USAGE = "[OPTIONS]"
HEAD = ("IMAGE", "IMAGE ID", "FETCHED", "SIZE")


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("-q", "--quiet", help="ids alone")
    parser.flag("--no-trunc", help="cut nothing off")
    parser.value("--format", metavar="FORMAT", default="table", help="table (default), json, or such as {{.ID}}")


def run(config: Config, args: Any) -> int:
    """Print the images, one row for each name."""
    now = time.time()
    rows = [row for image in common.images(config).list() for row in _rows(image, now, args.no_trunc)]
    if args.quiet:
        text = "\n".join(dict.fromkeys(row["ID"] for row in rows))
    elif args.format == "json":
        text = "\n".join(json.dumps(row) for row in rows)
    elif args.format == "table":
        text = output.table(HEAD, [[row[key] for key in ("Name", "ID", "CreatedSince", "Size")] for row in rows])
    else:
        from casemate.cli.template import render

        text = "\n".join(output.printable(render(args.format, row)) for row in rows)
    if text:
        print(text)
    return 0


def _rows(image: Image, now: float, whole: bool) -> list[dict[str, str]]:
    bare = image.id.removeprefix("sha256:")
    identifier = image.id if whole else ids.short(bare)
    rows = []
    for name in image.display_names or ("<none>",):
        repository, tag = name, "<none>"
        if ":" in name.rpartition("/")[2] and "@" not in name:
            repository, _, tag = name.rpartition(":")
        rows.append({
            "Name": name, "Repository": repository, "Tag": tag, "ID": identifier,
            "CreatedSince": f"{output.ago(now - image.pulled)} ago", "CreatedAt": image.created,
            "Size": output.size(image.size),
        })  # fmt: skip
    return rows
