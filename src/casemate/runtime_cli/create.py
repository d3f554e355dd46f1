"""``create``: make a container from its bundle; its process waits for ``start``."""

from __future__ import annotations

from casemate.errors import CasemateError
from casemate.runtime_cli import making
from casemate.runtime_cli.main import NAME, Context, words_for
from casemate.runtime_cli.options import Options

USAGE = "[options] <container-id>"
OPTIONS = making.OPTIONS
ARGUMENTS = (1, 1)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Make it."""
    try:
        making.make(context, arguments[0], options, detach=True)
    except CasemateError as error:
        raise CasemateError(f"{NAME} create failed: {words_for(error)}") from None
    return 0
