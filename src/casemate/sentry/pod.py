"""A sandbox for several containers of an engine behind the sentry wall: one application kernel, one gofer.

The engine's network namespace is the sandbox's: sockets of its applications are the sentry's own there, with whatever
interfaces, addresses and packet filters the engine has made, so nothing has to be carried over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from casemate.config import Config
from casemate.errors import Unsupported
from casemate.host import namespaces, network, uids
from casemate.sandbox import Disk, Interface, Nic, ProcessExit, ProcessStreams
from casemate.sentry import settings
from casemate.sentry.machine import Machine
from casemate.wall import trees
from casemate.wall.asking import POD_ERRORS, AskingPod


class SentryPod(AskingPod):
    """Several containers in one sentry.

    Arguments:
        config: the configuration in force.
        pod_dir: where logs are kept.
        run_path: the run directory.
        pod_id: see :mod:`casemate.ids`.
        memory_mib: what its containers may use.
        cgroup_procs: the ``cgroup.procs`` files that sentry and gofer join.
        progress: told what is being done.
        oom_score_adj: of its processes.

    The process must be in a mount namespace of its own (:func:`casemate.host.namespaces.unshare_mounts`).
    """

    carried = False

    def __init__(
        self,
        config: Config,
        pod_dir: Path,
        run_path: Path,
        pod_id: str,
        memory_mib: int,
        cgroup_procs: tuple[Path, ...],
        progress: Callable[[str], None] = lambda what: None,
        oom_score_adj: int = 0,
    ) -> None:
        from casemate.vm.pod import _group

        super().__init__()
        self.config = config
        self.on_exit: Callable[[str, str | None, ProcessExit], None] = lambda id, exec_id, end: None
        self._id = pod_id
        self._run_path = run_path
        self._memory_mib = memory_mib
        self._machine = Machine(
            config, pod_id, pod_dir, run_path,
            on_exit=lambda id, exec_id, end: self.on_exit(id, exec_id, end), on_oom=self._out_of_memory,
            on_end=lambda end: self.on_end(end), progress=progress, errors=POD_ERRORS, oom_score_adj=oom_score_adj,
        )  # fmt: skip
        self._machine.procs = cgroup_procs
        self._machine.cgroup = _group(cgroup_procs)
        self._calls = self._machine.calls
        self._hostname = ""
        self._learnt = False
        self._netns = -1

    def boot(self, netns: int, nics: Sequence[Nic], disks: Sequence[Disk], hostname: str) -> None:
        """Start gofer and sentry. See :class:`casemate.sandbox.PodSandbox`.

        Raises:
            CasemateError: what stood in the way; :meth:`close` then gives back what was already there.
        """
        for fd in (*(nic.tap_fd for nic in nics), *(disk.fd for disk in disks)):
            os.close(fd)
        if disks:
            raise Unsupported("block devices cannot be given to a container behind the sentry", "use the vm wall")
        self._hostname = hostname
        self._netns = os.dup(netns)
        trees.make(self._run_path)
        namespaces.in_netns(netns, network.open_to_all)
        self._machine.step("sentry")
        self._machine.boot(netns, True)

    # ---- containers

    def create(
        self, id: str, spec: dict[str, Any], files: list[dict[str, Any]], stdin: bool, size: tuple[int, int] | None,
        kept: Sequence[str] = (),
    ) -> ProcessStreams:
        """Make a container. See :class:`casemate.sandbox.PodSandbox`."""
        request = {
            "id": id, "spec": spec, "user": "", "files": files, "memory": None, "sandbox": {"hostname": self._hostname}
        }  # fmt: skip
        settings.apply(self._netns, (spec.get("linux") or {}).get("sysctl") or {})
        streams = self._create(id, request, stdin, size, kept)
        with self._lock:
            first, self._learnt = not self._learnt, True
        if first:
            self._machine.learn()
        return streams

    def stats(self, id: str) -> dict[str, Any]:
        """The sentry's figures, ``limit`` in bytes, and ``host`` with the control group's.

        See :class:`casemate.sandbox.PodSandbox`.
        """
        result = self._calls.call("container.stats", {"id": id})
        return {**result, "limit": self._memory_mib << 20, "host": self._machine.usage()}

    def debug(self, id: str, what: str, pid: int | None) -> dict[str, Any]:
        """Ask the sentry's kernel. See :class:`casemate.sandbox.PodSandbox`."""
        return self._calls.call("sandbox.debug", {"what": what, "pid": pid, "id": id})

    # ---- devices and networks

    def grow(self, memory_mib: int, *, partly: bool) -> int:
        """Its memory is what the control groups allow. See :class:`casemate.sandbox.PodSandbox`."""
        self._memory_mib = max(self._memory_mib, memory_mib)
        return self._memory_mib

    def plug(self, nic: Nic) -> None:
        """Nothing to do: interfaces of the namespace are the sandbox's as they are."""
        os.close(nic.tap_fd)

    def unplug(self, mac: str) -> None:
        """Nothing to do, likewise."""

    def configure(self, interfaces: Sequence[Interface]) -> None:
        """Nothing to do, likewise."""

    def plug_disk(self, disk: Disk) -> None:
        """Refused. Raises Unsupported."""
        os.close(disk.fd)
        raise Unsupported("block devices cannot be given to a container behind the sentry", "use the vm wall")

    def connect(self, port: int) -> ProcessStreams:
        """Refused: whoever wants to connect can do so in the network namespace. Raises Unsupported."""
        raise Unsupported("the sentry's ports are those of its network namespace", "connect there")

    def serve_dns(self, addresses: Sequence[str]) -> ProcessStreams:
        """Refused, likewise. Raises Unsupported."""
        raise Unsupported("the sentry's names come from its network namespace", "answer there")

    # ---- the whole

    def info(self) -> dict[str, Any]:
        """What was learnt of the sentry. See :class:`casemate.sandbox.PodSandbox`."""
        return {**self._machine.info(), "memory_mib": self._memory_mib}

    def flush(self) -> None:
        """End what runs. See :class:`casemate.sandbox.PodSandbox`."""
        self._machine.flush()

    def close(self) -> None:
        """End the sentry and give everything back. See :class:`casemate.sandbox.PodSandbox`."""
        over = self._machine.close()
        with self._lock:
            netns, self._netns = self._netns, -1
        if netns >= 0:
            os.close(netns)
        trees.remove(self._run_path)
        if over:
            uids.release(self._id, self.config)
