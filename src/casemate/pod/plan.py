"""From an engine's specification, which speaks of the host, to the guest's, and what the host has to do for it.

Nothing is changed here; files are only looked at. The rules, where they are not plain copies:

* Namespaces. The guest's containers have pid, ipc, uts, mount and cgroup namespaces of their own. A path leads to the
  same namespace of another container in the sandbox, or is refused; so is what would be the host's own. The network is
  the sandbox's: the machine stands in the container's network namespace, so the guest's container needs none.
* Mounts: :mod:`casemate.pod.mounts`; devices: :mod:`casemate.pod.devices`; resources: :mod:`casemate.pod.resources`.
* Hooks. Only ``startContainer`` runs in the container; the others are run on the host, by whoever makes it.
* Labels and profiles of AppArmor and SELinux. The guest has neither. Those that engines set by themselves are ignored
  with a warning: they keep containers of one kernel apart. One that a person chose is refused.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from casemate.errors import BadBundle, Unsupported
from casemate.oci.schema import CAPABILITY_SETS, words
from casemate.oci.spec import CAPABILITIES
from casemate.pod import devices, mounts
from casemate.pod import resources as bounds
from casemate.pod.devices import DiskPlan
from casemate.pod.mounts import PROPAGATION, Look, MemoryOf, Peers, VolumePlan, Work
from casemate.protocol import wire

__all__ = ["DiskPlan", "Look", "Peers", "Plan", "VolumePlan", "guest_process", "plan", "resources"]

GUEST_ROOT = "/run/casemate/share"
OCI_VERSION = "1.0.2"
"""What the guest's runtime is told, whatever 1.x the engine speaks: nothing newer is passed on."""
MAX_MESSAGE = wire.MAX_CONTROL - (96 << 10)
"""Bytes of the guest's specification: it has to fit into one request, and the agent adds to it."""
MAX_PROCESS_MESSAGE = wire.MAX_CONTROL - (16 << 10)
MAX_HOOK_ANNOTATIONS = 64 << 10
GUEST_OPEN_FILES = 1 << 20
"""fs.nr_open of the guest, the most that RLIMIT_NOFILE can be."""

NAMESPACE_FILES = {
    "pid": "pid", "network": "net", "mount": "mnt", "ipc": "ipc", "uts": "uts", "user": "user", "cgroup": "cgroup",
    "time": "time",
}  # fmt: skip
"""Types of the specification and their names below /proc/PID/ns."""
OPTIONS = {"pid": "--pid", "ipc": "--ipc", "uts": "--uts", "network": "--network"}

APPARMOR_DEFAULTS = re.compile(
    r"unconfined|docker-default|containers-default-[0-9.]+|cri-containerd\.apparmor\.d|crio-default(-[0-9.]+)?"
    r"|nerdctl-default|buildkit-default"
)
"""Profiles that Docker, Podman, containerd, CRI-O, nerdctl and BuildKit set by themselves."""
SELINUX_DEFAULTS = re.compile(
    r"system_u:(system_r|object_r):"
    r"(container_t|container_init_t|container_kvm_t|container_file_t|container_ro_file_t|svirt_lxc_net_t"
    r"|svirt_sandbox_file_t|spc_t)(:s0(:c[0-9]{1,4}([,.]c[0-9]{1,4})*)?)?"
)

SYSCTL_NAME = re.compile(r"[A-Za-z0-9_:@+-]+([./][A-Za-z0-9_:@+-]+)+")
IPC_SYSCTLS = frozenset(words("msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced", "kernel."))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a container needs of the host and of the guest."""

    spec: dict[str, Any]
    """For the guest."""
    volumes: tuple[VolumePlan, ...]
    """In the order of the specification's mounts; the number of each is its name in the volumes' tree."""
    disks: tuple[DiskPlan, ...]
    memory: int | None
    """Bytes that the container may use; None: no limit was asked for."""
    cpus: float | None
    """Processors that it may use; None: as many as there are."""
    hostname: str
    files: tuple[dict[str, Any], ...] = ()
    """Files that the agent is to put into the container: ``{"path", "mode", "content"}``."""
    warnings: tuple[str, ...] = ()
    """What is not done as it was asked, a line each, for the log."""


def plan(
    spec: dict[str, Any], id: str, peers: Peers, look: Look = os.stat, memory_of: MemoryOf = mounts.memory_of
) -> Plan:
    """Work out what a container is in the guest.

    Arguments:
        spec: of :func:`casemate.oci.bundle.load`; it is not changed.
        id: the container's name in the guest.
        peers: which container of the sandbox that it joins has a namespace, by the type of the specification and the
            (device, inode) of the namespace; None where it is no one's.
        look: stat(2), following links.
        memory_of: whether a directory is a memory file system by itself, and how large.

    Raises:
        Unsupported: it asks for what cannot be had; the hint says why or what instead.
        BadBundle: what it names is not there, or it is too large for a message to the guest.
    """
    work = Work(id, peers, look, memory_of)
    linux = spec["linux"]
    namespaces = _namespaces(linux.get("namespaces", []), work)
    nodes, rules, disks = devices.translate(linux, work.warnings)
    limits = bounds.translate(linux.get("resources", {}), work.warnings, creating=True)
    limits["devices"] = rules
    guest_linux: dict[str, Any] = {"namespaces": namespaces, "devices": nodes, "resources": limits}
    for key in ("uidMappings", "gidMappings", "maskedPaths", "readonlyPaths"):
        if linux.get(key):
            guest_linux[key] = linux[key]
    if linux.get("personality"):
        guest_linux["personality"] = {"domain": linux["personality"]["domain"]}
    if linux.get("rootfsPropagation"):
        guest_linux["rootfsPropagation"] = PROPAGATION[linux["rootfsPropagation"]]
    if linux.get("seccomp"):
        guest_linux["seccomp"] = _seccomp(linux["seccomp"])
    sysctl = _sysctl(linux.get("sysctl", {}))
    if sysctl:
        guest_linux["sysctl"] = sysctl
    _refuse(linux, work.warnings)
    guest: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(spec["process"], work.warnings),
        "root": {"path": f"{GUEST_ROOT}/{id}", "readonly": bool(spec["root"].get("readonly"))},
        "mounts": [made for mount in spec.get("mounts", ()) if (made := mounts.translate(mount, work)) is not None],
        "linux": guest_linux,
    }
    for key in ("hostname", "domainname"):
        if spec.get(key):
            guest[key] = spec[key]
    hooks = spec.get("hooks", {}).get("startContainer")
    if hooks:
        guest["hooks"] = {"startContainer": hooks}
        guest["annotations"] = _annotations(spec.get("annotations", {}), work.warnings)
    _fits(guest, MAX_MESSAGE, "the container's specification")
    limit = linux.get("resources", {}).get("memory", {}).get("limit", 0)
    return Plan(
        spec=guest, volumes=tuple(work.volumes), disks=disks, memory=limit if limit > 0 else None,
        cpus=bounds.processors(linux.get("resources", {}).get("cpu", {})), hostname=spec.get("hostname", ""),
        warnings=tuple(work.warnings),
    )  # fmt: skip


def guest_process(process: dict[str, Any]) -> dict[str, Any]:
    """A process object for the guest.

    Arguments:
        process: judged (:func:`casemate.oci.bundle.check_process`); it is not changed.

    Raises:
        Unsupported: it asks for an AppArmor profile or an SELinux label that a person chose.
        BadBundle: it is too large for a message to the guest.
    """
    made = _process(process, [])
    _fits(made, MAX_PROCESS_MESSAGE, "the process")
    return made


def resources(linux_resources: dict[str, Any]) -> dict[str, Any]:
    """The part of ``linux.resources`` that the guest's kernel divides, for an update.

    Arguments:
        linux_resources: judged (:func:`casemate.oci.bundle.check_resources`); it is not changed. Zero means "as it
            is", a negative number "no limit", as with runc.

    Raises:
        Unsupported: it asks for huge pages or the like.
    """
    return bounds.translate(linux_resources, [], creating=False)


def _fits(value: dict[str, Any], most: int, what: str) -> None:
    try:
        size = len(wire.pack(wire.REQUEST, value))
    except wire.ProtocolError:
        size = most + 1
    if size > most:
        raise BadBundle(f"{what} is too large for the guest", f"it may have {most >> 10} KiB as JSON")


# ---- namespaces


def _namespaces(given: list[dict[str, Any]], work: Work) -> list[dict[str, Any]]:
    paths = {entry["type"]: entry.get("path", "") for entry in given}
    if paths.get("time") is not None:
        raise Unsupported("a time namespace cannot be given", "the container's kernel has its own clock as it is")
    for kind in ("user", "mount"):
        if paths.get(kind):
            raise Unsupported(f"the {kind} namespace {paths[kind]} cannot be joined", "containers in a guest have "
                              "their own")  # fmt: skip
    _check_network(paths, work)
    made = [_namespace(kind, paths, work) for kind in ("pid", "ipc", "uts")]
    made += [{"type": "mount"}, {"type": "cgroup"}]
    if "user" in paths:
        made.append({"type": "user"})
    return made


def _identity(path: str, kind: str, look: Look) -> tuple[int, int]:
    try:
        found = look(path)
    except OSError as error:
        raise BadBundle(f"the {kind} namespace {path} cannot be used: {error.strerror}") from None
    return found.st_dev, found.st_ino


def _is_hosts(path: str, kind: str, look: Look) -> bool:
    own = f"/proc/self/ns/{NAMESPACE_FILES[kind]}"
    return _identity(path, kind, look) == _identity(own, kind, look)


def _check_network(paths: dict[str, str], work: Work) -> None:
    path = paths.get("network")
    if path is None or (path and _is_hosts(path, "network", work.look)):
        raise Unsupported(
            "--network host cannot be given: the container's kernel has a network of its own",
            "use a bridge network and publish ports",
        )


def _namespace(kind: str, paths: dict[str, str], work: Work) -> dict[str, Any]:
    """The guest's pid, ipc or uts namespace."""
    option = OPTIONS[kind]
    path = paths.get(kind)
    if path is None or (path and _is_hosts(path, kind, work.look)):
        raise Unsupported(
            f"{option} host cannot be given: the container has a kernel of its own",
            f"leave {option} out; containers of one sandbox can share theirs",
        )
    if not path:
        return {"type": kind}
    peer = work.peers(kind, _identity(path, kind, work.look))
    if peer is None:
        raise Unsupported(
            f"the {kind} namespace {path} is not that of a container in the same sandbox",
            f"containers can share it if they share the network too (--network container:NAME {option} container:NAME)",
        )
    return {"type": kind, "container": peer}


# ---- the process


def _process(process: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    _ignore_profile(process.get("apparmorProfile", ""), warnings)
    _ignore_label(process.get("selinuxLabel", ""), "process.selinuxLabel", warnings)
    known = (
        "terminal", "consoleSize", "args", "env", "cwd", "noNewPrivileges", "oomScoreAdj", "ioPriority", "scheduler"
    )  # fmt: skip
    made = {key: process[key] for key in known if key in process}
    user = process.get("user", {})
    made["user"] = {key: user[key] for key in ("uid", "gid", "umask", "additionalGids") if key in user}
    made["user"] = {"uid": 0, "gid": 0, **made["user"]}
    if "capabilities" in process:
        made["capabilities"] = _capabilities(process["capabilities"], warnings)
    if process.get("rlimits"):
        made["rlimits"] = [_rlimit(limit, warnings) for limit in process["rlimits"]]
    return made


def _ignore_profile(profile: str, warnings: list[str]) -> None:
    if not profile or profile == "unconfined":
        return
    if APPARMOR_DEFAULTS.fullmatch(profile) is None:
        raise Unsupported(
            f"the AppArmor profile {profile[:80]!r} cannot be applied: the container's kernel has no AppArmor",
            "leave it out, or use apparmor=unconfined",
        )
    warnings.append(f"the AppArmor profile {profile} is ignored: the container has a kernel of its own")


def _ignore_label(label: str, where: str, warnings: list[str]) -> None:
    if not label:
        return
    if SELINUX_DEFAULTS.fullmatch(label) is None:
        raise Unsupported(
            f"the SELinux label {label[:80]!r} ({where}) cannot be applied: the container's kernel has no SELinux",
            "leave it out, or use label=disable",
        )
    warnings.append(f"the SELinux label {label} is ignored: the container has a kernel of its own")


def _capabilities(sets: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """Names that the kernel does not know are left out with a warning, as runc does."""
    kinds = [kind for kind in CAPABILITY_SETS if kind in sets]
    unknown = sorted({name for kind in kinds for name in sets[kind]} - {*CAPABILITIES})
    if unknown:
        warnings.append(f"unknown capabilities are ignored: {', '.join(unknown[:10])}")
    return {kind: [name for name in sets[kind] if name in CAPABILITIES] for kind in kinds}


def _rlimit(limit: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    soft, hard = limit["soft"], limit["hard"]
    if limit["type"] == "RLIMIT_NOFILE" and hard > GUEST_OPEN_FILES:
        warnings.append(f"RLIMIT_NOFILE is {GUEST_OPEN_FILES}, the most that the container's kernel takes, not {hard}")
        soft, hard = min(soft, GUEST_OPEN_FILES), GUEST_OPEN_FILES
    return {"type": limit["type"], "soft": soft, "hard": hard}


# ---- linux


def _refuse(linux: dict[str, Any], warnings: list[str]) -> None:
    if linux.get("intelRdt"):
        raise Unsupported("linux.intelRdt cannot be applied: the guest has no resource director", "leave it out")
    if linux.get("timeOffsets"):
        raise Unsupported("linux.timeOffsets cannot be applied: there is no time namespace", "leave them out")
    if linux.get("personality", {}).get("flags"):
        raise Unsupported("flags of linux.personality cannot be applied", "leave them out")
    _ignore_label(linux.get("mountLabel", ""), "linux.mountLabel", warnings)


def _seccomp(profile: dict[str, Any]) -> dict[str, Any]:
    notify = profile["defaultAction"] == "SCMP_ACT_NOTIFY" or any(
        rule["action"] == "SCMP_ACT_NOTIFY" for rule in profile.get("syscalls", ())
    )
    if profile.get("listenerPath") or notify:
        raise Unsupported(
            "linux.seccomp.listenerPath and SCMP_ACT_NOTIFY cannot be used: the listener is on another kernel",
            "leave them out of the profile",
        )
    known = ("defaultAction", "defaultErrnoRet", "architectures", "flags", "syscalls")
    return {key: profile[key] for key in known if key in profile}


def _sysctl(given: dict[str, str]) -> dict[str, str]:
    for name in given:
        plain = name.replace("/", ".")
        if SYSCTL_NAME.fullmatch(name) is None:
            raise BadBundle(f"sysctl {name[:80]!r} is not the name of a kernel parameter")
        if plain.startswith(("net.", "fs.mqueue.")) or plain in IPC_SYSCTLS or plain == "kernel.domainname":
            continue
        if plain == "kernel.hostname":
            raise Unsupported("sysctl kernel.hostname cannot be set", "give the container a hostname instead")
        raise Unsupported(
            f"sysctl {name!r} is not in a separate kernel namespace",
            "only net.*, fs.mqueue.* and those of System V IPC are a container's own",
        )
    return dict(given)


def _annotations(given: dict[str, str], warnings: list[str]) -> dict[str, str]:
    """What startContainer hooks are told; names by which a runtime takes orders are not for the guest's."""
    kept = {key: value for key, value in given.items() if not key.startswith(("run.oci.", "org.criu."))}
    if sum(len(key) + len(value) for key, value in kept.items()) > MAX_HOOK_ANNOTATIONS:
        most = f"{MAX_HOOK_ANNOTATIONS >> 10} KiB"
        warnings.append(f"startContainer hooks get no annotations: there are more than {most} of them")
        return {}
    return kept
