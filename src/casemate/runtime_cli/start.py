"""``start``: let the process of a created container run."""

from __future__ import annotations

from casemate.errors import CasemateError, ContainerError
from casemate.pod import hooks
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import Options

USAGE = "<container-id>"
OPTIONS = ()
ARGUMENTS = (1, 1)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Start it, and run its poststart hooks, which may fail (runtime.md, "Lifecycle")."""
    from casemate.pod.client import PodClient

    id = arguments[0]
    record = context.store.get(id)
    if record.status == "stopped":
        raise ContainerError("cannot start a container that has stopped")
    if record.status == "running":
        raise ContainerError("cannot start an already running container")
    if record.status != "created":
        raise ContainerError(f"cannot start a container in the {record.status} state")
    start(context, PodClient(context.store, record.pod), id, context.store.spec(id), record.pid, record.bundle)
    return 0


def start(context: Context, client: object, id: str, spec: dict[str, object], pid: int, bundle: str) -> None:
    """Start a created container.

    Raises:
        CasemateError: it does not start.
    """
    from casemate.errors import CommandNotExecutable, CommandNotFound
    from casemate.runtime_cli.making import command_error

    try:
        client.start(id)  # type: ignore[attr-defined]
    except (CommandNotFound, CommandNotExecutable) as error:
        raise CasemateError(command_error(spec["process"], error)) from None  # type: ignore[arg-type]
    for problem in hooks.run_all(spec, "poststart", hooks.state(spec, id, "running", pid, bundle)):
        context.log.warning(problem)
