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

import pytest

from tests.vm.growth import Watch
from tests.vm.pool_lab import lab
from tests.vm.support import (
    Casemate,
    Container,
    Environment,
    await_twins,
    detached,
    environment,
    leaks,
    processes,
)

pytestmark = [pytest.mark.soak, pytest.mark.timeout(5400)]
ROUNDS = int(os.environ.get("CASEMATE_SOAK_ROUNDS", "100"))


@pytest.mark.parametrize(("wall", "copies"), [("sentry", False), ("vm", False), ("vm", True)])
def test_run_again_and_again_leaves_nothing(wall: str, copies: bool) -> None:
    """And nothing grows meanwhile: see :mod:`tests.vm.growth`. A container stays all the time, so what all keepers are
    forked from does too.

    Arguments:
        copies: whether machines are copies of one, or each is made from the template.
    """
    with environment(copies=copies) as env:
        cm = Casemate(env)
        with detached(cm, "stays", "--wall", wall):
            if copies:
                await_twins(env)
            if wall == "vm":
                cm("run", "--name", "look", "busybox", "true", check=True)
                made = cm.inspect("look")["Guest"]
                assert len(made["template"]) == 12 and made.get("twin", False) is copies, "another way is repeated"
                cm.remove("look")
            watch = Watch(env)
            for number in range(ROUNDS + 1):
                _once(cm, number, "--wall", wall)
                if number % max(1, ROUNDS // 9) == 0 or number == ROUNDS:
                    watch.look(number)
            assert watch.growth(comes_and_goes=copies) == []
        assert leaks(env) == []


def test_the_pool_hands_out_again_and_again() -> None:
    """As above, with machines that the pool makes and hands out."""
    with lab(2) as made:
        made.ready(2)
        with detached(made.cm, "soak-stays-pool"):
            watch = Watch(made.env)
            for number in range(ROUNDS + 1):
                made.ready(1)
                _once(made.cm, number)
                if number % max(1, ROUNDS // 9) == 0 or number == ROUNDS:
                    made.ready(2)
                    watch.look(number)
            assert watch.growth(comes_and_goes=True) == []
            status = made.status()
            assert status["handed_out"] == ROUNDS + 2 and status["failures"] == 0, status
        assert made.end() == 0
        assert leaks(made.env) == []


def _once(cm: Casemate, number: int, *options: str) -> None:
    done = cm("run", "--rm", *options, "busybox", "sh", "-c", f"echo {number}; exit {number % 120}")
    assert (done.returncode, done.stdout) == (number % 120, b"%d\n" % number), done.stderr


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
        watch = Watch(env)
        for part in range(10):
            _exec_many(container, ROUNDS)
            watch.look(part * ROUNDS)
    assert watch.growth() == []


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
