"""Let the host's control group of a container see that its guest killed something for want of memory.

Engines learn of this from the control group that their container is in (``memory.oom_control`` with an eventfd in
version 1, ``memory.events`` in version 2), and show it as "OOMKilled". The kill in the guest is none in that group, and
the kernel has no other way to raise the event than a real kill. So a tiny process takes memory in the group until the
kernel kills it. It declares itself the first to be killed (``oom_score_adj`` 1000,
:manpage:`proc_pid_oom_score_adj(5)`), and what it took is free again at once.

In a group that holds nothing but stand-ins the bound is lowered for that moment, so that a few MiB are enough: none of
them takes memory. In the group with the machine in it the bound stays, and it is done only when this is certain to hit
nobody else and costs little:

* no process in the group is as ready to be killed as ours (``mm/oom_kill.c``: pages held, plus ``oom_score_adj``
  thousandths of the bound; ours always counts more than the whole bound);
* the bound of the group is what is reached first, not one above it, and the kernel kills one process and not all
  (``memory.oom.group``), and does kill (``oom_kill_disable``) rather than panic;
* there is no swap that would take the machine's pages instead;
* the room that is left is modest, and the host has twice as much.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from casemate.errors import HostError
from casemate.host import commands
from casemate.pod.cgroup import HostGroup

MAX_ROOM = 1 << 30
"""Bytes that are taken at most."""
LOWERED_ROOM = 32 << 20
"""Far more than a stand-in has."""
SLACK = 64 << 20
SECONDS = 10.0
UNBOUNDED = 1 << 60

_PROGRAM = """
import mmap, os, resource, sys
procs, size = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("1000")
with open(procs, "w") as file:
    file.write(str(os.getpid()))
held, touch = [], b"\\1" * (1 << 22)
MAP_LOCKED = 0x2000
while len(held) << 22 < size:
    held.append(mmap.mmap(-1, 1 << 22, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_LOCKED))
    held[-1].write(touch)
"""


def strike(group: HostGroup, *, shared: bool) -> None:
    """Have one process killed in a container's group for want of memory.

    Arguments:
        group: the container's.
        shared: whether the machine is in it.

    Raises:
        HostError: it is not done, and why.
    """
    directory = group.directory("memory")
    if directory is None:
        raise HostError("the host counts no memory")
    if _number(Path("/proc/sys/vm/panic_on_oom")) == 2:
        raise HostError("the host is set to panic when a group is out of memory")
    files = _Files(directory, group.is_new("memory"))
    limit = files.limit
    if files.keyed("memory.oom_control", "oom_kill_disable") or files.text("memory.oom.group") == "1":
        raise HostError("the group is set not to have one process killed")
    if shared:
        _check_shared(files)
        _check_ready(group, limit)
        room = limit - files.usage + files.reclaimable
        _take(files, room + SLACK)
        return
    lowered = (files.usage + LOWERED_ROOM) & ~4095
    _check_ready(group, min(lowered, limit))
    if lowered >= limit:
        _take(files, limit)
        return
    before = files.text(files.limit_name)
    files.put(files.limit_name, str(lowered))
    try:
        _take(files, LOWERED_ROOM + SLACK)
    finally:
        files.put(files.limit_name, before)


class _Files:
    """The files of a group's memory controller.

    Arguments:
        directory: the group's.
        new: whether it is version 2.
    """

    def __init__(self, directory: Path, new: bool) -> None:
        self.directory, self.new = directory, new
        self.limit_name = "memory.max" if new else "memory.limit_in_bytes"
        self.usage_name = "memory.current" if new else "memory.usage_in_bytes"

    def text(self, name: str) -> str:
        """What a file holds, empty when there is none."""
        try:
            return (self.directory / name).read_text().strip()
        except OSError:
            return ""

    def put(self, name: str, text: str) -> None:
        """Write to a file."""
        descriptor = os.open(self.directory / name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def keyed(self, name: str, key: str) -> int:
        """A number of a file with a word and a number on each line; 0 when it is not there."""
        for line in self.text(name).splitlines():
            words = line.split()
            if len(words) == 2 and words[0] == key and words[1].isdigit():
                return int(words[1])
        return 0

    @property
    def limit(self) -> int:
        """The bound in bytes, :data:`UNBOUNDED` when there is none."""
        text = self.text(self.limit_name)
        return min(int(text), UNBOUNDED) if text.isdigit() else UNBOUNDED

    @property
    def usage(self) -> int:
        """Bytes in use."""
        text = self.text(self.usage_name)
        return int(text) if text.isdigit() else 0

    @property
    def reclaimable(self) -> int:
        """Bytes of file contents, which make room before anything is killed."""
        prefix = "" if self.new else "total_"
        return sum(self.keyed("memory.stat", f"{prefix}{kind}_file") for kind in ("active", "inactive"))

    @property
    def kills(self) -> int:
        """How many processes were killed."""
        return self.keyed("memory.events" if self.new else "memory.oom_control", "oom_kill")

    def above(self) -> list[_Files]:
        """The groups above."""
        found = []
        place = self.directory.parent
        while (place / self.usage_name).exists():
            found.append(_Files(place, self.new))
            place = place.parent
        return found


def _check_shared(files: _Files) -> None:
    limit = files.limit
    if limit >= UNBOUNDED:
        raise HostError("the group has no bound of memory")
    room = limit - files.usage + files.reclaimable
    if room > MAX_ROOM:
        raise HostError(f"{room >> 20} MiB are left in the group, too many to take")
    if room + SLACK > _meminfo("MemAvailable") // 2:
        raise HostError("the host is short of memory")
    high = files.text("memory.high")
    if high.isdigit() and int(high) < limit:
        raise HostError("the group slows its processes down before its bound")
    if _meminfo("SwapTotal") and files.text("memory.swap.max") != "0" and not _swap_is_bounded(files, limit):
        raise HostError("the group may swap")
    for above in files.above():
        if above.limit - above.usage <= room + SLACK:
            raise HostError(f"the bound of {above.directory} would be reached first")


def _check_ready(group: HostGroup, limit: int) -> None:
    """Make sure that no process of the group counts as much as ours will."""
    for pid in group.processes():
        score, held = _number(Path(f"/proc/{pid}/oom_score_adj")), _resident(pid)
        if score > 0 and held + score * limit // 1000 > limit * 9 // 10:
            raise HostError(f"process {pid} of the group may be killed instead")


def _swap_is_bounded(files: _Files, limit: int) -> bool:
    both = files.text("memory.memsw.limit_in_bytes")
    return both.isdigit() and int(both) <= limit


def _take(files: _Files, size: int) -> None:
    before = files.kills
    argv = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(files.directory / "cgroup.procs"), str(size)]
    result = commands.run(argv, package="python3", timeout=SECONDS)
    if files.kills <= before:
        raise HostError(f"nothing was killed ({result.reason if result.status else 'all memory was given'})")


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _meminfo(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    return 0
