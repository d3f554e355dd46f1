"""The keeper's program: ``python -m casemate.keeper DIRECTORY CONNECTION LOCK [WAITING]``.

:func:`casemate.keeper.client.launch` starts it; where WAITING is given, :mod:`casemate.pool.daemon`: then the container
is still to come, and WAITING is the directory until then (:mod:`casemate.pool.member`). Such a one stays its starter's
child, and mostly is forked from it (:mod:`casemate.pool.birth`).

DIRECTORY is the container's, CONNECTION the descriptor of the starter's control connection, LOCK that of the locked
file. The program forks at once, so that the starter has no child, and goes on as leader of a session of its own. It
leaves behind what further keepers are forked from, see :mod:`casemate.keeper.nursery`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from casemate import bundle
from casemate.programs import begin, leave, settle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.pool.member import Handed

MAX_FILES = 65_536
"""Descriptors that a keeper may hold, where the host allows as many. The usual 1024 are what its ports may use up."""


def main() -> int:
    """Run one container; the exit status is 0 unless something was wrong with the keeper itself."""
    begin()
    return serve(sys.argv[1:])


def serve(words: Sequence[str]) -> int:
    """As :func:`main`.

    Arguments:
        words: the program's.
    """
    path, connection_fd, lock_fd = words[0], int(words[1]), int(words[2])
    waiting = words[3] if len(words) > 3 else None
    if waiting is None and os.fork() > 0:
        os._exit(0)
    os.setsid()
    from casemate.keeper import nursery

    birth = None
    if waiting is None:
        birth = nursery.tend("casemate.keeper", Path(os.environ["CASEMATE_RUN"]), (connection_fd, lock_fd))
    if birth is not None:  # another container's keeper, later
        path, (connection_fd, lock_fd) = birth.arguments[0], birth.fds
    import resource
    import signal
    import socket
    import threading
    from collections.abc import Callable

    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTTOU, signal.SIGTTIN):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o022)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_FILES)), hard))
    for descriptor in (connection_fd, lock_fd):
        os.set_inheritable(descriptor, False)
    threading.stack_size(512 << 10)

    from casemate import config as configuration
    from casemate.errors import CasemateError
    from casemate.host import namespaces, syscalls
    from casemate.keeper.control import Connection
    from casemate.keeper.service import Keeper
    from casemate.keeper.store import Container
    from casemate.sandbox import ProcessExit, Sandbox

    syscalls.one_arena()
    try:
        namespaces.unshare_mounts()  # before any thread begins: each has the mount namespace of the one that began it
        config = configuration.load()
    except CasemateError as error:  # whoever started it reads the last line
        print(error, file=sys.stderr)
        return 1
    container = Container(config, Path(path), lock_fd)
    connection = Connection(socket.socket(fileno=connection_fd))
    handed: Handed | None = None
    if waiting is not None:
        from casemate.pool import member

        handed = member.wait(config, container, Path(waiting), connection)
        if handed is None:
            return 0

    def wall(
        it: Container, on_exit: Callable[[str | None, ProcessExit], None], progress: Callable[[str], None]
    ) -> Sandbox:
        if it.spec.wall == "sentry":
            from casemate.sentry.sandbox import SentrySandbox

            return SentrySandbox(config, it, on_exit, progress)
        if handed is not None:
            from casemate.vm.pooled import PooledSandbox

            return PooledSandbox(config, it, on_exit, progress, handed.machine, handed.volumes)
        from casemate.vm.sandbox import VmSandbox

        return VmSandbox(config, it, on_exit, progress)

    keeper = Keeper(container, wall)

    def terminated(*_: object) -> None:
        threading.Thread(target=keeper.abort, args=("the keeper was told to end", 143), daemon=True).start()

    signal.signal(signal.SIGTERM, terminated)
    if handed is None:  # else that was done while it waited
        settle()
        bundle.refresh()
    keeper.run(connection, None if handed is None else (handed.request, handed.fds))
    return 0


if __name__ == "__main__":
    leave(main())
