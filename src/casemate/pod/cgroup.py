"""The control group that an engine names for a container, on the host.

The container's stand-ins are in it, and for the first container of a sandbox the machine too: keeper, VMM and file
servers. So what the engine reads and bounds there is real. Bounds on the container itself are set in the guest; those
here hold what the machine takes beside.

A bundle may name any group. One that holds processes or groups already is refused: bounds on it would hold others,
and nothing in it would be ours to kill. An empty one is taken as our own.

Layouts: version 1 (all mounted controllers), version 2, and both beside each other. Sources: the kernel's
Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst; runtime-spec config-linux.md, "Control groups"; ``cgroups(7)``.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from casemate.errors import CasemateError, HostError, UsageError
from casemate.host import cgroups
from casemate.host.cgroups import Hierarchy
from casemate.pod.bounds import number, section, writes

DEFAULT_PARENT = "/casemate"
GUEST_OVERHEAD_MIB = 112
"""What a guest's kernel and agent take, beside what its containers may use; 8 of it are bounce buffers for the files of
a machine from a template."""
_BOOKS = 32
"""What part of a guest's memory its kernel needs for the rest: 64 bytes for each page of 4096, and about as much again
that it keeps free."""
MACHINE_TASKS = 4096
"""Processes and threads of a group with a machine in it: keeper, VMM, file servers, stand-ins. Those of the containers
are counted in the guest."""
MAX_PATH = 2048
MAX_DEPTH = 64


def machine_mib(containers_mib: int) -> int:
    """How much memory a machine needs whose containers may use so much, in MiB."""
    return containers_mib + -(-containers_mib // _BOOKS) + GUEST_OVERHEAD_MIB


def containers_mib(machine_mib: int) -> int:
    """How much the containers of a machine with so much memory can use, in MiB."""
    return max(0, (machine_mib - GUEST_OVERHEAD_MIB) * _BOOKS // (_BOOKS + 1))


def overhead_mib(resources: dict[str, Any]) -> int:
    """What the machine of a container with such bounds needs beside them, in MiB."""
    limit = number(section(resources, "memory"), "limit") or 0
    asked = -(-max(limit, 0) >> 20)
    return machine_mib(asked) - asked


class HostGroup:
    """A container's group on the host, made by :func:`make` or found again by :func:`restore`.

    Arguments:
        directories: tree to directory, one for each mounted hierarchy.
        unit: the systemd unit that holds it, if systemd made it.
    """

    def __init__(self, directories: Sequence[tuple[Hierarchy, Path]], unit: str = "") -> None:
        self.unit = unit
        self._directories = list(directories)
        first = self._directories[0][1] if self._directories else Path("/nowhere")
        self._group = cgroups.Cgroup(first.name, parent=str(first.parent))
        for tree, directory in self._directories:
            for controller in _controllers(tree, directory):
                self._group.directories[controller] = directory

    @property
    def paths(self) -> tuple[str, ...]:
        """The directories, for the container's record."""
        return tuple(str(directory) for _, directory in self._directories)

    def procs_files(self) -> tuple[Path, ...]:
        """The files that a process writes ``0`` to so as to join the group, one for each hierarchy."""
        return tuple(directory / "cgroup.procs" for _, directory in self._directories)

    def directory(self, controller: str) -> Path | None:
        """Where the files of ``controller`` (or ``unified``) are."""
        return self._group.directories.get(controller)

    def is_new(self, controller: str) -> bool:
        """Whether ``controller`` is one of version 2 here."""
        mine = self.directory(controller)
        return mine is not None and mine == self.directory("unified")

    def add(self, pid: int) -> None:
        """Move process ``pid`` into the group.

        Raises:
            HostError: there is no such process, or a hierarchy refuses it.
        """
        self._group.add(pid)

    def processes(self) -> set[int]:
        """Ids of the processes in the group."""
        return self._group.processes()

    def move_to(self, other: HostGroup, pids: Iterable[int]) -> None:
        """Move processes of this group to another one; those that have gone are left out."""
        for pid in sorted(set(pids) & self.processes()):
            with contextlib.suppress(HostError):
                other.add(pid)

    def bound(self, resources: dict[str, Any], overhead_mib: int | None = None) -> None:
        """Set the bounds of a container on its group.

        Arguments:
            resources: OCI ``linux.resources``; what is not in it stays as it is.
            overhead_mib: what the machine takes beside the container's memory; None for a group without a machine.

        Raises:
            HostError: the kernel refuses one. Those of controllers that this host does not have are left out.
        """
        tasks = None if overhead_mib is None else MACHINE_TASKS
        self._write_bounds(resources, (overhead_mib or 0) << 20, tasks)
        if self.unit:
            from casemate.pod import systemd

            systemd.set_properties(self.unit, systemd.properties(resources, (overhead_mib or 0) << 20, tasks))

    def _write_bounds(self, resources: dict[str, Any], overhead: int, tasks: int | None) -> None:
        available = set(self._group.directories)
        new = {controller for controller in available if self.is_new(controller)}
        for one in writes(resources, available, new, overhead, tasks):
            directory = self._group.directories[one.controller]
            for text in one.texts:
                self._write(directory / one.name, text, one.optional)

    def _write(self, path: Path, text: str, optional: bool) -> None:
        if path.name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
            _raise_swap_first(path, text)
        try:
            _put(path, text)
        except FileNotFoundError:
            if not optional:
                raise HostError(f"this host cannot set {path.name}", "leave that bound out") from None
        except OSError as error:
            hint = "more memory than that is in use" if error.errno == errno.EBUSY else "ask for less, or run as root"
            raise HostError(f"cannot set {path} to {text}: {error.strerror}", hint) from None

    def kill(self) -> None:
        """End every process in the group and wait until all are gone.

        Raises:
            HostError: some do not die, or the caller is one of them.
        """
        if self._directories:
            self._group.kill()

    def remove(self) -> None:
        """Remove the group, whose processes have ended; nothing when it is gone.

        Raises:
            HostError: processes are left in it.
        """
        if self._directories:
            self._group.remove()
        if self.unit:
            from casemate.pod import systemd

            systemd.stop(self.unit)


def _controllers(tree: Hierarchy, directory: Path) -> set[str]:
    if not tree.unified:
        return set(tree.controllers)
    try:
        return {"unified", *(directory / "cgroup.controllers").read_text().split()}
    except OSError:
        return {"unified"}


def make(
    path: str | None,
    id: str,
    *,
    systemd: bool = False,
    resources: dict[str, Any] | None = None,
    overhead_mib: int | None = None,
    pid: int = 0,
    trees: list[Hierarchy] | None = None,
) -> HostGroup:
    """Make a container's group, set its bounds, and move a process into it.

    Arguments:
        path: ``linux.cgroupsPath``: absolute, relative to the caller's own group, or ``slice:prefix:name`` for
            systemd; None for ``/casemate/ID``.
        systemd: let systemd make it.
        resources: OCI ``linux.resources``.
        overhead_mib: what the machine takes beside the container's memory when it is to be in this group; None when
            only stand-ins are.
        pid: the container's stand-in; systemd needs it, as it makes no empty scope.
        trees: the host's hierarchies; looked up when None.

    Raises:
        UsageError: the path is none, or is the whole host.
        HostError: not root, the group is in use, or a bound is refused. Nothing is left of it then.
    """
    trees = cgroups.hierarchies(every=True) if trees is None else trees
    unit = ""
    made: list[tuple[Hierarchy, Path]] = []
    overhead, tasks = (overhead_mib or 0) << 20, None if overhead_mib is None else MACHINE_TASKS
    try:
        if systemd:
            from casemate.pod import systemd as manager

            wanted = manager.Unit.parse(path, id)
            manager.start(wanted, id, pid, manager.properties(resources or {}, overhead, tasks))
            unit = wanted.name
            places = [(tree, tree.mount / wanted.path[1:]) for tree in trees]
        else:
            places = locate(path, id, trees)
            for _, directory in places:  # before anything is made of one that belongs to others somewhere else
                if directory.exists():
                    _must_be_empty(directory)
        for tree, directory in places:
            _make(tree, directory, ours=bool(unit))
            made.append((tree, directory))
        group = HostGroup(made, unit)
        # Systemd knows the bounds already. To tell it again would have it remove the groups of hierarchies that it
        # does not use, as long as they are empty.
        group._write_bounds(resources or {}, overhead, tasks)
        if pid:
            group.add(pid)
        return group
    except BaseException as error:
        with contextlib.suppress(CasemateError):
            HostGroup(made, unit).remove()
        if isinstance(error, OSError):
            hint = "run as root" if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else ""
            raise HostError(f"cannot make control group {path or id}: {error.strerror}", hint) from None
        raise


def locate(path: str | None, id: str, trees: Sequence[Hierarchy]) -> list[tuple[Hierarchy, Path]]:
    """The directories of a group that the file system names, one for each tree, whether or not they are there.

    A relative path begins at the caller's own group, in version 2 at the group above that, which may have others
    below it.

    Raises:
        UsageError: it is the root, too long, or no path.
    """
    text = path or f"{DEFAULT_PARENT}/{id}"
    if "\0" in text or len(text) > MAX_PATH:
        raise UsageError("linux.cgroupsPath is no path, or too long", f"the limit is {MAX_PATH} characters")
    clean = os.path.normpath("/" + text).lstrip("/")
    if not clean:
        raise UsageError(f"linux.cgroupsPath {path!r} is the whole host's", "name a group for this container alone")
    if clean.count("/") > MAX_DEPTH:
        raise UsageError("linux.cgroupsPath is too deep", f"the limit is {MAX_DEPTH} groups")
    places: list[tuple[Hierarchy, Path]] = []
    for tree in trees:
        base = tree.mount if text.startswith("/") else _own(tree)
        places.append((tree, base / clean))
    return places


def _own(tree: Hierarchy) -> Path:
    """The directory of this process's own group in a tree; of the one above it in version 2."""
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if (not controllers) if tree.unified else tree.controllers & set(controllers.split(",")):
                place = tree.mount / path.lstrip("/")
                if tree.unified and place != tree.mount:
                    place = place.parent
                return place if place.is_dir() else tree.mount
    return tree.mount


def _make(tree: Hierarchy, directory: Path, ours: bool) -> None:
    """Make a group with those above it.

    Arguments:
        ours: systemd has made it for us, so that what is in it is ours.

    Raises:
        HostError: it is in use.
        OSError: it cannot be made.
    """
    chain = [directory, *directory.parents]
    chain = chain[: chain.index(tree.mount)][::-1]
    above = tree.mount
    for place in chain:
        if tree.unified:
            for controller in sorted(tree.controllers):
                cgroups.enable(above, controller)
        try:
            place.mkdir(mode=0o755)
        except FileExistsError:
            if place == directory and not ours:
                _must_be_empty(directory)
        if "cpuset" in tree.controllers and not tree.unified:
            for name in ("cpuset.cpus", "cpuset.mems"):  # empty at first, and then nobody may join
                if (place / name).exists() and not (place / name).read_text().strip():
                    _put(place / name, (above / name).read_text().strip())
        above = place


def _must_be_empty(directory: Path) -> None:
    below = cgroups.subtree(directory)[1:]
    if below or (directory / "cgroup.procs").read_text().split():
        raise HostError(
            f"control group {directory} is in use by others", "name one in linux.cgroupsPath that is for this container"
        )


def restore(paths: Sequence[str], unit: str = "", trees: list[Hierarchy] | None = None) -> HostGroup:
    """The group of a record's ``cgroups`` and ``unit``, as far as it still exists."""
    trees = cgroups.hierarchies(every=True) if trees is None else trees
    found: list[tuple[Hierarchy, Path]] = []
    for text in paths:
        directory = Path(text)
        above = [tree for tree in trees if tree.mount in directory.parents]
        if above and ".." not in directory.parts and directory.is_dir():
            found.append((max(above, key=lambda tree: len(tree.mount.parts)), directory))
    return HostGroup(found, unit)


def sweep(path: str | None, id: str, trees: list[Hierarchy] | None = None) -> None:
    """Remove what :func:`make` made of a group before it was written down: empty directories, and nothing else. A group
    that is in use in any hierarchy is one that :func:`make` has refused, and not ours in the others either."""
    try:
        places = locate(path, id, cgroups.hierarchies(every=True) if trees is None else trees)
        for _, directory in places:
            if directory.exists():
                _must_be_empty(directory)
    except (CasemateError, OSError):
        return
    for _, directory in places:
        with contextlib.suppress(OSError):
            directory.rmdir()


def machine_resources(members: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The processor bounds for a group whose machine serves several containers: the sum of theirs.

    Arguments:
        members: OCI ``linux.resources`` of each.
    """
    shares, quota, period = 0, 0.0, 100_000
    cpus: set[str] | None = set()
    for resources in members:
        cpu = resources.get("cpu") or {}
        shares += cpu.get("shares") or 1024
        asked = cpu.get("quota") or 0
        quota = quota + asked / (cpu.get("period") or period) if asked > 0 and quota >= 0 else -1
        cpus = None if cpus is None or not cpu.get("cpus") else cpus | {cpu["cpus"]}
    result: dict[str, Any] = {"shares": min(shares, 262_144), "period": period}
    result["quota"] = int(quota * period) if quota > 0 else -1
    if cpus:
        result["cpus"] = ",".join(sorted(cpus))
    return {"cpu": result}


def _raise_swap_first(path: Path, text: str) -> None:
    """Make room in the bound of memory and swap together, which may never be below that of memory alone."""
    if path.name == "memory.limit_in_bytes":
        both = path.with_name("memory.memsw.limit_in_bytes")
        with contextlib.suppress(OSError, ValueError):
            if int(text) < 0 or int(both.read_text()) < int(text):
                _put(both, text)


def _put(path: Path, text: str) -> None:
    # Not write_text: O_CREAT is refused on a missing file with EACCES, which would hide that it is missing.
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
