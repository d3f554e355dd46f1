"""Processor time and memory used, getrusage(2)."""

from __future__ import annotations

import os
import resource
import signal
import struct
import time
from typing import TYPE_CHECKING

from casemate.sentry.clock import Timer
from casemate.sentry.limits import RLIM_INFINITY
from casemate.sentry.signals.send import send_signal

if TYPE_CHECKING:
    from casemate.sentry.platform.base import HostThread
    from casemate.sentry.tasks.task import Task, ThreadGroup

TICK_NS = 10_000_000
"""A clock tick, ``sysconf (_SC_CLK_TCK)`` of them a second."""
CPUCLOCK_SCHED = 2


def _host_time(pid: int) -> int:
    """How long all threads of a process of the host have run, nanoseconds, those that ended as well."""
    try:
        return time.clock_gettime_ns(~pid << 3 | CPUCLOCK_SCHED)  # clock_getcpuclockid(3)
    except OSError:
        return 0  # it died


def _read(task: Task, path: str) -> bytes:
    """A small file of the host's ``/proc``; empty where it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=task.kernel.platform.proc)
    except OSError:
        return b""
    try:
        return os.read(fd, 8192)
    except OSError:
        return b""
    finally:
        os.close(fd)


def thread_time(task: Task) -> int:
    """How long a task has run, in nanoseconds. What the kernel did for it is not in it."""
    thread = task.thread
    if thread is None:
        return 0
    # The clocks of another process's single threads cannot be read.
    fields = _read(task, f"{thread.pid}/task/{thread.tid}/schedstat").split()
    return int(fields[0]) if fields else 0


def process_time(group: ThreadGroup) -> int:
    """How long all tasks of a process have run, in nanoseconds, those that have ended included."""
    task = group.any_task
    now = _host_time(task.thread.pid) if task is not None and task.thread is not None else 0
    return group.usage.get("self", 0) + now


def process_ended(group: ThreadGroup) -> None:
    """Keep what all its tasks have used before they go."""
    usage = group.usage
    usage["self"] = process_time(group)
    total = group.kernel.ended_time
    total[group.container] = total.get(group.container, 0) + usage["self"]
    task = group.any_task
    if task is not None:
        usage["maxrss"] = max_rss(task)


def program_replaced(task: Task, old: HostThread) -> None:
    """execve(2) gives the process another one of the host: what the old one has used stays its use."""
    usage = task.group.usage
    usage["self"] = usage.get("self", 0) + _host_time(old.pid)


def waited(parent: ThreadGroup, child: ThreadGroup) -> None:
    """A parent has waited for a child: its use, and that of those it has waited for, are the parent's children's."""
    total = parent.usage
    used = child.usage
    total["children"] = total.get("children", 0) + used.get("self", 0) + used.get("children", 0)
    total["children_maxrss"] = max(
        total.get("children_maxrss", 0), used.get("maxrss", 0), used.get("children_maxrss", 0)
    )


def max_rss(task: Task) -> int:
    """The most memory that the task's process has had resident, in KiB."""
    before = task.group.usage.get("maxrss", 0)
    if task.thread is None:
        return before
    text = _read(task, f"{task.thread.pid}/status")
    at = text.find(b"VmHWM:")
    return max(before, int(text[at + 6 :].split(None, 1)[0])) if at >= 0 else before


def rusage(user_ns: int, rss: int) -> bytes:
    """A ``struct rusage``: all time is user time, as the kernel does not run in the application's process."""
    seconds, rest = divmod(user_ns, 1_000_000_000)
    return struct.pack("<16q", seconds, rest // 1000, 0, 0, rss, *([0] * 11))


def of_child(group: ThreadGroup) -> bytes:
    """What wait4(2) tells of a child's use, with that of its own children."""
    usage = group.usage
    own = usage.get("self", 0) if group.zombie else process_time(group)
    return rusage(
        own + usage.get("children", 0), max(usage.get("maxrss", 0), usage.get("children_maxrss", 0))
    )


class CpuLimit:
    """Ends a process that has used the processor time that ``RLIMIT_CPU`` gives it, getrlimit(2)."""

    __slots__ = ("_group", "_timer")

    def __init__(self, group: ThreadGroup) -> None:
        self._group = group
        self._timer = Timer(self)

    def arm(self) -> None:
        """Look again when the limit can have been reached at the earliest."""
        group = self._group
        soft, hard = group.limits.get(resource.RLIMIT_CPU)
        clock = group.kernel.clock
        if group.zombie or soft == RLIM_INFINITY:
            clock.disarm(self._timer)
            return
        used = process_time(group)
        limit = soft * 1_000_000_000 if used < soft * 1_000_000_000 else (used // 1_000_000_000 + 1) * 1_000_000_000
        left = max(limit - used, 1_000_000)
        clock.arm(self._timer, clock.monotonic() + left // max(1, len(group.tasks)))

    def expire(self, timer: Timer) -> None:
        """Signal the process where it has had its time."""
        group = self._group
        if group.zombie:
            return
        soft, hard = group.limits.get(resource.RLIMIT_CPU)
        used = process_time(group)
        if hard != RLIM_INFINITY and used >= hard * 1_000_000_000:
            send_signal(group, signal.SIGKILL)
        elif soft != RLIM_INFINITY and used >= soft * 1_000_000_000:
            send_signal(group, signal.SIGXCPU)
        self.arm()


def watch_limit(group: ThreadGroup) -> None:
    """``RLIMIT_CPU`` of the process has changed, or the process is new and has got its limits."""
    if group.cpu_limit is None:
        if group.limits.soft(resource.RLIMIT_CPU) == RLIM_INFINITY:
            return
        group.cpu_limit = CpuLimit(group)
    group.cpu_limit.arm()
