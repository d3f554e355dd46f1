"""What a sandbox uses, in the shape in which a machine's agent tells it."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from casemate.sentry.tasks.usage import process_time

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel

RELEASE = "6.1.0-casemate"
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(kernel: Kernel, identifier: str) -> tuple[int, int]:
    """Bytes of anonymous and of file memory that the processes of a container have on the host."""
    anonymous = file = 0
    proc = getattr(kernel.platform, "proc", -1)
    for group in kernel.groups.values():
        if group.container != identifier or group.zombie:
            continue
        task = group.any_task
        if task is None or task.thread is None:
            continue
        try:
            fd = os.open(f"{task.thread.pid}/statm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        except OSError:
            continue
        try:
            words = os.read(fd, 256).split()
        finally:
            os.close(fd)
        if len(words) > 2:
            shared = int(words[2]) * _PAGE
            anonymous += int(words[1]) * _PAGE - shared
            file += shared
    return anonymous, file


def stats(kernel: Kernel, identifier: str) -> dict[str, Any]:
    """Figures of a container (``container.stats`` of docs/protocol.md); null where the sentry does not count."""
    anonymous, file = resident(kernel, identifier)
    groups = [group for group in kernel.groups.values() if group.container == identifier and not group.zombie]
    time = (kernel.ended_time.get(identifier, 0) + sum(process_time(group) for group in groups)) // 1000
    tasks = sum(len(group.tasks) for group in groups)
    return {
        "memory": {
            "current": anonymous + file, "max": None, "peak": None, "oom_kills": 0,
            "stat": {
                "anon": anonymous, "file": file, "kernel": 0, "shmem": 0, "pgfault": 0, "pgmajfault": 0,
                "inactive_file": 0,
            },
        },
        "cpu": {
            "usage_us": time, "user_us": time, "system_us": 0, "nr_periods": 0, "nr_throttled": 0, "throttled_us": 0,
        },
        "pids": {"current": tasks, "max": kernel.task_limits.get(identifier, kernel.max_tasks)},
        "io": [],
        "processes": [group.pid for group in groups],
        "guest": {"mem_total": None, "mem_available": None},
        "net": [],
    }  # fmt: skip


def info(kernel: Kernel, version: str) -> dict[str, Any]:
    """What kernel the sandbox has (``sandbox.info``)."""
    return {
        "kernel": RELEASE, "uptime_ms": (kernel.clock.monotonic() - kernel.booted) // 1_000_000, "mem_total": None,
        "boot_id": kernel.boot_id, "agent_version": version, "python": platform.python_version(), "wall": "sentry",
        "platform": kernel.platform.name,
    }  # fmt: skip
