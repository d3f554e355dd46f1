"""Where the time of a start goes, from the VMM's process to the end of a container's first program.

:func:`casemate.vm.boot_chart.run.measure` boots a machine and looks on, :func:`casemate.vm.boot_chart.phases.chart`
makes phases of what was seen, :mod:`~casemate.vm.boot_chart.text` and :mod:`~casemate.vm.boot_chart.svg` show them.
All times are in milliseconds since the VMM's program was started.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a start.

    Arguments:
        name: what went on.
        where: ``host``, ``kernel``, ``init``, ``agent`` or ``container``.
        begin, end: milliseconds.
    """

    name: str
    where: str
    begin: float
    end: float

    @property
    def length(self) -> float:
        """Milliseconds."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Call:
    """One of the kernel's own initialisers, with how long it took, in milliseconds, and when it was done."""

    name: str
    length: float
    end: float


@dataclass(frozen=True, slots=True)
class Chart:
    """A start in phases that follow each other without gaps.

    Arguments:
        title: which kernel, on what machine.
        phases: in order.
        calls: the kernel's initialisers, the longest first, where it was told to say.
        gaps: the longest silences between two messages of the kernel: the later one's text, length, when it came.
        cpu: milliseconds that the VMM had computed when the agent greeted.
        memory: bytes that the guest has, and bytes that are available in it, once its container has run.
    """

    title: str
    phases: tuple[Phase, ...]
    calls: tuple[Call, ...] = ()
    gaps: tuple[Call, ...] = ()
    cpu: float = 0.0
    memory: tuple[int, int] = (0, 0)

    @property
    def total(self) -> float:
        """Milliseconds."""
        return self.phases[-1].end if self.phases else 0.0
