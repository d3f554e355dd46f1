"""``casemate sentry``: what the application kernel serves, and what that of a running container knows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate.cli import common, output
from casemate.errors import HostError, NoSuchContainer, UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config
    from casemate.pod.store import PodStore

USAGE = "syscalls [--all] [--json] | ps|maps|fds|stacks [--json] [--root DIR] CONTAINER [PID]"
ROOT = False  # the list of calls needs nothing of it; the rest is checked below
PS = ("PID", "TID", "PPID", "THREADS", "S", "UID", "CALL", "WAITS FOR", "COMMAND")
MAPS = ("PID", "ADDRESSES", "ACCESS", "OFFSET", "SIZE", "WHAT")
AFTER = {
    "ERESTARTSYS": "a signal's handler has it made again with SA_RESTART, else end with EINTR",
    "ERESTARTNOINTR": "a signal's handler has it made again",
    "ERESTARTNOHAND": "a signal's handler ends it with EINTR",
    "killable": "only what ends the process ends it",
}
"""What a signal does to a call that waits, by the kernel's name for it, signal(7)."""
MOST = 80
"""How much of a command line ps shows; --json has more of it."""
FDS = ("PID", "FD", "KIND", "ACCESS", "OFFSET", "NAME", "FLAGS", "WHAT")


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.add_argument(
        "action", metavar="ACTION",
        help="syscalls: list the system calls that the sentry serves; of a running container: ps: processes, threads "
        "and what they wait for; maps: memory; fds: descriptors; stacks: the calls that threads stand in",
    )  # fmt: skip
    parser.add_argument("words", metavar="CONTAINER [PID]", nargs="*", help="which one, and one process of it")
    parser.flag("--all", help="syscalls: those that it does not know, too")
    parser.flag("--json", help="as JSON")
    parser.value("--root", metavar="DIR", default="", help="look among the containers of an engine that has this root")


def run(config: Config, args: Any) -> int:
    """Do the action."""
    if args.action == "syscalls":
        if args.words:
            raise UsageError(f"unexpected argument {args.words[0]!r}", "see: casemate sentry --help")
        return _syscalls(args)
    show = SHOWS.get(args.action)
    if show is None:
        known = ", ".join(("syscalls", *SHOWS))
        raise UsageError(f"casemate sentry does not know {args.action!r}", f"it knows {known}")
    if args.all:
        raise UsageError("--all is for syscalls", "see: casemate sentry --help")
    if not args.words:
        raise UsageError("missing CONTAINER", "see: casemate sentry --help")
    if len(args.words) > 2:
        raise UsageError(f"unexpected argument {args.words[2]!r}", "see: casemate sentry --help")
    pid = _number(args.words[1]) if len(args.words) == 2 else None
    if os.geteuid() != 0:
        raise HostError(f"casemate sentry {args.action} needs root", f"try: sudo casemate sentry {args.action} ...")
    found = _ask(config, args.words[0], args.root, args.action, pid)
    print(json.dumps(found["rows"], indent=2) if args.json else show(found["rows"]))
    if found.get("cut"):
        output.warn("there is more than one answer holds" + ("" if pid is not None else "; name a process"))
    return 0


def _ask(config: Config, reference: str, root: str, what: str, pid: int | None) -> dict[str, Any]:
    """Ask the keeper of a container: one of ``casemate run``'s, else one of an engine's.

    Arguments:
        reference: a name, an id, or the first characters of one.
        root: what the engine gives ``casemate-runtime`` as its ``--root``; empty for all that there are.
    """
    if not root:
        from casemate.keeper.client import Client

        try:
            container = common.containers(config).get(reference)
        except NoSuchContainer as error:
            found = _engines(config, reference, "")
            if found is None:
                raise error
        else:
            with Client(container) as client:
                return client.debug(what, pid)
    else:
        found = _engines(config, reference, root)
        if found is None:
            raise NoSuchContainer(f"no such container: {reference}", "see --root")
    from casemate.pod.client import PodClient

    store, id = found
    return PodClient(store, store.get(id).pod).debug(id, what, pid)


def _engines(config: Config, reference: str, root: str) -> tuple[PodStore, str] | None:
    """An engine's container: the store that has it, and its id; None where there is none.

    Raises:
        UsageError: there are several.
    """
    from casemate.pod import store as pods

    places = [Path(os.path.abspath(root))] if root else pods.roots(config)
    known = [(store, id) for store in (pods.PodStore(config, place) for place in places) for id in store.ids()]
    found = [(store, id) for store, id in known if id == reference]
    found = found or [(store, id) for store, id in known if reference and id.startswith(reference)]
    if len(found) > 1:
        where = ", ".join(f"{id[:12]} below {store.root}" for store, id in found[:5])
        raise UsageError(f"{reference} may be each of {where}", "give more of its id, or --root")
    return found[0] if found else None


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit() and 0 < int(word[:10]) < 1 << 31 and len(word) <= 10):
        raise UsageError(f"{word!r} is no number of a process", "'casemate sentry ps CONTAINER' shows them")
    return int(word)


# ---- what a running one knows


def _ps(rows: list[dict[str, Any]]) -> str:
    return output.table(PS, [
        [
            str(row["pid"]), str(row["tid"]), str(row["ppid"]), str(row["threads"]), row["state"], str(row["uid"]),
            row["call"] or "", (row["on"] or "") + _left(row), _cut(row["command"]),
        ]
        for row in rows
    ])  # fmt: skip


def _maps(rows: list[dict[str, Any]]) -> str:
    return output.table(MAPS, [
        [
            str(row["pid"]), f"{row['start']:08x}-{row['end']:08x}", row["access"], f"{row['offset']:x}",
            output.size(row["end"] - row["start"]), row["name"],
        ]
        for row in rows
    ])  # fmt: skip


def _fds(rows: list[dict[str, Any]]) -> str:
    return output.table(FDS, [
        [
            str(row["pid"]), str(row["fd"]), row["kind"], row["access"],
            "" if row["offset"] is None else str(row["offset"]), row["name"], ",".join(row["flags"]), row["what"],
        ]
        for row in rows
    ])  # fmt: skip


def _stacks(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        lines.append(f"{row['pid']}/{row['tid']} {row['name']} ({row['state']}{', paused' if row['frozen'] else ''})")
        if row["call"]:
            lines.append(f"    {row['call']}")
        lines.append(f"    {'waits for ' if row['restart'] else ''}{row['why']}{_left(row)}")
        if row["partial"]:
            lines.append(f"    has done {row['partial']} so far")
        if row["restart"]:
            lines.append(f"    {AFTER.get(row['restart'], row['restart'])}")
        for what in ("pending", "blocked"):
            if row[what]:
                lines.append(f"    signals {what}: {' '.join(row[what])}")
    return "\n".join(output.printable(line) for line in lines)


def _cut(command: str) -> str:
    return command if len(command) <= MOST else command[: MOST - 3] + "..."


def _left(row: dict[str, Any]) -> str:
    return "" if row["left_ms"] is None else f", {row['left_ms'] / 1000:.1f}s left"


SHOWS = {"ps": _ps, "maps": _maps, "fds": _fds, "stacks": _stacks}


# ---- what it serves


def _syscalls(args: Any) -> int:
    from casemate.sentry.syscalls.numbers import NAMES
    from casemate.sentry.syscalls.table import Support, load

    table = load()
    rows = [
        {"number": number, "name": name, "support": table[number].support.value if number in table else "none",
         "note": table[number].note if number in table else "not known: ENOSYS"}
        for number, name in sorted(NAMES.items())
        if args.all or number in table
    ]  # fmt: skip
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        print(f"{row['number']:>4}  {row['name']:<24} {row['support']:<8} {row['note']}".rstrip())
    counts = {one: sum(entry.support is one for entry in table.values()) for one in Support}
    print(f"\n{len(table)} system calls: {counts[Support.FULL]} full, {counts[Support.PARTIAL]} in part, "
          f"{counts[Support.NONE]} answer an error that programs know")  # fmt: skip
    return 0
