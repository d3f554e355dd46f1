"""JSON files that are always whole: written beside, synced, renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from casemate.errors import StateError

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

MAX_BYTES = 8 << 20


def read(path: Path) -> dict[str, Any]:
    """Read an object from ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        StateError: it is larger than 8 MiB, not JSON, or not an object.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise StateError(f"{path} is larger than {MAX_BYTES} bytes", "remove the container with 'casemate rm -f'")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{path} is not JSON ({error})", "remove the container with 'casemate rm -f'") from None
    if not isinstance(value, dict):
        raise StateError(f"{path} does not hold an object", "remove the container with 'casemate rm -f'")
    return value


def write(path: Path, value: dict[str, Any], *, durable: bool = True, mode: int = 0o600) -> None:
    """Replace ``path`` by ``value`` so that a reader sees the old or the new object, whole.

    Arguments:
        durable: sync the file before it takes the name, so that it is whole after a power failure too.
        mode: permission bits of the new file.

    Raises:
        OSError: no space, no permission; the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(json.dumps(value, indent=1, sort_keys=True).encode())
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
