"""Templates: a guest that has booted once, and is made again from what was saved as often as one is needed.

Here is what every machine has to know of them; the rest is imported where one is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from casemate.config import TEMPLATE_MIB
from casemate.vm.hypervisor import base, qemu_args

GROWTHS_MIB = (1 << 12, 1 << 15, 1 << 18)
"""How much there may be to add. Every template is for one of these: a machine has to have room for as much as the one
that was saved, and QEMU needs 96 bytes for each mebibyte of room."""
WINDOW_MIB = 16
"""What file servers see of a guest's memory: the kernel's bounce buffers, the queues, and what else comes to lie
there."""


@dataclass(frozen=True, slots=True)
class Class:
    """What tells machines of one template from those of another."""

    accelerator: base.Accelerator
    growth_mib: int
    """One of :data:`GROWTHS_MIB`."""
    vcpus: int


def class_of(accelerator: base.Accelerator, memory_mib: int, vcpus: int) -> Class | None:
    """The class of a machine; None where there is none for so little or so much memory.

    Arguments:
        memory_mib: all of the guest's memory.
    """
    if memory_mib < TEMPLATE_MIB:
        return None
    growth = next((growth for growth in GROWTHS_MIB if memory_mib - TEMPLATE_MIB <= growth), None)
    return None if growth is None else Class(accelerator, growth, vcpus)


def largest_mib() -> int:
    """The most memory of a machine from a template."""
    return TEMPLATE_MIB + GROWTHS_MIB[-1]


def shares(tags: list[str], grown_mib: int) -> dict[str, Any]:
    """What the agent is told of what came after the restore (``docs/protocol.md``)."""
    return {"tags": tags, "node": qemu_args.WINDOW_NODE, "grown": grown_mib}
