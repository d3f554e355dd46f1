"""Asking a pool for a member; what every start does, so it is cheap where there is no pool.

A pool serves those of its own settings only, and of its own namespaces: a member sees the host as the pool does.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate import __version__, ids
from casemate.config import Config
from casemate.errors import CasemateError, HostError
from casemate.keeper.control import Connection, ControlClosed, close_all

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

SECONDS = 2.0
"""How long a pool may take to answer; one that takes longer is none."""
MAX_VOLUMES = 16
"""As many trees go with one message, beside the standard streams."""
_NAMESPACES = ("mnt", "net", "pid", "user", "ipc", "uts")


@dataclass(slots=True)
class Taken:
    """A member that is the caller's now.

    ``connection`` is what a keeper is told on; closing it ends the member.
    """

    id: str
    path: Path
    connection: Connection

    def close(self) -> None:
        """Give it up."""
        self.connection.close()


def socket_path(config: Config) -> Path:
    """Where the pool listens."""
    return config.run / "pool" / "pool.sock"


def kind(config: Config) -> dict[str, Any]:
    """What a door and a pool have to have in common."""
    return {"version": __version__, "config": repr(config), "namespaces": namespaces()}


def namespaces() -> list[int]:
    """The namespaces of this process, as numbers; 0 where there is none of a kind."""
    found = []
    for name in _NAMESPACES:
        try:
            found.append(os.stat(f"/proc/self/ns/{name}").st_ino)
        except OSError:
            found.append(0)
    return found


def take(config: Config, memory_mib: int | None, cpus: float | None, volumes: int) -> Taken | None:
    """Take a member of the pool; None where there is none for such a container, and nobody is told why.

    Arguments:
        memory_mib, cpus: as the container asks; None for the configured.
        volumes: how many the container has.
    """
    try:
        connection = connect(config)
    except HostError:
        return None
    fds: list[int] = []
    try:
        request = {"op": "take", "memory": memory_mib, "cpus": cpus, "volumes": volumes, **kind(config)}
        connection.send(request)
        answer, fds = connection.receive()
        identifier, path = answer.get("id"), answer.get("path")
        if isinstance(identifier, str) and ids.is_id(identifier) and isinstance(path, str) and len(fds) == 1:
            member = socket.socket(fileno=fds.pop())
            member.settimeout(None)
            return Taken(identifier, Path(path), Connection(member))
    except (CasemateError, OSError):
        pass
    finally:
        close_all(fds)
        connection.close()
    return None


def let_go(taken: Taken | None, trees: Sequence[int]) -> None:
    """Give a member up, if there is one, and close the trees that were for it."""
    if taken is not None:
        taken.close()
    for fd in trees:
        os.close(fd)


def open_trees(sources: Sequence[str]) -> list[int]:
    """A detached tree of each of these places, as this process sees them: what is mounted there after a member began
    to wait need not be there for it.

    Raises:
        HostError: there is none.
    """
    from casemate.host import syscalls

    trees: list[int] = []
    try:
        for source in sources:
            flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_RECURSIVE
            trees.append(syscalls.open_tree(syscalls.AT_FDCWD, source, flags))
    except OSError as error:
        close_all(trees)
        raise HostError(f"cannot bind {source}: {error.strerror}", "make it first") from None
    return trees


def status(config: Config) -> dict[str, Any]:
    """What the pool has and has done.

    Raises:
        HostError: there is none.
    """
    connection = connect(config)
    try:
        connection.send({"op": "status"})
        answer, fds = connection.receive()
        close_all(fds)
        return answer
    except ControlClosed:
        raise HostError("the pool does not answer", "see its messages: journalctl -u casemate-pool") from None
    finally:
        connection.close()


def connect(config: Config) -> Connection:
    """A connection to the pool.

    Raises:
        HostError: there is none.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(SECONDS)
        sock.connect(str(socket_path(config)))
    except OSError:
        with contextlib.suppress(OSError):
            sock.close()
        raise HostError("no pool runs", "start one: casemate pool") from None
    return Connection(sock)
