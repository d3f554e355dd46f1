"""From an image's configuration and a person's wishes to an OCI runtime specification.

The defaults are those of the field, so that images behave as they do elsewhere: the same capabilities, mounts, masked
paths, devices and rules for entrypoint and command. Two things differ because the sandbox is a machine of its own:
there is no network namespace (the guest's network *is* the sandbox's), and memory is not limited here (the guest has
that much and no more).

Shapes: OCI runtime specification 1.0, config.md and config-linux.md; image configuration: OCI image specification
1.0, config.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from casemate.errors import UsageError
from casemate.oci import seccomp

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

    from casemate.oci.imageconfig import ImageConfig

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CPU_PERIOD_US = 100_000
"""The scheduler period that a share of a processor is measured in."""
RLIM_INFINITY = (1 << 64) - 1


def _words(text: str, prefix: str = "") -> tuple[str, ...]:
    return tuple(prefix + word for word in text.split())


CAPABILITIES = _words(
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE",
    "CAP_",
)
"""All that the kernel knows, in its own order (linux/capability.h)."""

DEFAULT_CAPABILITIES = _words(
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP "
    "SETUID SYS_CHROOT",
    "CAP_",
)
"""What a container has when nobody asks for more or less."""

MASKED_PATHS = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
    "/sys/firmware",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

SHM_SIZE = 64 << 20
"""Bytes of /dev/shm when nobody asks."""

DEVICES_ALLOWED = (
    # (type, major, minor, access); None stands for any. Making any node is harmless: opening it is what is limited.
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", 1, 3, "rwm"),  # null
    ("c", 1, 5, "rwm"),  # zero
    ("c", 1, 7, "rwm"),  # full
    ("c", 1, 8, "rwm"),  # random
    ("c", 1, 9, "rwm"),  # urandom
    ("c", 5, 0, "rwm"),  # tty
    ("c", 5, 1, "rwm"),  # console
    ("c", 5, 2, "rwm"),  # ptmx
    ("c", 136, None, "rwm"),  # pts
)

TMPFS_FLAGS = frozenset(
    _words("ro rw exec noexec suid nosuid dev nodev atime noatime diratime nodiratime relatime strictatime sync")
)
TMPFS_VALUES = frozenset(_words("size mode uid gid nr_inodes nr_blocks huge"))
SYSCTLS = (
    "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
    "kernel.shmmni", "kernel.shm_rmid_forced", "kernel.domainname",
)  # fmt: skip
RLIMITS = frozenset(
    _words("as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack")
)


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory or file of the host inside the container."""

    source: str
    """Absolute, on the host."""
    target: str
    """Absolute, in the container."""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A file system in the guest's memory, with options as in tmpfs(5)."""

    target: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A resource limit; ``name`` as in prlimit(1), values of :data:`RLIM_INFINITY` mean none."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person asks of a container beside its image. ``None`` and empty mean: as the image or the field has it."""

    command: tuple[str, ...] = ()
    entrypoint: str | None = None
    """One program; an empty string drops the image's entrypoint."""
    env: tuple[str, ...] = ()
    workdir: str = ""
    hostname: str = ""
    tty: bool = False
    read_only: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    cpus: float | None = None
    pids: int | None = None
    shm_size: int = SHM_SIZE
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    no_new_privileges: bool = False
    seccomp: dict[str, Any] | None = None
    """A profile in the OCI form in place of ours."""
    unconfined: bool = False
    """No system call filter at all."""


def build(image: ImageConfig, wishes: Wishes, machine: str = "x86_64") -> dict[str, Any]:
    """The OCI runtime specification of a container.

    Arguments:
        image: the image's configuration.
        wishes: the person's.
        machine: the guest's processor architecture in the kernel's words.

    Returns:
        a plain JSON object. ``root.path`` is a placeholder and bind sources are host paths: the keeper puts in what
        the guest sees. ``process.user`` is 0:0 until the agent has resolved the real one inside the container.

    Raises:
        UsageError: there is no command, a capability is unknown, two mounts have one target.
    """
    allowed = capabilities(wishes.cap_add, wishes.cap_drop)
    process: dict[str, Any] = {
        "terminal": wishes.tty,
        "user": {"uid": 0, "gid": 0},
        "args": arguments(image, wishes.command, wishes.entrypoint),
        "env": environment(image.env, wishes.env, wishes.hostname, wishes.tty),
        "cwd": working_directory(wishes.workdir or image.working_dir),
        "capabilities": {kind: list(allowed) for kind in ("bounding", "effective", "permitted")},
        "noNewPrivileges": wishes.no_new_privileges,
    }
    if wishes.ulimits:
        process["rlimits"] = [
            {"type": f"RLIMIT_{limit.name.upper()}", "soft": limit.soft, "hard": limit.hard}
            for limit in wishes.ulimits
        ]
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")],
        "resources": _resources(wishes),
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READONLY_PATHS),
    }
    if wishes.sysctls:
        linux["sysctl"] = dict(wishes.sysctls)
    if not wishes.unconfined:
        linux["seccomp"] = wishes.seccomp or seccomp.profile(allowed, machine)
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs", "readonly": wishes.read_only},
        "hostname": wishes.hostname,
        "mounts": mounts(wishes),
        "linux": linux,
    }


def exec_process(
    container: Mapping[str, Any], command: Sequence[str], *, env: Sequence[str], workdir: str, tty: bool
) -> dict[str, Any]:
    """The OCI process object of a further process in a container.

    Arguments:
        container: the container's runtime specification, whose capabilities, limits and environment are taken over.
        command, env, workdir, tty: the person's wishes; an empty ``workdir`` means the container's.

    Raises:
        UsageError: the command is empty.
    """
    if not command or not command[0]:
        raise UsageError("no command to execute", "name one after the container")
    base = container["process"]
    inherited = base["env"] + (["TERM=xterm"] if tty and not base["terminal"] else [])
    process = {
        "terminal": tty,
        "user": {"uid": 0, "gid": 0},
        "args": list(command),
        "env": merged_environment(inherited, env),
        "cwd": working_directory(workdir or base["cwd"]),
        "capabilities": base["capabilities"],
        "noNewPrivileges": base["noNewPrivileges"],
    }
    if "rlimits" in base:
        process["rlimits"] = base["rlimits"]
    return process


def arguments(image: ImageConfig, command: Sequence[str], entrypoint: str | None) -> list[str]:
    """The argument vector: entrypoint and command, where naming an entrypoint drops the image's command.

    Raises:
        UsageError: nothing is left to run.
    """
    if entrypoint is None:
        first = list(image.entrypoint or ())
        rest = list(command or image.cmd or ())
    else:
        first = [entrypoint] if entrypoint else []
        rest = list(command)
    vector = first + rest
    if not vector or not vector[0]:
        raise UsageError("the image has no default command", "name one after the image")
    if any("\0" in word for word in vector):
        raise UsageError("the command holds a zero byte")
    return vector


def environment(image: Sequence[str], wishes: Sequence[str], hostname: str, tty: bool) -> list[str]:
    """The environment: defaults, the image's, the person's; the last setting of a name wins."""
    base = [f"PATH={DEFAULT_PATH}", f"HOSTNAME={hostname}"]
    if tty:
        base.append("TERM=xterm")
    return merged_environment([*base, *image], wishes)


def merged_environment(base: Sequence[str], changes: Sequence[str]) -> list[str]:
    """``base`` with ``changes``, each entry ``NAME=value``; a change that is a bare ``NAME`` removes the name."""
    table: dict[str, str] = {}
    for entry in base:
        name, equals, value = entry.partition("=")
        if equals and name:
            table[name] = value
    for entry in changes:
        name, equals, value = entry.partition("=")
        if equals:
            table[name] = value
        else:
            table.pop(name, None)
    return [f"{name}={value}" for name, value in table.items()]


def working_directory(path: str) -> str:
    """``path`` made clean, the root directory when it is empty; an image's relative one is taken from the root."""
    return "/" + "/".join(_parts(path))


def capabilities(add: Iterable[str], drop: Iterable[str]) -> list[str]:
    """The bounding set, in the kernel's order. ``ALL`` stands for every capability; what is added last wins.

    Raises:
        UsageError: a name is unknown.
    """
    added, dropped = {_capability(name) for name in add}, {_capability(name) for name in drop}
    base = set(CAPABILITIES) if "ALL" in added else set() if "ALL" in dropped else set(DEFAULT_CAPABILITIES)
    chosen = (base - dropped) | (added - {"ALL"})
    return [name for name in CAPABILITIES if name in chosen]


def _capability(name: str) -> str:
    upper = name.upper()
    if upper == "ALL":
        return upper
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in CAPABILITIES:
        raise UsageError(f"unknown capability {name!r}", "capabilities(7) lists them; ALL is every one")
    return full


def mounts(wishes: Wishes) -> list[dict[str, Any]]:
    """Every mount, parents before children; a person's mount replaces a default one on the same target.

    Raises:
        UsageError: two of the person's mounts have one target.
    """
    strict = ["nosuid", "noexec", "nodev"]
    table: dict[str, dict[str, Any]] = {}
    for target, kind, source, options in (
        ("/proc", "proc", "proc", strict),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts",
         ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", "shm", [*strict, "mode=1777", f"size={wishes.shm_size}"]),
        ("/dev/mqueue", "mqueue", "mqueue", strict),
        ("/sys", "sysfs", "sysfs", [*strict, "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*strict, "relatime", "ro"]),
    ):  # fmt: skip
        table[target] = {"destination": target, "type": kind, "source": source, "options": list(options)}
    taken: set[str] = set()
    asked: tuple[Volume | Tmpfs, ...] = (*wishes.volumes, *wishes.tmpfs)
    for wish in asked:
        target = wish.target
        if target in taken:
            raise UsageError(f"two mounts on {target}", "give each its own path in the container")
        taken.add(target)
        if isinstance(wish, Volume):
            options = ["rbind", "ro" if wish.read_only else "rw", "rprivate"]
            table[target] = {"destination": target, "type": "bind", "source": wish.source, "options": options}
        else:
            options = ["nosuid", "nodev", "noexec", *wish.options]
            table[target] = {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options}
    return sorted(table.values(), key=lambda mount: len(_parts(mount["destination"])))


def mount_target(path: str) -> str:
    """A path in the container made clean.

    Raises:
        UsageError: it is relative, the root, or climbs.
    """
    parts = _parts(path)
    if not path.startswith("/"):
        raise UsageError(f"the path {path!r} in the container is relative", "begin it with a slash")
    if not parts:
        raise UsageError("nothing can be mounted on the container's root", "name a directory below it")
    if ".." in path.split("/") or "\0" in path:
        raise UsageError(f"the path {path!r} in the container is not plain", "leave out '..'")
    return "/" + "/".join(parts)


def _parts(path: str) -> list[str]:
    clean: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if clean:
                clean.pop()
        elif part not in ("", "."):
            clean.append(part)
    return clean


def _resources(wishes: Wishes) -> dict[str, Any]:
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for kind, major, minor, access in DEVICES_ALLOWED:
        allow: dict[str, Any] = {"allow": True, "type": kind, "access": access}
        if major is not None:
            allow["major"] = major
        if minor is not None:
            allow["minor"] = minor
        rules.append(allow)
    resources: dict[str, Any] = {"devices": rules}
    if wishes.cpus is not None:
        resources["cpu"] = {"quota": round(wishes.cpus * CPU_PERIOD_US), "period": CPU_PERIOD_US}
    if wishes.pids is not None:
        resources["pids"] = {"limit": wishes.pids}
    return resources
