"""Typed configuration: one TOML file, drop-ins beside it, and the environment for the two directories.

``/etc/casemate/config.toml`` is read first, then ``/etc/casemate/config.d/*.toml`` in the order of their names; a later
file wins key by key. ``CASEMATE_CONFIG`` names another first file (its drop-ins are in ``config.d`` beside it).
``CASEMATE_ROOT`` and ``CASEMATE_RUN`` override the directories. A key that is not known is an error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

from casemate.errors import ConfigError

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

DEFAULT_FILE = Path("/etc/casemate/config.toml")
WALLS = ("vm", "sentry")
PLATFORMS = ("auto", "notify", "notify-python", "ptrace")
ACCELERATORS = ("auto", "kvm", "tcg")
TRANSPORTS = ("auto", "serial", "vsock")
TEMPLATES = ("auto", "off")
TWINS = ("auto", "off")
KSM = ("auto", "initial", "off")
NETWORK = "10.87.0.0/16"
TEMPLATE_MIB = 128
"""Memory of a machine that comes from its template; the rest is added when it is made. Little, because what a guest
uses of this that was free when it was saved costs the host twice: Linux fills the hole in the template's file before it
copies the page that is written to."""
RUN_LENGTH = 81
"""Most characters of ``run``: with ``/0123456789ab/control.sock`` it has to fit into a socket address (unix(7))."""


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting, with its default. Memory is in MiB, times in seconds."""

    root: Path = Path("/var/lib/casemate")
    """What lasts: images, guest bundles, containers."""
    run: Path = Path("/run/casemate")
    """What a reboot may take: sockets, leases, probe results."""
    wall: str = "vm"
    """What stands between a container and the host where nothing else is asked for: ``vm`` (a machine of its own) or
    ``sentry`` (a kernel in user space)."""
    sentry_platform: str = "auto"
    """How the sentry gets at system calls: ``notify``, ``ptrace``, or ``auto``: the faster one that the host has."""
    accelerator: str = "auto"
    """``auto`` (KVM when a probe guest makes progress, else TCG), ``kvm`` or ``tcg``."""
    qemu: str = "qemu-system-x86_64"
    """The VMM's program, a name on the PATH or a path."""
    virtiofsd: str = "/usr/lib/qemu/virtiofsd"
    """The file server's program."""
    memory: int = 1024
    """Guest memory when a container does not ask."""
    memory_minimum: int = 128
    """The least that ``--memory`` may ask."""
    vmm_overhead: int = 160
    """What the host control group gets beside the guest's memory: VMM, file server, keeper."""
    vcpus: int = 1
    """Virtual processors when a container does not ask."""
    transport: str = "serial"
    """How the agent is reached: ``serial`` (a virtio port), ``vsock``, or ``auto``: vsock where the host has it."""
    parallel_boots: int = 0
    """How many machines may boot at the same time, others wait for their turn; 0 means one for each processor."""
    guest: str = ""
    """Digest of the guest bundle to use; empty means the newest built."""
    template: str = "auto"
    """``auto``: machines are made from a template, which is made first where there is none; ``off``: each boots."""
    twins: str = "auto"
    """``auto``: where machines are emulated, one that has come up is kept standing still and copied for each sandbox;
    ``off``: none is."""
    twins_idle: int = 600
    """After how many seconds without a start that one ends."""
    boot_timeout: int = 120
    """How long the agent may take to answer after the machine starts."""
    call_timeout: int = 60
    """How long the agent may take to answer one request."""
    stop_timeout: int = 10
    """How long ``stop`` waits between the stop signal and SIGKILL."""
    log_size: int = 16
    """How many MiB of a container's output are kept."""
    network: str = NETWORK
    """Addresses of sandboxes; the first is the gateway's."""
    mtu: int = 1500
    """Largest packet of the sandbox's interface, in bytes."""
    uid_base: int = 1_879_048_192
    """First of 65,536 user ids that sandboxes' VMMs run as, one each; none may belong to a real user."""
    ksm: str = "auto"
    """What ``casemate ksm`` does: ``auto`` (after each start merge equal pages hard, then less and less), ``initial``
    (leave the kernel's settings alone) or ``off`` (no merging). With ``off``, no guest's memory is offered either."""
    ksm_aggressive_share: int = 10
    """After a start: the kernel looks at one in so many of all anonymous pages, and then makes a pause."""
    ksm_aggressive_pause: int = 1
    """How many milliseconds the pause is."""
    ksm_aggressive_seconds: int = 30
    """How long that goes on after the last start; 0 leaves this pace out."""
    ksm_standard_share: int = 100
    """The same for the pace that follows."""
    ksm_standard_pause: int = 10
    """Milliseconds."""
    ksm_standard_seconds: int = 120
    """How long it is kept."""
    ksm_slow_share: int = 500
    """The same for the last pace, after which the settings are as they were."""
    ksm_slow_pause: int = 100
    """Milliseconds."""
    ksm_slow_seconds: int = 120
    """How long it is kept."""

    pool_size: int = 2
    """How many sandboxes ``casemate pool`` keeps ready, where its ``--size`` does not say."""
    pool_interval: int = 1
    """Seconds that the pool waits after one was made or handed out, before it makes the next."""
    pool_spare: int = 512
    """MiB that have to be available on the host beside what one takes; with less the pool makes none."""

    @property
    def templates(self) -> bool:
        """Whether machines are made from templates, where there is one for them."""
        return self.template == "auto" and self.transport != "vsock"

    @property
    def twins_wanted(self) -> bool:
        """Whether machines are copies of one that runs, where that is possible."""
        return self.templates and self.twins == "auto"

    @property
    def overhead(self) -> int:
        """What a sandbox may take of the host's memory beside its guest's, in MiB."""
        return self.vmm_overhead + (TEMPLATE_MIB if self.templates else 0)


def load(environ: dict[str, str] | None = None) -> Config:
    """Read the configuration.

    Arguments:
        environ: the environment to read; the process's own when None.

    Raises:
        ConfigError: a file is not TOML, a key is unknown, a value has the wrong type or is out of bounds.
    """
    env: Any = os.environ if environ is None else environ
    config = Config()
    named = env.get("CASEMATE_CONFIG")
    first = Path(named) if named else DEFAULT_FILE
    if named and not first.exists():
        raise ConfigError(f"configuration {first} does not exist", "set CASEMATE_CONFIG to a file or unset it")
    paths = [first] if first.exists() else []
    drop_ins = first.parent / "config.d"
    if drop_ins.is_dir():
        paths += sorted(drop_ins.glob("*.toml"))
    for path in paths:
        config = _merge(config, path)
    for key, variable in (("root", "CASEMATE_ROOT"), ("run", "CASEMATE_RUN")):
        if env.get(variable):
            config = replace(config, **{key: Path(env[variable])})  # type: ignore[arg-type]
    _check(config)
    return config


def _merge(config: Config, path: Path) -> Config:
    try:
        text = path.read_text()
        table = _plain(text)
        if table is None:
            import tomllib  # only where it is needed: the import costs ten times as much as all the rest here

            table = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"configuration {path}: {error}", "mend the file") from None
    known = {field.name: type(getattr(config, field.name)) for field in fields(config)}
    changes: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"configuration {path}: unknown key {key!r}", "known are " + ", ".join(sorted(known)))
        if issubclass(known[key], Path):
            if not isinstance(value, str):
                raise ConfigError(f"configuration {path}: {key} must be a path in quotes")
            changes[key] = Path(value)
        elif type(value) is not known[key]:
            raise ConfigError(f"configuration {path}: {key} must be of type {known[key].__name__}")
        else:
            changes[key] = value
    return replace(config, **changes)


def _plain(text: str) -> dict[str, Any] | None:
    """A file whose lines are comments, or names with a number or plain text; None for any other, which is for those
    who know all of TOML."""
    table: dict[str, Any] = {}
    for line in text.split("\n"):
        line = line.strip(" \t")
        if not line or line.startswith("#"):
            if not line.isprintable():
                return None
            continue
        name, equals, value = line.partition("=")
        name, value = name.rstrip(" \t"), value.lstrip(" \t")
        if not equals or name in table or not name.replace("_", "a").isalnum() or not line.isascii():
            return None
        inside = value[1:-1]
        if value.isdigit() and (value[0] != "0" or value == "0"):
            table[name] = int(value)
        elif len(value) > 1 and value[0] == value[-1] == '"' and inside.isprintable() and not {'"', "\\"} & set(inside):
            table[name] = inside
        else:
            return None
    return table


def _check(config: Config) -> None:
    for key in ("root", "run"):
        if not getattr(config, key).is_absolute():
            raise ConfigError(f"{key} must be an absolute path, not {getattr(config, key)}")
    if len(os.fsencode(config.run)) > RUN_LENGTH:
        raise ConfigError(f"run must have at most {RUN_LENGTH} characters, not {config.run}", "choose a shorter path")
    if config.wall not in WALLS:
        raise ConfigError(f"wall must be one of {', '.join(WALLS)}, not {config.wall!r}")
    if config.sentry_platform not in PLATFORMS:
        raise ConfigError(f"sentry_platform must be one of {', '.join(PLATFORMS)}, not {config.sentry_platform!r}")
    if config.accelerator not in ACCELERATORS:
        raise ConfigError(f"accelerator must be one of {', '.join(ACCELERATORS)}, not {config.accelerator!r}")
    if config.transport not in TRANSPORTS:
        raise ConfigError(f"transport must be one of {', '.join(TRANSPORTS)}, not {config.transport!r}")
    if config.twins not in TWINS:
        raise ConfigError(f"twins must be one of {', '.join(TWINS)}, not {config.twins!r}")
    if config.template not in TEMPLATES:
        raise ConfigError(f"template must be one of {', '.join(TEMPLATES)}, not {config.template!r}")
    if config.ksm not in KSM:
        raise ConfigError(f"ksm must be one of {', '.join(KSM)}, not {config.ksm!r}")
    bounds = {
        "memory": (64, 1 << 22),
        "memory_minimum": (64, 4096),
        "vmm_overhead": (32, 65536),
        "vcpus": (1, 256),
        "parallel_boots": (0, 4096),
        "boot_timeout": (1, 3600),
        "call_timeout": (1, 3600),
        "stop_timeout": (0, 86400),
        "log_size": (1, 65536),
        "mtu": (576, 65521),
        "twins_idle": (1, 1 << 31),
        "pool_size": (1, 1024),
        "pool_interval": (0, 3600),
        "pool_spare": (0, 1 << 22),
        "uid_base": (1000, (1 << 32) - 65538),
    }
    for pace in ("aggressive", "standard", "slow"):
        bounds[f"ksm_{pace}_share"] = (1, 1_000_000)
        bounds[f"ksm_{pace}_pause"] = (1, 3_600_000)
        bounds[f"ksm_{pace}_seconds"] = (0, 86400)
    for key, (low, high) in bounds.items():
        if not low <= getattr(config, key) <= high:
            raise ConfigError(f"{key} must be from {low} to {high}, not {getattr(config, key)}")
    if config.network == NETWORK:
        return
    import ipaddress  # only where there is something to check: every command reads the configuration

    try:
        network = ipaddress.IPv4Network(config.network)
    except ValueError as error:
        raise ConfigError(f"network: {error}", "give it as address/prefix, such as 10.87.0.0/16") from None
    if not 8 <= network.prefixlen <= 29:
        raise ConfigError(f"network {config.network} must have a prefix from /8 to /29")


def machine() -> str:
    """The processor architecture in the kernel's words, such as ``x86_64``."""
    return os.uname().machine
