"""``spec``: write a ``config.json`` to begin with."""

from __future__ import annotations

import json
import os
from typing import Any

from casemate.errors import HostError, Unsupported, UsageError
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import BOOL, TEXT, Option, Options

USAGE = "[options]"
OPTIONS = (
    Option("bundle, b", TEXT, "path to the root of the bundle directory"),
    Option("rootless", BOOL, "not supported"),
)
ARGUMENTS = (0, 0)
ROOT = False
CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Write it, unless there is one."""
    if options["rootless"]:
        raise Unsupported("a specification for a container without root cannot be made", "leave out --rootless")
    path = os.path.join(options["bundle"] or ".", "config.json")
    try:
        with open(path, "x") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            json.dump(template(), file, indent="\t")
            file.write("\n")
    except FileExistsError:
        raise UsageError("File config.json exists. Remove it first") from None
    except OSError as error:
        raise HostError(f"open {path}: {(error.strerror or '').lower()}") from None
    return 0


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def template() -> dict[str, Any]:
    """The same container that runc's ``spec`` describes."""
    nosuid, nodev, noexec = "nosuid", "nodev", "noexec"
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "casemate",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            _mount("/dev", "tmpfs", nosuid, "strictatime", "mode=755", "size=65536k"),
            _mount("/dev/pts", "devpts", nosuid, noexec, "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
            _mount("/dev/shm", "tmpfs", nosuid, noexec, nodev, "mode=1777", "size=65536k", source="shm"),
            _mount("/dev/mqueue", "mqueue", nosuid, noexec, nodev),
            _mount("/sys", "sysfs", nosuid, noexec, nodev, "ro"),
            _mount("/sys/fs/cgroup", "cgroup", nosuid, noexec, nodev, "relatime", "ro"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }  # fmt: skip


def _mount(destination: str, kind: str, *options: str, source: str = "") -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source or kind, "options": list(options)}
