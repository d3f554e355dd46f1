"""``python -m benchmarks``: measure, print one table, keep it as Markdown. Needs root and ``scripts/setup --tests``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc  # type: ignore[import-untyped]

from benchmarks import engines, measures, report
from benchmarks.measures import BUSYBOX, DEBIAN, Plan
from benchmarks.runtimes import BundleRuntime, CasemateRuntime, Runtime
from scripts.debian_image import TAG, build
from tests.engines.host import Host
from tests.vm.support import CACHE, CHECKOUT, Casemate, environment, leaks

GROUPS = ("cold", "exec", "stdout", "files", "memory", "docker", "pods", "engine-memory")
ENGINES = {"docker", "pods", "engine-memory"}


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description="Measure casemate beside runc and runsc.")
    parser.add_argument("--iterations", type=int, default=10, help="execs; a half of it cold runs, a third the rest")
    parser.add_argument("--only", action="append", choices=GROUPS, help="measure only this; may be given again")
    parser.add_argument("--runtime", action="append", choices=("casemate", "runc", "runsc"), help="only this runtime")
    parser.add_argument("--megabytes", type=int, default=128, help="size of the file for file I/O")
    parser.add_argument("--docs", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("make bench: all three runtimes need root", file=sys.stderr)
        return 1
    count = max(1, options.iterations)
    plan = Plan(
        cold_runs=max(1, count // 2),
        execs=count,
        streams=max(1, count // 3),
        stream_bytes=200_000_000,
        io_runs=max(1, count // 3),
        io_megabytes=options.megabytes,
        io_seconds=3.0,
    )
    groups = options.only or list(GROUPS)
    wanted = options.runtime or ["casemate", "runc", "runsc"]

    say = measures.teller()

    results: dict[str, dict[str, float]] = {}
    memory: dict[str, dict[str, float]] = {}
    text = behind = ""
    with _runtimes(wanted, needs_debian="files" in groups, say=say) as (runtimes, names, accelerator):
        if set(groups) - ENGINES:
            for runtime in runtimes:
                results[runtime.name], memory[runtime.name] = _measure(runtime, names, groups, plan, say)
            text = f"{report.machine(accelerator, plan)}\n\n{report.table(results, memory)}"
    if ENGINES & set(groups):
        say("engines")
        results, memory = {}, {}
        with engines.running() as host:
            for name in reversed(wanted):  # the quick ones first
                results[name], memory[name] = _measure_engines(host, name, groups, plan, say)
        rows = report.table({name: results[name] for name in wanted}, memory, report.ENGINE_ROWS)
        behind = f"{report.machine(accelerator, plan, engines=True)}\n\n{rows}"
    print("\n" + "\n".join(part for part in (text, behind) if part))
    target = CACHE / "benchmarks.md"
    target.write_text("\n".join(part for part in (text, behind) if part))
    say(f"kept in {target}")
    if options.docs:
        document = CHECKOUT / "docs" / "benchmarks.md"
        if text:
            report.put_into(document, text)
        if behind:
            report.put_into(document, behind, (report.ENGINES_BEGIN, report.ENGINES_END))
        say("put into docs/benchmarks.md")
    return 0


def _measure(
    runtime: Runtime, names: dict[str, str], groups: list[str], plan: Plan, say: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, float]]:
    """All wanted rows of one runtime, and its memory by process."""

    def told(text: str) -> None:
        say(f"{runtime.name}: {text}")

    result: dict[str, float] = {}
    memory: dict[str, float] = {}
    if "cold" in groups:
        told("cold run of true")
        result |= measures.cold_run(runtime, names[BUSYBOX], plan, told)
    if {"exec", "stdout", "memory"} & set(groups):
        with _idle(runtime, "bench-idle", names[BUSYBOX]):
            if "memory" in groups:
                told("memory of an idle sandbox")
                memory = measures.memory(runtime, "bench-idle")
            if "exec" in groups:
                told("exec of true")
                result |= measures.exec_latency(runtime, "bench-idle", plan, told)
            if "stdout" in groups:
                told(f"{plan.stream_bytes // 1_000_000} MB through stdout")
                result |= measures.stdout(runtime, "bench-idle", plan, told)
    if "files" in groups:
        with _idle(runtime, "bench-files", names[DEBIAN]):
            told("file I/O")
            result |= measures.files(runtime, "bench-files", plan, told)
    return result, memory


def _measure_engines(
    host: Host, name: str, groups: list[str], plan: Plan, say: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, float]]:
    """All wanted rows of one runtime behind engines, and its memory by process."""

    def told(text: str) -> None:
        say(f"{name}: {text}")

    result: dict[str, float] = {}
    memory: dict[str, float] = {}
    for group, measure in (("docker", engines.docker), ("pods", engines.pods)):
        if group in groups:
            with _tolerated(told):
                result |= measure(host, name, plan, told)
    if "engine-memory" in groups:
        told("memory of an idle container by ctr run")
        with _tolerated(told):
            memory = engines.memory(host, name)
    return result, memory


@contextlib.contextmanager
def _tolerated(say: Callable[[str], None]) -> Iterator[None]:
    """What an engine cannot do with one runtime leaves a dash in the table, and says why."""
    try:
        yield
    except (AssertionError, RuntimeError, OSError, grpc.RpcError) as error:
        say(f"failed: {error}")


@contextlib.contextmanager
def _idle(runtime: Runtime, name: str, image: str) -> Iterator[None]:
    runtime.start(name, image)
    try:
        yield
    finally:
        runtime.stop(name)


@contextlib.contextmanager
def _runtimes(
    wanted: list[str], needs_debian: bool, say: Callable[[str], None]
) -> Iterator[tuple[list[Runtime], dict[str, str], str]]:
    """The wanted runtimes, the images' names, and what accelerates casemate's machines; all gone afterwards."""
    with environment() as env, contextlib.ExitStack() as stack:
        cm = Casemate(env)
        volume = env.base / "volume"
        volume.mkdir()
        own = CasemateRuntime(cm, volume)
        names = {BUSYBOX: "busybox"}
        if needs_debian:
            say("image of Debian packages")
            names[DEBIAN] = cm.out("pull", "-q", f"oci:{build(CACHE, say)}:{TAG}", timeout=600).splitlines()[-1]
        layers: dict[str, list[Path]] = {}
        accelerator = "unknown"
        for image in names.values():
            own.start("bench-look", image)
            layers[image] = own.layers("bench-look")
            accelerator = _find(cm.inspect("bench-look"), "accelerator") or accelerator
            own.stop("bench-look")
        runtimes: list[Runtime] = []
        for name in wanted:
            if name == "casemate":
                runtimes.append(own)
                continue
            options = ("--network=none", "--ignore-cgroups") if name == "runsc" else ()
            other = BundleRuntime(name, layers, env.base / "bundles", volume, options)
            stack.callback(other.close)
            runtimes.append(other)
        yield runtimes, names, accelerator
        for line in [line for line in leaks(env, patience=5) if str(env.base / "bundles") not in line]:
            say(f"left behind: {line}")


def _find(value: object, key: str) -> str | None:
    """A key's text, wherever it stands in an object."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name.lower() == key and isinstance(item, str):
                return item
            if (found := _find(item, key)) is not None:
                return found
    return None


if __name__ == "__main__":
    sys.exit(main())
