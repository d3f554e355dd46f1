"""A process of a container, from the runtime's word that it runs to the event that it has ended."""

from __future__ import annotations

import os
from time import monotonic

from casemate.agent.crun import Crun
from casemate.agent.processes import Exit, Reaper
from casemate.agent.pumps import Input, Output
from casemate.agent.system import SIGKILL, log, read_text
from casemate.agent.terminal import ConsoleSocket, set_size
from casemate.protocol import threads
from casemate.protocol.link import Link, Stream
from casemate.protocol.wire import LinkError, RequestFailed, StreamClosed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from casemate.agent.blank import Blank

ANNOUNCE = 10.0
"""Seconds that an exit waits for the answer to the request that started the process, so that it comes after it."""
NAMES = ("stdin", "stdout", "stderr")


class Streams:
    """The streams that a request names, opened."""

    def __init__(self, link: Link, params: dict[str, Any]) -> None:
        self.by_name: dict[str, Stream] = {}
        self.kept: list[list[Stream | None]] = []
        """See :mod:`casemate.agent.kept`."""
        try:
            for name in NAMES:
                number = params.get(name)
                if number is None:
                    continue
                if type(number) is not int:
                    raise RequestFailed("bad-spec", f"{name} must be a channel number or null")
                self.by_name[name] = link.stream(number)
            if params.get("kept"):
                from casemate.agent import kept  # here, because hardly anybody has any

                kept.open_streams(link, params, self.kept)
        except LinkError as error:
            self.close()
            raise error if isinstance(error, RequestFailed) else RequestFailed("bad-spec", str(error)) from None

    def close(self) -> None:
        """Close those that nobody took."""
        for stream in (*self.by_name.values(), *(stream for pair in self.kept for stream in pair)):
            if stream is not None:
                stream.close()


class Process:
    """One process and what carries its bytes.

    Arguments:
        exec_id: its name in its container, None for the container's first process.
        ended: called on a thread of its own when it has ended and its output was sent, with how it ended.
    """

    def __init__(self, exec_id: str | None, ended: Callable[[Process, Exit], None]) -> None:
        self.exec_id = exec_id
        self.pid = 0
        self.announced = threads.Event()
        """Set when the host knows that the process was started."""
        self.ending = False
        """Whether it has ended, which the host need not know yet."""
        self.done = threads.Event()
        """Set when the host knows that it has ended."""
        self._ended = ended
        self._outputs: list[Output] = []
        self._inputs: list[Input] = []
        self._terminal: int | None = None
        self._lock = threads.Lock()

    def launch(
        self,
        crun: Crun,
        reaper: Reaper,
        streams: Streams,
        arguments: Callable[[list[str]], list[str]],
        directory: str,
        name: str,
        size: tuple[int, int] | None,
        terminal: bool,
        priority: dict[str, Any],
    ) -> None:
        """Have the runtime start the process.

        Arguments:
            streams: where its bytes come from and go to; they belong to this object then, whatever happens.
            arguments: makes the runtime's arguments, given those that say where the process's number is to be written.
            directory, name: where files for this start can be made, and how they begin.
            size: rows and columns of the terminal.
            terminal: whether it has one.
            priority: see :mod:`casemate.agent.priority`; empty for none.

        Raises:
            RequestFailed: it was not started.
        """
        if priority:
            from casemate.agent import priority as priorities  # here, because hardly anybody asks for one

            priorities.check(priority)
        base = f"{directory}/{name}"
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        theirs: list[int] = []
        console: ConsoleSocket | None = None
        options = [f"--pid-file={base}.pid"]
        try:
            stdio = [null, null, null]
            if terminal:
                console = ConsoleSocket(f"{base}.tty")
                options.append(f"--console-socket={console.path}")
            else:
                self._pipes(streams, stdio, theirs)
            extra: list[int] = []
            if streams.kept:
                from casemate.agent import kept

                options.append(f"--preserve-fds={len(streams.kept)}")
                kept.attach(streams.kept, extra, self._inputs, self._outputs)
                theirs += extra
            with reaper:
                crun.run(arguments(options), f"{base}.log", *stdio, *extra)
                self.pid = _pid(f"{base}.pid")
                try:
                    if console is not None:
                        self._take_terminal(console.receive(), streams, size)
                    if priority:
                        priorities.apply(self.pid, priority)
                    self._begin()
                except BaseException:
                    os.kill(self.pid, SIGKILL)
                    raise
                reaper.watch(self.pid, self._exited)
        except OSError as error:
            self._discard()
            raise RequestFailed("failed", f"the process cannot be started: {error}") from None
        except BaseException:
            self._discard()
            raise
        finally:
            streams.close()  # those that nobody took
            for fd in (null, *theirs):
                os.close(fd)
            if console is not None:
                console.close()
            for suffix in (".pid", ".log"):
                _unlink(base + suffix)

    def become(
        self, blank: Blank, identifier: str, spec: dict[str, Any], streams: Streams, size: tuple[int, int] | None,
        terminal: bool, *, wait: bool, place: str | None = None,
    ) -> None:  # fmt: skip
        """Make it of a blank instead.

        Arguments:
            identifier, spec: of its container.
            streams, size, terminal: as for :meth:`launch`.
            wait: whether it waits for the word to begin.
            place: where the command is, if that is known.

        Raises:
            RequestFailed: it was not started.
        """
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        theirs: list[int] = []
        controlling: list[int] = []
        try:
            stdio = [null, null, null]
            if not terminal:
                self._pipes(streams, stdio, theirs)
            blank.begin(identifier, spec, stdio, wait, controlling.append, place)
            self.pid = blank.pid
            try:
                if terminal:
                    self._take_terminal(controlling.pop(), streams, size)
                self._begin()
            except BaseException:
                blank.discard()
                raise
            blank.watch(self._exited)
        except OSError as error:
            self._discard()
            raise RequestFailed("failed", f"the process cannot be started: {error}") from None
        except BaseException:
            self._discard()
            raise
        finally:
            streams.close()  # those that nobody took
            for fd in (null, *theirs, *controlling):
                os.close(fd)

    def _pipes(self, streams: Streams, stdio: list[int], theirs: list[int]) -> None:
        """Pipes for the streams that there are: their ends for the process go to ``stdio`` and ``theirs``."""
        for number, name in enumerate(NAMES):
            if name in streams.by_name:
                stdio[number] = self._pipe(streams.by_name.pop(name), number == 0)
                theirs.append(stdio[number])

    def _pipe(self, stream: Stream, is_input: bool) -> int:
        """A pipe whose one end is ours; returns the process's."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        if is_input:
            self._inputs.append(Input(writer, stream))
            return reader
        self._outputs.append(Output(reader, stream))
        return writer

    def _take_terminal(self, fd: int, streams: Streams, size: tuple[int, int] | None) -> None:
        self._terminal = fd
        if size is not None:
            set_size(fd, *size)
        if "stdout" in streams.by_name:
            self._outputs.append(Output(os.dup(fd), streams.by_name.pop("stdout")))
        if "stdin" in streams.by_name:
            self._inputs.append(Input(os.dup(fd), streams.by_name.pop("stdin")))

    def _begin(self) -> None:
        for pump in (*self._outputs, *self._inputs):
            pump.start()

    def _discard(self) -> None:
        for pump in (*self._outputs, *self._inputs):
            pump.discard()
        self._close_terminal()

    def _close_terminal(self) -> None:
        with self._lock:
            if self._terminal is not None:
                os.close(self._terminal)
                self._terminal = None

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of its terminal.

        Raises:
            RequestFailed: it has none, or has ended.
        """
        with self._lock:
            if self._terminal is None:
                raise RequestFailed("failed", "the process has no terminal")
            set_size(self._terminal, rows, columns)

    def _exited(self, end: Exit) -> None:  # on the reaper's thread
        self.ending = True
        threads.start(self._finish, end)

    def _finish(self, end: Exit) -> None:
        deadline = monotonic() + ANNOUNCE
        try:
            self.announced.wait(max(0.0, deadline - monotonic()))
            for one in self._inputs:
                one.process_ended()
            for output in self._outputs:
                output.process_ended()
            for output in self._outputs:
                output.drained.wait()
            self._close_terminal()
            self._ended(self, end)
        except (LinkError, OSError) as error:
            if not isinstance(error, StreamClosed):
                log(f"end of process {self.pid}: {error}")
        finally:
            self.done.set()


def _pid(path: str) -> int:
    word = read_text(path).strip()
    if not word.isdigit() or int(word) < 2:
        raise RequestFailed("failed", "the container runtime did not say which process it started")
    return int(word)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
