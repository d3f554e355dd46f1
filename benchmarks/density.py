"""``make bench-density N=…``: what an idle sandbox takes of the host, by three methods, while more are started.

* *MemAvailable*: by how much the kernel's estimate of what could still be had (``proc_meminfo(5)``) has fallen. It is
  of the whole machine: whatever else runs there counts.
* *PSS*: the sum of the proportional set sizes of all processes of the sandboxes, by kind of process. What several of
  them map is divided among them; what the kernel keeps for them is not in it.
* *cgroup*: what the sandboxes' control groups are charged with, page cache and the kernel's own memory included.

Each is the growth since there were none, divided by how many there are. Needs root.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.ksm import settle
from benchmarks.measures import Say, label, teller
from casemate.host import cgroups
from casemate.ksm import settings
from tests.vm.support import CACHE, CHECKOUT, Casemate, Environment, await_twins, environment, leaks, processes

IDLE_SECONDS = 8.0
"""How long the last one is idle before it is looked: a copy gives memory back after some seconds (docs/twins.md)."""
BEGIN, END = "<!-- density: begin -->", "<!-- density: end -->"
PICTURE = "density.svg"


@dataclass(slots=True)
class Point:
    """What was measured with ``count`` sandboxes, in MiB, all of them together."""

    count: int
    available: float
    pss: dict[str, float] = field(default_factory=dict)
    cgroup: float = 0.0

    @property
    def total(self) -> float:
        """PSS of all processes."""
        return sum(self.pss.values())


def main() -> int:
    """Parse the command line, measure, print a table, draw a picture."""
    parser = argparse.ArgumentParser(prog="make bench-density", description="Measure the memory of idle sandboxes.")
    parser.add_argument("count", type=int, nargs="?", default=20, help="how many sandboxes")
    parser.add_argument("--memory", default="128m", help="memory of each")
    parser.add_argument("--no-ksm", action="store_true", help="leave out the second measurement, with merged pages")
    parser.add_argument("--docs", action="store_true", help="put table and picture into docs/")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench-density: sandboxes need root", file=sys.stderr)
        return 1
    say = teller()

    with environment(copies=True) as env:
        points, merged, seconds = measure(env, max(1, options.count), options.memory, not options.no_ksm, say)
        for line in leaks(env, patience=10):
            say(f"left behind: {line}")
    text = table(points, merged, options.memory, seconds)
    print("\n" + text)
    (CACHE / PICTURE).write_text(picture(points, merged))
    say(f"picture in {CACHE / PICTURE}")
    if options.docs:
        report.put_into(CHECKOUT / "docs" / "benchmarks.md", text, (BEGIN, END))
        (CHECKOUT / "docs" / PICTURE).write_text(picture(points, merged))
        say("put into docs/")
    return 0


def measure(
    env: Environment, count: int, memory: str, ksm: bool, say: Say
) -> tuple[list[Point], Point | None, float]:
    """Start sandboxes one after another and look at some of the numbers on the way.

    Returns:
        the points, one more with merged pages (None without), and the seconds that the starts took.
    """
    cm = Casemate(env)
    names: list[str] = []
    points: list[Point] = []
    merged = None
    steps = {1, 5, *range(20, count + 1, 20), count}
    # What the first one makes, has unpacked and has begun is not what it is about.
    before = available()
    cm.out("run", "--rm", "--network", "none", "--memory", memory, "busybox", "true", timeout=300)
    await_twins(env)
    took = 0.0
    try:
        for number in range(1, count + 1):
            name = f"density-{number}"
            names.append(name)
            begun = time.monotonic()
            cm.out(
                "run", "-d", "--name", name, "--network", "none", "--memory", memory, "busybox", "sleep", "86400",
                timeout=300,
            )  # fmt: skip
            took += time.monotonic() - begun
            if number in steps:
                time.sleep(IDLE_SECONDS)
                points.append(look(env, cm, names, before))
                say(f"{number} sandboxes: {points[-1].total / number:.1f} MiB of PSS each")
        answers = [cm.out("exec", name, "echo", "there", timeout=120) for name in names]
        if answers != ["there"] * count:
            raise RuntimeError(f"not all of them answer: {answers}")
        if ksm and settings.DIRECTORY.is_dir():
            settle(env, lambda: None)
            merged = look(env, cm, names, before)
            say(f"with merged pages: {merged.total / count:.1f} MiB of PSS each")
    finally:
        cm.remove(*names)
    return points, merged, took


def look(env: Environment, cm: Casemate, names: Sequence[str], before: float) -> Point:
    """Measure now."""
    point = Point(len(names), before - available())
    sizes: Counter[str] = Counter()
    for pid in processes(env):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        sizes[label(command)] += next((int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:"), 0)
    point.pss = {name: size / 1024 for name, size in sizes.items()}
    for name in names:
        point.cgroup += (cgroups.find(cm.inspect(name)["Id"]).usage().memory or 0) / (1 << 20)
    return point


def available() -> float:
    """``MemAvailable`` of proc_meminfo(5), in MiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")


# ---- what is shown


def table(points: Sequence[Point], merged: Point | None, memory: str, seconds: float) -> str:
    """Markdown."""
    last = points[-1]
    lines = [
        f"{last.count} idle sandboxes of {memory}, started one after another in {seconds:.1f} s, MiB for each of them:",
        "",
        "| sandboxes | MemAvailable | PSS | cgroup |",
        "|---|---|---|---|",
    ]
    rows = [(str(point.count), point) for point in points]
    if merged is not None:
        rows.append((f"{merged.count}, pages merged", merged))
    for name, point in rows:
        each = (point.available / point.count, point.total / point.count, point.cgroup / point.count)
        lines.append(f"| {name} | {each[0]:.1f} | {each[1]:.1f} | {each[2]:.1f} |")
    if len(points) > 2:  # the first one brings what is there once
        few = points[1]
        more = [
            (much - little) / (last.count - few.count)
            for much, little in ((last.available, few.available), (last.total, few.total), (last.cgroup, few.cgroup))
        ]
        title = f"*one more, from {few.count} to {last.count}*"
        lines.append(f"| {title} | {more[0]:.1f} | {more[1]:.1f} | {more[2]:.1f} |")
    lines += ["", f"PSS of each of {last.count} by process, MiB:", "", "| process | PSS |" + " merged |" * bool(merged)]
    lines.append("|---|---|" + "---|" * bool(merged))
    for name in sorted(last.pss, key=lambda key: -last.pss[key]):
        cell = f" {merged.pss.get(name, 0.0) / last.count:.1f} |" if merged else ""
        lines.append(f"| {name} | {last.pss[name] / last.count:.1f} |{cell}")
    return "\n".join(lines) + "\n"


def picture(points: Sequence[Point], merged: Point | None) -> str:
    """Memory of all sandboxes against their number, as SVG."""
    width, height, left, bottom = 640, 360, 70, 40
    most = max(max(point.available, point.total, point.cgroup) for point in points) * 1.1 or 1.0
    count = points[-1].count

    def place(number: float, memory: float) -> str:
        x = left + number / count * (width - left - 20)
        return f"{x:.1f},{height - bottom - max(memory, 0) / most * (height - bottom - 20):.1f}"

    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<polyline fill="none" stroke="black" points="{place(0, most)} {place(0, 0)} {place(count, 0)}"/>',
    ]
    for step in range(5):
        value = most * step / 4
        x, y = place(0, value).split(",")
        rows.append(f'<text x="{float(x) - 6}" y="{y}" text-anchor="end">{value:.0f} MiB</text>')
    for number in sorted({1, count // 2, count} - {0}):
        x, y = place(number, 0).split(",")
        rows.append(f'<text x="{x}" y="{float(y) + 18}" text-anchor="middle">{number}</text>')
    kinds = (
        ("MemAvailable", "#888888", [(point.count, point.available) for point in points]),
        ("cgroup", "#c05020", [(point.count, point.cgroup) for point in points]),
        ("PSS", "#2050c0", [(point.count, point.total) for point in points]),
    )
    for place_in_list, (name, colour, values) in enumerate(kinds):
        line = " ".join([place(0, 0), *(place(*value) for value in values)])
        rows.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>')
        rows.append(f'<text x="{left + 12}" y="{30 + 16 * place_in_list}" fill="{colour}">{name}</text>')
    if merged is not None:
        x, y = place(merged.count, merged.total).split(",")
        rows.append(f'<circle cx="{x}" cy="{y}" r="4" fill="#209020"/>')
        rows.append(f'<text x="{left + 12}" y="{30 + 16 * 3}" fill="#209020">PSS, pages merged</text>')
    return "\n".join([*rows, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
