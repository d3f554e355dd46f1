"""``kill``: send a signal to a container's process, or to all of them."""

from __future__ import annotations

import signal

from casemate.errors import ContainerError, NotRunning, UsageError
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import BOOL, Option, Options

USAGE = "[options] <container-id> [signal]"
OPTIONS = (Option("all, a", BOOL, "send the specified signal to all processes inside the container"),)
ARGUMENTS = (1, 2)
LAST_SIGNAL = 64


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Send it."""
    from casemate.pod.client import PodClient

    record = context.store.get(arguments[0])
    number = signal_number(arguments[1] if len(arguments) > 1 else "SIGTERM")
    if record.status not in ("created", "running", "paused"):
        if options["all"] and record.status == "stopped":
            return 0  # as with runc: all of its processes have had it
        raise NotRunning("container not running")
    if not 0 <= number <= LAST_SIGNAL:
        raise ContainerError("unable to signal init: invalid argument")
    if number == 0:
        return 0
    try:
        PodClient(context.store, record.pod).kill(record.id, number, everyone=options["all"])
    except NotRunning:
        if options["all"]:
            return 0
        raise NotRunning("container not running") from None
    return 0


def signal_number(text: str) -> int:
    """The number of a signal, given as such or by name, with or without ``SIG``.

    Raises:
        UsageError: there is none of that name.
    """
    try:
        return int(text)
    except ValueError:
        pass
    name = text.upper().removeprefix("SIG")
    start, offset = name, 0
    try:
        for edge in ("RTMIN+", "RTMAX-"):
            if name.startswith(edge):
                start, offset = edge[:-1], int(name[len(edge) - 1 :])
        return int(signal.Signals[f"SIG{start}"]) + offset
    except (KeyError, ValueError):
        raise UsageError(f'unknown signal "{text}"') from None
