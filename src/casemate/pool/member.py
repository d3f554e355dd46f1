"""A member: a keeper's program that has its machine before it has a container.

It tells the pool ``{"ready": true}`` or ``{"error": …}`` on its connection, and then waits there for what a door says
to a keeper. Until then the end of the connection is its own end, and it leaves nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate import bundle
from casemate.config import Config
from casemate.errors import CasemateError
from casemate.host import syscalls
from casemate.keeper import reap
from casemate.keeper.control import Connection, ControlClosed, close_all
from casemate.keeper.store import Container
from casemate.pool import homes
from casemate.programs import settle
from casemate.vm.waiting import Waiting, favour, first_mib


@dataclass(slots=True)
class Handed:
    """What a member was handed out for: the request with its descriptors, and a tree for each volume."""

    machine: Waiting
    request: dict[str, Any]
    fds: list[int]
    volumes: list[int]


class _Terminated(BaseException):
    """The member was told to end."""


def wait(config: Config, container: Container, directory: Path, connection: Connection) -> Handed | None:
    """Come up, get warm, and wait to be handed out.

    Arguments:
        container: what it will be; its lock is held by this process.
        directory: the member's.
        connection: to the pool, later to a door.

    Returns:
        what a door asks for; None where it is over, and nothing is left.
    """

    def terminated(*_: object) -> None:
        raise _Terminated

    def ended(reason: str) -> None:
        with contextlib.suppress(OSError):
            connection.socket.shutdown(socket.SHUT_RDWR)  # wakes who waits below

    signal.signal(signal.SIGTERM, terminated)
    # While it comes up nobody listens to the connection; where the pool is killed then, this tells.
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGTERM)
    begun = time.monotonic()
    # By a descriptor: the directory will have another name.
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    machine = Waiting(
        config, container.id, Path(f"/proc/self/fd/{place}"), container.run_path, first_mib(config), ended
    )
    handed: Handed | None = None
    try:
        machine.come_up()
        machine.warm()
        _import()
        settle()
        bundle.refresh()
        connection.send({"ready": True, "seconds": round(time.monotonic() - begun, 3)})
        request, fds = connection.receive()
        count = request.pop("volumes", 0)
        volumes = [fds.pop() for _ in range(min(count, len(fds)))][::-1]
        if request.get("op") == "run" and (container.path / "state.json").exists():
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until the keeper takes it
            favour(os.getpid())
            handed = Handed(machine, request, fds, volumes)
            return handed
        close_all([*fds, *volumes])
    except (_Terminated, ControlClosed):
        pass
    except Exception as error:  # the pool has to hear of it, whatever it is
        with contextlib.suppress(CasemateError):
            connection.send({"error": str(error) or type(error).__name__})
        if not isinstance(error, CasemateError | OSError):
            raise
    finally:
        if handed is None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _give_back(config, container, directory, machine)
    return None


def _import() -> None:
    """What will be needed: nobody is to wait for it then."""
    import casemate.host.dns
    import casemate.host.ports
    import casemate.keeper.service
    import casemate.vm.pooled  # noqa: F401


def _give_back(config: Config, container: Container, directory: Path, machine: Waiting) -> None:
    machine.close()
    try:
        reap.clean_host(container)
    finally:
        # A door may have died when the directory had its new name already: that is a container that never ran, and
        # whoever looks at it next says so.
        homes.remove(directory)
