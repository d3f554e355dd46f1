"""Which driver to use: the one place that knows them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.config import Config
    from casemate.vm.hypervisor.base import Hypervisor


def driver(config: Config) -> Hypervisor:
    """The driver that the configuration asks for."""
    from casemate.vm.hypervisor.qemu import QemuHypervisor  # a driver is loaded only where it is used

    return QemuHypervisor(config)
