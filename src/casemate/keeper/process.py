"""One process of a container as the keeper sees it: its streams, where they lead, and how it ends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from casemate.keeper.logs import LogWriter
from casemate.keeper.pump import Cancel, Sink, copy_in, copy_out
from casemate.sandbox import ProcessExit, ProcessStreams, Stream

QUIET_SECONDS = 1.0
"""How long output may be silent after the process's end before it counts as over, if somebody still holds it open."""


class Process:
    """Carries the streams of a started process until it ends.

    Arguments:
        streams: from the sandbox.
        stdio: the client's descriptors by name; the process closes them.
        log: where output is kept, or None.
        ended: called once with the exit, after the last output was delivered.
        kept: the client's descriptors for ``streams.kept``; the process closes them.
    """

    def __init__(
        self,
        streams: ProcessStreams,
        stdio: dict[str, int],
        log: LogWriter | None,
        ended: Callable[[ProcessExit], None],
        kept: Sequence[int] = (),
    ) -> None:
        self._log = log
        self._ended = ended
        self._cancel = Cancel()
        self._exit: ProcessExit | None = None
        self._exited = threading.Event()
        self._busy: set[str] = set()
        self._moved = 0.0
        self._sinks: list[Sink] = []
        self._outputs: list[tuple[threading.Thread, Stream]] = []
        for name, stream in (("stdout", streams.stdout), ("stderr", streams.stderr)):
            if stream is not None:
                sink = Sink(stdio.pop(name)) if name in stdio else None
                if sink is not None:
                    self._sinks.append(sink)
                thread = threading.Thread(target=self._output, args=(name, stream, sink), name=name, daemon=True)
                self._outputs.append((thread, stream))
        self._inputs: list[tuple[threading.Thread | None, Stream]] = []
        if streams.stdin is not None:
            self._inputs.append((self._input("stdin", stdio.pop("stdin", None), streams.stdin), streams.stdin))
        for place, (fd, (into, out)) in enumerate(zip(kept, streams.kept, strict=True)):
            self._keep(f"kept{place}", fd, into, out)
        for left in stdio.values():
            os.close(left)
        for carrier, _ in (*self._outputs, *self._inputs):
            if carrier is not None:
                carrier.start()
        threading.Thread(target=self._finish, name="finish", daemon=True).start()

    def _input(self, name: str, fd: int | None, stream: Stream) -> threading.Thread | None:
        if fd is None:
            return None
        return threading.Thread(target=copy_in, args=(fd, stream, self._cancel), name=name, daemon=True)

    def _keep(self, name: str, fd: int, into: Stream | None, out: Stream | None) -> None:
        """Carry what goes over a further descriptor; a connection is one for each direction then."""
        if out is not None:
            sink = Sink(os.dup(fd), ends=True)
            self._sinks.append(sink)
            thread = threading.Thread(target=self._output, args=(name, out, sink), name=name, daemon=True)
            self._outputs.append((thread, out))
        if into is not None:
            self._inputs.append((self._input(name, fd, into), into))
        else:
            os.close(fd)

    def _output(self, name: str, stream: Stream, sink: Sink | None) -> None:
        log, alive = self._log, sink is not None

        def take(data: bytes) -> None:
            nonlocal alive
            self._moved = time.monotonic()
            self._busy.add(name)
            if log is not None:
                log.record(name, data)
            if alive and sink is not None:
                alive = sink.write(data)
                if sink.ends and not alive:
                    stream.close()  # whoever writes to it in the sandbox is to notice, as with a pipe on the host
            self._moved = time.monotonic()
            self._busy.discard(name)

        copy_out(stream, take)
        if sink is not None and sink.ends:
            sink.end()

    def exited(self, end: ProcessExit) -> None:
        """The process has ended; what it wrote may still be on its way. The first word on how it ended counts."""
        self._exit = self._exit or end
        self._exited.set()

    def stuck(self) -> float:
        """For how many seconds a reader has not taken what it is offered; 0 when it has taken everything."""
        return time.monotonic() - self._moved if self._busy else 0.0

    def close_stdin(self) -> None:
        """End standard input after what is there to be read at once."""
        self._cancel.drain = True
        self._cancel.set()

    def detach(self) -> None:
        """The client is gone: its descriptors are let go, standard input ends, output goes to the log alone."""
        self._cancel.drain = False
        self._cancel.set()
        for sink in self._sinks:
            sink.close()

    def _finish(self) -> None:
        self._exited.wait()
        for thread, stream in self._outputs:
            while thread.is_alive():
                thread.join(QUIET_SECONDS)
                if not self._busy and time.monotonic() - self._moved > QUIET_SECONDS:
                    stream.close()  # a process left behind holds it open; what it writes later is not ours to wait for
                    thread.join()
        self.detach()
        for _, into in self._inputs:
            into.close()
        for reader, _ in self._inputs:
            if reader is not None:
                reader.join()
        self._cancel.close()
        self._ended(self._exit or ProcessExit(255, error="the process ended without saying how"))
