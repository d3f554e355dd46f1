"""A sandbox whose machine has waited for it: what depends on the container is bound now."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from casemate.config import Config
from casemate.errors import CasemateError, HypervisorError, NetworkError
from casemate.host import network
from casemate.host.ports import PortProxy
from casemate.keeper.store import Container
from casemate.sandbox import ProcessExit, ProcessStreams
from casemate.vm import waiting
from casemate.vm.hypervisor import base
from casemate.vm.machine import Machine
from casemate.vm.sandbox import VmSandbox
from casemate.wall import share, trees


class PooledSandbox(VmSandbox):
    """One container in a machine from the pool.

    Arguments:
        config, container, on_exit, progress: see :class:`casemate.vm.sandbox.VmSandbox`.
        machine: what has waited, under the container's id.
        volumes: a detached tree for each volume of the specification; closed.
    """

    def __init__(
        self,
        config: Config,
        container: Container,
        on_exit: Callable[[str | None, ProcessExit], None],
        progress: Callable[[str], None],
        machine: waiting.Waiting,
        volumes: Sequence[int],
    ) -> None:
        self._waiting = machine
        self._volumes = list(volumes)
        self._dropping: threading.Thread | None = None
        self._connected: Exception | None = None
        self._grown = False
        super().__init__(config, container, on_exit, progress)

    def _get_machine(self, progress: Callable[[str], None], hypervisor: base.Hypervisor | None) -> Machine:
        return self._waiting.hand_over(self._process_ended, lambda id: self.on_oom(), progress)

    def boot(self) -> None:
        """Give the machine what is the container's own. See :class:`casemate.sandbox.Sandbox`.

        Raises:
            CasemateError: what stood in the way; :meth:`close` then gives back what was already there.
        """
        machine = self._machine
        machine.step("machine")
        if machine.cgroup is None or self._waiting.net is None:
            raise HypervisorError("the machine has not come up")
        memory = self.memory_mib
        machine.cgroup.limit(memory=(memory + self.config.overhead) << 20, cpu_quota=self.spec.cpus)
        if memory > machine.memory_mib:
            machine.grow_late(memory)
            self._grown = True
        machine.step("network")
        self._take_network(self._waiting.net)
        machine.step("files")
        fds, self._volumes = self._volumes, []
        share.place(self.container, fds, trees.writable)
        self._make_mount_points()
        if self._proxy is not None and self.address:
            self._proxy.start(self.address)

    def _take_network(self, net: network.SandboxNet) -> None:
        if self.spec.network == "none":
            # The guest has no interface, and the machine's namespace soon none that leads anywhere.
            self._dropping = threading.Thread(target=self._drop_network, name="network", daemon=True)
            self._dropping.start()
            return
        if self.spec.ports:
            self._proxy = PortProxy(self.spec.ports)
            self.ports = self._proxy.ports
        # Again, though that was done when it came up: the host's rules may have been flushed since.
        network.publish(self.container.id, self.config, net.address, self.ports)
        self._machine.vm().add_device(base.Net(waiting.NET, net.mac, os.dup(net.tap_fd), net.mtu))
        self._net = net
        self.address = net.address

    def _drop_network(self) -> None:
        try:
            self._waiting.drop_network()
        except (CasemateError, OSError) as error:
            self._connected = error

    def start(self, stdin: bool, size: tuple[int, int] | None) -> ProcessStreams:
        """As of any machine, once it is sure that one without a network has none. See
        :class:`casemate.sandbox.Sandbox`."""
        if self._dropping is not None:
            self._dropping.join()
            if self._connected is not None:
                raise NetworkError(f"the machine cannot be taken off the network: {self._connected}", "run it again")
        return super().start(stdin, size)

    def _curious(self) -> bool:
        return self._grown  # all else was learnt when it got warm

    def info(self) -> dict[str, Any]:
        """What was learnt when the guest came up. See :class:`casemate.sandbox.Sandbox`."""
        return {**super().info(), "pool": True}

    def close(self) -> None:
        """End the machine and give everything back. See :class:`casemate.sandbox.Sandbox`."""
        for fd in self._volumes:
            os.close(fd)
        self._volumes = []
        super().close()
        if self._dropping is not None:
            self._dropping.join()
        self._waiting.close()
        trees.remove(self.container.run_path)
