"""Where a process's standard streams go: what containerd names, opened, and copied to and fro.

containerd names a stream by a path or URI: a FIFO (``/path`` or ``fifo:///path``), a file to append to
(``file:///path``), or a program that takes the output (``binary:///path?argument=value``, containerd's
``runtime/v2/README.md``, "Logging"). An empty name is no stream.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
import termios

from casemate.shim import status
from casemate.shim.children import Children
from casemate.shim.fifos import Arrivals, open_reader, open_writer
from casemate.shim.loop import READ, Future, Loop
from casemate.shim.pumps import InputPump, OutputPump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from casemate.shim.loop import Steps

LOGGER_READY_SECONDS = 10.0
LOGGER_END_SECONDS = 10.0
"""How long a logging program may take after the end of its input, before it is told to end."""
LOGGER_KILL_SECONDS = 2.0
SETTLE_SECONDS = 2.0
"""How long the end of a process's output is waited for once the process is gone (containerd's shim waits as long)."""
CONSOLE_SECONDS = 30.0


class Names:
    """The streams of a process as a request has them."""

    __slots__ = ("stdin", "stdout", "stderr", "terminal")

    def __init__(self, stdin: str, stdout: str, stderr: str, terminal: bool) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = terminal


def split(name: str) -> tuple[str, str, list[str]]:
    """Scheme, path and arguments of a stream's name.

    Raises:
        StatusError: INVALID_ARGUMENT for a scheme that is not known.
    """
    if "://" not in name:
        return "fifo", name, []
    scheme, _, rest = name.partition("://")
    if scheme not in ("fifo", "file", "binary"):
        raise status.failure(status.INVALID_ARGUMENT, f"unknown STDIO scheme {scheme}")
    from urllib.parse import parse_qsl, unquote

    path, _, query = rest.partition("#")[0].partition("?")
    arguments: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, max_num_fields=1024):
        arguments.setdefault(key, value)
    return scheme, unquote(path), [word for pair in arguments.items() for word in pair]


def _bad(name: str, error: OSError) -> status.StatusError:
    return status.StatusError(status.UNKNOWN, f"containerd-shim: opening {name} failed: {error.strerror}")


class Streams:
    """The streams of one process.

    Arguments:
        loop, arrivals, children: the shim's.
        names: what the client named.
        owner: user and group that the process's pipes belong to.
        identity: container's id and namespace, which a logging program is told.
    """

    def __init__(
        self, loop: Loop, arrivals: Arrivals, children: Children, names: Names, *, owner: tuple[int, int],
        identity: tuple[str, str],
    ) -> None:
        self._loop = loop
        self._arrivals = arrivals
        self._children = children
        self.names = names
        self._owner = owner
        self._identity = identity
        self._sinks = [-1, -1]
        """Writing ends for standard output and error; -1 for none. The pumps take them over."""
        self._sources = [-1, -1]
        self._stdin: list[int] = []
        """Reading end and holder of the client's FIFO, and what the input goes to, until the pump takes them over."""
        self._given: list[int | None] = [None, None, None]
        self._input: InputPump | None = None
        self._outputs: list[OutputPump] = []
        self._loggers: list[tuple[int, Future]] = []
        self._master = -1

    # --- before the process ---

    def open(self) -> Steps[tuple[int | None, int | None, int | None]]:
        """Open everything.

        Returns:
            descriptors for the runtime to hand on: input, output, error, each None for /dev/null. With a terminal all
            are None, and :meth:`attach` is to follow instead.

        Raises:
            StatusError: a stream cannot be opened. Nothing is left open.
        """
        try:
            yield from self._open()
        except BaseException:
            self.close()
            raise
        stdin, stdout, stderr = self._given
        return stdin, stdout, stderr

    def _open(self) -> Steps[None]:
        names = self.names
        if names.stdin:
            scheme, path, _ = split(names.stdin)
            if scheme != "fifo":
                raise status.failure(status.INVALID_ARGUMENT, f"standard input cannot be {scheme}")
            try:
                self._stdin = [*open_reader(path)]
            except OSError as error:
                raise _bad(path, error) from None
        wanted = [names.stdout, "" if names.terminal else names.stderr]
        logger = yield from self._start_logger(wanted)
        if names.terminal:
            self._sinks = logger
        else:  # a logging program reads the process's own pipes
            self._given[1:] = [None if fd < 0 else fd for fd in logger]
        for number, name in enumerate(wanted):
            if name and split(name)[0] != "binary":
                self._sinks[number] = _open_sink(name)
        if names.terminal:
            return
        if self._stdin:
            self._given[0], writer = self._pipe(reader_is_given=True)
            self._stdin.append(writer)
        for number in (0, 1):
            if self._sinks[number] >= 0:
                self._sources[number], self._given[number + 1] = self._pipe(reader_is_given=False)

    def _pipe(self, *, reader_is_given: bool) -> tuple[int, int]:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writer if reader_is_given else reader, False)
        if self._owner != (0, 0):
            os.fchown(reader if reader_is_given else writer, *self._owner)
        return reader, writer

    def _start_logger(self, wanted: list[str]) -> Steps[list[int]]:
        """Start the program that the output's name asks for; gives the writing ends for output and error."""
        result = [-1, -1]
        named = [name for name in wanted if name and split(name)[0] == "binary"]
        if not named:
            return result
        _, path, arguments = split(named[0])
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        try:
            container, namespace = self._identity
            pid = self._children.spawn(
                [path, *arguments], extra=(pipes[0][0], pipes[1][0], pipes[2][1]),
                env={"CONTAINER_ID": container, "CONTAINER_NAMESPACE": namespace}, die_with_us=False,
            )
        except OSError as error:
            for pair in pipes:
                os.close(pair[0])
                os.close(pair[1])
            raise status.StatusError(
                status.UNKNOWN, f"failed to start binary process: {path}: {error.strerror}"
            ) from None
        for fd in (pipes[0][0], pipes[1][0], pipes[2][1]):
            os.close(fd)
        for number in (0, 1):
            if wanted[number] and split(wanted[number])[0] == "binary":
                result[number] = pipes[number][1]
                if self.names.terminal:
                    os.set_blocking(result[number], False)
            else:
                os.close(pipes[number][1])
        self._loggers.append((pid, self._children.wait(pid)))
        ready = Future()
        self._loop.watch(pipes[2][0], READ, lambda _: ready.set())  # a byte, or its end
        try:
            yield self._loop.bounded(ready, LOGGER_READY_SECONDS)
        except BaseException as error:
            for fd in result:
                if fd >= 0:
                    os.close(fd)
            if isinstance(error, TimeoutError):
                raise status.StatusError(status.UNKNOWN, "the logging binary did not get ready") from None
            raise
        finally:
            self._loop.unwatch(pipes[2][0])
            os.close(pipes[2][0])
        return result

    # --- with the process ---

    def started(self) -> None:
        """Close here what the process has now, and begin to copy."""
        self._close_given()
        if self._stdin:
            reader, holder, writer = self._stdin
            self._stdin = []
            self._input = InputPump(self._loop, reader, holder, writer)
        for number, source in enumerate(self._sources):
            if source >= 0:
                self._outputs.append(OutputPump(self._loop, self._arrivals, source, self._sinks[number]))
                self._sources[number] = self._sinks[number] = -1

    def attach(self, master: int) -> None:
        """Begin to copy from and to a terminal. The descriptor is this object's from now on."""
        os.set_blocking(master, False)
        self._master = master
        if self._stdin:
            reader, holder = self._stdin
            self._stdin = []
            self._input = InputPump(self._loop, reader, holder, _duplicate(master))
        sink = self._sinks[0]
        self._sinks[0] = -1
        if sink < 0:  # it has to be read all the same, or the process would stop at a full terminal
            sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._outputs.append(OutputPump(self._loop, self._arrivals, _duplicate(master), sink))

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; without a terminal this does nothing."""
        if self._master >= 0:
            size = struct.pack("HHHH", min(rows, 65535), min(columns, 65535), 0, 0)
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def end_input(self) -> None:
        """Let the input end when the client has closed its end."""
        if self._input is not None:
            self._input.release()

    # --- after the process ---

    def process_ended(self) -> None:
        """Nobody reads the input any more."""
        if self._input is not None:
            self._input.close()

    def settled(self) -> Steps[None]:
        """Wait until the output is written, but not for those who keep it open for no reason."""
        self.process_ended()
        deadline = self._loop.pause(SETTLE_SECONDS)
        for pump in self._outputs:
            yield _either(pump.done, deadline)
        for pump in self._outputs:
            pump.settle()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        for pid, ended in self._loggers:
            yield from self._end_logger(pid, ended)
        self._loggers = []

    def _end_logger(self, pid: int, ended: Future) -> Steps[None]:
        for seconds, signum in ((LOGGER_END_SECONDS, signal.SIGTERM), (LOGGER_KILL_SECONDS, signal.SIGKILL)):
            try:
                yield self._loop.bounded(ended, seconds)
                return
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
        yield ended

    def unwritten(self) -> list[OutputPump]:
        """The pumps that still write to a slow reader."""
        return [pump for pump in self._outputs if not pump.done.done]

    def _close_given(self) -> None:
        for number, fd in enumerate(self._given):
            if fd is not None:
                os.close(fd)
                self._given[number] = None

    def close(self) -> None:
        """Close everything at once: the process was not made."""
        self._close_given()
        for fd in [*self._stdin, *self._sinks, *self._sources]:
            if fd >= 0:
                os.close(fd)
        self._stdin, self._sinks, self._sources = [], [-1, -1], [-1, -1]
        if self._input is not None:
            self._input.close()
        for pump in self._outputs:
            pump.close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        for pid, ended in self._loggers:
            self._loop.spawn(self._end_logger(pid, ended))
        self._loggers = []


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _either(one: Future, other: Future) -> Future:
    result = Future()
    one.then(lambda _: result.set())
    other.then(lambda _: result.set())
    return result


def _open_sink(name: str) -> int:
    scheme, path, _ = split(name)
    append = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC  # it may be a FIFO that nobody reads
    try:
        if scheme == "file":
            os.makedirs(os.path.dirname(path) or "/", 0o755, exist_ok=True)
            return os.open(path, append | os.O_CREAT, 0o644)
        try:
            return open_writer(path)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        return os.open(path, append)  # a plain file or a device, which a client may name too
    except OSError as error:
        raise _bad(path, error) from None


class ConsoleSocket:
    """Where a runtime sends the master of a new terminal: ``--console-socket`` of the OCI command line.

    Arguments:
        loop: where it is watched.
        directory: where the socket's name goes; root's alone.
    """

    def __init__(self, loop: Loop, directory: str) -> None:
        self._loop = loop
        self.path = f"{directory}/pty-{os.urandom(8).hex()}"
        self.master = Future()
        """The descriptor of the terminal's master."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.bind(self.path)
        os.chmod(self.path, 0o600)
        self._socket.listen(1)
        self._socket.setblocking(False)
        self._connection: socket.socket | None = None
        loop.watch(self._socket.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        if self._connection is not None:
            return
        try:
            self._connection, _address = self._socket.accept()
        except OSError:
            return
        self._loop.unwatch(self._socket.fileno())
        self._connection.setblocking(False)
        self._loop.watch(self._connection.fileno(), READ, self._receive)

    def _receive(self, _: int) -> None:
        assert self._connection is not None
        try:
            _data, fds, _flags, _address = socket.recv_fds(self._connection, 4096, 4)
        except BlockingIOError:
            return
        except OSError as error:
            self.master.fail(error)
            return
        self._loop.unwatch(self._connection.fileno())
        if len(fds) == 1 and os.isatty(fds[0]):
            os.set_inheritable(fds[0], False)
            self.master.set(fds[0])
            return
        for fd in fds:
            os.close(fd)
        self.master.fail(status.StatusError(status.UNKNOWN, "the runtime sent no terminal"))

    def receive(self) -> Steps[Any]:
        """The master, once the runtime has sent it.

        Raises:
            StatusError: it did not, or sent something else.
        """
        try:
            return (yield self._loop.bounded(self.master, CONSOLE_SECONDS))
        except (OSError, TimeoutError) as error:
            raise status.StatusError(status.UNKNOWN, f"failed to retrieve console master: {error}") from None

    def close(self) -> None:
        """Remove the socket."""
        for sock in (self._socket, self._connection):
            if sock is not None:
                self._loop.unwatch(sock.fileno())
                sock.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
