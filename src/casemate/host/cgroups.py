"""Control groups of the host: one group ``/casemate/NAME`` for a sandbox, in version 1, version 2 and mixed layouts.

The place is fixed, so a crashed sandbox's group is found by its name alone. In a mixed layout (version 1 controllers
and an empty version 2 tree beside them) the version 2 group is made as well: it can kill and freeze at one stroke and
tells when it is empty, which version 1 cannot. A controller that the host does not offer is left out and named in
``Cgroup.missing``; ``casemate check`` tells of it.

Sources: the kernel's Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst; ``cgroups(7)``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from casemate.errors import HostError
from casemate.host.mounts import unescape

PARENT = "casemate"
WANTED = ("memory", "cpu", "pids")
"""Controllers that bound a sandbox. ``cpuacct`` and ``freezer`` of version 1 are used where they are needed."""
CPU_PERIOD_US = 100_000
KILL_SECONDS = 20.0
REMOVE_SECONDS = 5.0
MAX_DEPTH = 16  # of groups below ours, which only a program with power over the host could make


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted tree of control groups."""

    mount: Path
    controllers: frozenset[str]
    unified: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """What a group uses; None where the host does not count it. Memory in bytes, processor time in microseconds."""

    memory: int | None
    memory_peak: int | None
    cpu_us: int | None
    pids: int | None


def hierarchies(mountinfo: str = "/proc/self/mountinfo", *, every: bool = False) -> list[Hierarchy]:
    """The trees that are mounted, version 1 first (``proc_pid_mountinfo(5)``).

    Arguments:
        every: those of version 1 too that bound nothing of ours, and those that have a name and no controller.
    """
    old: list[Hierarchy] = []
    new: list[Hierarchy] = []
    known = {"cpu", "cpuacct", "memory", "pids", "freezer", "cpuset", "devices", "blkio", "io"}
    if every:
        known |= {"perf_event", "net_cls", "net_prio", "hugetlb", "rdma", "misc"}
    with open(mountinfo, "rb") as file:  # names in it need not be text, and who mounts by FUSE need not be root
        for line in file:
            front, dash, back = line.partition(b" - ")
            fields, rest = front.split(b" "), back.decode("utf-8", "replace").split()
            if not dash or len(fields) < 6 or len(rest) < 3 or b"ro" in fields[5].split(b","):
                continue
            if rest[0] not in ("cgroup", "cgroup2"):
                continue
            mount = Path(unescape(fields[4]))
            if rest[0] == "cgroup":
                words = rest[2].split(",")
                controllers = frozenset(word for word in words if word in known or (every and word[:5] == "name="))
                if controllers and not any(controllers & other.controllers for other in old):
                    old.append(Hierarchy(mount, controllers, False))
            elif not new:
                try:
                    controllers = frozenset((mount / "cgroup.controllers").read_text().split())
                except OSError:
                    continue
                new.append(Hierarchy(mount, controllers, True))
    return old + new


@dataclass(slots=True)
class Cgroup:
    """A sandbox's group. Made by :meth:`create` or :func:`find`."""

    name: str
    directories: dict[str, Path] = field(default_factory=dict)
    """Controller to directory; the version 2 directory is also under ``unified``."""
    missing: tuple[str, ...] = ()
    """Of :data:`WANTED`, what this host does not offer."""
    parent: str = PARENT
    """Where the group is, for messages."""

    @classmethod
    def create(
        cls, name: str, *, memory: int | None = None, cpu_quota: float | None = None, pids: int | None = None,
        trees: list[Hierarchy] | None = None,
    ) -> Cgroup:
        """Make the group, or take the one that is there, and set its bounds.

        Arguments:
            name: one path component.
            memory: bytes for everything in the group, swap included; None leaves it unbounded.
            cpu_quota: processors, such as 1.5.
            pids: number of processes and threads.
            trees: the host's hierarchies; looked up when None.

        Raises:
            HostError: not root, or a bound is refused. Bounds of missing controllers are left out.
        """
        group = cls(_checked(name))
        for tree in hierarchies() if trees is None else trees:
            try:
                group._join(tree)
            except OSError as error:
                hint = "run as root" if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else ""
                raise HostError(f"cannot make control group {PARENT}/{name}: {error.strerror}", hint) from None
        group.missing = tuple(one for one in WANTED if one not in group.directories)
        group.limit(memory=memory, cpu_quota=cpu_quota, pids=pids)
        return group

    def _join(self, tree: Hierarchy) -> None:
        useful = tree.controllers & {*WANTED, "cpuacct", "freezer"}
        if not tree.unified and not useful:
            return
        parent = tree.mount / PARENT
        directory = parent / self.name
        _mkdir(parent)
        if tree.unified:
            for place in (tree.mount, parent):
                for controller in sorted(tree.controllers & set(WANTED)):
                    enable(place, controller)
        _mkdir(directory)
        if tree.unified:
            self.directories["unified"] = directory
            useful = frozenset((directory / "cgroup.controllers").read_text().split()) & set(WANTED)
        for controller in useful:
            self.directories[controller] = directory

    def limit(
        self, *, memory: int | None = None, cpu_quota: float | None = None, pids: int | None = None
    ) -> None:
        """Set bounds, as in :meth:`create`; None leaves one as it is.

        Raises:
            HostError: the kernel refuses, such as memory below what is in use and cannot be freed.
        """
        try:
            if memory is not None and "memory" in self.directories:
                self._limit_memory(memory)
            if cpu_quota is not None and "cpu" in self.directories:
                quota = max(1000, int(cpu_quota * CPU_PERIOD_US))  # the kernel's least is a millisecond
                if self._is_new("cpu"):
                    self._write("cpu", "cpu.max", f"{quota} {CPU_PERIOD_US}")
                else:
                    self._write("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US))
                    self._write("cpu", "cpu.cfs_quota_us", str(quota))
            if pids is not None and "pids" in self.directories:
                self._write("pids", "pids.max", str(pids))
        except OSError as error:
            raise HostError(
                f"cannot bound control group {self.parent}/{self.name}: {error.strerror} ({error.filename})",
                "ask for more memory than is in use" if error.errno == errno.EBUSY else "run as root",
            ) from None

    def _limit_memory(self, memory: int) -> None:
        if self._is_new("memory"):
            self._write("memory", "memory.max", str(memory))
            self._write("memory", "memory.swap.max", "0", optional=True)  # absent without swap accounting
            return
        # memsw is memory and swap together and may never be below memory alone: the order depends on the direction.
        both = self.directories["memory"] / "memory.memsw.limit_in_bytes"
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        if both.exists() and int(both.read_text()) < memory:
            names.reverse()
        for name in names:
            self._write("memory", name, str(memory), optional="memsw" in name)

    def weigh(self, *, idle: bool) -> None:
        """Set what share of the processors the group gets where others want them too: the usual one, or little.

        Raises:
            HostError: the kernel refuses.
        """
        if "cpu" not in self.directories:
            return
        name, usual, least = ("cpu.weight", 100, 25) if self._is_new("cpu") else ("cpu.shares", 1024, 256)
        try:
            self._write("cpu", name, str(least if idle else usual))
        except OSError as error:
            raise HostError(f"cannot weigh control group {self.parent}/{self.name}: {error.strerror}") from None

    def procs_files(self) -> tuple[Path, ...]:
        """The files that a process writes ``0`` to so as to join the group, one for each hierarchy."""
        return tuple(directory / "cgroup.procs" for directory in self._distinct())

    def add(self, pid: int) -> None:
        """Move process ``pid`` into the group.

        Raises:
            HostError: there is no such process, or the group is being removed.
        """
        for path in self.procs_files():
            try:
                path.write_text(str(pid))
            except OSError as error:
                raise HostError(f"cannot move process {pid} to {path.parent}: {error.strerror}") from None

    def processes(self) -> set[int]:
        """Ids of the processes in the group and in groups below it, in whichever hierarchy."""
        found: set[int] = set()
        for top in self._distinct():
            for directory in subtree(top):
                try:
                    found.update(int(word) for word in (directory / "cgroup.procs").read_text().split())
                except (OSError, ValueError):
                    continue  # the group went while we looked
        return found - {0}  # 0 stands for a process of a PID namespace that we cannot see

    def usage(self) -> Usage:
        """What the group uses now."""
        if self._is_new("memory"):
            memory, peak = self._number("memory", "memory.current"), self._number("memory", "memory.peak")
        else:
            memory = self._number("memory", "memory.usage_in_bytes")
            peak = self._number("memory", "memory.max_usage_in_bytes")
        nanoseconds = self._number("cpuacct", "cpuacct.usage")
        cpu = self._keyed("unified", "cpu.stat", "usage_usec") if nanoseconds is None else nanoseconds // 1000
        return Usage(memory, peak, cpu, self._number("pids", "pids.current"))

    def oom_kills(self) -> int:
        """How many processes of the group the kernel killed for want of memory."""
        name = "memory.events" if self._is_new("memory") else "memory.oom_control"
        return self._keyed("memory", name, "oom_kill") or 0

    def freeze(self, timeout: float = 5.0) -> None:
        """Stop every process of the group until :meth:`thaw`, and return when all have stopped.

        Raises:
            HostError: the host cannot freeze, or some process would not stop within ``timeout`` seconds.
        """
        self._freeze(True, timeout)

    def thaw(self, timeout: float = 5.0) -> None:
        """Let the processes run again."""
        self._freeze(False, timeout)

    def _freeze(self, frozen: bool, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        if "unified" in self.directories:
            self._write("unified", "cgroup.freeze", "1" if frozen else "0")
            done = self._await_event("frozen", int(frozen), deadline)
        elif "freezer" in self.directories:
            state, done = "FROZEN" if frozen else "THAWED", False
            path = self.directories["freezer"] / "freezer.state"
            while True:
                path.write_text(state)  # again each time: new children may have escaped a half-done freeze
                done = path.read_text().strip() == state
                if done or time.monotonic() > deadline:
                    break
                time.sleep(0.005)  # version 1 sends no event for this
        else:
            raise HostError("this host cannot freeze processes", "mount cgroup2 or the freezer controller")
        if not done:
            verb = "stop" if frozen else "go on"
            raise HostError(f"processes of {self.parent}/{self.name} would not {verb} in {timeout} s")

    def kill(self, timeout: float = KILL_SECONDS) -> None:
        """End every process of the group with SIGKILL and return when all are gone.

        Raises:
            HostError: some process would not die within ``timeout`` seconds (it waits for a device, likely), or the
                caller is one of them.
        """
        deadline = time.monotonic() + timeout
        if os.getpid() in self.processes():
            raise HostError(
                f"process {os.getpid()} is itself in {self.parent}/{self.name}", "give the casemate group to root alone"
            )
        while True:
            if "unified" in self.directories:
                self._write("unified", "cgroup.kill", "1", optional=True)  # since Linux 5.14
            if not self._kill_each(deadline):
                return
            if time.monotonic() > deadline:
                left = sorted(self.processes())
                if not left:
                    return
                raise HostError(
                    f"processes {left[:10]} of {self.parent}/{self.name} do not die", "see dmesg for a stuck device"
                )

    def _kill_each(self, deadline: float) -> bool:
        """Kill what is there and wait for it; False when nothing was there."""
        # A frozen process of version 1 dies only when thawed; and frozen ones cannot fork while we list them.
        frozen = "unified" not in self.directories and "freezer" in self.directories
        handles: list[int] = []
        try:
            if frozen:
                self._write("freezer", "freezer.state", "FROZEN", optional=True)
            pids = self.processes()
            for pid in pids:
                try:
                    handles.append(os.pidfd_open(pid))
                    signal.pidfd_send_signal(handles[-1], signal.SIGKILL)
                except ProcessLookupError:
                    continue
        finally:
            if frozen:
                self._write("freezer", "freezer.state", "THAWED", optional=True)
        try:
            waiting = select.poll()
            for handle in handles:
                waiting.register(handle, select.POLLIN)
            alive = len(handles)
            while alive and (left := deadline - time.monotonic()) > 0:
                for handle, _ in waiting.poll(left * 1000):
                    waiting.unregister(handle)
                    alive -= 1
        finally:
            for handle in handles:
                os.close(handle)
        if pids and not handles:
            time.sleep(0.001)  # all dead already and not yet unlisted: their last step, of which there is no event
        return bool(pids)

    def remove(self, timeout: float = REMOVE_SECONDS) -> None:
        """Remove the group and those below it; nothing when it is gone. Its processes must have ended.

        Raises:
            HostError: processes are left in it.
        """
        deadline = time.monotonic() + timeout
        for top in self._distinct():
            for directory in reversed(subtree(top)):
                self._rmdir(directory, deadline)
        self.directories.clear()

    def _rmdir(self, directory: Path, deadline: float) -> None:
        while True:
            try:
                directory.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise HostError(
                        f"cannot remove control group {directory}: {error.strerror}", "end the processes in it"
                    ) from None
            # The last process has ended and the kernel has not quite let go of it; it sends no event for that.
            time.sleep(0.002)

    def _await_event(self, key: str, value: int, deadline: float) -> bool:
        with open(self.directories["unified"] / "cgroup.events") as file:
            waiting = select.poll()
            waiting.register(file, select.POLLPRI | select.POLLERR)
            while True:
                file.seek(0)
                if f"{key} {value}" in file.read().splitlines():
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                waiting.poll(left * 1000)

    def _distinct(self) -> list[Path]:
        return list(dict.fromkeys(self.directories.values()))

    def _is_new(self, controller: str) -> bool:
        mine = self.directories.get(controller)
        return mine is not None and mine == self.directories.get("unified")

    def _write(self, controller: str, name: str, text: str, *, optional: bool = False) -> None:
        try:
            # Not write_text: O_CREAT is refused on a missing file with EACCES, which would hide that it is missing.
            fd = os.open(self.directories[controller] / name, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if optional:
                return
            raise
        try:
            os.write(fd, text.encode())
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), name) from None
        finally:
            os.close(fd)

    def _number(self, controller: str, name: str) -> int | None:
        try:
            return int((self.directories[controller] / name).read_text())
        except (KeyError, OSError, ValueError):
            return None

    def _keyed(self, controller: str, name: str, key: str) -> int | None:
        try:
            lines = (self.directories[controller] / name).read_text().splitlines()
            return next((int(line.split()[1]) for line in lines if line.split()[0] == key), None)
        except (KeyError, OSError, ValueError, IndexError):
            return None


def find(name: str) -> Cgroup:
    """The group of that name as far as it exists, for cleaning up without any state; possibly nowhere at all."""
    group = Cgroup(_checked(name))
    for tree in hierarchies():
        directory = tree.mount / PARENT / name
        if not directory.is_dir():
            continue
        if tree.unified:
            group.directories["unified"] = directory
            try:
                useful = frozenset((directory / "cgroup.controllers").read_text().split())
            except OSError:
                useful = frozenset()
        else:
            useful = tree.controllers
        for controller in useful:
            group.directories[controller] = directory
    group.missing = tuple(one for one in WANTED if one not in group.directories)
    return group


def move_nobody() -> None:
    """Move this process to the group that it is in: what the first move of a process waits for is over then.

    The kernel lets nobody fork while a process is moved, and until all processors have taken notice of that as long as
    ten milliseconds go by. For some ten milliseconds more, other moves need not wait.
    """
    with contextlib.suppress(OSError, ValueError), open("/proc/self/cgroup") as file:
        groups = {controllers: path.rstrip("\n") for _, controllers, path in (row.split(":", 2) for row in file)}
        for tree in hierarchies():
            path = groups.get("" if tree.unified else ",".join(sorted(tree.controllers)))
            if path is not None:
                Path(f"{tree.mount}{path}/cgroup.procs").write_text("0")
                return


def destroy(name: str) -> None:
    """Kill everything in the group and remove it; nothing when there is none. Raises as ``kill`` and ``remove``."""
    group = find(name)
    group.kill()
    group.remove()


def _checked(name: str) -> str:
    if not name or name.startswith(".") or "/" in name or len(name) > 128:
        raise HostError(f"bad name for a control group: {name[:80]!r}")
    return name


def _mkdir(path: Path) -> None:
    try:
        path.mkdir(mode=0o755)
    except FileExistsError:
        return


def enable(directory: Path, controller: str) -> None:
    """Let children of ``directory`` have ``controller``; where the kernel refuses, it stays missing."""
    path = directory / "cgroup.subtree_control"
    try:
        if controller not in path.read_text().split():
            path.write_text(f"+{controller}")
    except OSError as error:
        # ENOENT: not offered here; EBUSY: the directory holds processes, as in a container without a root of its own;
        # EOPNOTSUPP: a threaded tree. None of them stops a sandbox: Cgroup.missing tells.
        if error.errno not in (errno.ENOENT, errno.EBUSY, errno.EOPNOTSUPP, errno.EINVAL):
            raise


def subtree(top: Path) -> list[Path]:
    """The group ``top`` and the groups below it, parents first."""
    found = [(top, 0)]
    for directory, depth in found:  # grows while it is walked
        if depth < MAX_DEPTH:
            try:
                with os.scandir(directory) as entries:
                    found += [(Path(entry.path), depth + 1) for entry in entries if entry.is_dir(follow_symlinks=False)]
            except FileNotFoundError:
                continue
    return [directory for directory, _ in found]
