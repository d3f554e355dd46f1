"""``casemate ksm``: the throttler of same-page merging, what it does, and the settings it found."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from casemate.errors import HostError, UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[--mode MODE] | --status [--json] | --restore"
ROOT = False


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.value("--mode", metavar="MODE", default="", help="auto, initial or off; ksm of the configuration otherwise")
    parser.flag("--status", help="show what it does, and what merging saves; needs no root")
    parser.flag("--json", help="with --status: as JSON")
    parser.flag("--restore", help="put back the settings that a killed throttler had found")


def run(config: Config, args: Any) -> int:
    """Throttle until a signal comes, or do what an option says instead."""
    from casemate.config import KSM
    from casemate.ksm.kept import Home

    if args.mode and args.mode not in KSM:
        raise UsageError(f"unknown mode {args.mode!r}", f"one of {', '.join(KSM)}")
    if bool(args.mode) + args.status + args.restore > 1:
        raise UsageError("--mode, --status and --restore exclude each other", "see: casemate ksm --help")
    if args.json and not args.status:
        raise UsageError("--json needs --status", "see: casemate ksm --help")
    home = Home(config.run)
    if args.status:
        from casemate.ksm import status

        found = status.status(config, home)
        print(json.dumps(found, indent=4) if args.json else "\n".join(status.lines(found)))
        return 0
    if os.geteuid() != 0:
        raise HostError("casemate ksm needs root", "try: sudo casemate ksm")
    if args.restore:
        return _restore(home)
    from casemate.ksm.daemon import Throttler

    return Throttler(config, args.mode or config.ksm, _say, home).run()


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # who read our messages may have gone; the work goes on
        print(f"casemate ksm: {text}", file=sys.stderr, flush=True)


def _restore(home: Any) -> int:
    if home.directory.is_dir():
        home.lock()  # until this process ends
        home.turn()  # behind a guard that is at it
        home.clear()
        if home.restore() is not None:
            print("the settings that the throttler had found are in force again")
            return 0
    print("there is nothing to restore")
    return 0
