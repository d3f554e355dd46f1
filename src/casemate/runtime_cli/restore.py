"""``restore``: not supported yet; the options are taken so that the refusal is what an engine shows."""

from __future__ import annotations

from casemate.errors import ContainerError
from casemate.runtime_cli.checkpoint import COMMON
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.making import OPTIONS as MAKING
from casemate.runtime_cli.options import BOOL, TEXT, Option, Options

USAGE = "[options] <container-id>"
OPTIONS = (
    *COMMON,
    *MAKING,
    Option("detach, d", BOOL, "detach from the container's process"),
    Option("no-subreaper", BOOL, "do not become a subreaper"),
    Option("lsm-profile", TEXT, "an LSM profile to be used during restore"),
    Option("lsm-mount-context", TEXT, "an LSM mount context to be used during restore"),
)
ARGUMENTS = (1, 1)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Refuse."""
    raise ContainerError("restore is not supported", "containers in a virtual machine cannot be saved with criu")
