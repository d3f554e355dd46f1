"""What starts a sandbox's keeper, and talks to one."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from casemate.errors import HostError, NotRunning
from casemate.keeper import nursery
from casemate.keeper.control import SOCKET_NAME, Connection, ControlClosed, raise_error

if TYPE_CHECKING:
    from casemate.pod.store import Pod, PodStore

STARTING_SECONDS = 30.0
"""How long a keeper may take until it listens."""
STDIO_NAMES = ("stdin", "stdout", "stderr")


def launch(store: PodStore, pod: Pod) -> Connection:
    """Start the keeper of a sandbox that this process has made. It waits for its first container.

    To be called as early as is convenient: the keeper gets ready while its maker does other things. When the
    connection is closed before a container was asked for on it, the keeper ends.

    Arguments:
        pod: fresh from :meth:`casemate.pod.store.PodStore.create_pod`; its lock goes to the keeper.

    Returns:
        The connection for :meth:`PodClient.create` of the first container.

    Raises:
        HostError: the keeper could not be started.
    """
    if pod.lock_fd is None:
        raise HostError("the sandbox was not made by this process")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection = Connection(ours)
    config = store.config
    environment = {**os.environ, "CASEMATE_ROOT": str(config.root), "CASEMATE_RUN": str(config.run)}
    lock_fd, pod.lock_fd = pod.lock_fd, None
    try:
        log = os.open(pod.path / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            try:
                # The numbers are only shown, and are those that an executed one has.
                words, fds = [str(pod.path), "3", "4"], (log, log, theirs.fileno(), lock_fd)
                if not nursery.deliver(config.run, "casemate.pod", words, fds, environment):
                    _start(pod, (null, log, theirs.fileno(), lock_fd), environment)
            finally:
                os.close(null)
        finally:
            os.close(log)
    except OSError as error:
        connection.close()
        raise HostError(f"cannot start the keeper: {error.strerror}") from None
    except BaseException:  # a signal, perhaps: the keeper gives up when its connection is gone
        connection.close()
        raise
    finally:
        theirs.close()
        os.close(lock_fd)
    return connection


def _start(pod: Pod, fds: tuple[int, int, int, int], environment: dict[str, str]) -> int:
    """Run the keeper's program in a session of its own; its pid. Not with ``subprocess``, which is slower to import
    than all of this takes. Nobody waits for it here: it outlives this process, and falls to whoever takes over its
    children."""
    import fcntl

    # What whoever called us has left open by mistake, the end of a pipe perhaps whose reader waits for the end of all
    # writers, is not to stay open for as long as the keeper lives.
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the one that listed them is closed
                os.set_inheritable(int(name), False)
    # Copies above the numbers that they get in the keeper, so that no step overwrites the source of a later one.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in fds]
    try:
        null, log, connection, lock = copies
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((null, log, log, connection, lock))]
        # The working directory is a bundle, from which no module may be imported: -P.
        argv = [sys.executable, "-P", "-m", "casemate.pod", str(pod.path), "3", "4"]
        return os.posix_spawn(sys.executable, argv, environment, file_actions=actions, setsigmask=[], setsid=True)
    finally:
        for fd in copies:
            os.close(fd)


def last_line(pod: Pod) -> str:
    """The last line that a keeper complained with, or an empty string."""
    try:
        with open(pod.path / "keeper.log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read(4096).decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


class PodClient:
    """Requests to the keeper of a sandbox. Every one is a connection of its own.

    Arguments:
        store: the store that the sandbox belongs to.
        pod_id: the sandbox.

    All raise :class:`casemate.errors.NotRunning` when there is no keeper, and what the keeper answers with.
    """

    def __init__(self, store: PodStore, pod_id: str) -> None:
        self.pod = store.pod(pod_id)

    def _connect(self, timeout: float | None = None) -> Connection:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(timeout)
        try:
            sock.connect(str(self.pod.run_path / SOCKET_NAME))
        except OSError:
            sock.close()
            raise NotRunning("container not running: its sandbox has ended") from None
        return Connection(sock)

    def _connect_early(self) -> Connection:
        """Connect to a keeper that may be starting: a container can be for a sandbox whose first one is being made."""
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                return self._connect()
            except NotRunning:
                if time.monotonic() > deadline or not self.pod.alive():
                    raise
            time.sleep(0.01)

    def _request(
        self,
        op: str,
        arguments: Mapping[str, Any],
        fds: Mapping[str, int] | None = None,
        *,
        connection: Connection | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        first = connection is not None
        connection = connection or self._connect(timeout)
        named = dict(fds or {})
        try:
            connection.send({"op": op, **arguments, "fds": list(named)}, tuple(named.values()))
            answer, _ = connection.receive()
        except ControlClosed:
            said = last_line(self.pod) if first else ""
            raise NotRunning(f"the sandbox has ended{': ' + said if said else ''}") from None
        finally:
            connection.close()
        raise_error(answer)
        return answer

    def create(
        self,
        id: str,
        *,
        spec: dict[str, Any],
        fds: Mapping[str, int],
        files: Sequence[dict[str, Any]] = (),
        hostname: str = "",
        memory: int | None = None,
        cpus: float | None = None,
        disks: Sequence[tuple[str, bool]] = (),
        size: tuple[int, int] | None = None,
        kept: Sequence[str] = (),
        wall: str = "",
        connection: Connection | None = None,
    ) -> None:
        """Make a container that is on record, with its stand-in. It is then ``created``, and waits for :meth:`start`.

        Arguments:
            spec: for the guest, see :mod:`casemate.pod.plan`.
            fds: descriptors by name, each of which stays open here too: ``standin`` (the keeper's end of its socket)
                and ``root`` (the detached tree of its root filesystem) always; ``netns`` for the sandbox's first
                container; ``volumes`` (the tree of its volumes); ``stdin``, ``stdout``, ``stderr``, where a terminal
                is ``stdin`` and ``stdout``; ``disk0``, ``disk1``, … in the order of ``disks``; ``kept0``, … in that of
                ``kept``.
            files, hostname, memory, cpus: from the plan; memory in bytes.
            disks: serial number and whether it is read-only, of each block device.
            size: rows and columns of the terminal.
            kept: what further descriptors the process gets, see :class:`casemate.sandbox.PodSandbox`.
            wall: ``vm`` or ``sentry`` for the sandbox of a first container; empty for the configured one.
            connection: from :func:`launch` for the sandbox's first container.
        """
        arguments = {
            "id": id,
            "spec": spec,
            "files": list(files),
            "hostname": hostname,
            "memory": memory,
            "cpus": cpus,
            "disks": [list(one) for one in disks],
            "size": size,
            "kept": list(kept),
            "wall": wall,
        }
        self._request("create", arguments, fds, connection=connection or self._connect_early())

    def start(self, id: str) -> None:
        """Let a created container run."""
        self._request("start", {"id": id})

    def exec(
        self,
        id: str,
        exec_id: str,
        process: dict[str, Any],
        *,
        pid: int,
        fds: Mapping[str, int],
        size: tuple[int, int] | None = None,
        kept: Sequence[str] = (),
    ) -> None:
        """Start another process in a container.

        Arguments:
            exec_id: its name among the container's processes.
            process: an OCI ``process`` object for the guest.
            pid: its stand-in's.
            fds: ``standin``, and ``stdin``, ``stdout``, ``stderr``, ``kept0``… as for :meth:`create`.
            size: rows and columns of the terminal.
            kept: as for :meth:`create`.

        Raises:
            CommandNotFound, CommandNotExecutable: it cannot be started.
        """
        arguments = {"id": id, "exec": exec_id, "process": process, "pid": pid, "size": size, "kept": list(kept)}
        self._request("exec", arguments, fds)

    def kill(self, id: str, signum: int, *, exec_id: str | None = None, everyone: bool = False) -> None:
        """Send a signal to a container's first process, to another one, or to all."""
        self._request("kill", {"id": id, "exec": exec_id, "signal": signum, "all": everyone})

    def resize(self, id: str, exec_id: str | None, rows: int, columns: int) -> None:
        """Tell a process's terminal its size."""
        self._request("resize", {"id": id, "exec": exec_id, "rows": rows, "columns": columns})

    def close_stdin(self, id: str, exec_id: str | None = None) -> None:
        """End a process's standard input."""
        self._request("close_stdin", {"id": id, "exec": exec_id})

    def pause(self, id: str) -> None:
        """Stop all processes of a container."""
        self._request("pause", {"id": id})

    def resume(self, id: str) -> None:
        """Let a paused container go on."""
        self._request("resume", {"id": id})

    def stats(self, id: str) -> dict[str, Any]:
        """What a container uses; see :meth:`casemate.sandbox.PodSandbox.stats`."""
        return self._request("stats", {"id": id})

    def debug(self, id: str, what: str, pid: int | None) -> dict[str, Any]:
        """What the sentry knows of a container's processes; see :meth:`casemate.sandbox.PodSandbox.debug`."""
        return self._request("debug", {"id": id, "what": what, "pid": pid})

    def update(self, id: str, resources: dict[str, Any]) -> None:
        """Change a container's bounds (OCI ``linux.resources``), in the guest and on the host."""
        self._request("update", {"id": id, "resources": resources})

    def delete(self, id: str, *, force: bool = False, timeout: float | None = None) -> bool:
        """Have the keeper let go of a stopped container.

        Use :meth:`casemate.pod.store.PodStore.remove`, which does the rest too and works without a keeper.

        Arguments:
            force: kill it first when it lives.
            timeout: seconds to wait for an answer.

        Returns:
            Whether the keeper has; else it ends with this container, and its lock tells when.
        """
        return bool(self._request("delete", {"id": id, "force": force}, timeout=timeout).get("removed"))

    def wait(self, id: str, exec_id: str | None = None, timeout: float | None = None) -> dict[str, Any]:
        """Wait for a process's end.

        Returns:
            ``status`` (128 + n after signal n), ``signal`` (n or None), ``oom``, ``error``, and ``at`` in seconds since
            the epoch.
        """
        return self._request("wait", {"id": id, "exec": exec_id}, timeout=timeout)

    def pids(self, id: str) -> dict[str, Any]:
        """The stand-ins of a container: ``pid`` of its first process, ``execs`` exec id to pid."""
        return self._request("pids", {"id": id})

    def info(self, timeout: float | None = None) -> dict[str, Any]:
        """What the sandbox is; see :meth:`casemate.sandbox.PodSandbox.info`. ``containers``: id to status."""
        return self._request("info", {}, timeout=timeout)

    def forward(self, port: int, descriptor: int) -> None:
        """Have the keeper carry bytes between a connected socket and a TCP port of the guest's loopback."""
        self._request("forward", {"port": port}, {"conn": descriptor})

    def events(self) -> Iterator[dict[str, Any]]:
        """What happens in the sandbox from now on, until it ends: objects with ``event`` (``start``, ``exit``, ``oom``,
        ``ready`` once at the beginning), ``id``, ``exec`` (None for the first process), and for ``exit`` what
        :meth:`wait` returns."""
        connection = self._connect()
        try:
            connection.send({"op": "events"})
            while True:
                message, _ = connection.receive()
                raise_error(message)
                yield message
        except ControlClosed:
            return
        finally:
            connection.close()
