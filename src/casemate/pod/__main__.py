"""The keeper's program: ``python -P -m casemate.pod DIRECTORY CONNECTION LOCK``.

:func:`casemate.pod.client.launch` starts it.

DIRECTORY is the sandbox's, CONNECTION the descriptor of the starter's control connection, LOCK that of the locked file.
It is started as leader of a session of its own, and outlives its starter. It leaves behind what further keepers are
forked from, see :mod:`casemate.keeper.nursery`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from casemate import bundle
from casemate.programs import begin, leave, settle

MAX_FILES = 65_536
"""Descriptors that a keeper may hold, where the host allows as many."""


def main() -> int:
    """Serve one sandbox; the exit status is 0 unless something was wrong with the keeper itself."""
    begin()
    path, connection_fd, lock_fd = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    from casemate.keeper import nursery

    os.chdir("/")
    birth = nursery.tend("casemate.pod", Path(os.environ["CASEMATE_RUN"]), (connection_fd, lock_fd))
    if birth is not None:  # another sandbox's keeper, later
        path, (connection_fd, lock_fd) = birth.arguments[0], birth.fds
    import contextlib
    import resource
    import signal
    import socket
    import threading

    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTTOU, signal.SIGTTIN):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o022)
    # An engine's shim makes itself hard to kill and passes that on. With a machine that could not be killed the host
    # would lose something else; what the container asks for is set when it is known.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_FILES)), hard))
    for descriptor in (connection_fd, lock_fd):
        os.set_inheritable(descriptor, False)
    threading.stack_size(512 << 10)

    from casemate import config as configuration
    from casemate.errors import CasemateError
    from casemate.host import namespaces, syscalls
    from casemate.keeper.control import Connection
    from casemate.pod.network import PodNetwork
    from casemate.pod.service import PodKeeper, helpers
    from casemate.pod.store import Pod, PodStore
    from casemate.sandbox import PodSandbox

    syscalls.one_arena()
    try:
        config = configuration.load()
        namespaces.unshare_mounts()  # before any thread begins: each has the mount namespace of the one that began it
    except CasemateError as error:  # whoever started it reads the last line
        print(error, file=sys.stderr)
        return 1
    pod = Pod(config, Path(path), lock_fd)

    def wall(
        wall: str, pod: Pod, memory_mib: int, cpus: float | None, procs: tuple[Path, ...], oom_score: int
    ) -> PodSandbox:
        if wall == "sentry":
            from casemate.sentry.pod import SentryPod

            return SentryPod(config, pod.path, pod.run_path, pod.id, memory_mib, procs, oom_score_adj=oom_score)
        from casemate.vm.pod import VmPod

        return VmPod(config, pod.path, pod.run_path, pod.id, memory_mib, cpus, procs, oom_score_adj=oom_score)

    keeper = PodKeeper(PodStore(config, pod.root), pod, wall, PodNetwork, helpers)

    def terminated(*_: object) -> None:
        threading.Thread(target=keeper.abort, args=("the keeper was told to end", 143), daemon=True).start()

    signal.signal(signal.SIGTERM, terminated)
    settle()
    bundle.refresh()
    keeper.run(Connection(socket.socket(fileno=connection_fd)))
    return 0


if __name__ == "__main__":
    leave(main())
