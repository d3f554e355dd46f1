"""``state``: tell what has become of a container (runtime-spec 1.0.2, runtime.md "State")."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import Options

if TYPE_CHECKING:
    from casemate.pod.model import Record

USAGE = "<container-id>"
OPTIONS = ()
ARGUMENTS = (1, 1)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Print it."""
    sys.stdout.write(json.dumps(state(context.store.get(arguments[0])), indent=2, ensure_ascii=False))
    sys.stdout.flush()
    return 0


def state(record: Record, owner: str = "") -> dict[str, Any]:
    """A container's state, with what runc adds to the specification's."""
    value: dict[str, Any] = {
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": 0 if record.status == "stopped" else record.pid,
        "status": record.status,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": timestamp(record.created),
    }
    if record.annotations:
        value["annotations"] = record.annotations
    value["owner"] = owner
    return value


def timestamp(seconds: float) -> str:
    """A time as RFC 3339 with fractions as far as there are any, in UTC."""
    whole = int(seconds)
    fraction = f"{seconds - whole:.6f}"[1:].rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + fraction + "Z"
