"""Templates: a guest that has booted once, and is made again from what was saved as often as one is needed.

Here is what every machine has to know of them; the rest is imported where one is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from casemate.config import Config
from casemate.vm.hypervisor import base, qemu_args

WINDOW_MIB = 16
"""What file servers see of a guest's memory: the kernel's bounce buffers, the queues, and what else comes to lie
there."""


@dataclass(frozen=True, slots=True)
class Class:
    """What tells machines of one template from those of another."""

    accelerator: base.Accelerator
    memory_mib: int
    vcpus: int


def possible(config: Config, kind: Class) -> bool:
    """Whether machines of a class are made from templates at all."""
    return (
        config.template == "auto"
        and config.transport != "vsock"
        and 2 * WINDOW_MIB < kind.memory_mib <= base.MAX_IMAGE_MIB
    )


def shares(tags: list[str]) -> dict[str, Any]:
    """What the agent is told of the shared file systems that were plugged in (``docs/protocol.md``)."""
    return {"tags": tags, "node": qemu_args.WINDOW_NODE}
