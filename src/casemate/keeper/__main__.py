"""The keeper's program: ``python -m casemate.keeper DIRECTORY CONNECTION LOCK``.

:func:`casemate.keeper.client.launch` starts it.

DIRECTORY is the container's, CONNECTION the descriptor of the starter's control connection, LOCK that of the locked
file. The program forks at once, so that the starter has no child, and goes on as leader of a session of its own.
"""

from __future__ import annotations

import os
import sys

MAX_FILES = 65_536
"""Descriptors that a keeper may hold, where the host allows as many. The usual 1024 are what its ports may use up."""


def main() -> int:
    """Run one container; the exit status is 0 unless something was wrong with the keeper itself."""
    path, connection_fd, lock_fd = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    import resource
    import signal
    import socket
    import threading
    from pathlib import Path

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
    from casemate.host import namespaces
    from casemate.keeper.control import Connection
    from casemate.keeper.service import Keeper
    from casemate.keeper.store import Container
    from casemate.vm.sandbox import VmSandbox

    try:
        config = configuration.load()
        namespaces.unshare_mounts()  # before any thread begins: each has the mount namespace of the one that began it
    except CasemateError as error:  # whoever started it reads the last line
        print(error, file=sys.stderr)
        return 1
    container = Container(config, Path(path), lock_fd)
    keeper = Keeper(container, lambda it, on_exit, progress: VmSandbox(config, it, on_exit, progress))

    def terminated(*_: object) -> None:
        threading.Thread(target=keeper.abort, args=("the keeper was told to end", 143), daemon=True).start()

    signal.signal(signal.SIGTERM, terminated)
    keeper.run(Connection(socket.socket(fileno=connection_fd)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
