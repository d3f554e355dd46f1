"""A sandbox behind the sentry wall: one container of ``casemate run``, served by an application kernel."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from casemate.config import Config
from casemate.host import cgroups, dns, network
from casemate.host.ports import PortProxy
from casemate.keeper.store import Container
from casemate.sandbox import ProcessExit, ProcessStreams
from casemate.sentry.machine import Machine
from casemate.wall import share
from casemate.wall.asking import AskingSandbox

OVERHEAD_MIB = 160
"""What the control group gets beside the applications' memory: keeper, sentry and gofer."""
MAX_TASKS = 8192
"""Processes and threads on the host, those of the applications among them."""


class SentrySandbox(AskingSandbox):
    """One container in one sentry.

    Arguments:
        config: the configuration in force.
        container: the container; its lock is held by this process.
        on_exit: called once for every started process that ended, see :class:`casemate.sandbox.Sandbox`.
        progress: told what is being done.
    """

    def __init__(
        self,
        config: Config,
        container: Container,
        on_exit: Callable[[str | None, ProcessExit], None],
        progress: Callable[[str], None],
    ) -> None:
        self.config = config
        self.container = container
        self._id = container.id
        self.spec = container.spec
        self.on_exit = on_exit
        self.memory_mib = self.spec.memory_mib or config.memory
        self._machine = Machine(
            config, container.id, container.path, container.run_path,
            on_exit=self._process_ended, on_oom=lambda id: self.on_oom(), progress=progress,
        )  # fmt: skip
        self._calls = self._machine.calls
        self._proxy: PortProxy | None = None

    def boot(self) -> None:
        """Start the sentry and wait until it serves. See :class:`casemate.sandbox.Sandbox`.

        Raises:
            CasemateError: what stood in the way; :meth:`close` then gives back what was already there.
        """
        machine, run_path = self._machine, self.container.run_path
        machine.step("files")
        machine.cgroup = cgroups.Cgroup.create(
            self.container.id, memory=(self.memory_mib + OVERHEAD_MIB) << 20, cpu_quota=self.spec.cpus, pids=MAX_TASKS
        )
        machine.procs = machine.cgroup.procs_files()
        machine.cgroup.add(os.getpid())
        share.build(self.container)
        (run_path / share.VOLUMES).mkdir(exist_ok=True)
        machine.step("sentry")
        netns = self._make_network()
        try:
            machine.boot(netns, self.spec.network != "none")
        finally:
            os.close(netns)
        if self._proxy is not None and self.address:
            self._proxy.start(self.address)

    def _make_network(self) -> int:
        """Make what the sandbox's sockets are in; the namespace's descriptor."""
        if self.spec.network == "none":
            return network.isolated()
        if self.spec.network == "host":
            return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if self.spec.ports:
            self._proxy = PortProxy(self.spec.ports)
            self.ports = self._proxy.ports
        net = network.setup(self.container.id, self.config, self.ports, carried=False)
        self.address = net.address
        return net.netns_fd

    def start(self, stdin: bool, size: tuple[int, int] | None) -> ProcessStreams:
        """Make the container and start its first process, in one request. See :class:`casemate.sandbox.Sandbox`."""
        spec = self.spec
        request = {
            "id": spec.id, "spec": share.guest_spec(self.container), "user": spec.user, "files": self._etc_files(),
            "memory": None, "sandbox": {"hostname": spec.hostname, "memory": self.memory_mib << 20},
        }  # fmt: skip
        streams = self._calls.begin(
            (spec.id, None), "container.run", request, terminal=bool(spec.tty), stdin=stdin, size=size
        )
        self._machine.learn()
        return streams

    def _etc_files(self) -> list[dict[str, Any]]:
        name = self.spec.hostname
        own = self.address or "127.0.1.1"
        hosts = f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{name}\n"
        content = {"/etc/hosts": hosts, "/etc/hostname": name + "\n", "/etc/resolv.conf": ""}
        if self.spec.network != "none":
            settings = dns.host_dns()
            settings = replace(settings, nameservers=self.spec.dns) if self.spec.dns else settings
            content["/etc/resolv.conf"] = settings.resolv_conf()
        return [{"path": path, "mode": 0o644, "content": text} for path, text in content.items()]

    def pause(self) -> None:
        """Have no task of the container run. See :class:`casemate.sandbox.Sandbox`."""
        self._calls.call("container.pause", {"id": self.spec.id})

    def resume(self) -> None:
        """Let them run again. See :class:`casemate.sandbox.Sandbox`."""
        self._calls.call("container.resume", {"id": self.spec.id})

    def stats(self) -> dict[str, Any]:
        """The sentry's figures, and ``host`` with the control group's. See :class:`casemate.sandbox.Sandbox`."""
        result = self._calls.call("container.stats", {"id": self.spec.id})
        result["limit"] = self.memory_mib << 20
        result["host"] = self._machine.usage()
        return result

    def debug(self, what: str, pid: int | None) -> dict[str, Any]:
        """Ask the sentry's kernel. See :class:`casemate.sandbox.Sandbox`."""
        return self._calls.call("sandbox.debug", {"what": what, "pid": pid, "id": self.spec.id})

    def info(self) -> dict[str, Any]:
        """What was learnt of the sentry. See :class:`casemate.sandbox.Sandbox`."""
        return {**self._machine.info(), "memory_mib": self.memory_mib, "address": self.address}

    def _process_ended(self, id: str, exec_id: str | None, end: ProcessExit) -> None:
        if end.oom and end.status == 128 + signal.SIGKILL and not end.error:
            end = replace(end, error=f"out of memory: the limit is {self.memory_mib} MiB")
        self.on_exit(exec_id, end)

    def flush(self) -> None:
        """End what runs. See :class:`casemate.sandbox.Sandbox`."""
        self._machine.flush()

    def close(self) -> None:
        """End the sentry and give everything back. See :class:`casemate.sandbox.Sandbox`."""
        if self._proxy is not None:
            self._proxy.close()
        self._machine.close()
        share.unmount(self.container.run_path)
