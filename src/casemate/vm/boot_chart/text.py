"""A chart as text: phases with a bar each, and what the kernel spent its time on."""

from __future__ import annotations

from casemate.vm.boot_chart import Call, Chart

WIDTH = 48
"""Characters that the whole start takes."""


def render(chart: Chart) -> str:
    """The chart, for a terminal of 120 columns."""
    scale = WIDTH / chart.total if chart.total else 0.0
    names = max((len(phase.name) for phase in chart.phases), default=0)
    lines = [chart.title, "", f"{'WHERE':<10} {'PHASE':<{names}} {'BEGIN':>8} {'MS':>8}"]
    for phase in chart.phases:
        begin, end = round(phase.begin * scale), round(phase.end * scale)
        bar = " " * begin + ("█" * (end - begin) or "▏")
        figures = f"{phase.begin:>8.1f} {phase.length:>8.1f}"
        lines.append(f"{phase.where:<10} {phase.name:<{names}} {figures}  {bar}")
    lines.append(f"{'':<10} {'together':<{names}} {'':>8} {chart.total:>8.1f}")
    lines += ["", f"Computed by the VMM until the agent's hello: {chart.cpu:.0f} ms"]
    total, available = chart.memory
    if total:
        lines += [f"Memory of the guest: {total >> 20} MiB, {(total - available) >> 20} MiB of it in use"]
    lines += _table("The kernel's longest silences, and what ended them", chart.gaps)
    lines += _table("The kernel's longest initialisers (saying so makes them all slower)", chart.calls)
    return "\n".join(lines)


def _table(head: str, calls: tuple[Call, ...]) -> list[str]:
    if not calls:
        return []
    return ["", head, *(f"{call.length:>8.1f} ms at {call.end:>8.1f}  {call.name}" for call in calls)]
