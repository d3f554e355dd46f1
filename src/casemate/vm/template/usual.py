"""What engines' containers have in ``/proc``, ``/dev`` and ``/sys`` where nobody has asked for anything else.

A guest mounts it ahead (:mod:`casemate.agent.blank_mounts`). Where an engine does it otherwise, in another version or
because somebody wants that, its containers are as right, and begin a little later. Containers whose ``/dev/shm`` others
share (those of Podman, and of a CRI) are made by the runtime in the guest, which has no use for it.

Sources: ``runc spec`` of runc 1.1; Docker 20.10, ``oci/defaults.go``; containerd 1.6, ``oci/mounts.go`` and
``oci/spec.go``, for ``ctr run``.
"""

from __future__ import annotations

from typing import Any

_MASKED = [
    "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
]  # fmt: skip
_READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_SAFE = ["nosuid", "noexec", "nodev"]


def _mount(destination: str, kind: str, source: str = "", options: list[str] | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"destination": destination, "type": kind, "source": source or kind}
    return made if options is None else {**made, "options": options}


_DEV = _mount("/dev", "tmpfs", options=["nosuid", "strictatime", "mode=755", "size=65536k"])
_PTS = _mount(
    "/dev/pts", "devpts", options=["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
)
_MQUEUE = _mount("/dev/mqueue", "mqueue", options=_SAFE)
_SYS = _mount("/sys", "sysfs", options=[*_SAFE, "ro"])


def _shm(size: str) -> dict[str, Any]:
    return _mount("/dev/shm", "tmpfs", "shm", [*_SAFE, "mode=1777", f"size={size}"])


_MOUNTS = {
    "docker": [
        _mount("/proc", "proc", options=_SAFE), _DEV, _PTS, _SYS,
        _mount("/sys/fs/cgroup", "cgroup", options=["ro", *_SAFE]), _MQUEUE, _shm("67108864"),
    ],
    "ctr": [_mount("/proc", "proc", options=_SAFE), _DEV, _PTS, _shm("65536k"), _MQUEUE, _SYS],
    "runc spec": [
        _mount("/proc", "proc"), _DEV, _PTS, _shm("65536k"), _MQUEUE, _SYS,
        _mount("/sys/fs/cgroup", "cgroup", options=[*_SAFE, "relatime", "ro"]),
    ],
}  # fmt: skip

CONTAINERS: list[dict[str, Any]] = [
    {"mounts": mounts, "linux": {"maskedPaths": _MASKED, "readonlyPaths": _READONLY}} for mounts in _MOUNTS.values()
]
"""Parts of specifications, as ``sandbox.prepare`` takes them."""
