"""``pause``: stop all processes of a container where they stand."""

from __future__ import annotations

from casemate.errors import NotRunning
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import Options

USAGE = "<container-id>"
OPTIONS = ()
ARGUMENTS = (1, 1)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Stop them."""
    from casemate.pod.client import PodClient

    record = context.store.get(arguments[0])
    if record.status not in ("created", "running"):
        raise NotRunning("container not running")
    PodClient(context.store, record.pod).pause(record.id)
    return 0
