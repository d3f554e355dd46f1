"""``python -m benchmarks.ksm``: what the throttler saves, in three cases. Needs root and a kernel that merges pages.

The kernel merges pages of the whole machine, so what others run there counts for the time it takes. Memory is the sum
of the proportional set sizes (PSS) of what was started here, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from casemate.config import Config
from casemate.ksm import settings
from casemate.vm import guest, transport
from casemate.vm.hypervisor import base, probe
from casemate.vm.hypervisor.qemu import QemuHypervisor
from casemate.wall.calls import Calls
from tests.vm.support import CONSOLE_SCRIPT, Casemate, Environment, environment, leaks, processes

HOLDER = """
import mmap, random, sys
size = int(sys.argv[1])
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_MERGEABLE)
for start in range(0, size, 1 << 20):
    area[start : start + (1 << 20)] = random.Random(start).randbytes(1 << 20)
print("ready", flush=True)
sys.stdin.read()
"""
PR_SET_MEMORY_MERGE = 67
SETTLED = 3
"""After so many whole scans more nothing is left to merge: a page is merged when it has not changed between two."""


def main() -> int:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ksm", description="Measure same-page merging.")
    parser.add_argument("--machines", type=int, default=2, help="how many guests, and how many sandboxes")
    parser.add_argument("--memory", type=int, default=128, help="MiB of each")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("benchmarks.ksm: settings of the kernel need root", file=sys.stderr)
        return 1
    settings.require()
    before = settings.read()
    rows = []
    try:
        with environment(f"memory = {options.memory}\n") as env:
            for name, case in (
                (f"two processes, the same random {options.memory} MiB in both", two_processes),
                (f"{options.machines} idle guests with private memory", guests),
                (f"{options.machines} idle sandboxes (`casemate run`)", sandboxes),
                ("the same, their processes offered as a whole (`PR_SET_MEMORY_MERGE`)", offered),
            ):
                print(f"... {name}", file=sys.stderr, flush=True)
                with case(env, options.machines, options.memory) as find:
                    rows.append((name, *measure(env, find)))
                unmerge()
            if left := leaks(env):
                raise RuntimeError(f"left behind: {left}")
    finally:
        settings.write(before)
    print("| | PSS before, MiB | PSS after, MiB | saved | until half of it, s | until all of it, s | ksmd, s |")
    print("|---|---|---|---|---|---|---|")
    for name, first, last, half, whole, busy in rows:
        print(f"| {name} | {first:.1f} | {last:.1f} | {1 - last / first:.0%} | {half:.1f} | {whole:.1f} | {busy:.1f} |")
    return 0


def measure(env: Environment, find: Callable[[], Sequence[int]]) -> tuple[float, float, float, float, float]:
    """Start the throttler and wait until it has nothing left to merge.

    Returns:
        MiB before and after, seconds until half and until 99 % of the difference were saved, processor seconds of the
        kernel's thread.
    """
    first, busy = pss(find()), ksmd()
    begun = time.monotonic()
    seen = [(0.0, first)]
    settle(env, lambda: seen.append((time.monotonic() - begun, pss(find()))))
    last = seen[-1][1]
    reached = [
        next(when for when, memory in seen if first - memory >= share * (first - last)) for share in (0.5, 0.99)
    ]
    return first, last, *reached, ksmd() - busy  # type: ignore[return-value]


def settle(env: Environment, look: Callable[[], None]) -> None:
    """Have the throttler merge pages until nothing is left to merge. What is merged stays so.

    Arguments:
        look: called now and then meanwhile.

    Raises:
        RuntimeError: the throttler ended.
    """
    scans = settings.figures()["full_scans"]
    daemon = subprocess.Popen([CONSOLE_SCRIPT, "ksm", "--mode", "auto"], env=env.variables, stderr=subprocess.DEVNULL)
    try:
        while settings.figures()["full_scans"] < scans + SETTLED:
            if daemon.poll() is not None:
                raise RuntimeError("the throttler ended")
            time.sleep(0.1)  # the kernel tells nobody of its progress
            look()
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()


def unmerge() -> None:
    """Give everyone his own pages again, so that cases do not help each other."""
    settings.write(settings.Settings(settings.UNMERGED, 100, 20))


def pss(pids: Sequence[int]) -> float:
    """The proportional set size of processes together, in MiB."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def ksmd() -> float:
    """Processor seconds that the kernel's thread has had; 0 where it cannot be seen."""
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if directory.name.isdigit() and (directory / "comm").read_text() == "ksmd\n":
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


# ---- cases


@contextlib.contextmanager
def two_processes(env: Environment, count: int, memory: int) -> Iterator[Callable[[], Sequence[int]]]:
    """The best case: equal memory, offered by its owner."""
    words = [sys.executable, "-c", HOLDER, str(memory << 20)]
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for _ in range(2)
        ]
        for one in made:
            assert one.stdout is not None and one.stdout.readline() == b"ready\n"
        yield lambda: [one.pid for one in made]
        for one in made:
            one.kill()


@contextlib.contextmanager
def guests(env: Environment, count: int, memory: int) -> Iterator[Callable[[], Sequence[int]]]:
    """Guests as sandboxes have them, with an agent that waits, but without shared files: their memory is private."""
    config = Config(run=env.run)
    bundle = guest.find(Config().root)
    choice = probe.choose(config)
    made: list[base.Vm] = []
    with contextlib.ExitStack() as stack:
        for number in range(count):
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            threading.Thread(target=_swallow, args=(ours,), daemon=True).start()
            way = transport.Serial()
            console = base.SerialConsole(theirs.detach())
            spec = base.VmSpec(
                name=f"casemate-ksm-{number}", kernel=bundle.kernel, initrd=bundle.initrd,
                cmdline=bundle.cmdline(choice.accelerator.value), memory_mib=memory, vcpus=1, shared_memory=False,
                accelerator=choice.accelerator,
                devices=(base.Block("casemate-root", bundle.root), console, way.device, base.Rng(), base.Balloon()),
            )  # fmt: skip
            vm = QemuHypervisor(config).create(spec, base.Confinement(uid=65534, gid=65534))
            stack.callback(vm.wait, 20)
            stack.callback(vm.kill)
            vm.start()
            calls = Calls(60, lambda *told: None, lambda id: None, lambda said: said)
            calls.connect(way.connect(60, threading.Event()), 120, lambda reason: None)
            stack.callback(calls.close, "measured")
            made.append(vm)
        yield lambda: [vm.pid for vm in made]


def _swallow(console: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while console.recv(65536):
            pass


@contextlib.contextmanager
def sandboxes(env: Environment, count: int, memory: int) -> Iterator[Callable[[], Sequence[int]]]:
    """Sandboxes as they are, all of their processes."""
    cm = Casemate(env)
    names = [f"ksm-{number}" for number in range(count)]
    try:
        for name in names:
            cm("run", "-d", "--name", name, "--network", "none", "busybox", "sleep", "86400", timeout=300, check=True)
        pids = list(processes(env))
        yield lambda: pids
    finally:
        cm.remove(*names)


@contextlib.contextmanager
def offered(env: Environment, count: int, memory: int) -> Iterator[Callable[[], Sequence[int]]]:
    """The same started by somebody who offers all private memory of his and of his children (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0):
        raise RuntimeError("this kernel (before 6.4) cannot merge memory of whole processes")
    try:
        with sandboxes(env, count, memory) as find:
            yield find
    finally:
        libc.prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
