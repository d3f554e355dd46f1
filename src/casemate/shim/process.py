"""A process of a container: its first one, or one that was added by ``Exec``."""

from __future__ import annotations

from casemate.shim import messages, status
from casemate.shim.loop import Future, Lock
from casemate.shim.stdio import Names, Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from casemate.shim.ttrpc import Call


class Process:
    """What is known of one process. Its states are those of containerd's shim.

    Arguments:
        exec_id: empty for the container's first process.
        names: its streams, as the client named them.
        spec: of an added process: ``process`` of the OCI runtime specification.
    """

    __slots__ = (
        "exec_id", "names", "spec", "pid", "status", "exit_status", "exited_at", "streams", "ended", "lock",
        "starting", "late_exit", "_size", "_input_ended",
    )

    def __init__(self, exec_id: str, names: Names, spec: dict[str, Any] | None = None) -> None:
        self.exec_id = exec_id
        self.names = names
        self.spec = spec
        self.pid = 0
        self.status = messages.CREATED
        self.exit_status = 0
        self.exited_at = 0
        """Nanoseconds since the epoch; 0 while it has not ended."""
        self.streams: Streams | None = None
        self.ended = Future()
        """Done when its end has been published."""
        self.lock = Lock()
        """Held by whoever changes its state with the runtime's help."""
        self.starting = False
        self.late_exit: tuple[int, int] | None = None
        """Exit status and time of a process that ended before its start was published."""

        self._size: tuple[int, int] | None = None
        self._input_ended = False

    def take(self, pid: int, streams: Streams) -> None:
        """The process is there."""
        self.pid = pid
        self.streams = streams
        if self._size is not None:
            streams.resize(*self._size)
        if self._input_ended:
            streams.end_input()

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal, now or when there is one."""
        self._size = rows, columns
        if self.streams is not None:
            self.streams.resize(rows, columns)

    def end_input(self) -> None:
        """The client sends no more input."""
        self._input_ended = True
        if self.streams is not None:
            self.streams.end_input()

    def exited(self) -> dict[str, Any]:
        """Exit status and time as answers have them."""
        at = messages.timestamp(self.exited_at) if self.exited_at else None
        return {"exit_status": self.exit_status, "exited_at": at}

    def answer(self, call: Call) -> None:
        """Answer a request with the process's end, when it has ended; forget it when nobody waits any more."""

        def tell(_: Future) -> None:
            call.reply(self.exited())

        call.on_over = lambda: self.ended.forget(tell)
        self.ended.then(tell)

    def alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self.pid > 0 and self.status != messages.STOPPED

    def must_be(self, *states: int, what: str) -> None:
        """Refuse what a process in another state cannot do.

        Arguments:
            states: those in which it can.
            what: the verb, such as "start".

        Raises:
            StatusError: FAILED_PRECONDITION, in the words of containerd's shim.
        """
        if self.status not in states:
            words = _STATES[self.status]
            raise status.failure(status.FAILED_PRECONDITION, f"cannot {what} a {words} process")


_STATES = {
    messages.CREATED: "created", messages.RUNNING: "running", messages.PAUSED: "paused", messages.PAUSING: "pausing",
    messages.STOPPED: "stopped",
}
