"""``features``: what the runtime can, as JSON (runtime-spec features.md)."""

from __future__ import annotations

import json
import sys

from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import Options

USAGE = ""
OPTIONS = ()
ARGUMENTS = (0, 0)
ROOT = False


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Print it."""
    from casemate.oci.features import features

    sys.stdout.write(json.dumps(features(), indent=4) + "\n")
    sys.stdout.flush()
    return 0
