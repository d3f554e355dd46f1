"""What every wall offers to the doors: one sandbox, its containers and their processes.

``vm.sandbox.VmSandbox`` implements it with a virtual machine. No door knows which wall it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from casemate.errors import Unsupported
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
    kept: tuple[tuple[Stream | None, Stream | None], ...] = ()
    """Of its further descriptors, from 3 on: what leads to the process, and what comes from it."""


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """How a process ended.

    ``status`` is the exit status, 128 + n after signal n (as the shell says it, and Docker); ``signal`` is that n.
    ``oom`` tells that the memory limit killed something in the container. ``error`` explains an end that was not the
    process's own doing.
    """

    status: int
    oom: bool = False
    error: str = ""
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of the main routing table (``ip-route(8)``)."""

    destination: str
    """In CIDR form; ``0.0.0.0/0`` or ``::/0`` for the default one."""
    gateway: str | None = None
    metric: int = 0
    scope: str = "global"
    """``global``, ``link`` or ``host``."""
    source: str | None = None
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent entry of the neighbour table (``ip-neighbour(8)``)."""

    address: str
    mac: str


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface as the guest is to have it."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[str, ...] = ()
    """In CIDR form, IPv4 and IPv6."""
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()


@dataclass(frozen=True, slots=True)
class Nic:
    """An interface and the tap behind it, whose descriptor goes to the sandbox."""

    interface: Interface
    tap_fd: int


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device of the host for the guest; the descriptor goes to the sandbox."""

    serial: str
    fd: int
    read_only: bool = False


class PodSandbox(ABC):
    """One sandbox that holds several containers of an engine, each from a bundle.

    Calls may come from any thread once :meth:`boot` has returned. Every method raises a
    :class:`casemate.errors.CasemateError` where it fails. ``id`` is a container's, ``exec_id`` names a process in it
    (None: its first).
    """

    carried: bool = True
    """Whether its network is carried over from the engine's namespace; else it is in that namespace itself."""
    on_exit: Callable[[str, str | None, ProcessExit], None]
    """Called once for every process that was made: container, exec id, and how it ended."""
    on_oom: Callable[[str], None] = staticmethod(lambda id: None)
    """Called when something in a container was killed for want of memory."""
    on_end: Callable[[ProcessExit], None] = staticmethod(lambda end: None)
    """Called when the sandbox ended by itself, after all calls of :attr:`on_exit`."""

    @abstractmethod
    def boot(self, netns: int, nics: Sequence[Nic], disks: Sequence[Disk], hostname: str) -> None:
        """Bring the sandbox up. To be called from the thread that lives as long as the sandbox.

        Arguments:
            netns: descriptor of the network namespace that its processes stand in; not closed.
            nics, disks: what is there from the start; their descriptors are closed, whatever happens.
            hostname: of the guest.
        """

    @abstractmethod
    def attach(self, id: str, root_fd: int, volumes_fd: int | None) -> None:
        """Show a container's trees (detached mounts, ``open_tree(2)``) to the guest; the descriptors are closed."""

    @abstractmethod
    def detach(self, id: str) -> None:
        """Take the trees of a container away; nothing when there are none."""

    @abstractmethod
    def create(
        self, id: str, spec: dict[str, Any], files: list[dict[str, Any]], stdin: bool, size: tuple[int, int] | None,
        kept: Sequence[str] = (),
    ) -> ProcessStreams:
        """Make a container, whose first process waits for :meth:`start`.

        Arguments:
            spec: an OCI runtime specification in the guest's paths.
            files: text files for the container: ``{"path", "mode", "content"}``.
            stdin: whether standard input stays open for us; else it is empty.
            size: rows and columns of its terminal, if it has one.
            kept: what its further descriptors are, from 3 on: ``in`` (it reads), ``out``, ``both`` (a connection), or
                ``null``.
        """

    @abstractmethod
    def start(self, id: str) -> None:
        """Let the container's first process run."""

    @abstractmethod
    def exec(
        self, id: str, exec_id: str, process: dict[str, Any], stdin: bool, size: tuple[int, int] | None,
        kept: Sequence[str] = (),
    ) -> ProcessStreams:
        """Start another process (an OCI ``process`` object) in a container."""

    @abstractmethod
    def signal(self, id: str, exec_id: str | None, signum: int, everyone: bool = False) -> None:
        """Send a signal to a process, or to all of a container."""

    @abstractmethod
    def resize(self, id: str, exec_id: str | None, rows: int, columns: int) -> None:
        """Tell a process's terminal its size."""

    @abstractmethod
    def pause(self, id: str) -> None:
        """Stop all processes of a container until :meth:`resume`."""

    @abstractmethod
    def resume(self, id: str) -> None:
        """Go on."""

    @abstractmethod
    def stats(self, id: str) -> dict[str, Any]:
        """What a container uses, as the guest sees it, and what the host gives for the sandbox."""

    def debug(self, id: str, what: str, pid: int | None) -> dict[str, Any]:
        """What the kernel of a sandbox behind the sentry knows of a container's processes.

        See :meth:`Sandbox.debug`.
        """
        raise Unsupported("the container is not behind the sentry", "look into it with the engine's exec")

    @abstractmethod
    def update(self, id: str, resources: dict[str, Any]) -> None:
        """Change a container's bounds (OCI ``linux.resources``)."""

    @abstractmethod
    def delete(self, id: str) -> None:
        """Remove a container from the guest, killing what still runs in it; nothing when it is not there."""

    @abstractmethod
    def plug(self, nic: Nic) -> None:
        """Add a network interface to the running sandbox; the descriptor is closed, whatever happens."""

    @abstractmethod
    def unplug(self, mac: str) -> None:
        """Take a plugged interface away."""

    @abstractmethod
    def configure(self, interfaces: Sequence[Interface]) -> None:
        """Bring names, addresses, routes and neighbours of all interfaces up to date."""

    @abstractmethod
    def grow(self, memory_mib: int, *, partly: bool) -> int:
        """Give the running sandbox more memory.

        Arguments:
            memory_mib: how much in all.
            partly: give it as much as it can have, where that is less; else none.

        Returns:
            how much it has then.
        """

    @abstractmethod
    def plug_disk(self, disk: Disk) -> None:
        """Add a block device to the running sandbox; the descriptor is closed, whatever happens."""

    @abstractmethod
    def connect(self, port: int) -> ProcessStreams:
        """Connect to a TCP port of the guest's loopback: ``stdin`` leads there, ``stdout`` comes from there."""

    @abstractmethod
    def serve_dns(self, addresses: Sequence[str]) -> ProcessStreams:
        """Have the guest answer name queries at loopback addresses; queries and answers travel on the streams."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """What kernel the sandbox has, its processes, and the like."""

    @abstractmethod
    def flush(self) -> None:
        """Have everything written back that processes wrote; to be called before :meth:`close` when all went well."""

    @abstractmethod
    def close(self) -> None:
        """End the sandbox and give everything back, in whatever state it is; may be called more than once."""


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

    def debug(self, what: str, pid: int | None) -> dict[str, Any]:
        """What the kernel of a sandbox behind the sentry knows of its processes.

        Arguments:
            what: ``ps``, ``maps``, ``fds`` or ``stacks``, see :mod:`casemate.sentry.inspect`.
            pid: a process or thread, by its number in the container; None for all.
        """
        raise Unsupported("the container is not behind the sentry", "look into it with 'casemate exec'")

    @abstractmethod
    def refresh(self) -> None:
        """Have the container see at once what was changed in its root filesystem from outside."""

    @abstractmethod
    def flush(self) -> None:
        """Have everything written back that processes wrote; to be called before :meth:`close` when all went well."""

    @abstractmethod
    def close(self) -> None:
        """End the sandbox and give everything back, in whatever state it is; may be called more than once."""
