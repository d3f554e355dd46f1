"""``delete``: remove a container that has ended, and with ``--force`` any."""

from __future__ import annotations

from typing import Any

from casemate.errors import CasemateError, NoSuchContainer, UsageError
from casemate.pod import hooks
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import BOOL, Option, Options

USAGE = "[options] <container-id>"
OPTIONS = (Option("force, f", BOOL, "end the container first when it still runs (SIGKILL)"),)
ARGUMENTS = (1, 1)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Remove it."""
    delete(context, arguments[0], force=options["force"])
    return 0


def delete(context: Context, id: str, *, force: bool) -> None:
    """Remove a container and run its poststop hooks, which may fail (runtime.md, "Lifecycle").

    Raises:
        NoSuchContainer: there is none, and ``force`` is not given.
        StillRunning: it runs, and ``force`` is not given.
    """
    store = context.store
    spec: dict[str, Any] = {}
    bundle = ""
    try:
        bundle = store.stored(id).bundle
        spec = store.spec(id)
    except (NoSuchContainer, UsageError):
        if force:
            return
        raise
    except CasemateError as error:
        if not force:
            raise
        context.log.warning(str(error))  # a record that is damaged has no hooks that could be found
    if not store.remove(id, force=force) or not hooks.wanted(spec, "poststop"):
        return  # or another command has removed it just now, and runs them
    for problem in hooks.run_all(spec, "poststop", hooks.state(spec, id, "stopped", 0, bundle)):
        context.log.warning(problem)
