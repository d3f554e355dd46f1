"""Long repetition: what leaks a little each time, or fails once in a hundred, shows here. ``make soak``.

``CASEMATE_SOAK_ROUNDS`` says how often; 100 when it is not set.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.vm.support import Casemate, Container, Environment, detached, leaks, processes

pytestmark = [pytest.mark.soak, pytest.mark.timeout(5400)]
ROUNDS = int(os.environ.get("CASEMATE_SOAK_ROUNDS", "100"))


def test_run_again_and_again_leaves_nothing(cm: Casemate, env: Environment) -> None:
    for number in range(ROUNDS):
        done = cm("run", "--rm", "busybox", "sh", "-c", f"echo {number}; exit {number % 120}")
        assert (done.returncode, done.stdout) == (number % 120, b"%d\n" % number), done.stderr
    assert leaks(env) == []


def test_many_at_once_again_and_again(cm: Casemate, env: Environment) -> None:
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        for _ in range(max(1, ROUNDS // 20)):
            runs = [
                pool.submit(cm, "run", "--rm", "busybox", "echo", str(number), timeout=600) for number in range(20)
            ]
            for number, run in enumerate(runs):
                done = run.result()
                assert (done.returncode, done.stdout) == (0, b"%d\n" % number), done.stderr
    assert leaks(env) == []


def test_a_long_life_does_not_grow(cm: Casemate, env: Environment) -> None:
    """A thousand processes in one sandbox: descriptors, threads and memory of the host's side stay as they were."""
    with detached(cm, "soak-long") as container:
        _exec_many(container, 50)  # what is made once has been made
        before = _sizes(env)
        _exec_many(container, 10 * ROUNDS)
        after = _sizes(env)
    assert set(after) == set(before), "other processes than before"
    for pid, (descriptors, threads, private) in after.items():
        command = f"process {pid}: {before[pid]} became {after[pid]}"
        assert descriptors <= before[pid][0] + 2, command
        assert threads <= before[pid][1] + 2, command
        # QEMU's share holds the guest's memory, which the guest may go on filling with its caches.
        assert private <= before[pid][2] + 16_384 or before[pid][2] > 100_000, command


def test_a_kill_at_any_moment_leaves_nothing(cm: Casemate, env: Environment) -> None:
    """The command, the keeper, QEMU or the file server is killed at a random moment of a run."""
    chosen = random.Random(20)
    for number in range(ROUNDS):
        name = f"soak-kill-{number}"
        with cm.popen("run", "--name", name, "busybox", "sleep", "2") as run:
            # The moment is what is varied here, so a wait by time is what is meant.
            time.sleep(chosen.uniform(0, 5))
            candidates = sorted(processes(env))
            if candidates:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chosen.choice(candidates), signal.SIGKILL)
            run.communicate(timeout=120)
        listed = cm("ps", "-a", check=True)
        assert b"Traceback" not in listed.stderr
        cm.remove(name)
        found = leaks(env)
        assert found == [], f"round {number}: {found}"


def _exec_many(container: Container, count: int) -> None:
    for number in range(count):
        done = container.exec("sh", "-c", f"echo {number}")
        assert (done.returncode, done.stdout) == (0, b"%d\n" % number), done.stderr


def _sizes(env: Environment) -> dict[int, tuple[int, int, int]]:
    """Open descriptors, threads and private memory in KiB of an environment's processes."""
    sizes = {}
    for pid in processes(env):
        base = Path("/proc") / str(pid)
        rollup = (base / "smaps_rollup").read_text().splitlines()
        private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
        sizes[pid] = (len(os.listdir(base / "fd")), len(os.listdir(base / "task")), private)
    return sizes
