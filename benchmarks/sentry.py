"""``make bench-sentry``: what system calls and programs cost behind the sentry, beside the host and runsc.

The same programs natively, by ``runsc --platform=ptrace do`` and by ``casemate do``, in rounds that run each once,
each time another one first, so that what else the host does falls upon all alike; the least of the rounds counts for
single operations and for what only computes, the median for programs. Needs root and ``scripts/setup --tests``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks import engines as engine_benchmarks
from benchmarks import report
from benchmarks.measures import Plan, Say, teller
from benchmarks.sentry_python import KERNELS
from tests.engines.host import TOOLS
from tests.vm.support import CHECKOUT, CONSOLE_SCRIPT

BEGIN, END = "<!-- sentry: begin -->", "<!-- sentry: end -->"
SOURCE = Path(__file__).with_name("sentry_ops.c")
OPERATIONS: tuple[tuple[str, str, int], ...] = (
    # name of the operation, what the table calls it, how often it is done
    ("getppid", "getppid", 20_000),
    ("pread", "pread of 4 kB", 10_000),
    ("pwrite", "pwrite of 4 kB", 10_000),
    ("open", "open and close", 5_000),
    ("stat", "stat", 10_000),
    ("pipe", "round trip through two pipes", 5_000),
    ("futex", "futex ping-pong", 5_000),
    ("fork", "fork and wait", 200),
    ("exec", "vfork, exec of `true`, wait", 100),
    ("mmap", "mmap of 64 kB, a fault, munmap", 2_000),
)
CPU = ("cpu", "a loop of arithmetic, per million", 200_000_000)
PYTHON = Path(__file__).with_name("sentry_python.py")
PYTHON_TITLE = f"Python: {', '.join(kernel.__name__ for kernel in KERNELS)}"
FILES = 20
MAKE = """\
OBJECTS = $(patsubst %.c,%.o,$(wildcard *.c))
program: $(OBJECTS)
\tgcc -o $@ $^
"""
WAYS = ("native", "runsc", "casemate")
T = TypeVar("T")


def main() -> int:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(prog="make bench-sentry", description="Measure system calls behind the sentry.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is run")
    parser.add_argument("--platform", default="", help="of the sentry: notify, notify-python or ptrace")
    parser.add_argument("--engines", action="store_true", help="behind Docker and containerd, too")
    parser.add_argument("--docs", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench-sentry: all of them need root", file=sys.stderr)
        return 1
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # no user has it, and it makes every start slower
    if (problem := unready()) is not None:
        print(f"bench-sentry: {problem}: run scripts/setup", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="bench-sentry-") as directory:
        table = measure(Path(directory), max(1, options.rounds), options.platform, teller(), options.engines)
    print(table)
    if options.docs:
        put(table)
    return 0


def unready() -> str | None:
    """What is not as a set-up leaves it, so that the numbers would be no user's; None for nothing."""
    if b"casemate.programs" not in CONSOLE_SCRIPT.read_bytes():
        return f"{CONSOLE_SCRIPT} was installed before its entry point changed"
    if subprocess.run([sys.executable, "-P", "-m", "casemate.bundle"]).returncode:
        return "there is no bundle of modules"
    return None


def ways(platform: str) -> dict[str, list[str]]:
    """What stands before a command, for each way to run it."""
    casemate = [str(CONSOLE_SCRIPT), "do", *([f"--platform={platform}"] if platform else [])]
    runsc = [str(TOOLS / "bin" / "runsc"), "--platform=ptrace", "--network=none", "--ignore-cgroups", "do"]
    return {"native": [], "runsc": runsc, "casemate": [*casemate, "--"]}


def measure(directory: Path, rounds: int, platform: str, say: Say, engines: bool) -> str:
    """All measurements, as tables.

    Arguments:
        engines: behind Docker and containerd, too.
    """
    program = directory / "ops"
    subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", program, SOURCE], check=True)
    prefixes = ways(platform)
    project = _project(directory / "project")
    programs: tuple[tuple[str, list[str]], ...] = (
        ("start of `true`", ["/bin/true"]),
        ("start of `python3 -c pass`", ["/usr/bin/python3", "-I", "-c", "pass"]),
        (f"make -j2 of {FILES} C files", ["sh", "-c", f"cp -r {project} /tmp/made && make -s -j2 -C /tmp/made"]),
    )
    lines = [["(less is better)", *WAYS, "casemate / runsc", "casemate / native"]]
    for name, title, count in OPERATIONS:
        say(title)
        found = _rounds(prefixes, rounds, partial(_operation, program, name, count))
        lines.append(_row(f"{title}, \u00b5s", {way: min(values) for way, values in found.items()}))
    say(CPU[1])
    found = _rounds(prefixes, rounds, partial(_operation, program, CPU[0], CPU[2]))
    lines.append(_row(f"{CPU[1]}, \u00b5s", {way: min(values) * 1e6 for way, values in found.items()}))
    say(PYTHON_TITLE)
    computed = _rounds(prefixes, rounds, _computing)
    lines.append(_row(f"{PYTHON_TITLE}, ms", {way: _least(values) for way, values in computed.items()}))
    for title, command in programs:
        say(title)
        found = _rounds(prefixes, rounds, partial(_program, command))
        lines.append(_row(f"{title}, ms", {way: statistics.median(values) for way, values in found.items()}))
    table = "\n".join(report.columns(lines)) + "\n"
    return f"{table}\n{behind_engines(rounds, say)}" if engines else table


def behind_engines(rounds: int, say: Say) -> str:
    """``docker run`` and ``docker exec`` of ``true``, and the memory of an idle container of ``ctr run``."""
    plan = Plan(cold_runs=rounds, execs=2 * rounds, streams=0, stream_bytes=0, io_runs=0, io_megabytes=0, io_seconds=0)
    runtimes = ("runc", "runsc", "sentry")
    found: dict[str, dict[str, float]] = {}
    with engine_benchmarks.running() as host:
        for runtime in runtimes:
            say(f"docker, {runtime}")
            found[runtime] = engine_benchmarks.docker(host, runtime, plan, say)
            found[runtime]["memory"] = sum(engine_benchmarks.memory(host, runtime).values())
    lines = [["(less is better)", *runtimes, "sentry / runsc"]]
    for key, title in (
        ("docker_run", "`docker run --rm busybox true`, ms"),
        ("docker_exec", "`docker exec` of `true`, ms"),
        ("memory", "memory of an idle container, `ctr run`, MiB"),
    ):
        values = [found[runtime][key] for runtime in runtimes]
        lines.append([title, *map(report.number, values), f"{values[2] / values[1]:.2f}"])
    return "\n".join(report.columns(lines)) + "\n"


def _rounds(prefixes: dict[str, list[str]], rounds: int, once: Callable[[list[str]], T]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = {way: [] for way in prefixes}
    order = list(prefixes)
    for _ in range(rounds):
        for way in order:
            found[way].append(once(prefixes[way]))
        order.append(order.pop(0))
    return found


def _computing(before: list[str]) -> dict[str, float]:
    """Milliseconds of each kernel of the program in Python, the least of its own repetitions."""
    command = [*before, "/usr/bin/python3", "-I", str(PYTHON)]
    done = subprocess.run(command, check=True, input="", capture_output=True, text=True, timeout=600)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _least(rounds: list[dict[str, float]]) -> float:
    """The least of each kernel, in all."""
    return sum(min(found[name] for found in rounds) for name in rounds[0])


def _operation(program: Path, name: str, count: int, before: list[str]) -> float:
    done = subprocess.run(
        [*before, program, name, str(count)], check=True, input="", capture_output=True, text=True, timeout=600
    )
    return float(done.stdout)


def _program(command: list[str], before: list[str]) -> float:
    with tempfile.TemporaryFile() as out:  # not /dev/null: runsc gives away its standard files, the device itself
        begin = time.monotonic()
        # Without a timeout: with one, Python looks for the end at intervals that grow to 50 ms.
        subprocess.run([*before, *command], check=True, stdin=out, stdout=out)
        taken = (time.monotonic() - begin) * 1000
    subprocess.run(["rm", "-rf", "/tmp/made"], check=True)  # of the native one
    return taken


def _project(path: Path) -> Path:
    """A C program of some files, each of which includes what real ones do."""
    path.mkdir()
    calls = "".join(f"int part{number}(int);" for number in range(1, FILES))
    for number in range(1, FILES):
        (path / f"part{number}.c").write_text(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
            f"int part{number}(int x) {{ char text[64]; sprintf(text, \"%d\", x * {number}); return atoi(text); }}\n"
        )
    sums = " + ".join(f"part{number}({number})" for number in range(1, FILES))
    body = f'int main(void) {{ return printf("%d\\n", {sums}) < 0; }}'
    (path / "main.c").write_text(f"#include <stdio.h>\n{calls}\n{body}\n")
    (path / "Makefile").write_text(MAKE)
    return path


def _row(title: str, values: dict[str, float]) -> list[str]:
    ratios = [f"{values['casemate'] / values[other]:.2f}" for other in ("runsc", "native")]
    return [title, *(report.number(values[way]) for way in WAYS), *ratios]


def put(table: str) -> None:
    """Replace the table in docs/benchmarks.md."""
    path = CHECKOUT / "docs" / "benchmarks.md"
    text = path.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n{table}{END}{tail}")


if __name__ == "__main__":
    sys.exit(main())
