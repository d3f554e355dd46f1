"""A hypervisor without machines, for tests of what stands above: needs no root, no QEMU and no time.

A test plays the guest: it reads and writes the descriptors that the devices hold, and calls :meth:`FakeVm.end` to let
the machine end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable

from casemate.errors import HypervisorError
from casemate.vm.hypervisor.base import (
    AgentPort,
    Capabilities,
    Confinement,
    Device,
    ExitCause,
    Hypervisor,
    SerialConsole,
    Vm,
    VmExit,
    VmSpec,
    VmStatus,
    device_fd,
)


class FakeHypervisor(Hypervisor):
    """Makes :class:`FakeVm`.

    Arguments:
        fail_start: the reason with which every machine's start fails, or an empty string.
        on_start: called with each machine as it starts, to play its guest.
    """

    name = "fake"

    def __init__(self, *, fail_start: str = "", on_start: Callable[[FakeVm], None] | None = None) -> None:
        self.fail_start = fail_start
        self.on_start = on_start
        self.machines: list[FakeVm] = []

    def probe(self) -> Capabilities:
        return Capabilities(
            available=True, problem="", version="0", hotplug=True, pause=True, shared_fs=True, vsock=False, max_vcpus=16
        )

    def create(self, spec: VmSpec, jail: Confinement) -> FakeVm:
        machine = FakeVm(spec, jail, self.fail_start, self.on_start)
        self.machines.append(machine)
        return machine


class FakeVm(Vm):
    """A machine that only keeps its books. It owns its devices' descriptors and closes them at its end.

    A real machine's process holds the descriptors while it runs; here the fake itself does, and the test uses them.
    """

    def __init__(
        self, spec: VmSpec, jail: Confinement, fail_start: str = "", on_start: Callable[[FakeVm], None] | None = None
    ) -> None:
        self.spec = spec
        self.jail = jail
        self.devices: dict[str, Device] = {device.id: device for device in spec.devices}
        self._fail_start = fail_start
        self._on_start = on_start
        self._changed = threading.Condition()
        self._status = VmStatus.CREATED
        self._exit: VmExit | None = None
        self._callbacks: list[Callable[[VmExit], None]] = []
        self._plugged: set[str] = set(spec.slotted)
        self.grown_mib = 0

    @property
    def pid(self) -> int:
        return 0 if self._status is VmStatus.CREATED else os.getpid()

    def start(self, timeout: float = 30.0) -> None:
        with self._changed:
            if self._status is not VmStatus.CREATED:
                raise HypervisorError("the machine was started before", "create another one")
            self._status = VmStatus.RUNNING
        if self._fail_start:
            self.end(VmExit(ExitCause.FAILED, 1, None, self._fail_start))
            raise HypervisorError(f"the virtual machine did not start: {self._fail_start}")
        if self._on_start is not None:
            self._on_start(self)

    def save(self, state_fd: int, timeout: float = 30.0) -> None:
        self.pause()
        os.write(state_fd, b"state")

    def grow(self, mib: int) -> None:
        self._check_runs()
        if not 0 <= mib <= self.spec.growth_mib:
            raise HypervisorError(f"the machine's memory can grow by {self.spec.growth_mib} MiB, not by {mib} MiB")
        self.grown_mib = mib

    def pause(self) -> None:
        self._switch(VmStatus.PAUSED)

    def resume(self) -> None:
        self._switch(VmStatus.RUNNING)

    def add_device(self, device: Device) -> None:
        fd = device_fd(device)
        try:
            self._check_runs()
            if device.id in self.devices:
                raise HypervisorError(f"the machine has a device {device.id!r} already")
            if len(self._plugged) >= self.spec.hotplug_slots:
                raise HypervisorError("no hot-plug slot is free", "remove a device, or give the machine more slots")
        except HypervisorError:
            if fd is not None:
                os.close(fd)
            raise
        self.devices[device.id] = device
        self._plugged.add(device.id)

    def remove_device(self, id: str, timeout: float = 10.0) -> None:
        self._check_runs()
        if id not in self._plugged:
            raise HypervisorError(f"no device {id!r} was plugged in")
        self._plugged.discard(id)
        _close(self.devices.pop(id))

    def stop(self, timeout: float = 5.0) -> VmExit:
        self.kill()
        ended = self.wait()
        assert ended is not None
        return ended

    def kill(self) -> None:
        self.end(VmExit(ExitCause.STOPPED, 0, None, "stopped"))

    def wait(self, timeout: float | None = None) -> VmExit | None:
        with self._changed:
            self._changed.wait_for(lambda: self._exit is not None, timeout)
            return self._exit

    def on_exit(self, callback: Callable[[VmExit], None]) -> None:
        with self._changed:
            if self._exit is None:
                self._callbacks.append(callback)
                return
            ended = self._exit
        callback(ended)

    def status(self) -> VmStatus:
        return self._status

    def end(self, ended: VmExit) -> None:
        """Let the machine end, as its guest or an accident would. The first end counts."""
        with self._changed:
            if self._exit is not None:
                return
            self._exit = ended
            self._status = VmStatus.ENDED
            callbacks, self._callbacks = self._callbacks, []
            self._changed.notify_all()
        for device in self.devices.values():
            _close(device)
        for callback in callbacks:
            callback(ended)

    def _switch(self, status: VmStatus) -> None:
        with self._changed:
            self._check_runs()
            self._status = status

    def _check_runs(self) -> None:
        if self._exit is not None:
            raise HypervisorError(f"the virtual machine has ended: {self._exit.reason}")
        if self._status is VmStatus.CREATED:
            raise HypervisorError("the virtual machine was not started")


def _close(device: Device) -> None:
    fd = device_fd(device)
    if fd is None:
        return
    if isinstance(device, AgentPort | SerialConsole):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
            copy.shutdown(socket.SHUT_RDWR)  # also for a copy that the test's guest reads: it would have died too
    os.close(fd)
