"""A sandbox behind the vm wall: one virtual machine with one container in it, its network and its published ports."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from casemate.config import Config
from casemate.errors import HostError
from casemate.host import cgroups, dns, mounts, network
from casemate.host.ports import PortProxy
from casemate.keeper.store import Container
from casemate.sandbox import ProcessExit, ProcessStreams
from casemate.vm import files, looked
from casemate.vm.hypervisor import base
from casemate.vm.machine import MAX_TASKS, Machine
from casemate.wall import share
from casemate.wall.asking import AskingSandbox


class VmSandbox(AskingSandbox):
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
        self._id = container.id
        self.spec = container.spec
        self.on_exit = on_exit
        self.memory_mib = self.spec.memory_mib or config.memory
        self._machine = self._get_machine(progress, hypervisor)
        self._calls = self._machine.calls
        self._net: network.SandboxNet | None = None
        self._proxy: PortProxy | None = None

    # ---- birth

    def _get_machine(self, progress: Callable[[str], None], hypervisor: base.Hypervisor | None) -> Machine:
        return Machine(
            self.config,
            self.container.id,
            self.container.path,
            self.container.run_path,
            memory_mib=self.memory_mib,
            cpus=self.spec.cpus,
            on_exit=self._process_ended,
            on_oom=lambda id: self.on_oom(),
            progress=progress,
            hypervisor=hypervisor,
            hint="end it with 'casemate rm -f'",
        )

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
        self._make_mount_points()
        trees = [(files.TAG, run_path / share.SHARE, files.ROOT_KEEP)]
        if share.volumes(self.spec.oci):
            trees.append((files.VOLUMES_TAG, run_path / share.VOLUMES, 0))
        coming = machine.serve_later(trees)
        machine.step("turn")
        machine.take_turn()
        machine.step("machine")
        devices: list[base.Device] = []
        if self._net is not None:
            devices.append(base.Net("net0", self._net.mac, self._net.tap_fd, self._net.mtu))
        machine.boot(netns, devices, coming=coming)
        os.close(netns)  # the VMM holds it now
        if self._proxy is not None and self.address:
            self._proxy.start(self.address)

    def _make_mount_points(self) -> None:
        """What the guest's files are mounted on. It would make it itself, but each step takes it a millisecond."""
        root = share.root_path(self.container)
        for entry in self._etc_files():
            with contextlib.suppress(HostError, OSError):  # then the guest finds out why
                os.close(mounts.mount_point(root, entry["path"], directory=False))

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
        request = {
            "id": spec.id,
            "spec": self._machine.shortened(share.guest_spec(self.container)),
            "user": spec.user,
            "looked": looked.look(share.root_path(self.container), spec.oci),
            "files": self._etc_files(),
            "memory": None,
            "last": True,  # with it the machine ends
            "keeps": spec.keeps_files(),
            "info": self._curious(),
            "sandbox": {
                "hostname": spec.hostname,
                "interfaces": [] if net is None else [interface(net)],
                "time_ns": time.time_ns(),
                "entropy": base64.b64encode(os.urandom(64)).decode(),
                "shares": self._machine.late,
            },
        }
        key = (spec.id, None)
        told: dict[str, Any] = {}
        streams = self._calls.begin(
            key, "container.run", request, terminal=bool(spec.tty), stdin=stdin, size=size, told=told
        )
        self._machine.end_turn()
        self._machine.believe(told.get("guest"))
        return streams

    def _curious(self) -> bool:
        """Whether the guest is to tell what it is, with its answer."""
        return not self._machine.known

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


def interface(net: network.SandboxNet) -> dict[str, Any]:
    """What a guest is told of its interface (``docs/protocol.md``)."""
    return {"mac": net.mac, "addresses": [f"{net.address}/32"], "gateway": net.gateway, "mtu": net.mtu}
