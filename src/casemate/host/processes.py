"""Processes of the host that are told apart by more than their number, which the kernel gives out again.

Number and start time together (field 22 of ``/proc/PID/stat``, :manpage:`proc_pid_stat(5)`) name one process for as
long as the host is up. A pidfd keeps that name good while it is used (:manpage:`pidfd_open(2)`).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

from casemate.errors import HostError

KILL_SECONDS = 10.0


def _fields(pid: int) -> list[bytes]:
    """The fields of ``stat`` from the third on: the second, the program's name, may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int | None:
    """When process ``pid`` began, in clock ticks after the boot; None when there is none."""
    fields = _fields(pid) if pid > 0 else []
    return int(fields[19]) if len(fields) > 19 else None


def alive(pid: int, start: int) -> bool:
    """Whether the process ``pid`` that began at ``start`` still runs; one that only waits to be reaped does not."""
    fields = _fields(pid) if pid > 0 else []
    return len(fields) > 19 and int(fields[19]) == start and fields[0] not in (b"Z", b"X")


def open_process(pid: int, start: int) -> int | None:
    """A pidfd of the process ``pid`` that began at ``start``; None when it has gone."""
    if pid <= 0:
        return None
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    if start_time(pid) == start:
        return descriptor
    os.close(descriptor)
    return None


def kill(pid: int, start: int, timeout: float = KILL_SECONDS) -> None:
    """Send SIGKILL to the process ``pid`` that began at ``start`` and wait for its end; nothing when it has gone.

    Raises:
        HostError: it does not end within ``timeout`` seconds.
    """
    descriptor = open_process(pid, start)
    if descriptor is None:
        return
    try:
        end(descriptor, f"process {pid}", timeout)
    finally:
        os.close(descriptor)


def end(descriptor: int, what: str, timeout: float = KILL_SECONDS) -> None:
    """Send SIGKILL to the process of a pidfd and wait for its end.

    Raises:
        HostError: it does not end within ``timeout`` seconds.
    """
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(timeout * 1000):
        raise HostError(f"{what} does not end", "is it in state D in 'ps'?")


def waited(pid: int) -> float:
    """How many seconds the threads of a process and of its descendants could have run and had no processor, added up
    (the second field of ``/proc/PID/schedstat``; see the kernel's Documentation/scheduler/sched-stats.rst). Those of
    processes that have ended do not count, and where the kernel keeps no count it is 0."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _fields(int(name))
            if len(fields) > 1:
                parents.setdefault(int(fields[1]), []).append(int(name))
    family = [pid]
    for one in family:  # grows meanwhile
        family += parents.get(one, ())
    total = 0
    for one in family:
        with contextlib.suppress(OSError):  # it has ended
            for thread in os.listdir(f"/proc/{one}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{one}/task/{thread}/schedstat") as file:
                    words = file.read().split()
                    total += int(words[1]) if len(words) > 1 else 0
    return total / 1e9
