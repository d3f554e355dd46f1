"""A program that takes all it can get takes it from its own sandbox: it is told "no more", and the sandbox goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sentry.lab import C, build
from tests.vm.support import Casemate

FLOODS = ("processes", "threads", "descriptors", "timers", "mappings", "signals")


@pytest.fixture(scope="module")
def bounded(cm: Casemate) -> Iterator[str]:
    """A container with few processes and little memory, in which the program is ``/floods``."""
    program = build(C / "limits" / "floods.c")
    cm.out(
        "run", "-d", "--name", "bounded", "--pids-limit", "200", "-m", "256m", "-v", f"{program}:/floods:ro", "busybox",
        "sleep", "86400",
    )  # fmt: skip
    yield "bounded"
    cm.out("rm", "-f", "bounded")


@pytest.mark.parametrize("what", FLOODS)
def test_who_takes_all_is_told_no_more(cm: Casemate, bounded: str, what: str) -> None:
    done = cm("exec", bounded, "/floods", what, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert cm.out("exec", bounded, "echo", "still there") == "still there"


def test_a_fork_bomb_stays_within(cm: Casemate) -> None:
    script = "bomb() { while :; do (bomb) & done; }; (bomb) & exec sleep 1000"
    cm.out("run", "-d", "--name", "bomb", "--pids-limit", "100", "busybox", "sh", "-c", script)
    try:
        deadline = time.monotonic() + 60
        while b"can't fork" not in cm("logs", "bomb").stderr:
            assert time.monotonic() < deadline
            time.sleep(0.2)  # nobody tells
        assert cm.out("exec", "bomb", "echo", "still there") == "still there"
        cm.out("kill", "bomb")
        assert cm.out("wait", "bomb") == "137"
    finally:
        cm.out("rm", "-f", "bomb")


def test_a_flood_of_files_in_memory_stays_within(cm: Casemate) -> None:
    script = "cd /dev/shm; dd if=/dev/zero of=a bs=1M count=1000; echo $?; rm a; echo ok >b; cat b"
    done = cm("run", "--rm", "--shm-size", "32m", "busybox", "sh", "-c", script)
    assert done.returncode == 0 and done.stdout.split() == [b"1", b"ok"] and b"No space left" in done.stderr


def test_the_largest_goes_where_the_memory_is_not_enough(cm: Casemate) -> None:
    """It is the container's own bound that counts, long before the sandbox's: who is within it goes on."""
    done = cm("run", "--rm", "-m", "128m", "busybox", "sh", "-c", "tail /dev/zero; echo $?; echo still there")
    assert done.returncode == 0 and done.stdout == b"137\nstill there\n", done.stderr


def test_a_flood_of_memory_that_is_nobodys_is_told_as_such(cm: Casemate) -> None:
    """Files in memory count for the sandbox alone, so the host's kernel chooses; the keeper lives to tell."""
    flood = "dd if=/dev/zero of=/dev/shm/a bs=1M count=600; sleep 86400"
    done = cm("run", "--rm", "-m", "128m", "--shm-size", "700m", "busybox", "sh", "-c", flood)
    assert done.returncode == 137 and b"out of memory" in done.stderr, done.stderr


def test_the_host_has_nothing_more_afterwards(cm: Casemate, tmp_path: Path) -> None:
    before = len(list(Path("/proc").glob("[0-9]*")))
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; exit 4"
    assert cm("run", "--rm", "busybox", "sh", "-c", script).returncode == 4
    deadline = time.monotonic() + 30
    while len(list(Path("/proc").glob("[0-9]*"))) > before + 4:
        assert time.monotonic() < deadline
        time.sleep(0.1)  # nobody tells
