"""What is written down about a container: its specification, which never changes, and its state, which does."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

from casemate.errors import StateError, UsageError
from casemate.host.ports import PortMap
from casemate.ids import is_id

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

STATUSES = ("creating", "running", "paused", "exited")


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """All that a keeper needs to run a container; ``config.json`` in the container's directory.

    ``oci`` is an OCI runtime specification whose ``root.path`` is ignored and whose bind mounts have host paths as
    sources: the sandbox turns those into what its guest sees. ``user`` is still a name or number as the person gave
    it; the agent resolves it inside the container's root filesystem, which is not to be trusted on the host.
    """

    id: str
    name: str
    image: str
    image_id: str
    layers: tuple[str, ...]
    oci: dict[str, Any]
    user: str = ""
    hostname: str = ""
    tty: bool = False
    open_stdin: bool = False
    detach: bool = False
    remove: bool = False
    memory_mib: int | None = None
    cpus: float | None = None
    pids: int | None = None
    wall: str = "vm"
    """``vm`` or ``sentry``."""
    network: str = "nat"
    ports: tuple[PortMap, ...] = ()
    dns: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    stop_signal: int = 15
    created: float = 0.0
    command: tuple[str, ...] = ()

    def keeps_files(self) -> bool:
        """Whether anything that the container writes outlives it."""
        return not self.remove or any(mount.get("type") == "bind" for mount in self.oci.get("mounts", ()))

    def to_json(self) -> dict[str, Any]:
        """A plain object for :func:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ContainerSpec:
        """The specification of a ``config.json``.

        Raises:
            StateError: a field is missing or unknown, or the id is not one.
        """
        try:
            ports = tuple(PortMap(**port) for port in value.get("ports", ()))
            rest: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
            rest.pop("ports", None)
            spec = cls(ports=ports, **rest)
        except (TypeError, AttributeError, UsageError) as error:
            raise StateError(f"config.json of a container is damaged ({error})") from None
        if not isinstance(spec.id, str) or not is_id(spec.id):
            raise StateError("config.json of a container holds no valid id")
        return spec


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What a container does just now; ``state.json``. Times are seconds since the epoch."""

    status: str = "creating"
    pid: int | None = None
    """The keeper's process id on the host."""
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""
    started: float | None = None
    finished: float | None = None
    address: str | None = None
    ports: tuple[PortMap, ...] = ()
    """The published ports, with those that the kernel chose."""
    guest: dict[str, Any] = field(default_factory=dict)
    """What the guest said of itself: kernel, memory, boot id, accelerator."""

    def to_json(self) -> dict[str, Any]:
        """A plain object for :func:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ContainerState:
        """The state of a ``state.json``; keys that a newer version wrote are left out.

        Raises:
            StateError: the status is none that exists.
        """
        known = {item.name for item in fields(cls)} - {"ports"}
        try:
            ports = tuple(PortMap(**port) for port in value.get("ports", ()))
        except (TypeError, AttributeError, UsageError) as error:
            raise StateError(f"state.json of a container is damaged ({error})") from None
        state = cls(ports=ports, **{key: item for key, item in value.items() if key in known})
        if state.status not in STATUSES:
            raise StateError(f"state.json of a container holds the unknown status {state.status!r}")
        return state
