"""The table, as Markdown that reads well on a terminal too."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS = (
    ("cold", "cold run of `true`, no network", "ms"),
    ("cold_network", "the same, with its network", "ms"),
    ("exec", "exec of `true`", "ms"),
    ("stdout", "stdout", "MB/s"),
    ("root_write", "sequential write, root", "MB/s"),
    ("root_read", "sequential read, root", "MB/s"),
    ("root_random_read", "random 4k read, root", "op/s"),
    ("root_random_write", "random 4k write, root", "op/s"),
    ("volume_write", "sequential write, volume", "MB/s"),
    ("volume_read", "sequential read, volume", "MB/s"),
    ("volume_random_read", "random 4k read, volume", "op/s"),
    ("volume_random_write", "random 4k write, volume", "op/s"),
    ("memory", "memory of an idle sandbox", "MiB"),
)
ENGINE_ROWS = (
    ("docker_run", "`docker run --rm busybox true`", "ms"),
    ("docker_exec", "`docker exec` of `true`", "ms"),
    ("pod", "CRI: a pod's first output", "ms"),
    ("memory", "memory of an idle container, `ctr run`", "MiB"),
)
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
ENGINES_BEGIN, ENGINES_END = "<!-- engines: begin -->", "<!-- engines: end -->"
Results = Mapping[str, Mapping[str, float]]


def table(results: Results, memory: Results, rows: Sequence[tuple[str, str, str]] = ROWS) -> str:
    """The measurements of all runtimes, and memory split by process.

    Arguments:
        results: for each runtime, row name to number.
        memory: for each runtime, process label to MiB.
        rows: key, title and unit of each row, in order; those without a number are left out.
    """
    runtimes = list(results)
    others = [name for name in runtimes if name != "casemate"] if "casemate" in results else []
    totals = {name: {"memory": sum(parts.values())} for name, parts in memory.items() if parts}
    lines = [["(\u2191 more is better, \u2193 less)", *runtimes, *(f"casemate / {name}" for name in others)]]
    for key, title, unit in rows:
        values = {name: {**results[name], **totals.get(name, {})}.get(key) for name in runtimes}
        if not any(values.values()):
            continue
        arrow = "\u2191" if unit.endswith("/s") else "\u2193"
        cells = [f"{title}, {unit} {arrow}"]
        cells += ["\u2013" if (value := values[name]) is None else number(value) for name in runtimes]
        own = values.get("casemate")
        for name in others:
            value = values[name]
            cells.append(number(own / value) if own and value else "\u2013")
        lines.append(cells)
    parts = columns(lines)
    if not totals:
        return "\n".join(parts) + "\n"
    parts += ["", "Memory by process (proportional set size):", ""]
    split = [[name, label, f"{size:.1f}"] for name in runtimes for label, size in sorted(memory.get(name, {}).items())]
    return "\n".join(parts + columns([["runtime", "process", "MiB"], *split])) + "\n"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def machine(accelerator: str, plan: Any, engines: bool = False) -> str:
    """What the numbers were measured on, and how much of it; ``engines``: those behind engines."""
    own = (
        f" Medians of {plan.cold_runs} cold runs, {plan.execs} execs, "
        f"{plan.streams} streams of {plan.stream_bytes // 1_000_000} MB, "
        f"{plan.io_runs} file runs on {plan.io_megabytes} MiB."
    )
    behind = f" Medians of {plan.cold_runs} runs, {plan.cold_runs} pods, {plan.execs} execs."
    return host(accelerator) + (behind if engines else own)


def host(accelerator: str) -> str:
    """What is measured on, in a line."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    qemu = _first_line("qemu-system-x86_64", "--version").removeprefix("QEMU emulator version ")
    return (
        f"{model}, {os.cpu_count()} processors, {gib:.0f} GiB; Linux {platform.release()}; QEMU {qemu}; "
        f"accelerator: {accelerator}."
    )


def _first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def put_into(path: Path, text: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Replace what stands between two marks in a document.

    Raises:
        ValueError: the document has no such marks.
    """
    old = path.read_text()
    front, begin, rest = old.partition(marks[0])
    _, end, back = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"{path} has no place for the table: {marks[0]} and {marks[1]}")
    path.write_text(f"{front}{marks[0]}\n{text}{marks[1]}{back}")
