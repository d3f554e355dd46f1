"""What /proc tells of the machine: processors, memory, time, load; proc(5).

A sandbox is shown the processors that it may use; memory is the host's, or the sandbox's bound where it has one; times
and counts are those of its own processes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from typing import TYPE_CHECKING

from casemate.sentry.tasks import usage
from casemate.sentry.tasks.task import State
from casemate.sentry.vfs.proc.memory import resident
from casemate.sentry.vfs.proc.view import View

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

HZ = 100


@functools.cache
def cpus() -> tuple[int, ...]:
    """The processors that there are: those that the sentry itself may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def cpu_count() -> int:
    """How many processors there are."""
    return len(cpus())


def cpu_list(numbers: tuple[int, ...] | None = None) -> str:
    """Processors (all by default) as files of /proc and /sys list them: ``0-2,4``."""
    parts: list[list[int]] = []
    for number in cpus() if numbers is None else numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def cpu_mask(numbers: tuple[int, ...] | None = None) -> str:
    """The same as a set of bits, in groups of eight digits."""
    text = f"{sum(1 << number for number in (cpus() if numbers is None else numbers)):x}"
    groups = []
    while text:
        groups.append(text[-8:])
        text = text[:-8]
    return ",".join(reversed(groups))


def boot_offset() -> int:
    """What ``CLOCK_BOOTTIME`` is ahead of ``CLOCK_MONOTONIC``, in nanoseconds: the time the machine was suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()


@functools.cache
def _host_cpuinfo() -> list[list[bytes]]:
    try:
        with open("/proc/cpuinfo", "rb") as file:
            blocks = file.read().strip().split(b"\n\n")
    except OSError:
        return [[b"processor\t: 0"]]
    return [block.split(b"\n") for block in blocks]


_COUNTED = (b"siblings", b"cpu cores")
_NUMBERED = (b"core id", b"apicid", b"initial apicid")


@functools.cache
def cpuinfo_text() -> bytes:
    """proc_cpuinfo(5): the processors are the host's (programs can ask them themselves what they are), their numbers
    and arrangement are not."""
    blocks = _host_cpuinfo()
    count = cpu_count()
    parts: list[bytes] = []
    for index, number in enumerate(cpus()):
        for line in blocks[min(index, len(blocks) - 1)]:
            name = line.split(b"\t", 1)[0].strip()
            if name == b"processor":
                line = line.split(b":", 1)[0] + b": %d" % number
            elif name in _NUMBERED:
                line = line.split(b":", 1)[0] + b": %d" % index
            elif name in _COUNTED:
                line = line.split(b":", 1)[0] + b": %d" % count
            elif name == b"physical id":
                line = line.split(b":", 1)[0] + b": 0"
            parts.append(line + b"\n")
        parts.append(b"\n")
    return b"".join(parts)


_files: dict[str, int] = {}
"""Descriptors of files of the host's /proc that are read again and again."""


def before_isolation() -> None:
    """Read what is only read once from the host, and open the rest, while its files can be opened."""
    cpuinfo_text()
    for name in ("meminfo", "loadavg"):
        if name not in _files:
            with contextlib.suppress(OSError):
                _files[name] = os.open(f"/proc/{name}", os.O_RDONLY | os.O_CLOEXEC)


def _host(name: str) -> bytes:
    """What a file of the host's /proc says now; nothing where it cannot be read."""
    fd = _files.get(name)
    if fd is None:
        return b""
    try:
        return os.pread(fd, 16384, 0)
    except OSError:
        return b""


def cpuinfo(task: Task) -> bytes:
    """proc_cpuinfo(5)."""
    return cpuinfo_text()


def _host_memory() -> dict[str, int]:
    """kB of each line of the host's ``/proc/meminfo``."""
    found = {"MemTotal": 1 << 20, "MemFree": 1 << 19}
    for line in _host("meminfo").decode("ascii", "replace").splitlines():
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0])
    return found


def memory(kernel: Kernel) -> tuple[int, int, int]:
    """Total, free and available kB of the sandbox."""
    host = _host_memory()
    total = host["MemTotal"]
    free = host["MemFree"]
    available = host.get("MemAvailable", free)
    bound = kernel.subsystems.get("memory_limit")
    if isinstance(bound, int) and 0 < bound >> 10 < total:
        total = bound >> 10
        pages = [resident(View(group)) for group in kernel.groups.values() if not group.zombie]
        left = max(0, total - sum(both - files for both, files in pages) * 4)
        free, available = min(free, left), min(available, left)
    return total, free, available


def meminfo(task: Task) -> bytes:
    """proc_meminfo(5)."""
    total, free, available = memory(task.kernel)
    host = _host_memory()
    cached = max(0, min(host.get("Cached", 0), available - free))
    rows = {
        "MemTotal": total, "MemFree": free, "MemAvailable": available, "Buffers": 0, "Cached": cached, "SwapCached": 0,
        "Active": (total - free) // 2, "Inactive": cached // 2, "Active(anon)": (total - available) // 2,
        "Inactive(anon)": 0, "Active(file)": cached // 2, "Inactive(file)": cached // 2, "Unevictable": 0,
        "Mlocked": 0, "SwapTotal": 0, "SwapFree": 0, "Dirty": 0, "Writeback": 0,
        "AnonPages": max(0, total - available), "Mapped": 0, "Shmem": 0, "KReclaimable": 0, "Slab": 0,
        "SReclaimable": 0, "SUnreclaim": 0, "KernelStack": 0, "PageTables": 0, "NFS_Unstable": 0, "Bounce": 0,
        "WritebackTmp": 0, "CommitLimit": total // 2, "Committed_AS": max(0, total - available),
        "VmallocTotal": 34359738367, "VmallocUsed": 0, "VmallocChunk": 0, "Percpu": 0, "AnonHugePages": 0,
        "ShmemHugePages": 0, "ShmemPmdMapped": 0,
    }  # fmt: skip
    text = "".join(f"{name + ':':<16}{value:>8} kB\n" for name, value in rows.items())
    for name in ("HugePages_Total", "HugePages_Free", "HugePages_Rsvd", "HugePages_Surp"):
        text += f"{name + ':':<16}{0:>8}\n"
    return (text + f"{'Hugepagesize:':<16}{2048:>8} kB\n").encode()


def _used(kernel: Kernel) -> int:
    """Nanoseconds that the sandbox's processes have run."""
    living = sum(usage.process_time(group) for group in kernel.groups.values() if not group.zombie)
    return living + sum(kernel.ended_time.values())


def stat(task: Task) -> bytes:
    """proc_stat(5): time that is not the sandbox's own is idle."""
    kernel = task.kernel
    up = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    count = cpu_count()
    used = _used(kernel)
    tick = 1_000_000_000 // HZ
    lines = [f"cpu  {used // tick} 0 0 {max(0, up * count - used) // tick} 0 0 0 0 0 0"]
    for number in cpus():
        part = used // count
        lines.append(f"cpu{number} {part // tick} 0 0 {max(0, up - part) // tick} 0 0 0 0 0 0")
    running = sum(1 for one in kernel.tasks.values() if one.state is State.RUNNING)
    lines += [
        "intr 0",
        "ctxt 0",
        f"btime {(kernel.clock.realtime() - up) // 1_000_000_000}",
        f"processes {task.group.ns.pid.last}",
        f"procs_running {running}",
        "procs_blocked 0",
        "softirq 0 0 0 0 0 0 0 0 0 0 0",
    ]
    return ("\n".join(lines) + "\n").encode()


def uptime(task: Task) -> bytes:
    """proc_uptime(5)."""
    up = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    idle = max(0, up * cpu_count() - _used(task.kernel))
    return f"{up / 1e9:.2f} {idle / 1e9:.2f}\n".encode()


def loadavg(task: Task) -> bytes:
    """proc_loadavg(5): the load of the machine, the counts of the sandbox."""
    load = b" ".join(_host("loadavg").split()[:3]) or b"0.00 0.00 0.00"
    kernel = task.kernel
    running = sum(1 for found in kernel.tasks.values() if found.state is State.RUNNING)
    return load + b" %d/%d %d\n" % (running, len(kernel.tasks), task.group.ns.pid.last)


FILESYSTEMS = (
    b"nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tdevtmpfs\nnodev\tdevpts\nnodev\toverlay\nnodev\tmqueue\n"
    b"nodev\tpipefs\nnodev\tsockfs\n"
)
CGROUPS = b"#subsys_name\thierarchy\tnum_cgroups\tenabled\n" + b"\n".join(
    name + b"\t0\t1\t1" for name in (b"cpuset", b"cpu", b"cpuacct", b"memory", b"pids")
)
DEVICES = (
    b"Character devices:\n  1 mem\n  4 tty\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n136 pts\n\nBlock devices:\n"
)
VMSTAT = (
    "nr_free_pages", "nr_inactive_anon", "nr_active_anon", "nr_inactive_file", "nr_active_file", "nr_mapped",
    "nr_dirty", "nr_writeback", "pgpgin", "pgpgout", "pswpin", "pswpout", "pgfault", "pgmajfault", "oom_kill",
)  # fmt: skip


def vmstat(task: Task) -> bytes:
    """proc_vmstat(5): what is free; the rest is not counted."""
    free = memory(task.kernel)[1] // 4
    return "".join(f"{name} {free if name == 'nr_free_pages' else 0}\n" for name in VMSTAT).encode()

