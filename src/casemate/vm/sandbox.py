"""A sandbox behind the vm wall: one virtual machine with one container in it, its network and its published ports."""

from __future__ import annotations

import base64
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from casemate.config import Config
from casemate.host import cgroups, dns, network
from casemate.host.ports import PortProxy
from casemate.keeper.store import Container
from casemate.sandbox import ProcessExit, ProcessStreams, Sandbox
from casemate.vm import files, share
from casemate.vm.hypervisor import base
from casemate.vm.machine import Machine

MAX_TASKS = 4096
"""Processes and threads of a sandbox on the host: far more than the keeper's clients and the VMM's devices need, and
what somebody who has broken out of the machine can make at most."""


class VmSandbox(Sandbox):
    """One container in one virtual machine.

    Arguments:
        config: the configuration in force.
        container: the container; its lock is held by this process.
        on_exit: called once for every started process that ended, see :class:`casemate.sandbox.Sandbox`.
        progress: told what is being done.
        hypervisor: the driver to use; the configured one when None.
    """

    def __init__(
        self,
        config: Config,
        container: Container,
        on_exit: Callable[[str | None, ProcessExit], None],
        progress: Callable[[str], None],
        hypervisor: base.Hypervisor | None = None,
    ) -> None:
        self.config = config
        self.container = container
        self.spec = container.spec
        self.on_exit = on_exit
        self.memory_mib = self.spec.memory_mib or config.memory
        self._machine = Machine(
            config,
            container.id,
            container.path,
            container.run_path,
            memory_mib=self.memory_mib,
            cpus=self.spec.cpus,
            on_exit=self._process_ended,
            on_oom=lambda id: self.on_oom(),
            progress=progress,
            hypervisor=hypervisor,
            hint="end it with 'casemate rm -f'",
        )
        self._calls = self._machine.calls
        self._net: network.SandboxNet | None = None
        self._proxy: PortProxy | None = None

    # ---- birth

    def boot(self) -> None:
        """Start the machine and wait for its agent. See :class:`casemate.sandbox.Sandbox`.

        Raises:
            CasemateError: what stood in the way; :meth:`close` then gives back what was already there.
        """
        config, machine, run_path = self.config, self._machine, self.container.run_path
        machine.prepare()
        machine.cgroup = cgroups.Cgroup.create(
            self.container.id,
            memory=(machine.memory_mib + config.overhead) << 20,
            cpu_quota=self.spec.cpus,
            pids=MAX_TASKS,
        )
        machine.procs = machine.cgroup.procs_files()
        machine.cgroup.add(os.getpid())
        machine.step("network")
        netns = self._make_network()
        machine.step("files")
        share.build(self.container)
        devices: list[base.Device] = [machine.serve_files(files.TAG, run_path / share.SHARE, files.ROOT_KEEP)]
        if share.volumes(self.spec.oci):
            devices.append(machine.serve_files(files.VOLUMES_TAG, run_path / share.VOLUMES, 0))
        machine.step("turn")
        machine.take_turn()
        machine.step("machine")
        if self._net is not None:
            devices.append(base.Net("net0", self._net.mac, self._net.tap_fd, self._net.mtu))
        machine.boot(netns, devices)
        os.close(netns)  # the VMM holds it now
        if self._proxy is not None and self.address:
            self._proxy.start(self.address)

    def _make_network(self) -> int:
        """Make the sandbox's network namespace and what belongs to it; the namespace's descriptor."""
        if self.spec.network == "none":
            return network.isolated()
        if self.spec.ports:
            self._proxy = PortProxy(self.spec.ports)
            self.ports = self._proxy.ports
        self._net = network.setup(self.container.id, self.config, self.ports)
        self.address = self._net.address
        return self._net.netns_fd

    def start(self, stdin: bool, size: tuple[int, int] | None) -> ProcessStreams:
        """Make the container and start its first process, in one request. See :class:`casemate.sandbox.Sandbox`."""
        spec = self.spec
        net = self._net
        interfaces = []
        if net is not None:
            interfaces.append(
                {"mac": net.mac, "addresses": [f"{net.address}/32"], "gateway": net.gateway, "mtu": net.mtu}
            )
        request = {
            "id": spec.id,
            "spec": share.guest_spec(self.container),
            "user": spec.user,
            "files": self._etc_files(),
            "memory": None,
            "sandbox": {
                "hostname": spec.hostname,
                "interfaces": interfaces,
                "time_ns": time.time_ns(),
                "entropy": base64.b64encode(os.urandom(64)).decode(),
                "shares": self._machine.late,
            },
        }
        key = (spec.id, None)
        streams = self._calls.begin(key, "container.run", request, terminal=bool(spec.tty), stdin=stdin, size=size)
        self._machine.end_turn()
        self._machine.learn()
        return streams

    def _etc_files(self) -> list[dict[str, Any]]:
        spec = self.spec
        hosts = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
        if self.address:
            hosts.append(f"{self.address}\t{spec.hostname}")
        else:
            hosts.append(f"127.0.1.1\t{spec.hostname}")
        content = {"/etc/hosts": "\n".join(hosts) + "\n", "/etc/hostname": spec.hostname + "\n"}
        content["/etc/resolv.conf"] = self._resolver().resolv_conf() if self.address else ""
        return [{"path": path, "mode": 0o644, "content": text} for path, text in content.items()]

    def _resolver(self) -> dns.Dns:
        settings = dns.host_dns()
        return replace(settings, nameservers=self.spec.dns) if self.spec.dns else settings

    # ---- processes

    def exec(
        self, exec_id: str, process: dict[str, Any], user: str, stdin: bool, size: tuple[int, int] | None
    ) -> ProcessStreams:
        """Start another process in the container. See :class:`casemate.sandbox.Sandbox`."""
        request = {"id": self.spec.id, "exec_id": exec_id, "process": process, "user": user}
        return self._calls.begin(
            (self.spec.id, exec_id), "container.exec", request,
            terminal=bool(process.get("terminal")), stdin=stdin, size=size,
        )  # fmt: skip

    def signal(self, exec_id: str | None, signum: int) -> None:
        """Send a signal. See :class:`casemate.sandbox.Sandbox`."""
        self._calls.call("process.signal", {"id": self.spec.id, "exec_id": exec_id, "signal": signum, "all": False})

    def resize(self, exec_id: str | None, rows: int, columns: int) -> None:
        """Tell a terminal its size. See :class:`casemate.sandbox.Sandbox`."""
        self._calls.call("process.resize", {"id": self.spec.id, "exec_id": exec_id, "rows": rows, "cols": columns})

    def pause(self) -> None:
        """Stop the machine's processors. See :class:`casemate.sandbox.Sandbox`."""
        self._machine.vm().pause()

    def resume(self) -> None:
        """Let the machine go on. See :class:`casemate.sandbox.Sandbox`."""
        self._machine.vm().resume()

    def stats(self) -> dict[str, Any]:
        """The guest's figures, and ``host`` with the control group's. See :class:`casemate.sandbox.Sandbox`."""
        result = self._calls.call("container.stats", {"id": self.spec.id})
        result["limit"] = self.memory_mib << 20
        if self._machine.cgroup is not None:
            result["host"] = self._machine.usage()
        return result

    def info(self) -> dict[str, Any]:
        """What was learnt when the guest came up. See :class:`casemate.sandbox.Sandbox`."""
        return {**self._machine.info(), "address": self.address}

    # ---- ends

    def _process_ended(self, id: str, exec_id: str | None, end: ProcessExit) -> None:
        if end.oom and end.status == 128 + signal.SIGKILL and not end.error:
            end = replace(end, error=f"out of memory: the limit is {self.memory_mib} MiB for the whole guest")
        self.on_exit(exec_id, end)

    def refresh(self) -> None:
        """Have the guest look at its files again. See :class:`casemate.sandbox.Sandbox`."""
        self._calls.call("sandbox.refresh", {})

    def flush(self) -> None:
        """Have the guest write everything back. See :class:`casemate.sandbox.Sandbox`."""
        self._machine.flush()

    def close(self) -> None:
        """End the machine and give everything back. See :class:`casemate.sandbox.Sandbox`.

        One who boots meanwhile finds it closed at its next step, and has to close again what it made since.
        """
        if self._proxy is not None:
            self._proxy.close()
        self._machine.close()
        share.unmount(self.container.run_path)
