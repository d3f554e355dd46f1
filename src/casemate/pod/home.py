"""Where a sandbox's machine is among the control groups of its containers, and what that group is bounded to."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from casemate.errors import CasemateError, HostError, Unsupported
from casemate.pod import cgroup
from casemate.pod.container import Container


class Home:
    """The group that holds keeper, VMM and file servers: that of the first container, and when that one is deleted
    while others live, that of another.

    Arguments:
        memory_mib: the machine's memory.
        overhead_mib: what VMM, file servers and keeper take beside it.
    """

    def __init__(self, memory_mib: int, overhead_mib: int) -> None:
        self.memory_mib, self.overhead_mib = memory_mib, overhead_mib
        self._lock = threading.Lock()
        self._owner: Container | None = None
        self._shared = False

    @staticmethod
    def group(container: Container) -> cgroup.HostGroup:
        """The group of a container."""
        return cgroup.restore(container.record.cgroups, container.record.unit)

    def settle(self, container: Container) -> tuple[Path, ...]:
        """Move this process into the group of the sandbox's first container.

        Returns:
            the files by which the machine joins it.

        Raises:
            HostError: a hierarchy refuses.
        """
        group = self.group(container)
        if group.paths:
            group.add(os.getpid())
        with self._lock:
            self._owner = container
        return group.procs_files()

    def holds(self, container: Container) -> bool:
        """Whether the machine is in this container's group."""
        with self._lock:
            return self._owner is container

    def leave(self, container: Container, others: Sequence[Container]) -> None:
        """Move the machine out of the group of a container that is to be deleted, if it is there.

        Arguments:
            others: containers that live, the oldest first.

        Raises:
            HostError: it cannot be moved, and would be killed with the group.
        """
        with self._lock:
            if self._owner is not container:
                return
            group = self.group(container)
            for other in others:
                target = self.group(other)
                if not target.paths:
                    continue
                with contextlib.suppress(CasemateError):  # which must not keep the machine where it cannot stay
                    target.bound(self._machine([other.resources]), self.overhead_mib)
                group.move_to(target, group.processes() - {container.record.pid})
                self._owner = other
                break
            if os.getpid() in group.processes():
                raise HostError("the machine cannot leave this container's control group", "delete the others first")

    def bound(self, containers: Sequence[Container]) -> None:
        """Bring the bounds of the machine's group up to date with the containers that it serves."""
        with self._lock:
            owner = self._owner
            self._shared = self._shared or len(containers) > 1
            if owner is None or not containers or not self._shared:
                return
            group = self.group(owner)
            stay = {os.getpid(), *(one.record.pid for one in containers)}
            _set_oom_score(group.processes() - stay, oom_score(containers))
            group.bound(cgroup.machine_resources(one.resources for one in containers), None)

    def check(self, container: Container, resources: dict[str, Any]) -> None:
        """Refuse a change to more memory than the machine has for containers. What a container was made with, or has
        had before, is no change: engines send everything along with what they want changed.

        Raises:
            Unsupported: it is more.
        """
        limit = (resources.get("memory") or {}).get("limit") or 0
        most = cgroup.containers_mib(self.memory_mib)
        if limit > max(most << 20, (container.resources.get("memory") or {}).get("limit") or 0):
            raise Unsupported(
                f"a memory limit of {limit} bytes cannot be given: the container's machine has {most} MiB for "
                "containers, and no room for more", "make the container anew with it, or ask for -1 (all there is)",
            )

    def grown(self, memory_mib: int, containers: Sequence[Container]) -> None:
        """The machine has, or is about to have, so much memory.

        Raises:
            HostError: the kernel refuses the new bound.
        """
        with self._lock:
            self.memory_mib, owner = memory_mib, self._owner
        if owner is not None and (memory := owner.resources.get("memory")):
            members = [one.resources for one in containers] or [owner.resources]
            self.group(owner).bound(self._machine(members, {"memory": memory}), self.overhead_mib)

    def update(self, container: Container, resources: dict[str, Any], containers: Sequence[Container]) -> None:
        """Change the bounds of a container's group.

        The machine's memory stays what it is when the container's bound changes in the guest; so the bound of the
        group that holds the machine never goes below what the machine may use, or the kernel would end it.

        Raises:
            HostError: the kernel refuses one.
        """
        merged = dict(container.resources)
        for key, value in resources.items():
            merged[key] = {**(merged.get(key) or {}), **value} if isinstance(value, dict) else value
        container.resources = merged
        group = self.group(container)
        if not group.paths:
            return
        if self.holds(container):
            group.bound(self._machine([one.resources for one in containers], resources), self.overhead_mib)
        else:
            group.bound(resources)

    def _machine(self, members: Sequence[dict[str, Any]], change: dict[str, Any] | None = None) -> dict[str, Any]:
        """What to bound the machine's group to.

        Arguments:
            members: the resources of the containers that it serves.
            change: what is to change; None for all.
        """
        asked = members[0] if change is None else change
        result = {key: value for key, value in asked.items() if key != "memory"}
        memory = {key: value for key, value in (asked.get("memory") or {}).items() if key == "swappiness"}
        limit, swap = (asked.get("memory") or {}).get("limit"), (asked.get("memory") or {}).get("swap")
        machine = self.memory_mib << 20  # the overhead is added where it is written
        if limit:
            memory["limit"] = machine if limit > 0 else -1
        if swap:
            memory["swap"] = machine + max(0, swap - max(0, limit or 0)) if swap > 0 else -1
        result["memory"] = memory
        if len(members) > 1:
            result = {**result, **cgroup.machine_resources(members)}
        return result


def oom_score(containers: Sequence[Container]) -> int:
    """How ready the host's kernel is to be to end the machine when it is out of memory (proc(5), ``oom_score_adj``): as
    the most precious of its containers has it. A pod's own container, which does nothing, does not count."""
    return min((one.oom_score for one in containers if not one.is_pod), default=0)


def _set_oom_score(pids: set[int], value: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(str(value))
