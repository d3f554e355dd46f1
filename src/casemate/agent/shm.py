"""Memory that containers share: a tmpfs for each name, there as long as one of them has it."""

from __future__ import annotations

import os

from casemate.agent.system import (
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    bad,
    get_id,
    get_list,
    get_text,
    log,
    mount,
    unmount,
)
from casemate.protocol import threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_lock = threads.Lock()
_users: dict[str, set[object]] = {}


def take(entry: dict[str, Any], directory: str, user: object) -> None:
    """Turn a mount of the type ``shared-memory`` into a bind mount of the memory that it names.

    Arguments:
        entry: of ``mounts``; ``source`` is the name, ``size=``, ``mode=`` and ``nr_inodes=`` of the first one count.
        directory: where the memory of all names is mounted.
        user: who has it from now on, until :func:`leave`.

    Raises:
        RequestFailed: ``bad-spec``. OSError: it cannot be mounted.
    """
    name = get_id(entry, "source")
    options = get_list(entry, "options", 64)
    if not all(isinstance(option, str) for option in options):
        raise bad("a mount's options must be strings")
    data = [option for option in options if option.startswith(("size=", "mode=", "nr_inodes="))]
    if any("," in option for option in data):
        raise bad("a mount's option must not hold a comma")
    get_text(entry, "destination")
    path = f"{directory}/{name}"
    with _lock:
        if name not in _users:
            os.makedirs(path, mode=0o755, exist_ok=True)
            mount("shm", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, ",".join(["mode=1777", *data]))
            _users[name] = set()
        _users[name].add(user)
    flags = [option for option in options if "=" not in option and option not in ("rbind", "bind")]
    entry.update(type="bind", source=path, options=["bind", *flags])


def leave(directory: str, user: object) -> None:
    """A container has ended: free what nobody has any more."""
    with _lock:
        for name in [name for name, users in _users.items() if user in users]:
            _users[name].discard(user)
            if not _users[name]:
                del _users[name]
                try:
                    unmount(f"{directory}/{name}")
                    os.rmdir(f"{directory}/{name}")
                except OSError as error:
                    log(f"shared memory {name} cannot be freed: {error}")
