"""The shape of a bundle's ``config.json``, as data: OCI runtime specification 1.0.2, config.md and config-linux.md.

A shape is a function that judges a value and raises :class:`Wrong` where it does not fit. Keys that no shape names are
left alone, as the specification asks for ("Extensibility"); every list, string and number that one does name has a
bound. What depends on more than one place of the document is in :mod:`casemate.oci.bundle`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

Shape = Callable[[Any, str], None]

PATH = 4096
"""Bytes of a path (PATH_MAX of linux/limits.h)."""
TEXT = 128 << 10
"""Bytes of one argument or variable (MAX_ARG_STRLEN of linux/binfmts.h)."""
MAX_ARGS = 65_536
MAX_ENV = 8192
MAX_MOUNTS = 960
MAX_HOOKS = 128
MAX_ANNOTATIONS = 4096
ANNOTATION_BYTES = 1 << 20
"""All annotations together: Kubernetes allows 256 KiB of a pod's, and engines add copies of their own."""
NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
PROPAGATION = frozenset(
    f"{prefix}{kind}" for prefix in ("", "r") for kind in ("private", "shared", "slave", "unbindable")
)


def words(text: str, prefix: str = "") -> tuple[str, ...]:
    """The words of a text, each with a prefix."""
    return tuple(prefix + word for word in text.split())


_FLAGS = words(
    "ro rw suid nosuid dev nodev exec noexec sync async dirsync atime noatime diratime nodiratime relatime norelatime "
    "strictatime nostrictatime"
)
MOUNT_FLAGS = frozenset((*_FLAGS, *(f"r{flag}" for flag in _FLAGS if "sync" not in flag)))
"""Mount options that every file system has, and their forms for all mounts below (mount_setattr(2))."""
RLIMITS = words(
    "AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK", "RLIMIT_"
)
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
SECCOMP_ACTIONS = words("KILL KILL_PROCESS KILL_THREAD TRAP ERRNO TRACE ALLOW LOG NOTIFY", "SCMP_ACT_")
SECCOMP_OPERATORS = words("NE LT LE EQ GE GT MASKED_EQ", "SCMP_CMP_")
SECCOMP_FLAGS = words("TSYNC LOG SPEC_ALLOW WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_")
CAPABILITY_SETS = words("bounding effective inheritable permitted ambient")

_I64 = (1 << 63) - 1
_U64 = (1 << 64) - 1
_U32 = (1 << 32) - 1


class Wrong(Exception):
    """The value at some place does not fit; the message names the place."""


def text(most: int = PATH, *, empty: bool = True, pattern: str = "", what: str = "") -> Shape:
    """A string of at most ``most`` bytes; ``pattern`` has to match all of it, and ``what`` says what that means."""
    compiled = re.compile(pattern) if pattern else None

    def judge(value: Any, where: str) -> None:
        if not isinstance(value, str):
            raise Wrong(f"{where} must be a string")
        if not value and not empty:
            raise Wrong(f"{where} must not be empty")
        if len(value) > most or (not value.isascii() and len(value.encode(errors="surrogatepass")) > most):
            raise Wrong(f"{where} must be at most {most} bytes long")
        if compiled is not None and compiled.fullmatch(value) is None:
            raise Wrong(f"{where} must be {what}, not {value[:80]!r}")

    return judge


def path(value: Any, where: str) -> None:
    """An absolute path."""
    _path(value, where)
    if not value.startswith("/"):
        raise Wrong(f"{where} must be an absolute path, not {value[:80]!r}")


def inner_path(value: Any, where: str) -> None:
    """An absolute path in the container, which does not climb."""
    path(value, where)
    if ".." in value.split("/"):
        raise Wrong(f"{where} must be a path without '..', not {value[:80]!r}")


def boolean(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise Wrong(f"{where} must be true or false")


def integer(low: int, high: int) -> Shape:
    """A whole number within bounds."""

    def judge(value: Any, where: str) -> None:
        if type(value) is not int:
            raise Wrong(f"{where} must be a whole number")
        if not low <= value <= high:
            raise Wrong(f"{where} must be from {low} to {high}")

    return judge


def choice(known: Collection[str]) -> Shape:
    """One of some words."""

    def judge(value: Any, where: str) -> None:
        if not isinstance(value, str):
            raise Wrong(f"{where} must be a string")
        if value not in known:
            raise Wrong(f"{where} {value[:80]!r} is not known; known are {', '.join(sorted(known))}")

    return judge


def array(item: Shape, most: int, *, empty: bool = True, unique: str = "") -> Shape:
    """A list of at most ``most``; no two of its objects may have the same value of the key ``unique``."""

    def judge(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise Wrong(f"{where} must be a list")
        if not value and not empty:
            raise Wrong(f"{where} must not be empty")
        if len(value) > most:
            raise Wrong(f"{where} must have at most {most} entries, not {len(value)}")
        for index, entry in enumerate(value):
            item(entry, f"{where}[{index}]")
        if unique:
            seen = set()
            for entry in value:
                key = entry[unique]
                if key in seen:
                    raise Wrong(f"{where} has two entries of the {unique} {key!r}")
                seen.add(key)

    return judge


def table(fields: dict[str, Shape], required: Collection[str] = ()) -> Shape:
    """An object; keys that ``fields`` lacks are left alone."""

    def judge(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Wrong(f"{where or 'the document'} must be an object")
        for key in required:
            if key not in value:
                raise Wrong(f"{where}.{key} is missing" if where else f"{key} is missing")
        for key, entry in value.items():
            shape = fields.get(key)
            if shape is not None:
                shape(entry, f"{where}.{key}" if where else key)

    return judge


def mapping(value_shape: Shape, most: int, total: int, *, keys: Shape | None = None) -> Shape:
    """An object from names to values, at most ``total`` characters all in all."""

    def judge(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Wrong(f"{where} must be an object")
        if len(value) > most:
            raise Wrong(f"{where} must have at most {most} entries, not {len(value)}")
        size = 0
        for key, entry in value.items():
            if not key:
                raise Wrong(f"{where} has an entry without a name")
            if keys is not None:
                keys(key, f"a name in {where}")
            value_shape(entry, f"{where}[{key[:80]!r}]")
            size += len(key) + (len(entry) if isinstance(entry, str) else 8)
        if size > total:
            raise Wrong(f"{where} must have at most {total} characters all in all, not {size}")

    return judge


def anything(value: Any, where: str) -> None:
    """Whatever there is: judged elsewhere."""


_path = text(PATH, empty=False)
_word = text(PATH)
_id32 = integer(0, _U32)
_owner = integer(0, _U32 - 1)  # (uid_t)-1 is no user: setresuid(2) takes it for "as it is"
_i64 = integer(-_I64 - 1, _I64)
_u64 = integer(0, _U64)
_caps = array(text(64, empty=False), 256)

PROCESS = table(
    {
        "terminal": boolean,
        "consoleSize": table({"height": integer(0, 65_535), "width": integer(0, 65_535)}, ("height", "width")),
        "user": table(
            {
                "uid": _owner, "gid": _owner, "umask": integer(0, 0o7777),
                "additionalGids": array(_owner, 65_536), "username": _word,
            }
        ),
        "args": array(text(TEXT), MAX_ARGS, empty=False),
        "env": array(text(TEXT), MAX_ENV),
        "cwd": path,
        "capabilities": table({kind: _caps for kind in CAPABILITY_SETS}),
        "rlimits": array(
            table({"type": choice(RLIMITS), "soft": _u64, "hard": _u64}, ("type", "soft", "hard")), 64, unique="type"
        ),
        "noNewPrivileges": boolean,
        "apparmorProfile": _word,
        "selinuxLabel": _word,
        "oomScoreAdj": integer(-1000, 1000),
        "ioPriority": table({"class": text(64), "priority": integer(0, 7)}, ("class",)),
        "scheduler": table(
            {
                "policy": text(64), "nice": integer(-20, 19), "priority": integer(0, 99),
                "flags": array(text(64), 16), "runtime": _u64, "deadline": _u64, "period": _u64,
            },
            ("policy",),
        ),
    },
    ("args", "cwd"),
)  # fmt: skip
"""config.md, "Process"; ``args`` is optional there for a container that is never started, which engines never make."""

_HOOK = table(
    {
        "path": path,
        "args": array(text(TEXT), MAX_ARGS),
        "env": array(text(TEXT), MAX_ENV),
        "timeout": integer(1, 86_400),
    },
    ("path",),
)

_MAPPING = array(
    table({key: _id32 for key in ("containerID", "hostID", "size")}, ("containerID", "hostID", "size")), 340
)

_MOUNT = table(
    {
        "destination": inner_path,
        "type": text(64),
        "source": _word,
        "options": array(_word, 128),
        "uidMappings": _MAPPING,
        "gidMappings": _MAPPING,
    },
    ("destination",),
)

_NUMBERS = {"major": integer(-1, _U32), "minor": integer(-1, _U32)}

_WEIGHTS = {"weight": integer(0, 1000), "leafWeight": integer(0, 1000)}

_RESOURCES = {
    "devices": array(
        table(
            {
                "allow": boolean, "type": choice(("a", "b", "c", "p", "u", "")), **_NUMBERS,
                "access": text(3, pattern="[rwm]*", what="made of r, w and m"),
            },
            ("allow",),
        ),
        4096,
    ),
    "memory": table(
        {
            **{key: _i64 for key in ("limit", "reservation", "swap", "kernel", "kernelTCP")},
            "swappiness": integer(0, _U64),
            **{key: boolean for key in ("disableOOMKiller", "useHierarchy", "checkBeforeUpdate")},
        }
    ),
    "cpu": table(
        {
            "shares": _u64, "quota": _i64, "period": _u64, "realtimeRuntime": _i64, "realtimePeriod": _u64,
            "cpus": text(PATH, pattern="[0-9,\\-\\s]*", what="a list of processors"),
            "mems": text(PATH, pattern="[0-9,\\-\\s]*", what="a list of memory nodes"),
        }
    ),
    "pids": table({"limit": _i64}, ("limit",)),
    "blockIO": table(
        {
            **_WEIGHTS,
            "weightDevice": array(table({**_NUMBERS, **_WEIGHTS}), 1024),
            **{
                f"throttle{way}{what}Device": array(table({**_NUMBERS, "rate": _u64}), 1024)
                for way in ("Read", "Write") for what in ("Bps", "IOPS")
            },
        }
    ),
    "hugepageLimits": array(table({"pageSize": text(64), "limit": _u64}, ("pageSize", "limit")), 64),
    "network": table(
        {"classID": _id32, "priorities": array(table({"name": text(256), "priority": _id32}), 1024)}
    ),
    "rdma": mapping(table({"hcaHandles": _id32, "hcaObjects": _id32}), 256, 65_536),
    "unified": mapping(
        _word, 1024, 65_536,
        keys=text(256, pattern="[a-z0-9_]+(\\.[a-zA-Z0-9_]+)+", what="the name of a control group's file"),
    ),
}  # fmt: skip

RESOURCES = table(_RESOURCES)
"""config-linux.md, "Control groups"; ``update`` takes the same."""

_SECCOMP = table(
    {
        "defaultAction": choice(SECCOMP_ACTIONS),
        "defaultErrnoRet": _id32,
        "architectures": array(text(64), 64),
        "flags": array(choice(SECCOMP_FLAGS), 16),
        "listenerPath": _word,
        "listenerMetadata": _word,
        "syscalls": array(
            table(
                {
                    "names": array(text(128, empty=False), 4096, empty=False),
                    "action": choice(SECCOMP_ACTIONS),
                    "errnoRet": _id32,
                    "args": array(
                        table(
                            {
                                "index": integer(0, 5), "value": _u64, "valueTwo": _u64,
                                "op": choice(SECCOMP_OPERATORS),
                            },
                            ("index", "value", "op"),
                        ),
                        64,
                    ),
                },
                ("names", "action"),
            ),
            4096,
        ),
    },
    ("defaultAction",),
)  # fmt: skip

_LINUX = table(
    {
        "namespaces": array(
            table({"type": choice(NAMESPACES), "path": path}, ("type",)), len(NAMESPACES), unique="type"
        ),
        "uidMappings": _MAPPING,
        "gidMappings": _MAPPING,
        "timeOffsets": anything,
        "devices": array(
            table(
                {
                    "type": choice(("b", "c", "u", "p")), "path": inner_path, "major": integer(0, _U32),
                    "minor": integer(0, _U32), "fileMode": integer(0, 0o177777), "uid": _owner, "gid": _owner,
                },
                ("type", "path"),
            ),
            4096,
        ),
        "cgroupsPath": _word,
        "rootfsPropagation": choice((*PROPAGATION, "")),
        "seccomp": _SECCOMP,
        "sysctl": mapping(_word, 1024, 262_144, keys=text(256)),
        "maskedPaths": array(inner_path, 4096),
        "readonlyPaths": array(inner_path, 4096),
        "mountLabel": _word,
        "intelRdt": table({}),
        "personality": table(
            {"domain": choice(("LINUX", "LINUX32")), "flags": array(text(64), 16)}, ("domain",)
        ),
        "resources": RESOURCES,
    }
)  # fmt: skip

SPEC = table(
    {
        "ociVersion": text(64),
        "process": PROCESS,
        "root": table({"path": _path, "readonly": boolean}, ("path",)),
        "hostname": text(64),
        "domainname": text(64),
        "mounts": array(_MOUNT, MAX_MOUNTS),
        "hooks": table({kind: array(_HOOK, MAX_HOOKS) for kind in HOOKS}),
        "annotations": mapping(text(ANNOTATION_BYTES), MAX_ANNOTATIONS, ANNOTATION_BYTES),
        "linux": _LINUX,
    },
    ("ociVersion", "process", "root", "linux"),
)
"""The whole document."""
