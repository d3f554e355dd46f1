"""``make bench-start``: how long it takes from a command's start to the end of ``true``, and how many there can be.

The same bundle by ``casemate-runtime run``, by runc and by runsc with its ptrace platform, and the same image by
``casemate run``; machines that boot (cold) beside machines from a template, copies of one that has come up (twins), and
machines that a pool has kept ready.
One round runs each once, so that what else the host does falls upon all alike. Then several at once. Needs root and
``scripts/setup --tests``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.measures import BUSYBOX, Say, teller
from benchmarks.runtimes import BundleRuntime, CasemateRuntime, PoolRuntime, Runtime, seconds
from tests.vm.pool_lab import pool
from tests.vm.support import CHECKOUT, Casemate, Environment, await_twins, environment, leaks

BEGIN, END = "<!-- start: begin -->", "<!-- start: end -->"
BASE = "runsc"
"""The one that the others are compared with."""
POOL = 4
"""How many sandboxes wait."""


class OciRuntime(BundleRuntime):
    """``casemate-runtime``, by bundles as the others."""

    def __init__(self, name: str, env: Environment, layers: dict[str, list[Path]], work: Path, volume: Path) -> None:
        program = Path(sys.executable).parent / "casemate-runtime"
        super().__init__(name, layers, work, volume, program=program)
        self._variables = env.variables

    @property
    def environment(self) -> dict[str, str]:
        return self._variables


def main() -> int:
    """Parse the command line, measure, print tables."""
    parser = argparse.ArgumentParser(prog="make bench-start", description="Measure starts.")
    parser.add_argument("--rounds", type=int, default=20, help="how often each is run")
    parser.add_argument("--parallel", type=int, action="append", help="how many at once (1, 10, 50)")
    parser.add_argument("--memory", type=int, default=128, help="MiB of each machine")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/benchmarks.md")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench-start: all runtimes need root", file=sys.stderr)
        return 1
    say = teller()

    with _runtimes(options.memory, say) as (runtimes, accelerator):
        times = rounds(runtimes, max(1, options.rounds), say)
        rates = [
            (count, name, *together(runtimes[name], count, say))
            for count in options.parallel or (1, 10, 50)
            for name in ("casemate, pool", "casemate, twin", "casemate, template", BASE, "runc")
        ]
    text = f"{report.host(accelerator)} Machines of {options.memory} MiB, no network, {len(times[BASE])} rounds.\n\n"
    text += table(times) + "\n" + rate_table(rates)
    print("\n" + text)
    if options.docs:
        report.put_into(CHECKOUT / "docs" / "benchmarks.md", text, (BEGIN, END))
        say("put into docs/benchmarks.md")
    return 0


@contextlib.contextmanager
def _runtimes(memory: int, say: Say) -> Iterator[tuple[dict[str, Runtime], str]]:
    """Everything that is measured by its name, and what accelerates the machines; all gone afterwards."""
    settings = f"memory = {memory}\n"
    boots = settings + 'template = "off"\n'
    pooled = settings + "pool_interval = 0\npool_spare = 0\n"
    with (
        environment(settings) as warm, environment(boots) as cold, environment(pooled, copies=True) as full,
        environment(settings, copies=True) as copied, contextlib.ExitStack() as own,
    ):  # fmt: skip
        made: dict[str, Runtime] = {}
        layers: dict[str, list[Path]] = {}
        accelerator = "unknown"
        for name, env in (("template", warm), ("cold", cold), ("twin", copied)):
            cm = Casemate(env)
            volume = env.base / "volume"
            volume.mkdir()
            runtime = CasemateRuntime(cm, volume)
            say(f"{name}: the first start makes what is missing")
            runtime.start("look", BUSYBOX)
            layers[BUSYBOX] = runtime.layers("look")
            guest = cm.inspect("look")["Guest"]
            accelerator = str(guest["accelerator"])
            if (name == "cold") == (len(str(guest.get("template", ""))) == 12):
                raise RuntimeError(f"{name}: {guest.get('template')}")
            runtime.stop("look")
            if name == "twin":
                await_twins(env)
                runtime.start("look", BUSYBOX)
                if cm.inspect("look")["Guest"].get("twin") is not True:
                    raise RuntimeError("twin: it is none")
                runtime.stop("look")
            made[f"casemate, {name}"] = runtime
            made[f"casemate-runtime, {name}"] = OciRuntime(
                f"casemate-runtime-{name}", env, dict(layers), env.base / "bundles", volume
            )
        ready = CasemateRuntime(Casemate(full), full.base / "volume")
        ready.volume.mkdir()
        say("pool: the first sandboxes get ready")
        ready.cm("run", "--rm", BUSYBOX, "true", check=True, timeout=600)
        await_twins(full)
        lab = own.enter_context(pool(full, POOL))
        made["casemate, pool"] = PoolRuntime(ready.cm, ready.volume, lab, POOL)
        lab.ready(1)
        made["casemate, pool"].start("look", BUSYBOX)
        if ready.cm.inspect("look")["Guest"].get("pool") is not True:
            raise RuntimeError("pool: it was not used")
        made["casemate, pool"].stop("look")
        for name, options in (("runc", ()), (BASE, ("--platform=ptrace", "--network=none", "--ignore-cgroups"))):
            made[name] = BundleRuntime(name, dict(layers), warm.base / "bundles", warm.base / "volume", options)
        for one in made.values():
            if isinstance(one, BundleRuntime):
                own.callback(one.close)
        yield made, accelerator
        own.close()
        for env in (warm, cold, full, copied):
            for line in leaks(env, patience=10):
                say(f"left behind: {line}")


def rounds(runtimes: dict[str, Runtime], count: int, say: Say) -> dict[str, list[float]]:
    """Run each so often, in turn; milliseconds. One round more comes first and does not count."""
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    for number in range(count + 1):
        for name, runtime in runtimes.items():
            runtime.prepare()
            took = seconds(runtime.command(BUSYBOX, ["true"]), runtime.environment) * 1000
            if number:
                times[name].append(took)
        if number and number % 5 == 0:
            say(f"{number} of {count} rounds")
    return times


def together(runtime: Runtime, count: int, say: Say) -> tuple[float, float]:
    """Start so many at once and wait for all; seconds until the last has ended, and the median of one."""
    commands = [runtime.command(BUSYBOX, ["true"]) for _ in range(count)]
    runtime.prepare()
    env, pipe = runtime.environment, subprocess.PIPE
    with tempfile.TemporaryFile() as out:  # not /dev/null: runsc gives away its standard files, the device itself
        begun = time.monotonic()
        running = [subprocess.Popen(one, stdin=out, stdout=out, stderr=pipe, env=env) for one in commands]
    ends: list[float] = []
    with selectors.DefaultSelector() as selector:
        for process in running:
            selector.register(os.pidfd_open(process.pid), selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                selector.unregister(key.fd)
                os.close(key.fd)
                ends.append(time.monotonic() - begun)
    for process in running:
        assert process.stderr is not None
        with process.stderr:
            if process.wait() != 0:
                raise RuntimeError(f"{runtime.name}: {process.stderr.read().decode(errors='replace').strip()}")
    say(f"{runtime.name}: {count} at once in {ends[-1]:.2f} s")
    return ends[-1], statistics.median(ends)


def percentile(values: Sequence[float], part: float) -> float:
    """The nearest-rank percentile: the least value that no less than ``part`` of all do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, -int(-part * len(ranked) // 1) - 1)]


def table(times: dict[str, list[float]]) -> str:
    """Markdown of one start at a time."""
    base = percentile(times[BASE], 0.5)
    head = "| from the command's start to its end, ms | p50 | p95 | p99 | p50 / runsc (ptrace) |"
    lines = [head, "|---|---|---|---|---|"]
    for name, values in times.items():
        p50, p95, p99 = (percentile(values, part) for part in (0.5, 0.95, 0.99))
        lines.append(f"| {name} | {p50:,.0f} | {p95:,.0f} | {p99:,.0f} | {p50 / base:.2f} |")
    return "\n".join(lines) + "\n"


def rate_table(rates: Sequence[tuple[int, str, float, float]]) -> str:
    """Markdown of several at once."""
    lines = ["| at once | | all have ended after, s | median of one, s | starts a second |", "|---|---|---|---|---|"]
    for count, name, whole, middle in rates:
        lines.append(f"| {count} | {name} | {whole:.2f} | {middle:.2f} | {count / whole:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
