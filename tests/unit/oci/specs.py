"""A specification such as engines write, and ways to spoil one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

STRICT = ["nosuid", "noexec", "nodev"]


def docker() -> dict[str, Any]:
    """As Docker 20.10 writes it for ``docker run -it``, a little shorter."""
    return {
        "ociVersion": "1.0.2-dev",
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0, "additionalGids": [1, 2]},
            "args": ["sh", "-c", "true"],
            "env": ["PATH=/usr/bin:/bin", "HOSTNAME=box", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                kind: ["CAP_CHOWN", "CAP_KILL"] for kind in ("bounding", "effective", "inheritable", "permitted")
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}],
            "apparmorProfile": "docker-default",
            "oomScoreAdj": 0,
        },
        "root": {"path": "/rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": STRICT},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*STRICT, "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", *STRICT]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": STRICT},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*STRICT, "size=67108864"]},
            {"destination": "/etc/hosts", "source": "/etc/hosts", "options": ["rbind", "rprivate"]},
            {"destination": "/data", "type": "bind", "source": "/usr", "options": ["rbind", "ro", "rslave"]},
        ],
        "hooks": {
            "prestart": [{"path": "/proc/self/exe", "args": ["libnetwork-setkey", "-exec-root=/run", "id", "x"]}]
        },
        "linux": {
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
                    {"allow": False, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
                ],
                "memory": {"limit": 134217728, "swap": 268435456, "disableOOMKiller": False},
                "cpu": {"shares": 0, "quota": 150000, "period": 100000, "cpus": "0-1"},
                "pids": {"limit": 100},
                "blockIO": {"weight": 0},
            },
            "cgroupsPath": "/docker/id",
            "namespaces": [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc")],
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                "syscalls": [
                    {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                    {
                        "names": ["personality"],
                        "action": "SCMP_ACT_ALLOW",
                        "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}],
                    },
                ],
            },
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
        },
        "annotations": {"a.b": "c"},
    }


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a document, as keys and indexes."""
    if at:
        yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from places(entry, (*at, index))


def replaced(spec: dict[str, Any], place: tuple[Any, ...], new: Any) -> dict[str, Any]:
    """A copy with another value at a place."""
    made: Any = copy.deepcopy(spec)
    node = made
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = new
    return dict(made)


def without(spec: dict[str, Any], place: tuple[Any, ...]) -> dict[str, Any]:
    """A copy without a place."""
    made: Any = copy.deepcopy(spec)
    node = made
    for key in place[:-1]:
        node = node[key]
    del node[place[-1]]
    return dict(made)


WORDS = (
    "", "/", "..", "/..", "/a/../..", "a\0b", "\ud800", "a" * 5000, "bind", "rbind", "rshared", "SCMP_ACT_NOTIFY",
    "1.0.0", "2.0.0", "host", "b", "c", "/proc/self/ns/net", "/dev/null", "/dev/zero", "net.a",
    "kernel.msgmax", "LINUX32", "/sock", "/gone/a", "/run/netns/host", "/proc/77/ns/ipc", "tmpfs", "overlay", "time",
    "user", "docker-default", "0-3,7-5", "size=1%", "RLIMIT_NOFILE", "SCMP_ACT_ALLOW", "ro", "rwm",
)  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20), st.sampled_from(WORDS)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


NUMBERS = (-1, 0, 1, 255, 65_535, 1 << 20, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64)


def _alike(old: Any) -> st.SearchStrategy[Any]:
    if isinstance(old, bool):
        return st.booleans()
    if isinstance(old, int):
        return st.sampled_from(NUMBERS)
    if isinstance(old, str):
        return st.sampled_from(WORDS)
    if isinstance(old, list):
        return st.just([]) | st.just(old * 2) | st.just(old[::-1]) | st.just(old * 600)
    return st.just({}) | st.dictionaries(st.sampled_from(WORDS), st.sampled_from(WORDS), max_size=3)


@st.composite
def spoilt(draw: st.DrawFn) -> dict[str, Any]:
    """A specification with up to three places taken out, put into another place, or replaced by anything; mostly by
    something of the same kind, so that it gets past the first judge."""
    spec = docker()
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(spec))
        if not known:
            break
        place = draw(st.sampled_from(known))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            spec = without(spec, place)
        elif kind == 1:
            other: Any = docker()
            for key in draw(st.sampled_from(list(places(docker())))):
                other = other[key]
            spec = replaced(spec, place, other)
        elif kind == 2:
            spec = replaced(spec, place, draw(JSON))
        else:
            old: Any = spec
            for key in place:
                old = old[key]
            spec = replaced(spec, place, draw(_alike(old)))
    return spec
