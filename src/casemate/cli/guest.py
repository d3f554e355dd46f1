"""``casemate guest``: build, list and inspect guest bundles, the kernel and root image of every virtual machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate import ids
from casemate.cli import output
from casemate.errors import GuestMissing, UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "build [--update] | list | inspect [DIGEST] | prune"
ACTIONS = ("build", "list", "inspect", "prune")
HEAD = ("DIGEST", "VERSION", "KERNEL", "SIZE", "IN USE")
CACHE = "/var/cache/casemate"
"""Where downloaded packages are kept; ``CASEMATE_CACHE`` names another directory."""


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("--update", help="build: look for newer packages, and build again when there are any")
    parser.add_argument("action", metavar="ACTION", help="build, list, inspect or prune (remove those not in use)")
    parser.add_argument("digest", metavar="DIGEST", nargs="?", default="", help="inspect: the beginning is enough")


def run(config: Config, args: Any) -> int:
    """Do the action."""
    if args.action not in ACTIONS:
        raise UsageError(f"unknown action {args.action!r} for guest", f"one of {', '.join(ACTIONS)}")
    if args.digest and args.action != "inspect":
        raise UsageError(f"unexpected argument {args.digest!r}", "see: casemate guest --help")
    from casemate.vm import guest

    if args.action == "build":
        cache = Path(os.environ.get("CASEMATE_CACHE") or CACHE)
        with output.Steps() as steps:
            bundle = guest.build(config.root, cache, steps, update=args.update)
        print(bundle.digest)
    elif args.action == "list":
        current = guest.current(config.root)
        rows = [
            [
                ids.short(bundle.digest), bundle.version, bundle.kernel_release,
                output.size(sum(path.stat().st_size for path in (bundle.kernel, bundle.initrd, bundle.root))),
                "yes" if bundle.digest == current else "",
            ]
            for bundle in guest.list_bundles(config.root)
        ]  # fmt: skip
        print(output.table(HEAD, rows))
    elif args.action == "inspect":
        print(json.dumps(_find(config, args.digest).manifest, indent=4))
    else:
        for digest in guest.prune(config.root):
            print(digest)
    return 0


def _find(config: Config, digest: str) -> Any:
    from casemate.vm import guest

    if not digest:
        return guest.find(config.root, config.guest)
    found = [bundle for bundle in guest.list_bundles(config.root) if bundle.digest.startswith(digest)]
    if len(found) != 1:
        what = "no guest bundle begins" if not found else f"{len(found)} guest bundles begin"
        raise GuestMissing(f"{what} with {digest}", "'casemate guest list' shows them")
    return found[0]
