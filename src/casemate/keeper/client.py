"""What the doors use to start a keeper and to talk to one."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from types import TracebackType

from casemate.config import Config
from casemate.errors import ContainerError, HostError, NoSuchContainer, NotRunning, StateError
from casemate.keeper import nursery
from casemate.keeper.control import SOCKET_NAME, Connection, ControlClosed, raise_error

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any, BinaryIO

    from casemate.keeper.store import Container

Stdio = tuple[int | None, int | None, int | None]
STDIO_NAMES = ("stdin", "stdout", "stderr")
END_SECONDS = 60.0
"""How long a keeper that takes no more requests may take to give everything back."""


class Session:
    """An attached process: the first of a container, or an exec.

    Arguments:
        connection: the control connection that stands for it.
        container: whose process it is.
    """

    def __init__(self, connection: Connection, container: Container) -> None:
        self._connection = connection
        self._container = container
        self._status: int | None = None
        self.error = ""

    def fileno(self) -> int:
        """Readable when the process has ended; for select."""
        return self._connection.fileno()

    def resize(self, rows: int, columns: int) -> None:
        """Tell the process's terminal its size."""
        with contextlib.suppress(ControlClosed):
            self._connection.send({"op": "resize", "rows": rows, "columns": columns})

    def signal(self, signum: int) -> None:
        """Send a signal to the process; one that has ended takes none."""
        with contextlib.suppress(ControlClosed):
            self._connection.send({"op": "signal", "signum": signum})

    def wait(self) -> int:
        """Wait for the process's end.

        Returns:
            Its exit status, 128 + n after signal n. ``error`` then says what went wrong if the sandbox ended it.

        Raises:
            ContainerError: the keeper died.
        """
        while self._status is None:
            try:
                message, _ = self._connection.receive()
            except ControlClosed:
                self._connection.close()
                with contextlib.suppress(NoSuchContainer, StateError):
                    self._container.wait_gone(5.0)
                    self._container.state()
                raise ContainerError(
                    f"the keeper of container {self._container.id[:12]} died", "the container has ended; see its log"
                ) from None
            if "exited" in message:
                self._status = int(message["exited"])
                self.error = str(message.get("reason", ""))
        self._connection.close()
        return self._status

    def close(self) -> None:
        """Leave the process to itself."""
        self._connection.close()


def _open_session(
    connection: Connection, container: Container, request: dict[str, Any], stdio: Stdio, size: tuple[int, int] | None,
    volumes: Sequence[int] = (),
) -> Session:
    named = [(name, fd) for name, fd in zip(STDIO_NAMES, stdio, strict=True) if fd is not None]
    request = {**request, "fds": [name for name, _ in named], "size": size}
    if volumes:
        request["volumes"] = len(volumes)
    try:
        connection.send(request, (*(fd for _, fd in named), *volumes))
        answer, _ = connection.receive()
        raise_error(answer)
    except BaseException:
        connection.close()
        raise
    return Session(connection, container)


def hand_over(
    config: Config, container: Container, member: Connection, stdio: Stdio, *, size: tuple[int, int] | None,
    volumes: Sequence[int] = (),
) -> Session:
    """As :func:`launch`, with a keeper from the pool (:mod:`casemate.pool`); where that one has died, with another.

    Arguments:
        container: made in the member's directory.
        member: the connection to it.
        volumes: a detached tree for each volume of the container; they stay open here too.
    """
    nursery.release()
    try:
        return _open_session(member, container, {"op": "run"}, stdio, size, volumes)
    except ControlClosed:
        container.wait_gone(5.0)
        with contextlib.suppress(OSError, StateError):
            if container.stored_state().pid is None and container.take_lock():  # it had not begun
                from casemate.keeper.reap import clean_host

                clean_host(container)
                return launch(config, container, stdio, size=size)
        raise _died(container) from None


def launch(config: Config, container: Container, stdio: Stdio, *, size: tuple[int, int] | None) -> Session:
    """Start the keeper of a container that this process has made, and with it the container.

    Arguments:
        config: the configuration in force.
        container: fresh from :meth:`casemate.keeper.store.Store.create`; its lock goes to the keeper.
        stdio: descriptors for the container's standard input, output and error; each stays open here too. None for
            an empty input, or for output that goes to the log alone.
        size: rows and columns of the terminal.

    Returns:
        The session, once the container's process runs.

    Raises:
        CommandNotFound, CommandNotExecutable: the command cannot be started.
        CasemateError: whatever else stood in the way. The container is then in the state ``exited`` with that error,
            or removed when it was made with ``remove``.
    """
    if container.lock_fd is None:
        raise ContainerError(f"container {container.name} was not made by this process")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection = Connection(ours)
    try:
        with open(container.path / "keeper.log", "wb") as log:
            fds = (theirs.fileno(), container.lock_fd)
            environment = {**os.environ, "CASEMATE_ROOT": str(config.root), "CASEMATE_RUN": str(config.run)}
            words = [str(container.path), "3", "4"]  # the numbers are only shown, and take the least room
            everything = (log.fileno(), log.fileno(), *fds)
            if not nursery.deliver(config.run, "casemate.keeper", words, everything, environment):
                _execute(container, log, fds, environment)
    except OSError as error:
        connection.close()
        raise HostError(f"cannot start the keeper: {error.strerror}") from None
    except BaseException:  # a signal, perhaps: the keeper gives up when its connection is gone
        connection.close()
        raise
    finally:
        theirs.close()
        os.close(container.lock_fd)
        container.lock_fd = None
    try:
        return _open_session(connection, container, {"op": "run"}, stdio, size)
    except ControlClosed:
        container.wait_gone(5.0)
        raise _died(container) from None


def _died(container: Container) -> HostError:
    """Of a keeper that did not answer: what it said last."""
    name = container.name
    said = _last_line(container)  # before the container goes, if that is to happen at its end
    with contextlib.suppress(NoSuchContainer, StateError):
        state = container.state()  # cleans up, too
        said = said or state.error
    return HostError(f"the keeper of container {name} died: {said or 'no reason is known'}")


def _execute(container: Container, log: BinaryIO, fds: tuple[int, int], environment: dict[str, str]) -> None:
    """Start a keeper that is a program of its own. Raises OSError."""
    import subprocess

    starter = subprocess.Popen(
        [sys.executable, "-m", "casemate.keeper", str(container.path), *map(str, fds)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=fds,
        cwd="/",
        env=environment,
    )
    starter.wait()  # it forks at once: the keeper is nobody's child


def _last_line(container: Container) -> str:
    """The last line that a keeper complained with, or an empty string."""
    with contextlib.suppress(OSError), open(container.path / "keeper.log", "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        lines = file.read(4096).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""


class Client:
    """Requests to the keeper of a running container; a context manager.

    Raises:
        NotRunning: the container has no keeper.
    """

    def __init__(self, container: Container) -> None:
        self.container = container
        container.state()  # a sandbox that died is found here and not by a socket that nobody serves

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def _connect(self) -> Connection:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(str(self.container.run_path / SOCKET_NAME))
        except OSError:
            sock.close()
            raise NotRunning(f"container {self.container.name} is not running") from None
        return Connection(sock)

    def _request(self, op: str, **arguments: Any) -> dict[str, Any]:
        connection = self._connect()
        try:
            connection.send({"op": op, **arguments})
            answer, _ = connection.receive()
        except ControlClosed:
            raise NotRunning(f"container {self.container.name} has ended") from None
        finally:
            connection.close()
        raise_error(answer)
        return answer

    def exec(
        self, process: dict[str, Any], user: str, stdio: Stdio, *, tty: bool, size: tuple[int, int] | None
    ) -> Session:
        """Start another process in the container.

        Arguments:
            process: an OCI ``process`` object; ``terminal`` in it is set from ``tty``.
            user: name or number, resolved in the container; empty for the container's own.
            stdio, size: as for :func:`launch`.

        Raises:
            CommandNotFound, CommandNotExecutable, NotRunning, AgentError: it could not be started.
        """
        request = {"op": "exec", "process": {**process, "terminal": tty}, "user": user}
        return _open_session(self._connect(), self.container, request, stdio, size)

    def signal(self, signum: int) -> None:
        """Send a signal to the container's first process."""
        self._request("signal", signum=signum)

    def pause(self) -> None:
        """Stop the sandbox where it stands."""
        self._request("pause")

    def resume(self) -> None:
        """Let a paused sandbox go on."""
        self._request("resume")

    def stats(self) -> dict[str, Any]:
        """What the container uses; see :meth:`casemate.sandbox.Sandbox.stats`."""
        return self._request("stats")

    def info(self) -> dict[str, Any]:
        """What the sandbox is; see :meth:`casemate.sandbox.Sandbox.info`."""
        return self._request("info")

    def debug(self, what: str, pid: int | None) -> dict[str, Any]:
        """What the sentry knows of the container's processes; see :meth:`casemate.sandbox.Sandbox.debug`."""
        return self._request("debug", what=what, pid=pid)

    def refresh(self) -> None:
        """Have the container see at once what was changed in its root filesystem from outside."""
        self._request("refresh")

    def stop(self, timeout: float, signum: int) -> int:
        """Ask the container to end, and end it after ``timeout`` seconds.

        Returns:
            Its exit status.
        """
        return self._end("stop", timeout=timeout, signum=signum)

    def wait(self) -> int:
        """Wait for the container's end; its exit status."""
        return self._end("wait")

    def _end(self, op: str, **arguments: Any) -> int:
        """A request that is answered at the container's end. One that comes when the keeper takes no more, because it
        is giving everything back, finds the answer in the state that it leaves."""
        try:
            return int(self._request(op, **arguments)["exited"])
        except NotRunning:
            self.container.wait_gone(END_SECONDS)
            state = self.container.state()
            if state.status != "exited" or state.exit_code is None:
                raise
            return state.exit_code
