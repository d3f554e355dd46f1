"""``list``: all containers of the root."""

from __future__ import annotations

import json
import sys

from casemate.errors import UsageError
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import BOOL, TEXT, Option, Options

USAGE = "[options]"
OPTIONS = (
    Option("format, f", TEXT, "select one of: table or json", "table"),
    Option("quiet, q", BOOL, "display only container IDs"),
)
ARGUMENTS = (0, 0)
COLUMNS = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")
LEAST_WIDTH, GAP = 12, 3


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Print them."""
    from casemate.runtime_cli.state import state

    states = [state(record, _user(record.owner)) for record in context.store.list()]
    if options["quiet"]:
        sys.stdout.write("".join(f"{one['id']}\n" for one in states))
    elif options["format"] == "json":
        sys.stdout.write(json.dumps(states or None, separators=(",", ":"), ensure_ascii=False) + "\n")
    elif options["format"] == "table":
        rows = [COLUMNS, *(tuple(str(one[name.lower()]) for name in COLUMNS) for one in states)]
        widths = [max(LEAST_WIDTH, *(len(row[n]) + GAP for row in rows)) for n in range(len(COLUMNS) - 1)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            sys.stdout.write("".join(cells) + row[-1] + "\n")
    else:
        raise UsageError("invalid format option")
    sys.stdout.flush()
    return 0


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
