"""``run``: make a container and start it; wait for its end unless told to detach."""

from __future__ import annotations

import contextlib

from casemate.errors import CasemateError
from casemate.runtime_cli import making
from casemate.runtime_cli.delete import delete
from casemate.runtime_cli.main import NAME, Context, words_for
from casemate.runtime_cli.options import BOOL, Option, Options
from casemate.runtime_cli.start import start

USAGE = "[options] <container-id>"
OPTIONS = (
    *making.OPTIONS,
    Option("detach, d", BOOL, "detach from the container's process"),
    Option("keep", BOOL, "do not delete the container after it exits"),
    Option("no-subreaper", BOOL, "accepted and of no effect: nothing is re-parented to this command"),
)
ARGUMENTS = (1, 1)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Run it.

    Returns:
        the exit status of the container's process; 0 when detached.
    """
    try:
        return _run(context, options, arguments[0])
    except CasemateError as error:
        raise CasemateError(f"{NAME} run failed: {words_for(error)}") from None


def _run(context: Context, options: Options, id: str) -> int:
    made = making.make(context, id, options, detach=options["detach"])
    bundle = made.state("running")["bundle"]
    if options["detach"]:
        _start(context, made, bundle)
        return 0
    from casemate.runtime_cli.foreground import Foreground

    def forward(number: int) -> None:
        with contextlib.suppress(CasemateError):  # it ends just now
            made.client.kill(id, number)

    try:
        with Foreground(made.console) as foreground:
            _start(context, made, bundle)
            return foreground.wait(made.pid, forward)
    finally:
        if not options["keep"]:
            delete(context, id, force=True)


def _start(context: Context, made: making.Made, bundle: str) -> None:
    try:
        start(context, made.client, made.id, made.spec, made.pid, bundle)
    except CasemateError:
        with contextlib.suppress(CasemateError):
            delete(context, made.id, force=True)
        raise
