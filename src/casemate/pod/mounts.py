"""A container's mounts, from an engine's specification to the guest's.

A bind mount is one entry in the sandbox's second file server. Kernel file systems and tmpfs are the guest's. Anything
that needs a device or a server of the host is refused. Shared propagation becomes slave: mounts of the host appear in
the container, never the other way round.

A memory file system that engines make on the host for /dev/shm becomes one in the guest.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from casemate.errors import BadBundle, Unsupported
from casemate.oci import bundle
from casemate.oci.schema import MOUNT_FLAGS, words

GUEST_VOLUMES = "/run/casemate/volumes"
MAX_VOLUMES = 256

KERNEL_TYPES = frozenset(words("proc sysfs devpts mqueue tmpfs ramfs binfmt_misc bpf debugfs tracefs securityfs"))
CGROUP_TYPES = ("cgroup", "cgroup2")
GROUPS = "/sys/fs/cgroup"
SHM = "/dev/shm"
PROPAGATION = {
    "private": "private", "rprivate": "rprivate", "slave": "slave", "rslave": "rslave",
    "shared": "slave", "rshared": "rslave", "unbindable": "unbindable", "runbindable": "runbindable",
}  # fmt: skip


Peers = Callable[[str, tuple[int, int]], "str | None"]
Look = Callable[[str], os.stat_result]
MemoryOf = Callable[[str], "int | None"]


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """A bind mount: a file or directory of the host for the container."""

    source: str
    """Absolute, on the host."""
    destination: str
    """Absolute, in the container."""
    recursive: bool
    """With the mounts below it."""
    read_only: bool
    directory: bool | None
    """Whether the source is a directory; None where nobody looked."""
    follows: bool = False
    """Whether mounts that the host makes below the source later are to appear (slave propagation)."""
    deep: bool = False
    """Whether the mounts below it are read-only with it (``rro``)."""


@dataclass(slots=True)
class Work:
    """A plan in the making."""

    id: str
    peers: Peers
    look: Look
    memory_of: MemoryOf
    warnings: list[str] = field(default_factory=list)
    volumes: list[VolumePlan] = field(default_factory=list)


def translate(mount: dict[str, Any], work: Work) -> dict[str, Any] | None:
    """A mount in the guest, None where it has no place there.

    Arguments:
        mount: of the specification, judged, its source absolute.
        work: gets the volume of a bind mount, in any case, and a line for what is not done as asked.

    Raises:
        Unsupported: it cannot be had.
        BadBundle: its source is not there.
    """
    destination = mount["destination"]
    if mount.get("uidMappings") or mount.get("gidMappings"):
        raise Unsupported(f"the mount on {destination[:200]} cannot have its own id mappings", "leave out idmap")
    if bundle.is_bind(mount):
        made = _bind(mount, work)
        if _is_groups(mount["source"]) and _is_groups(destination):
            return _own_groups(mount, work)
        return _shared_memory(mount, work) or made
    kind = mount.get("type") or ""
    options = list(mount.get("options", ()))
    if kind in CGROUP_TYPES:
        return _groups(destination, options)
    if kind not in KERNEL_TYPES:
        raise Unsupported(
            f"a file system of the type {kind[:64] or 'none'!r} cannot be mounted on {destination[:200]}",
            "mount it on the host and give its directory as a bind mount",
        )
    kept = [option for option in options if not _for_host_only(option)]
    return {
        "destination": destination, "type": kind, "source": mount.get("source") or kind, "options": _propagated(kept)
    }  # fmt: skip


def _groups(destination: str, options: list[str]) -> dict[str, Any]:
    kept = [option for option in options if option in MOUNT_FLAGS or option in PROPAGATION]
    return {"destination": destination, "type": "cgroup", "source": "cgroup", "options": _propagated(kept)}


def _is_groups(path: str) -> bool:
    return (os.path.normpath(path) + "/").startswith(GROUPS + "/")


def _own_groups(mount: dict[str, Any], work: Work) -> dict[str, Any] | None:
    """What stands for the host's control groups in their usual place, as programs like systemd want them: the guest's.
    Single hierarchies of version 1 are left out, for the guest has version 2."""
    destination = os.path.normpath(mount["destination"])
    if destination == GROUPS:
        return _groups(destination, mount.get("options", []))
    work.warnings.append(f"the mount on {destination} is left out: the container has control groups of its own")
    return None


def _shared_memory(mount: dict[str, Any], work: Work) -> dict[str, Any] | None:
    """The /dev/shm that an engine has made for containers to share: one in the guest's memory stands for it, the same
    one for all containers that have it. Anything else at that place is a volume like others.

    It is known by its name (Docker, Podman, containerd and CRI-O all call theirs ``shm``), by being a memory file
    system of its own, and by being in a place of its own: the host's /dev/shm is somebody's data.
    """
    source = os.path.normpath(mount["source"])
    if os.path.normpath(mount["destination"]) != SHM or os.path.basename(source) != "shm" or source == SHM:
        return None
    size = work.memory_of(source)
    if size is None:
        return None
    found = work.look(source)
    kept = [option for option in mount.get("options", ()) if option in MOUNT_FLAGS or option in PROPAGATION]
    return {
        "destination": SHM, "type": "shared-memory", "source": f"shm-{found.st_dev:x}-{found.st_ino:x}",
        "options": [*_propagated(kept), f"size={size}"],
    }  # fmt: skip


def memory_of(path: str) -> int | None:
    """The size in bytes of an empty tmpfs that is mounted at a path; None for anything else."""
    from casemate.host.mounts import unescape

    kind = b""
    with open("/proc/self/mountinfo", "rb") as file:  # proc(5)
        for line in file:
            fields = line.split(b" ")
            if unescape(fields[4]) == path:
                kind = fields[fields.index(b"-", 6) + 1]
    try:
        if kind != b"tmpfs" or os.listdir(path):
            return None
        figures = os.statvfs(path)
    except OSError:
        return None
    return figures.f_blocks * figures.f_frsize


def _for_host_only(option: str) -> bool:
    """Options of labels, memory nodes and swap, none of which the guest has."""
    name = option.partition("=")[0]
    return name in ("context", "fscontext", "defcontext", "rootcontext", "mpol", "noswap", "idmap", "ridmap")


def _propagated(options: list[str]) -> list[str]:
    return [PROPAGATION.get(option, option) for option in options]


def _bind(mount: dict[str, Any], work: Work) -> dict[str, Any]:
    source, destination, options = mount["source"], mount["destination"], mount.get("options", [])
    if any(option.partition("=")[0] in ("idmap", "ridmap") for option in options):
        raise Unsupported(f"the mount on {destination[:200]} cannot have its own id mappings", "leave out idmap")
    directory = _check_source(source, destination, work.look)
    propagation = next((option for option in reversed(options) if option in PROPAGATION), "rprivate")
    if propagation in ("shared", "rshared"):
        work.warnings.append(
            f"the mount on {destination} is not shared: mounts of the host appear in the container, not the reverse"
        )
    flags = [option for option in options if option in MOUNT_FLAGS]
    writable = [option for option in flags if option in ("ro", "rw", "rro", "rrw")]
    if len(work.volumes) >= MAX_VOLUMES:
        raise Unsupported(f"more than {MAX_VOLUMES} bind mounts are too many")
    number = len(work.volumes)
    work.volumes.append(
        VolumePlan(
            source=source, destination=destination, recursive="rbind" in options or "bind" not in options,
            read_only=bool(writable) and writable[-1] in ("ro", "rro"), directory=directory,
            follows="slave" in propagation or "shared" in propagation, deep=bool(writable) and writable[-1] == "rro",
        )
    )  # fmt: skip
    return {
        "destination": destination, "type": "bind", "source": f"{GUEST_VOLUMES}/{work.id}/{number}",
        "options": ["rbind", *flags, PROPAGATION[propagation]],
    }  # fmt: skip


def _check_source(source: str, destination: str, look: Look) -> bool:
    """Whether the source of a bind mount is a directory; what a file server cannot hand on is refused."""
    try:
        mode = look(source).st_mode
    except OSError as error:
        raise BadBundle(
            f"the source {source[:200]} of the mount on {destination[:200]} cannot be used: {error.strerror}"
        ) from None
    where = f"{source[:200]} cannot be mounted on {destination[:200]}"
    if stat.S_ISSOCK(mode):
        raise Unsupported(
            f"the UNIX socket {where}: whoever listens on it is on another kernel", "use a TCP port instead"
        )
    if stat.S_ISFIFO(mode):
        raise Unsupported(f"the named pipe {where}: its other end is on another kernel", "use a TCP port instead")
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        raise Unsupported(f"the device {where}: the container has a kernel of its own", "name it with --device")
    return stat.S_ISDIR(mode)
