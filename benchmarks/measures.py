"""What is measured, one function a group; each gives rows of numbers for one runtime."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.runtimes import Runtime, seconds

IO_PROGRAM = Path(__file__).with_name("io_program.py")
BUSYBOX = "busybox"
DEBIAN = "debian"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure: how often, and how large."""

    cold_runs: int
    execs: int
    streams: int
    stream_bytes: int
    io_runs: int
    io_megabytes: int
    io_seconds: float


Result = dict[str, float]
"""Row name to number; the unit is the row's, see ``report.ROWS``."""
Say = Callable[[str], None]


def teller() -> Say:
    """Tells on standard error what is being measured, and how long it has been."""
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {text}", file=sys.stderr, flush=True)

    return say


def cold_run(runtime: Runtime, image: str, plan: Plan, say: Say) -> Result:
    """``true`` from nothing to everything removed, in milliseconds."""

    def once(network: bool = False) -> float:
        return seconds(runtime.command(image, ["true"], network), runtime.environment)

    result = {"cold": median(plan.cold_runs, say, once)}
    if runtime.name == "casemate":
        say("the same with a network")
        result["cold_network"] = median(plan.cold_runs, say, lambda: once(network=True))
    return {key: value * 1000 for key, value in result.items()}


def exec_latency(runtime: Runtime, name: str, plan: Plan, say: Say) -> Result:
    """``true`` in a running container, in milliseconds."""
    command = runtime.exec_command(name, ["true"])
    return {"exec": 1000 * median(plan.execs, say, lambda: seconds(command, runtime.environment))}


def stdout(runtime: Runtime, name: str, plan: Plan, say: Say) -> Result:
    """Zeros through standard output, in megabytes a second, from the first byte to the last."""

    def once() -> float:
        command = runtime.exec_command(name, ["head", "-c", str(plan.stream_bytes), "/dev/zero"])
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=runtime.environment, bufsize=0
        ) as process:
            assert process.stdout is not None
            total = len(process.stdout.read(1 << 20) or b"")
            begun = time.monotonic()
            first = total
            while block := process.stdout.read(1 << 20):
                total += len(block)
            took = time.monotonic() - begun
        if process.returncode != 0 or total != plan.stream_bytes:
            raise RuntimeError(f"{runtime.name}: {total} of {plan.stream_bytes} bytes came, exit {process.returncode}")
        return (total - first) / took / 1e6

    return {"stdout": median(plan.streams, say, once)}


def files(runtime: Runtime, name: str, plan: Plan, say: Say) -> Result:
    """Sequential and random I/O on the root filesystem and on the volume."""
    result: Result = {}
    program = IO_PROGRAM.read_bytes()
    for place, directory in (("root", "/root"), ("volume", "/volume")):
        runs = []
        for number in range(plan.io_runs):
            say(f"{directory}: {number + 1} of {plan.io_runs}")
            arguments = ["python3", "-", directory, str(plan.io_megabytes), str(plan.io_seconds)]
            runs.append(json.loads(runtime.exec(name, arguments, input=program)))
        for key in runs[0]:
            result[f"{place}_{key}"] = statistics.median(run[key] for run in runs)
    return result


def memory(runtime: Runtime, name: str) -> dict[str, float]:
    """Proportional set size on the host of an idle container, in MiB by process.

    Source: Documentation/filesystems/proc.rst, ``smaps_rollup``. What processes share is divided among them.
    """
    result: dict[str, float] = {}
    for pid in runtime.process_ids(name):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        size = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
        kind = label(command)
        result[kind] = result.get(kind, 0.0) + size / 1024
    return result


def label(command: list[bytes]) -> str:
    """What kind of process has such a command line."""
    words = [word.decode(errors="replace") for word in command if word]
    if not words:
        return "(other)"
    name = Path(words[0]).name
    if name.startswith("python"):
        return "keeper of what is copied" if "casemate.twins" in words else "keeper"
    return {"qemu-system-x86_64": "QEMU with the guest"}.get(name, name)


def median(count: int, say: Say, once: Callable[[], float]) -> float:
    """The median of some runs; one more before them is not counted, so that caches are warm for all alike."""
    once()
    values = []
    for number in range(count):
        values.append(once())
        if number + 1 in (count, count // 2):
            say(f"{number + 1} of {count}: median {statistics.median(values):.4g}")
    return statistics.median(values)
