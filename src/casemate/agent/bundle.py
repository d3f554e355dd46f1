"""From the specification that the host sends to the one that the runtime gets.

The host's is an OCI runtime specification in the guest's paths. Here it is bounded, filled in with what only the guest
knows (users, numbers of disks, what it can give), and rid of what only means something on the host.
"""

from __future__ import annotations

import os
import resource

from casemate.agent import command, resources, system
from casemate.agent.cgroup import LEAST
from casemate.agent.system import bad, get_dict, get_int, get_list, get_text
from casemate.agent.user import home, resolve
from casemate.protocol import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from casemate.agent.user import Root

VERSION = "1.0.2"
"""Of the runtime specification that the runtime in the guest knows. Fields of later ones it passes over."""
MAX_FILES = 64
MAX_MOUNTS = 1024
MAX_NAMESPACES = 16
MAX_DEVICES = 1024
MAX_SYSCTLS = 256
MAX_LINE = 4096
MAX_LOOKED = 16 << 10
"""Characters of a file that the host has read."""
RESERVE_PIDS = 1024
"""How many of the guest's processes and threads a container cannot have, so that the agent can always start one; at
most a quarter of what there can be."""
NOFILE = 1024
"""Open files of a process that nobody has set a bound for, which it may raise as far as the agent can."""
NAMESPACES = {"pid": "pid", "ipc": "ipc", "uts": "uts", "network": "net", "cgroup": "cgroup"}
"""Those that containers can share, and their names in /proc/PID/ns."""
TUN = (10, 200)
PRIVATE = ("run.oci.", "module.wasm.")
"""Annotations that would make the runtime do things of its own."""


class Bundle:
    """What was made of a specification.

    ``spec`` is for the runtime. ``sysctl`` are settings of the network, to be made before, for the network belongs to
    the guest as a whole. ``shared`` names memory that the container shares, by where it is mounted. ``priority`` is
    what is left of the process object for :mod:`casemate.agent.priority`. ``place`` is where the command is, if that is
    known.
    """

    __slots__ = ("spec", "sysctl", "shared", "priority", "place")

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.sysctl: list[tuple[str, str]] = []
        self.shared: dict[str, dict[str, Any]] = {}
        self.priority: dict[str, Any] = {}
        self.place: str | None = None


def complete(
    spec: dict[str, Any],
    params: dict[str, Any],
    *,
    share: str,
    files: str,
    cgroup: str,
    memory: int,
    pids: int,
    join: Callable[[str, str], str],
) -> Bundle:
    """Work out a container's specification.

    Arguments:
        spec, params: as the host sends them; ``spec`` is changed.
        share: root file systems lie below it.
        files: the directory for files that the host sends; it is made.
        cgroup: the container's control group.
        memory, pids: how many bytes, and processes and threads, a container can have.
        join: gives the path of a namespace, from a container and the namespace's name in /proc/PID/ns.

    Raises:
        RequestFailed: it cannot be. OSError: a file cannot be written.
    """
    made = Bundle(spec)
    spec["ociVersion"] = VERSION
    process = get_dict(spec, "process")
    root_path = get_text(get_dict(spec, "root"), "path")
    if not (root_path + "/").startswith(share + "/") or ".." in root_path.split("/"):
        raise bad(f"the root filesystem must lie below {share}")
    mounts = get_list(spec, "mounts", MAX_MOUNTS)
    covered = [str(mount.get("destination")) for mount in mounts if isinstance(mount, dict)]
    try:
        root = os.open(root_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise bad(f"the root filesystem {root_path} cannot be opened: {error.strerror}") from None
    try:
        looked = get_dict(params, "looked") if params.get("looked") is not None else {}
        if looked.get("place") is not None:
            made.place = get_text(looked, "place")
        users = _users(looked) or root
        made.priority = complete_process(process, get_text(params, "user", 256), root, covered, users, made.place)
    finally:
        os.close(root)
    for mount in mounts:
        if isinstance(mount, dict) and mount.get("type") == "shared-memory":
            made.shared[get_text(mount, "destination")] = mount
    spec["mounts"] = mounts + _files(params, covered, files)
    linux = spec.setdefault("linux", {})
    if not isinstance(linux, dict):
        raise bad("linux must be an object")
    linux["cgroupsPath"] = cgroup
    linux.setdefault("personality", {"domain": "LINUX"})  # not the runtime's own, see casemate.agent.crun
    for key in ("mountLabel", "intelRdt"):
        linux.pop(key, None)
    made.sysctl = _namespaces(linux, join)
    _packet_filters(process)
    _devices(linux)
    _resources(linux, params, memory, pids)
    _host_only(spec)
    return made


def _host_only(spec: dict[str, Any]) -> None:
    """Leave out the hooks that the host runs, and annotations that are not for a hook in the container."""
    hooks = spec.pop("hooks", None)
    if isinstance(hooks, dict) and hooks.get("startContainer"):
        spec["hooks"] = {"startContainer": hooks["startContainer"]}
    annotations = spec.pop("annotations", None)
    if isinstance(annotations, dict) and "hooks" in spec:
        spec["annotations"] = {k: v for k, v in annotations.items() if not k.startswith(PRIVATE)}


def _users(looked: dict[str, Any]) -> Callable[[str], bytes] | None:
    """What the host has read of the container's users, for :mod:`casemate.agent.user`; None where it has not."""
    if looked.get("passwd") is None or looked.get("group") is None:
        return None
    texts = {f"etc/{name}": get_text(looked, name, MAX_LOOKED).encode() for name in ("passwd", "group")}
    return lambda path: texts.get(path, b"")


def complete_process(
    process: dict[str, Any], wanted: str, root: int, covered: Sequence[str], users: Root | None = None,
    place: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fill in the user, HOME and the bound of open files, and judge the command.

    Arguments:
        process: an OCI process object, which is changed.
        wanted: ``user[:group]``, or empty: the object's own user, or root.
        root: a descriptor of the container's root directory.
        covered: mount points below which ``root`` does not show what the container will see.
        users: where the container's users are found; ``root`` when None.
        place: where the command is, by the host's word, who has judged it.

    Returns:
        what the runtime does not know of: ``scheduler`` and ``ioPriority``, where they are given.

    Raises:
        RequestFailed: it cannot be executed, there is no such user, or the object is not as it should be.
    """
    words = process.get("args")
    if not isinstance(words, list) or not words or not all(isinstance(w, str) and "\0" not in w for w in words):
        raise bad("process.args must be a list of words")
    env = get_list(process, "env", 8192)
    if not all(isinstance(entry, str) and "\0" not in entry for entry in env):
        raise bad("process.env must be a list of strings")
    given = process.get("user")
    at_home = any(entry.startswith("HOME=") for entry in env)
    if wanted or not isinstance(given, dict):
        user = resolve(root if users is None else users, wanted)
        process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups}
        if not at_home:
            env = [*env, f"HOME={user.home}"]
    else:
        uid = get_int(given, "uid", 0, (1 << 31) - 1) if "uid" in given else 0
        if not at_home:
            env = [*env, f"HOME={home(root if users is None else users, uid)}"]
    process["env"] = env
    process.setdefault("cwd", "/")
    limits = get_list(process, "rlimits", 64)
    if not any(isinstance(limit, dict) and limit.get("type") == "RLIMIT_NOFILE" for limit in limits):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limits = [*limits, {"type": "RLIMIT_NOFILE", "soft": min(NOFILE, most), "hard": most}]
    process["rlimits"] = limits
    # The host's security modules, whose profiles the guest does not have.
    for key in ("apparmorProfile", "selinuxLabel"):
        process.pop(key, None)
    if place is None:
        path = next((entry[5:] for entry in reversed(env) if entry.startswith("PATH=")), "")
        command.check(root, words[0], path, get_text(process, "cwd"), covered)
    return {key: value for key in ("scheduler", "ioPriority") if (value := process.pop(key, None)) is not None}


def _files(params: dict[str, Any], covered: Sequence[str], directory: str) -> list[dict[str, Any]]:
    """Write the files that the host sends and say how to mount them; a mount of the person's own goes first."""
    mounts = []
    system.make_directory(directory, 0o700, exist_ok=True)
    for number, entry in enumerate(get_list(params, "files", MAX_FILES)):
        if not isinstance(entry, dict):
            raise bad("a file must be an object")
        path, content = get_text(entry, "path"), get_text(entry, "content", wire.MAX_CONTROL)
        mode = get_int(entry, "mode", 0, 0o7777)
        if not path.startswith("/") or ".." in path.split("/"):
            raise bad(f"the path {path[:100]} of a file must be absolute and plain")
        source = f"{directory}/{number}"
        system.write_text(source, content, mode, create=True)
        if path not in covered:
            options = ["bind", "rprivate", "rw"]
            mounts.append({"destination": path, "type": "bind", "source": source, "options": options})
    return mounts


def _namespaces(linux: dict[str, Any], join: Callable[[str, str], str]) -> list[tuple[str, str]]:
    """Find the namespaces of other containers; the settings of the network that are not the container's own."""
    own_network = False
    for entry in get_list(linux, "namespaces", MAX_NAMESPACES):
        if not isinstance(entry, dict):
            raise bad("a namespace must be an object")
        own_network = own_network or (entry.get("type") == "network" and entry.get("path") is None)
        if entry.get("container") is not None:
            other = system.get_id(entry, "container")
            name = NAMESPACES.get(str(entry.get("type")))
            if name is None:
                raise bad(f"a namespace of the type {str(entry.get('type'))[:40]!r} cannot be shared")
            del entry["container"]
            entry["path"] = join(other, name)
    settings = linux.get("sysctl")
    if settings is None or own_network:
        return []
    if not isinstance(settings, dict) or len(settings) > MAX_SYSCTLS:
        raise bad(f"linux.sysctl must be an object of at most {MAX_SYSCTLS} entries")
    found = []
    for key in [key for key in settings if key.replace("/", ".").startswith("net.")]:
        found.append((_sysctl_path(key), get_text(settings, key, MAX_LINE)))
        del settings[key]
    return found


def _sysctl_path(key: str) -> str:
    """As sysctl(8): where the first separator is a dot, dots and slashes have changed places."""
    if "/" not in key or ("." in key and key.index(".") < key.index("/")):
        key = "/".join(part.replace("/", ".") for part in key.split("."))
    if not all(part not in ("", ".", "..") for part in key.split("/")) or not key.isprintable() or len(key) > 256:
        raise bad(f"{key[:100]!r} is no name of a setting")
    return f"/proc/sys/{key}"


def _packet_filters(process: dict[str, Any]) -> None:
    """Have the older packet filters there for a container that may set them: their tools do not ask the kernel for them
    but a program which containers do not have."""
    capabilities = process.get("capabilities")
    bounding = capabilities.get("bounding") if isinstance(capabilities, dict) else None
    if isinstance(bounding, list) and "CAP_NET_ADMIN" in bounding:
        from casemate.agent import modules

        modules.load("ip_tables")
        modules.load("ip6_tables")


def _devices(linux: dict[str, Any]) -> None:
    """Give block devices the numbers of the disks that stand for them, and see to it that a tunnel can be made."""
    for entry in get_list(linux, "devices", MAX_DEVICES):
        if not isinstance(entry, dict):
            raise bad("a device must be an object")
        if entry.get("type") == "b":
            from casemate.agent import devices

            numbers = get_int(entry, "major", 0, 1 << 20), get_int(entry, "minor", 0, 1 << 20)
            entry["major"], entry["minor"] = devices.disk(*numbers)
        elif (entry.get("major"), entry.get("minor")) == TUN:
            from casemate.agent import modules

            modules.load("tun")


def _resources(linux: dict[str, Any], params: dict[str, Any], memory: int, pids: int) -> None:
    asked = linux.get("resources")
    if asked is None:
        asked = {}
    elif not isinstance(asked, dict):
        raise bad("linux.resources must be an object")
    if params.get("memory") is not None:
        memory = min(memory, get_int(params, "memory", LEAST, 1 << 62))
    made = resources.bounded(asked, memory, pids)
    made["memory"] = {"limit": memory, **made.get("memory", {})}
    made.setdefault("pids", {"limit": pids})
    linux["resources"] = made


def spare_pids() -> int:
    """How many processes and threads a container can have."""
    words = [system.read_text(f"/proc/sys/kernel/{name}").strip() for name in ("threads-max", "pid_max")]
    most = min((int(word) for word in words if word.isdigit()), default=RESERVE_PIDS)
    return most - min(RESERVE_PIDS, most // 4)
