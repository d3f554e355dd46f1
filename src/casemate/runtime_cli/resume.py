"""``resume``: let a paused container go on."""

from __future__ import annotations

from casemate.errors import NotRunning
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import Options

USAGE = "<container-id>"
OPTIONS = ()
ARGUMENTS = (1, 1)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Let it go on."""
    from casemate.pod.client import PodClient

    record = context.store.get(arguments[0])
    if record.status != "paused":
        raise NotRunning("container not paused")
    PodClient(context.store, record.pod).resume(record.id)
    return 0
