"""What every wall offers to the doors: one sandbox, its containers and their processes.

``vm.sandbox.VmSandbox`` implements it with a virtual machine. No door knows which wall it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from casemate.host.ports import PortMap


class Stream(Protocol):
    """One direction of a process's standard input or output."""

    def send(self, data: bytes, /) -> None:
        """Give input; waits while the process does not read. Raises a
        :class:`casemate.protocol.wire.LinkError` when the process takes no more."""

    def send_eof(self) -> None:
        """End the input."""

    def recv(self, limit: int = ..., /) -> bytes:
        """Wait for output; empty at its end."""

    def close(self) -> None:
        """Drop what else comes."""


@dataclass(frozen=True, slots=True)
class ProcessStreams:
    """The streams of one process; None where there is none. A terminal has all output on ``stdout``."""

    stdin: Stream | None
    stdout: Stream | None
    stderr: Stream | None


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """How a process ended.

    ``status`` is the exit status, 128 + n after signal n (as the shell says it, and Docker). ``oom`` tells that the
    memory limit killed something in the container. ``error`` explains an end that was not the process's own doing.
    """

    status: int
    oom: bool = False
    error: str = ""


class Sandbox(ABC):
    """One sandbox. Calls may come from any thread once :meth:`boot` has returned, except where it is said.

    Every method raises a :class:`casemate.errors.CasemateError` where it fails.
    """

    on_exit: Callable[[str | None, ProcessExit], None]
    """Called once for every process that was started: its exec id (None for the container's first) and how it ended."""
    on_oom: Callable[[], None] = staticmethod(lambda: None)
    """Called, once there is somebody who set it, when something in the container was killed for want of memory."""
    address: str | None = None
    """Its IPv4 address, once it has booted with a network."""
    ports: tuple[PortMap, ...] = ()
    """Its published ports, with those that the kernel chose."""

    @abstractmethod
    def boot(self) -> None:
        """Make the sandbox ready for :meth:`start`. To be called from the thread that lives as long as the sandbox."""

    @abstractmethod
    def start(self, stdin: bool, size: tuple[int, int] | None) -> ProcessStreams:
        """Make the container and start its first process.

        Arguments:
            stdin: whether its standard input stays open for us; else it is empty.
            size: rows and columns of its terminal, if it has one.
        """

    @abstractmethod
    def exec(
        self, exec_id: str, process: dict[str, Any], user: str, stdin: bool, size: tuple[int, int] | None
    ) -> ProcessStreams:
        """Start another process in the container.

        Arguments:
            exec_id: its name among the container's processes.
            process: an OCI ``process`` object.
            user: name or number, to be resolved in the container; empty for the process object's own.
            stdin, size: as for :meth:`start`.
        """

    @abstractmethod
    def signal(self, exec_id: str | None, signum: int) -> None:
        """Send a signal to one process."""

    @abstractmethod
    def resize(self, exec_id: str | None, rows: int, columns: int) -> None:
        """Tell a process's terminal its size."""

    @abstractmethod
    def pause(self) -> None:
        """Stop everything in the sandbox until :meth:`resume`."""

    @abstractmethod
    def resume(self) -> None:
        """Go on."""

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """What the container uses, as the guest sees it, and what the host gives for it."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """What kernel the sandbox has, and the like."""

    @abstractmethod
    def refresh(self) -> None:
        """Have the container see at once what was changed in its root filesystem from outside."""

    @abstractmethod
    def flush(self) -> None:
        """Have everything written back that processes wrote; to be called before :meth:`close` when all went well."""

    @abstractmethod
    def close(self) -> None:
        """End the sandbox and give everything back, in whatever state it is; may be called more than once."""
