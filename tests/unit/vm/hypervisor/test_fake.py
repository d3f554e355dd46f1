"""The fake keeps the interface's promises, so that tests that stand on it mean something."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from casemate.errors import HypervisorError
from casemate.vm.hypervisor.base import (
    Accelerator,
    Block,
    Confinement,
    Device,
    ExitCause,
    Rng,
    SerialConsole,
    VmExit,
    VmSpec,
    VmStatus,
)
from casemate.vm.hypervisor.fake import FakeHypervisor

JAIL = Confinement(70000, 70000)


def spec(*devices: Device, slots: int = 0) -> VmSpec:
    return VmSpec("x", Path("/k"), Path("/i"), (), 128, 1, False, Accelerator.TCG, devices, hotplug_slots=slots)


def test_life() -> None:
    hypervisor = FakeHypervisor()
    assert hypervisor.probe().available
    machine = hypervisor.create(spec(Rng()), JAIL)
    seen: list[VmExit] = []
    machine.on_exit(seen.append)
    assert machine.status() is VmStatus.CREATED and machine.pid == 0
    machine.start()
    machine.pause()
    assert machine.status() is VmStatus.PAUSED
    machine.resume()
    assert machine.status() is VmStatus.RUNNING and machine.wait(0.01) is None
    machine.end(VmExit(ExitCause.GUEST_SHUTDOWN, 0, None, "the guest powered off"))
    machine.kill()
    assert [end.cause for end in seen] == [ExitCause.GUEST_SHUTDOWN]
    machine.on_exit(seen.append)
    assert len(seen) == 2
    with pytest.raises(HypervisorError, match="powered off"):
        machine.pause()


def test_descriptors_close_with_the_machine() -> None:
    ours, theirs = socket.socketpair()
    machine = FakeHypervisor().create(spec(SerialConsole(theirs.detach())), JAIL)
    machine.start()
    machine.stop()
    assert ours.recv(1) == b""
    ours.close()


def test_the_guest_is_played_by_the_test() -> None:
    def play(machine: object) -> None:
        console = machine.devices["console"]  # type: ignore[attr-defined]
        os.write(console.fd, b"hello")

    ours, theirs = socket.socketpair()
    machine = FakeHypervisor(on_start=play).create(spec(SerialConsole(theirs.detach())), JAIL)
    machine.start()
    assert ours.recv(10) == b"hello"
    machine.kill()
    ours.close()


def test_slots() -> None:
    machine = FakeHypervisor().create(spec(slots=1), JAIL)
    machine.start()
    machine.add_device(Rng("one"))
    with pytest.raises(HypervisorError, match="slot"):
        machine.add_device(Rng("two"))
    machine.remove_device("one")
    machine.add_device(Block("two", os.open("/dev/null", os.O_RDONLY)))
    with pytest.raises(HypervisorError, match="no device"):
        machine.remove_device("one")
    machine.kill()


def test_what_is_in_a_slot_from_the_start_can_go() -> None:
    devices = (Rng("stays"), Rng("goes"))
    whole = VmSpec(
        "x", Path("/k"), Path("/i"), (), 128, 1, False, Accelerator.TCG, devices, hotplug_slots=1, slotted=("goes",)
    )
    machine = FakeHypervisor().create(whole, JAIL)
    machine.start()
    with pytest.raises(HypervisorError, match="no hot-plug slot"):
        machine.add_device(Rng("more"))
    with pytest.raises(HypervisorError, match="no device"):
        machine.remove_device("stays")
    machine.remove_device("goes")
    machine.add_device(Rng("more"))
    machine.kill()


def test_a_failing_start() -> None:
    machine = FakeHypervisor(fail_start="no memory").create(spec(), JAIL)
    with pytest.raises(HypervisorError, match="no memory"):
        machine.start()
    end = machine.wait()
    assert end is not None and end.cause is ExitCause.FAILED
